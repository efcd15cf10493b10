//! Where several replicas share the subscriptions: what this pool has granted is put before the others, and what they
//! tell is told to the pool.
//!
//! The pool decides first, by what it knows. Then one question to the server, for no longer than its timeout: may it run
//! there? If not, the grant is taken back, the pool learns why and until when, and decides anew. Without a server none
//! of this happens and nothing is waited for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tracing::{info, warn};

use super::lease::{Lease, SharedPool};
use super::queue::Unserved;
use super::{Call, Clients, Failure, PooledGateway, QueueSettings};
use crate::conversation::{LimitReport, LimitStatus, WindowUse};
use crate::pool::{Ask, Cause, Effect, Refusal, RefusalReason, SessionKey, SessionLabel, Shortage, Spent, Standing};
use crate::runtime::clock;
use crate::shared::{self, Heard, News, Shared, Verdict};

/// How often one request is put before the others. Each refusal teaches the pool something, so that only others who take
/// every place at the last moment can use this up.
const MOST_ROUNDS: usize = 24;

/// When to ask again for what a running request of another replica may free at any moment. The news of its end comes
/// sooner; this is for news that get lost.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// The other replicas.
#[derive(Debug)]
pub(super) struct Replicas {
    shared: Shared,
    /// What they were last told of each subscription's limits.
    told: Mutex<HashMap<Arc<str>, LimitReport>>,
}

/// What came of putting a lease before the others.
pub(super) enum Judged {
    /// It may run.
    Admitted(Box<Lease>),
    /// Another replica has bound the session to this subscription; the lease was taken back.
    Bound(Arc<str>),
    /// All replicas together use what there is; the lease was taken back, and the pool knows.
    Full(Refusal),
}

impl Replicas {
    pub(super) fn new(shared: Shared) -> Self {
        Self { shared, told: Mutex::default() }
    }

    /// Tells what the provider said, unless they know: figures are told when they change by a percent.
    pub(super) fn tell_limits(&self, subscription: &Arc<str>, report: &LimitReport) {
        let windows =
            report.windows.iter().map(|used| WindowUse { utilization: (used.utilization * 100.0).round(), ..*used });
        let rounded = LimitReport { windows: windows.collect(), ..report.clone() };
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.get(subscription) != Some(&rounded) {
            told.insert(Arc::clone(subscription), rounded);
            drop(told);
            self.shared.tell(News::Limits { subscription: Arc::clone(subscription), report: report.clone() });
        }
    }

    /// Tells that the operator says that all is well. What the provider says from now on is news again.
    fn tell_restored(&self, subscription: &Arc<str>) {
        self.forget_told(subscription);
        self.shared.tell(News::Restored { subscription: Arc::clone(subscription) });
    }

    /// Tells what a backend beside the pool has used: it counts for the client.
    pub(super) fn tell_used(&self, record: uuid::Uuid, backend: &Arc<str>, client: &str, spent: &Spent) {
        self.shared.tell(News::Used(shared::Used {
            record: Some(record.to_string().into()),
            client: Some(client.into()),
            subscription: Arc::clone(backend),
            usage: spent.usage,
            cost: spent.cost,
        }));
    }

    fn forget_told(&self, subscription: &str) {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).remove(subscription);
    }

    /// Tells of the pool's doings what concerns all.
    pub(super) fn tell_effect(&self, effect: &Effect) {
        match effect {
            Effect::BreakerOpened { subscription, until } => {
                self.shared.tell(News::BreakerOpened { subscription: Arc::clone(subscription), until: *until });
            }
            Effect::Recovered { subscription, cause } if *cause == Cause::BreakerOpen.to_string() => {
                self.shared.tell(News::BreakerClosed { subscription: Arc::clone(subscription) });
            }
            _ => {}
        }
    }
}

impl SharedPool {
    /// Puts a lease before the other replicas, if there are any.
    pub(super) async fn judge(&self, ask: &Ask<'_>, mut lease: Lease) -> Judged {
        let Some(replicas) = self.replicas() else { return Judged::Admitted(Box::new(lease)) };
        let explicit = matches!(ask.session, SessionKey::Explicit(_));
        loop {
            let subscription = Arc::clone(&lease.subscription);
            let Some(bounds) = self.peek(|pool, _| pool.bounds(&subscription)) else {
                return Judged::Admitted(Box::new(lease));
            };
            let question = shared::Ask {
                subscription,
                session: SessionLabel::from(&ask.session).key(),
                explicit,
                placement: lease.placement.clone(),
                tokens: ask.estimated_tokens,
                cost: ask.estimated_cost,
                bounds,
            };
            match replicas.shared.admit(question).await {
                Verdict::Admitted(admission) | Verdict::Apart(admission) => {
                    lease.admission = Some(Box::new(admission));
                    return Judged::Admitted(Box::new(lease));
                }
                Verdict::Bound(home) if self.peek(|pool, _| pool.bounds(&home)).is_none() => {
                    // It is bound to a subscription that this replica does not have: it has to move.
                    lease.placement.standing = Standing::MovedFrom(home);
                }
                Verdict::Bound(home) => {
                    lease.cancel();
                    return Judged::Bound(home);
                }
                Verdict::Full { shortage, wait } => return Judged::Full(self.full(ask, lease, shortage, wait)),
            }
        }
    }

    /// A lease for a session that is new here and has its place with another replica, when there is none for new ones.
    async fn lease_where_bound(&self, ask: &Ask<'_>, replicas: &Replicas) -> Option<Lease> {
        if self.peek(|pool, _| pool.knows(&ask.session)) {
            return None;
        }
        let refusal = match self.acquire(ask) {
            Ok(lease) => return Some(lease),
            Err(refusal) => refusal,
        };
        if refusal.reason != RefusalReason::Busy {
            return None;
        }
        let home = replicas.shared.home_of(SessionLabel::from(&ask.session).key()).await?;
        self.acquire_at(ask, &home).ok()
    }

    fn full(&self, ask: &Ask<'_>, lease: Lease, shortage: Shortage, wait: Option<Duration>) -> Refusal {
        let subscription = Arc::clone(&lease.subscription);
        let decision = Arc::clone(&lease.decision);
        let had_slot = lease.placement.home == subscription;
        lease.cancel();
        let until = clock::now() + wait.unwrap_or(ASK_AGAIN);
        info!(%subscription, ?shortage, %until, "other replicas use all of it");
        self.with(|pool, now| {
            if shortage == Shortage::Slots && had_slot {
                // The session's slot there has been given to another.
                pool.release(now, &ask.session);
            }
            ((), pool.hold(now, &subscription, shortage, until))
        });
        Refusal { reason: RefusalReason::Busy, retry_at: Some(until), decision }
    }

    /// The operator says that a subscription is well: here, and with all replicas. Returns whether there is such a
    /// subscription.
    pub fn restore(&self, subscription: &str) -> bool {
        let found = self.with(|pool, now| pool.restore(now, subscription));
        if let (true, Some(replicas)) = (found, self.replicas()) {
            replicas.tell_restored(&subscription.into());
        }
        found
    }

    /// Takes in what other replicas tell.
    fn hear(&self, heard: Heard, clients: &Clients) {
        match heard {
            Heard::News { from, news } => self.hear_news(from.as_deref(), news, clients),
            Heard::Apart { cause } => {
                warn!(cause, "Redis is out of reach: this replica counts by itself until it answers again");
                self.with(|_, _| ((), vec![Effect::ReplicasApart { cause }]));
            }
            Heard::Together { after } => {
                info!(after = %humantime::format_duration(after), "Redis answers again and knows what happened meanwhile");
                self.with(|_, _| ((), vec![Effect::ReplicasTogether { after_seconds: after.as_secs() }]));
            }
        }
    }

    fn hear_news(&self, from: Option<&str>, news: News, clients: &Clients) {
        let replica = from.unwrap_or("one of the others");
        match news {
            News::Used(used) => {
                let is_new = used.record.as_deref().is_none_or(|record| self.counted().note(record));
                // What is known already still gives its place back.
                let spent = if is_new { Spent { usage: used.usage, cost: used.cost } } else { Spent::default() };
                if let Some(client) = &used.client {
                    let now = clock::now();
                    clients.recall(now, client, now, spent.cost);
                }
                self.with(|pool, now| ((), pool.count_elsewhere(now, &used.subscription, &spent)));
            }
            News::Limits { subscription, report } => {
                if report.status == LimitStatus::Rejected {
                    info!(%subscription, replica, window = ?report.window, "another replica has met a limit of the provider");
                }
                self.with(|pool, now| ((), pool.observe_elsewhere(now, &subscription, &report)));
            }
            News::BreakerOpened { subscription, until } => {
                info!(%subscription, replica, %until, "another replica's breaker has opened");
                self.with(|pool, now| ((), pool.breaker_elsewhere(now, &subscription, Some(until))));
            }
            News::BreakerClosed { subscription } => {
                info!(%subscription, replica, "another replica's breaker has closed");
                self.with(|pool, now| ((), pool.breaker_elsewhere(now, &subscription, None)));
            }
            News::Restored { subscription } => {
                info!(%subscription, replica, "the operator of another replica says that it is well");
                if let Some(replicas) = self.replicas() {
                    replicas.forget_told(&subscription);
                }
                self.with(|pool, now| ((), pool.restore(now, &subscription).1));
            }
        }
    }
}

impl PooledGateway {
    /// Takes in what other replicas tell.
    pub fn hear(&self, heard: Heard) {
        self.pool().hear(heard, self.clients());
    }

    /// A lease that the other replicas agree to.
    pub(super) async fn admitted(
        &self,
        call: &Call,
        tried: &[Arc<str>],
        last: Option<&Failure>,
        attempt: u32,
        queue: &mut QueueSettings,
    ) -> Result<Lease, Unserved> {
        let pool = self.pool();
        let Some(replicas) = pool.replicas() else { return self.lease(call, tried, last, attempt, queue).await };
        let ask = self.ask(call, tried);
        let mut lease = match pool.lease_where_bound(&ask, replicas).await {
            Some(lease) => lease,
            None => self.lease(call, tried, last, attempt, queue).await?,
        };
        let mut rounds = 0;
        loop {
            let decision = Arc::clone(&lease.decision);
            let judged = pool.judge(&ask, lease).await;
            rounds += 1;
            lease = match judged {
                Judged::Admitted(lease) => return Ok(*lease),
                Judged::Full(refusal) if rounds == MOST_ROUNDS => return Err(Unserved::Refused(refusal)),
                Judged::Bound(_) if rounds == MOST_ROUNDS => {
                    let refusal = Refusal { reason: RefusalReason::Busy, retry_at: None, decision };
                    return Err(Unserved::Refused(refusal));
                }
                Judged::Bound(home) => match pool.acquire_at(&ask, &home) {
                    Ok(lease) => lease,
                    Err(_) => self.lease(call, tried, last, attempt, queue).await?,
                },
                Judged::Full(_) => self.lease(call, tried, last, attempt, queue).await?,
            };
        }
    }
}
