//! Who serves when the pool cannot: the backends of the fallback chain, one after the other.
//!
//! Nobody is asked whether it could: a backend is asked when a request needs it, and each such request is announced. A
//! backend's own failure is for the operator. The client reads what the pool said, because that is true and says when to
//! come back; only where the pool was not asked at all the first one's failure is told.
//!
//! A client that may use some subscriptions only, or those of its organisation, gets no backend beside the pool: they
//! belong to the house.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use super::ask::{estimated_cost, session_key};
use super::beside::{Account, Run};
use super::pooled::{Begun, begun};
use super::record::Trace;
use super::routing::{NamedBackend, Routing, Target};
use super::{Answer, Call, GatewayError, PooledGateway, QueueSettings, Served, SessionHint};
use crate::backend::{Caller, Failure, FailureKind, Fault};
use crate::pool::{Effect, Only, Realm, RefusalReason, SessionLabel};
use crate::runtime::clock;

/// When to come back to a backend that is busy.
const BUSY: Duration = Duration::from_secs(1);

impl PooledGateway {
    /// Gives a request to the one it names, or to whoever serves first.
    pub(super) async fn begin(&self, call: &Call, deadline: Instant) -> Result<Answer, GatewayError> {
        let trace = self.trace(call);
        let answer = self.begin_somewhere(call, deadline, trace.as_ref()).await;
        if let (Some(trace), Err(error)) = (trace, &answer) {
            trace.failed(error);
        }
        answer
    }

    async fn begin_somewhere(
        &self,
        call: &Call,
        deadline: Instant,
        trace: Option<&Arc<Trace>>,
    ) -> Result<Answer, GatewayError> {
        let routing = self.routing();
        if let Some(target) = call.backend.as_ref().and_then(|name| routing.named.get(name)) {
            return match target {
                Target::Backend(named) => self.ask_backend(call, named, None, deadline, trace).await,
                Target::Pool | Target::Subscription(_) => self.begin_in_pool(call, deadline, trace).await,
            };
        }
        let mut first: Option<GatewayError> = None;
        let mut reason: Option<String> = None;
        let may_leave = self.may_leave_the_pool(&call.client);
        for one in routing.order() {
            let outcome = match one {
                None => self.begin_in_pool(call, deadline, trace).await,
                // Whoever may use the pool only is served by it, wherever it stands in the chain.
                Some(_) if !may_leave && routing.order().any(Option::is_none) => continue,
                Some(named) => self.ask_backend(call, named, reason.clone(), deadline, trace).await,
            };
            let error = match outcome {
                Err(error) if first.is_some() || may_pass_on(&error) => error,
                done => return done,
            };
            reason.get_or_insert_with(|| cause(&error));
            // The pool's word counts for more than a backend's.
            if first.is_none() || one.is_none() {
                first = Some(error);
            }
        }
        Err(first.unwrap_or(GatewayError::ShuttingDown))
    }

    /// Whether a client may use what is not of the pool.
    pub(super) fn may_leave_the_pool(&self, client: &str) -> bool {
        self.clients()
            .only(client)
            .is_none_or(|only| only.subscriptions.is_none() && !matches!(only.realm, Realm::Organization(_)))
    }

    /// How a request waits for a busy pool: not long if somebody else can take it.
    pub(super) fn queue_for(&self, call: &Call, queue: QueueSettings) -> QueueSettings {
        let routing = self.routing();
        let waits = call.backend.is_some() || !routing.has_substitute() || !self.may_leave_the_pool(&call.client);
        if waits { queue } else { QueueSettings { timeout: queue.timeout.min(routing.patience), ..queue } }
    }

    /// Which subscriptions a call may use: what its client may, and of that the one that it names.
    pub(super) fn only(&self, call: &Call) -> Option<Arc<Only>> {
        let only = self.clients().only(&call.client);
        let routing = self.routing();
        let Some(Target::Subscription(id)) = call.backend.as_ref().and_then(|name| routing.named.get(name)) else {
            return only;
        };
        let mut only = only.map_or_else(Only::default, |only| (*only).clone());
        let named = BTreeSet::from([Arc::clone(id)]);
        only.subscriptions = Some(only.subscriptions.map_or_else(|| named.clone(), |may| &may & &named));
        Some(Arc::new(only))
    }

    /// Runs a request on a backend beside the pool; `instead` is why, if it steps in for another.
    async fn ask_backend(
        &self,
        call: &Call,
        named: &NamedBackend,
        instead: Option<String>,
        deadline: Instant,
        trace: Option<&Arc<Trace>>,
    ) -> Result<Answer, GatewayError> {
        if !self.may_leave_the_pool(&call.client) {
            let message = format!("this client key may not use the backend '{}'", named.name());
            return Err(GatewayError::NotAllowed { message });
        }
        if !named.takes_tools() && !call.request.tools.is_empty() {
            let detail = format!("the backend '{}' takes no tools", named.name());
            return Err(Failure::new(FailureKind::InvalidRequest, detail).into());
        }
        let Some(place) = named.place() else {
            let message = format!("the backend '{}' is busy", named.name());
            return Err(GatewayError::Refused { reason: RefusalReason::Busy, retry_after: Some(BUSY), message });
        };
        let spending = self.clients().admit(clock::now(), &call.client, estimated_cost(call))?;
        named.note_begin();
        if let Some(trace) = trace {
            trace.attempt(named.shared_name());
        }
        let caller = Caller { client: Arc::clone(&call.client) };
        let account = Account::open(call, named.clone(), self.pool().clone(), spending, trace.cloned());
        let run = Run::new(named.backend().run(&call.request, &caller), account, place);
        let Begun { events, cache_is_warm } =
            begun(call, run, deadline, self.kill_token()).await.map_err(|failure| {
                warn!(backend = %named.name(), kind = ?failure.kind, detail = %failure, "the backend failed");
                GatewayError::Failed(failure)
            })?;
        if let Some(cause) = &instead {
            info!(backend = %named.name(), cause, "served by the fallback");
            self.announce(Effect::Failover {
                session: SessionLabel::from(&session_key(call)).to_string(),
                backend: Arc::clone(named.shared_name()),
                cause: cause.clone(),
            });
        }
        let session_id = match &call.session {
            SessionHint::Session(id) | SessionHint::Header(id) => Some(id.to_string()),
            SessionHint::CacheKey(_) | SessionHint::None => None,
        };
        let decision_reason = instead.clone().unwrap_or_else(|| "asked for by name".to_owned());
        let backend = Some(Served { backend: Arc::clone(named.shared_name()), instead });
        let subscription = Arc::clone(named.shared_name());
        Ok(Answer { subscription, backend, session_id, decision_reason, cache_is_warm, events })
    }

    /// What a name in a request's path leads to.
    pub(super) fn target(&self, name: &str) -> Option<Target> {
        self.routing().named.get(name).cloned()
    }

    /// Puts other backends beside the pool. Running answers keep what they have.
    pub fn route(&self, routing: Routing) {
        self.set_routing(routing);
    }
}

/// Whether somebody else may serve what one could not: nobody has seen anything yet, and it was not the client's fault.
fn may_pass_on(error: &GatewayError) -> bool {
    match error {
        GatewayError::Refused { .. } => true,
        GatewayError::Failed(failure) => match failure.kind {
            FailureKind::ModelNotFound => true,
            FailureKind::TimedOut { timer: "total" } => false,
            _ => failure.fault() != Fault::Client,
        },
        _ => false,
    }
}

/// Why somebody else serves, for people.
fn cause(error: &GatewayError) -> String {
    match error {
        GatewayError::Failed(failure) => {
            let whose = match failure.fault() {
                Fault::Provider => "the provider failed",
                Fault::Subscription => "the subscriptions that were tried cannot serve",
                Fault::Client => "the pool does not have the model",
                Fault::Backend => "the Claude CLI failed",
            };
            whose.to_owned()
        }
        other => other.to_string(),
    }
}
