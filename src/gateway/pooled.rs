//! The gateway in front of the pool: one request's life.
//!
//! lease -> run -> first content, or classify and retry elsewhere -> the client's stream -> finish.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use futures_util::future::BoxFuture;
use futures_util::stream::{self, Stream, StreamExt as _};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::ask::{ask, estimated_cost, session_key};
use super::attempt::Attempt;
use super::clients::Clients;
use super::guard::Guard;
use super::health::{PartHealth, Services};
use super::lease::{Lease, SharedPool};
use super::queue::{Entry, Unserved};
use super::record::{Recorder, Trace};
use super::routing::Routing;
use super::runaway::Runaways;
use super::transcripts::Transcripts;
use super::{
    Answer, BackendHealth, BackendModel, Call, DecisionFilter, Feed, Gateway, GatewayError, HealthReport, ModelNames,
    ModelsAt, PoolHealth, QueueSettings, SessionHint, Settings, operate,
};
use crate::backend::claude_cli::ClaudeCli;
use crate::backend::{Backend, Caller, Failure, FailureKind, Fault};
use crate::conversation::{Catalog, Event};
use crate::pool::{Ask, Effect, Refusal, RefusalReason, Runaway};
use crate::runtime::clock;
use crate::runtime::tasks::Tasks;
use crate::units::Timestamp;

/// The first pause before a failed request is tried again on a subscription that it has tried already.
const BACK_OFF: Duration = Duration::from_millis(250);

/// Decisions that `/debug/auth-pool` shows, the newest first.
const SHOWN_DECISIONS: usize = 20;

/// When to come back if somebody may serve already, or at any moment.
const AT_ANY_MOMENT: Duration = Duration::from_secs(1);

/// The backends by subscription id.
pub type Backends = HashMap<Arc<str>, Arc<dyn Backend>>;

/// Says something for the operator's view.
type DebugPart = Arc<dyn Fn() -> Value + Send + Sync>;

/// Serves requests from the pool.
#[derive(Clone)]
pub struct PooledGateway(pub(super) Arc<Shared>);

pub(super) struct Shared {
    pool: SharedPool,
    clients: Clients,
    routing: ArcSwap<Routing>,
    backends: ArcSwap<Backends>,
    /// Those before the last change: somebody may just have been given a subscription that is gone by now.
    retired: ArcSwap<Backends>,
    pub(super) catalog: ArcSwap<Catalog>,
    claude: ClaudeCli,
    settings: ArcSwap<Settings>,
    started: Timestamp,
    draining: AtomicBool,
    guard: Guard,
    runaways: Runaways,
    transcripts: Transcripts,
    /// Ends every answer.
    kill: CancellationToken,
    /// What is wrong with the configuration file since it was last changed.
    config_problems: ArcSwapOption<Value>,
    /// What the program stands on.
    services: Services,
    /// Other rooms' parts of the operator's view.
    debug_parts: ArcSwap<Vec<(&'static str, DebugPart)>>,
    /// Who keeps what requests leave behind.
    recorder: OnceLock<Arc<dyn Recorder>>,
    tasks: Tasks,
}

impl PooledGateway {
    /// A gateway over `pool`, whose subscriptions are served by `backends`.
    pub fn new(
        pool: SharedPool,
        backends: Backends,
        catalog: Catalog,
        claude: ClaudeCli,
        settings: Settings,
        tasks: Tasks,
    ) -> Self {
        Self(Arc::new(Shared {
            pool,
            clients: Clients::default(),
            routing: ArcSwap::default(),
            backends: ArcSwap::from_pointee(backends),
            retired: ArcSwap::default(),
            catalog: ArcSwap::from_pointee(catalog),
            claude,
            settings: ArcSwap::from_pointee(settings),
            started: clock::now(),
            draining: AtomicBool::new(false),
            guard: Guard::default(),
            runaways: Runaways::default(),
            transcripts: Transcripts::default(),
            kill: CancellationToken::new(),
            config_problems: ArcSwapOption::empty(),
            services: Services::default(),
            debug_parts: ArcSwap::default(),
            recorder: OnceLock::new(),
            tasks,
        }))
    }

    /// Refuses new requests from now on, and those that wait; running ones go on.
    pub fn drain(&self) {
        self.0.draining.store(true, Ordering::Release);
        self.0.pool.queue().close();
        self.0.pool.feed().close();
    }

    /// Ends every answer that still runs, each with an error for its client.
    pub fn kill(&self) {
        self.0.kill.cancel();
    }

    /// Takes over changed backends, names of models and settings. Running answers keep what they have.
    pub fn replace(&self, backends: Backends, catalog: Catalog, settings: Settings) {
        self.0.retired.store(self.0.backends.load_full());
        self.0.backends.store(Arc::new(backends));
        self.0.catalog.store(Arc::new(catalog));
        self.configure(settings);
    }

    /// Takes over changed names of models.
    pub fn rename(&self, catalog: Catalog) {
        self.0.catalog.store(Arc::new(catalog));
    }

    /// Takes over changed settings.
    pub fn configure(&self, settings: Settings) {
        self.0.settings.store(Arc::new(settings));
    }

    /// Tells the operator what is wrong with a changed configuration that was not taken over; `None` when all is well.
    pub fn set_config_problems(&self, problems: Option<Value>) {
        self.0.config_problems.store(problems.map(Arc::new));
    }

    /// Adds what `part` says, each time it is asked, to the operator's view under `name`. It must hold no secret.
    pub fn show_in_debug(&self, name: &'static str, part: impl Fn() -> Value + Send + Sync + 'static) {
        let part: DebugPart = Arc::new(part);
        self.0.debug_parts.rcu(|parts| {
            let others = parts.iter().filter(|(known, _)| *known != name).cloned();
            others.chain([(name, Arc::clone(&part))]).collect::<Vec<_>>()
        });
    }

    /// Tells monitors how a service is doing, by what `look` says each time it is asked.
    pub fn show_in_health(&self, name: &'static str, look: impl Fn() -> PartHealth + Send + Sync + 'static) {
        self.0.services.add(name, look);
    }

    pub(super) fn pool(&self) -> &SharedPool {
        &self.0.pool
    }

    /// What requests leave behind from now on goes to `recorder`. The first one stays.
    pub fn record_with(&self, recorder: Arc<dyn Recorder>) {
        let _ = self.0.recorder.set(recorder);
    }

    /// Whether [`Self::drain`] was called.
    pub fn is_draining(&self) -> bool {
        self.0.draining.load(Ordering::Acquire)
    }

    pub(super) fn routing(&self) -> Arc<Routing> {
        self.0.routing.load_full()
    }

    pub(super) fn set_routing(&self, routing: Routing) {
        self.0.routing.store(Arc::new(routing));
    }

    pub(super) fn kill_token(&self) -> CancellationToken {
        self.0.kill.clone()
    }

    /// Tells everybody who listens to the pool what happened beside it.
    pub(super) fn announce(&self, effect: Effect) {
        self.0.pool.publish(effect);
    }

    pub(super) fn runaways(&self) -> &Runaways {
        &self.0.runaways
    }

    pub(super) fn claude(&self) -> &ClaudeCli {
        &self.0.claude
    }

    pub(super) fn transcripts(&self) -> &Transcripts {
        &self.0.transcripts
    }

    /// What each client may use of the pool.
    pub fn clients(&self) -> &Clients {
        &self.0.clients
    }

    /// Follows a request from its arrival to its end, for whoever keeps what requests leave behind.
    pub(super) fn trace(&self, call: &Call) -> Option<Arc<Trace>> {
        let recorder = self.0.recorder.get().cloned()?;
        Some(Trace::start(recorder, call, session_key(call)))
    }

    /// Tries subscriptions until one begins to answer. The answer has to be over by `deadline`, but for the time that the
    /// request waits in the queue.
    pub(super) async fn begin_in_pool(
        &self,
        call: &Call,
        mut deadline: Instant,
        trace: Option<&Arc<Trace>>,
    ) -> Result<Answer, GatewayError> {
        let spending = self.0.clients.admit(clock::now(), &call.client, estimated_cost(call))?;
        let mut tried: Vec<Arc<str>> = Vec::new();
        let mut last: Option<Failure> = None;
        let settings = **self.0.settings.load();
        // What is left of it: a request that is tried again does not begin to wait anew.
        let mut queue = self.queue_for(call, settings.queue);
        for attempt in 0..settings.max_attempts.max(1) {
            let timeout = queue.timeout;
            let mut lease = match self.admitted(call, &tried, last.as_ref(), attempt, &mut queue).await {
                Ok(lease) => {
                    deadline += timeout.saturating_sub(queue.timeout);
                    lease
                }
                Err(Unserved::Refused(refusal)) => return Err(refused(&refusal, last)),
                Err(Unserved::Closed) => return Err(GatewayError::ShuttingDown),
            };
            lease.spending = spending.clone();
            let subscription = Arc::clone(&lease.subscription);
            lease.is_second_chance = tried.contains(&subscription);
            let decision = Arc::clone(&lease.decision);
            lease.serve(trace);
            info!(%subscription, attempt = attempt + 1, reason = %decision.reason, "allocated");
            self.0.pool.tell_allocation(&call.client, attempt + 1, &subscription, &decision);
            match self.run(call, lease, deadline).await {
                Ok(Begun { events, cache_is_warm }) => {
                    let session_id = match &call.session {
                        SessionHint::Session(id) | SessionHint::Header(id) => Some(id.to_string()),
                        SessionHint::CacheKey(_) | SessionHint::None => None,
                    };
                    return Ok(Answer {
                        subscription,
                        backend: None,
                        session_id,
                        decision_reason: decision.reason.to_string(),
                        cache_is_warm,
                        events,
                    });
                }
                Err(failure) => {
                    warn!(%subscription, kind = ?failure.kind, detail = %failure, "attempt failed");
                    self.0.pool.tell_failure(&call.client, attempt + 1, &subscription, &failure);
                    if !failure.may_retry_elsewhere() {
                        return Err(GatewayError::Failed(failure));
                    }
                    tried.push(subscription);
                    last = Some(failure);
                }
            }
        }
        Err(match last {
            Some(failure) if failure.fault() == Fault::Subscription => self.out_of_attempts(call, &tried, failure),
            Some(failure) => GatewayError::Failed(failure),
            None => GatewayError::ShuttingDown,
        })
    }

    /// The client's error when every attempt ended at a subscription that cannot serve. When to come back depends on
    /// all of the pool: what the last one said is about itself.
    fn out_of_attempts(&self, call: &Call, tried: &[Arc<str>], last: Failure) -> GatewayError {
        match self.0.pool.refusal_of(&self.ask(call, tried)) {
            Some(refusal) => refused(&refusal, Some(last)),
            // Somebody else can: the next request goes there.
            None => GatewayError::Refused {
                reason: RefusalReason::Busy,
                retry_after: Some(AT_ANY_MOMENT),
                message: "the subscriptions that were tried cannot serve; others can".to_owned(),
            },
        }
    }

    /// A lease on a subscription that this request has not tried. When there is none, and the last failure was a
    /// passing one, the tried ones get a second chance after a pause.
    pub(super) async fn lease(
        &self,
        call: &Call,
        tried: &[Arc<str>],
        last: Option<&Failure>,
        attempt: u32,
        queue: &mut QueueSettings,
    ) -> Result<Lease, Unserved> {
        let passing = last.is_some_and(|failure| matches!(failure.fault(), Fault::Provider | Fault::Backend));
        if !passing {
            return self.wait(&self.ask(call, tried), queue).await;
        }
        if let Ok(lease) = self.0.pool.acquire(&self.ask(call, tried)) {
            return Ok(lease);
        }
        tokio::time::sleep(BACK_OFF * 2_u32.pow(attempt.min(6))).await;
        self.wait(&self.ask(call, &[]), queue).await
    }

    /// A lease, now or after a wait in the queue. Takes the time waited off the queue's timeout.
    async fn wait(&self, ask: &Ask<'_>, queue: &mut QueueSettings) -> Result<Lease, Unserved> {
        match self.0.pool.enter(ask, queue, &self.0.tasks)? {
            Entry::Leased(lease) => Ok(lease),
            Entry::Refused(refusal) => Err(Unserved::Refused(refusal)),
            Entry::Waiting(ticket) => {
                let begun = Instant::now();
                info!("all are busy: the request waits");
                let outcome = ticket.lease().await;
                let waited = begun.elapsed();
                queue.timeout = queue.timeout.saturating_sub(waited);
                info!(waited_ms = waited.as_millis(), served = outcome.is_ok(), "the wait is over");
                outcome
            }
        }
    }

    /// What the pool is asked on behalf of a call's client.
    pub(super) fn ask<'a>(&self, call: &Call, exclude: &'a [Arc<str>]) -> Ask<'a> {
        ask(call, self.only(call), exclude)
    }

    pub(super) fn backend(&self, subscription: &str) -> Option<Arc<dyn Backend>> {
        let current = self.0.backends.load().get(subscription).cloned();
        current.or_else(|| self.0.retired.load().get(subscription).cloned())
    }

    /// Runs the request under `lease` up to what its client sees first.
    async fn run(&self, call: &Call, lease: Lease, deadline: Instant) -> Result<Begun, Failure> {
        let Some(backend) = self.backend(&lease.subscription) else {
            return Err(Failure::new(FailureKind::Spawn, "the subscription has no backend"));
        };
        let request = &call.request;
        let caller = Caller { client: Arc::clone(&call.client) };
        let attempt = Attempt::new(backend.run(request, &caller), lease, request.model.price, self.0.tasks.clone());
        begun(call, attempt, deadline, self.0.kill.clone()).await
    }
}

/// Reads an answer up to what its client sees first; the rest comes with it.
pub(super) async fn begun<S>(
    call: &Call,
    mut attempt: S,
    deadline: Instant,
    kill: CancellationToken,
) -> Result<Begun, Failure>
where
    S: Stream<Item = Result<Event, Failure>> + Send + Unpin + 'static,
{
    let mut begun = Vec::with_capacity(2);
    let mut cache_is_warm = false;
    while let Some(event) = timeout_at(deadline, attempt.next()).await.map_err(|_| too_late())?.transpose()? {
        let is_seen = if call.stream { event.is_content() } else { matches!(event, Event::Finished { .. }) };
        if let Event::Started(usage) = &event {
            // A common system prompt can be there while the conversation is not.
            cache_is_warm = usage.cache_read * 2 >= usage.total_input().max(1);
        }
        begun.push(Ok(event));
        if is_seen {
            let rest = Rest { attempt, deadline, kill };
            let events = stream::iter(begun).chain(stream::unfold(Some(rest), Rest::next)).boxed();
            return Ok(Begun { events, cache_is_warm });
        }
    }
    Err(Failure::new(FailureKind::Protocol, "the backend ended without an answer"))
}

impl PooledGateway {
    /// Stops a client in a loop. To be asked when the whole conversation is there: `go on` is not the same in two of them.
    pub(super) fn guard(&self, call: &Call) -> Result<(), GatewayError> {
        let Some(most) = self.0.settings.load().max_repeats else { return Ok(()) };
        self.0.guard.admit(call, most, Instant::now()).map_err(|retry_after| {
            let cause = || format!("the same prompt came more than {most} times within a minute");
            self.stopped(Runaway::RepeatedPrompts, Some(Arc::clone(&call.client)), cause);
            let message = format!(
                "The same prompt was sent more than {most} times within a minute, which looks like a loop. Where it is \
                 meant, the operator can raise `runawayGuard.repeatedPrompts`."
            );
            GatewayError::Runaway { message, retry_after }
        })
    }

    /// The queue, for the operator.
    fn queue(&self) -> Value {
        let QueueSettings { max_waiting, timeout } = self.0.settings.load().queue;
        let mut queue = json!(self.0.pool.queue().counts());
        queue["maxWaiting"] = json!(max_waiting);
        queue["timeoutSeconds"] = json!(timeout.as_secs_f64());
        queue
    }
}

pub(super) type EventResult = Result<Event, GatewayError>;

/// An answer of which something is there.
pub(super) struct Begun {
    pub(super) events: stream::BoxStream<'static, EventResult>,
    /// See [`Answer::cache_is_warm`].
    pub(super) cache_is_warm: bool,
}

/// An answer from what its client sees first on.
struct Rest<S> {
    attempt: S,
    deadline: Instant,
    /// See [`PooledGateway::kill`].
    kill: CancellationToken,
}

impl<S: Stream<Item = Result<Event, Failure>> + Unpin> Rest<S> {
    async fn next(rest: Option<Self>) -> Option<(EventResult, Option<Self>)> {
        let Self { mut attempt, deadline, kill } = rest?;
        let failure = tokio::select! {
            biased;
            event = timeout_at(deadline, attempt.next()) => match event.unwrap_or_else(|_| Some(Err(too_late())))? {
                Ok(event) => return Some((Ok(event), Some(Self { attempt, deadline, kill }))),
                Err(failure) => failure,
            },
            () = kill.cancelled() => return Some((Err(GatewayError::ShuttingDown), None)),
        };
        warn!(kind = ?failure.kind, detail = %failure, "the answer broke off");
        Some((Err(GatewayError::Failed(failure)), None))
    }
}

fn too_late() -> Failure {
    Failure::new(FailureKind::TimedOut { timer: "total" }, "the request was not answered within its time")
}

impl Gateway for PooledGateway {
    fn chat(&self, mut call: Call) -> BoxFuture<'_, Result<Answer, GatewayError>> {
        call.priority = self.0.clients.priority(&call.client, call.priority);
        Box::pin(async move {
            if self.is_draining() {
                return Err(GatewayError::ShuttingDown);
            }
            let deadline = Instant::now() + self.0.settings.load().deadline;
            tokio::select! {
                biased;
                answer = self.in_session(call, deadline) => answer,
                () = self.0.kill.cancelled() => Err(GatewayError::ShuttingDown),
            }
        })
    }

    fn catalog(&self) -> Arc<Catalog> {
        self.0.catalog.load_full()
    }

    fn came_back(&self) {
        let cause = || "the address of a subscription or of a backend leads back to this server".to_owned();
        self.stopped(Runaway::Loop, None, cause);
    }

    fn names(&self, name: &str) -> Option<ModelNames> {
        let target = self.target(name)?;
        Some(if target.takes_any_model() { ModelNames::Any } else { ModelNames::Known })
    }

    fn models_of_backends(&self, client: &str) -> Vec<BackendModel> {
        self.models_beside(client)
    }

    fn models_at(&self, name: &str, client: &str) -> Option<ModelsAt> {
        self.models_behind(name, client)
    }

    fn health(&self) -> HealthReport {
        let totals = self.0.pool.health();
        let processes = self.0.claude.counts();
        HealthReport {
            status: if self.is_draining() { "stopping" } else { "ok" }.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: clock::now().since(self.0.started).as_secs(),
            pool: PoolHealth {
                subscriptions: totals.subscriptions,
                eligible: totals.eligible,
                in_flight: totals.in_flight,
                sessions: totals.sessions,
                waiting: self.0.pool.queue().counts().waiting,
            },
            backend: BackendHealth { live: processes.running, spares: processes.spare },
        }
    }

    fn ready(&self) -> Result<(), String> {
        if self.is_draining() {
            return Err("shutting down".to_owned());
        }
        // Who is merely busy serves whoever waits a moment, and nobody is asked whether a backend beside the pool could.
        if self.routing().leaves_the_pool() || self.0.pool.serves() {
            return Ok(());
        }
        let all = self.0.pool.health().subscriptions;
        Err(format!(
            "none of {all} subscriptions can serve a new session, however long it waits, and no backend steps in"
        ))
    }

    fn services(&self) -> Vec<(&'static str, PartHealth)> {
        self.0.services.all()
    }

    fn debug(&self) -> Value {
        let snapshot = self.0.pool.snapshot();
        let decisions: Vec<_> = self.0.pool.peek(|pool, _| pool.decisions().take(SHOWN_DECISIONS).cloned().collect());
        let mut debug = serde_json::to_value(snapshot).unwrap_or_default();
        if let Some(fields) = debug.as_object_mut() {
            fields.insert("decisions".to_owned(), json!(decisions));
            fields.insert("version".to_owned(), json!(env!("CARGO_PKG_VERSION")));
            fields.insert("processes".to_owned(), json!(self.0.claude.counts()));
            fields.insert("queue".to_owned(), self.queue());
            fields.insert("routing".to_owned(), self.routing().view());
            fields.insert("configProblems".to_owned(), json!(self.0.config_problems.load().as_deref()));
            for (name, part) in self.0.debug_parts.load().iter() {
                fields.insert((*name).to_owned(), part());
            }
        }
        debug
    }

    fn decisions(&self, filter: &DecisionFilter) -> Value {
        operate::decisions(&self.0.pool, filter)
    }

    fn feed(&self) -> Feed {
        self.0.pool.feed().clone()
    }

    fn rebalance(&self) -> Value {
        operate::rebalance(&self.0.pool, &self.0.settings.load().rebalancing)
    }
}

/// The client's error when nobody can serve. A provider's or our own failure on the way says more than "all are
/// taken"; a limit does not, because the pool knows when the first of all limits ends.
fn refused(refusal: &Refusal, last: Option<Failure>) -> GatewayError {
    match last {
        Some(failure) if failure.fault() != Fault::Subscription => GatewayError::Failed(failure),
        _ => {
            let known = refusal.retry_at.map(|instant| instant.since(clock::now()));
            // Where all are busy, an answer may end at any moment.
            let retry_after = known.or_else(|| (refusal.reason == RefusalReason::Busy).then_some(AT_ANY_MOMENT));
            GatewayError::Refused { reason: refusal.reason, retry_after, message: message(refusal.reason).to_owned() }
        }
    }
}

fn message(reason: RefusalReason) -> &'static str {
    match reason {
        RefusalReason::Busy => "all subscriptions of the pool are busy",
        RefusalReason::ProviderLimited => "all subscriptions of the pool are limited by the provider",
        RefusalReason::BudgetSpent => "all subscriptions of the pool have spent their weekly budget",
        RefusalReason::NoneHealthy => "no subscription of the pool can be used; its operator has to look",
    }
}
