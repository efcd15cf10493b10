//! The pool behind its lock, and leases that cannot leak.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use serde::Serialize;
use tokio::sync::broadcast;

use super::admission::Replicas;
use super::attempt::outcome;
use super::clients::Spending;
use super::counted::Counted;
use super::feed::{AllocationTold, FailureTold, Feed, Topic, UsageTold};
use super::outbox::{Batch, Outbox};
use super::queue::Queue;
use super::record::{Trace, in_a_word};
use crate::backend::Failure;
use crate::conversation::{LimitReport, Overage};
use crate::pool::{Ask, Decision, Effect, Grant, LeaseId, Outcome, Placement, Pool, Refusal, Spent};
use crate::runtime::clock;
use crate::shared::{self, Admission};
use crate::units::{MicroUsd, Timestamp};

/// Commands whose effects a slow listener may be behind before it misses some.
const EFFECT_BACKLOG: usize = 1024;

/// What one command did, and when.
pub type Effects = (Timestamp, Arc<[Effect]>);

/// The pool as the outside uses it: every call is one short lock, and its effects go to whoever listens.
#[derive(Clone, Debug)]
pub struct SharedPool(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    pool: Mutex<Pool>,
    effects: broadcast::Sender<Effects>,
    outbox: Outbox,
    queue: Queue,
    feed: Feed,
    /// Those who use the same subscriptions, if any.
    replicas: OnceLock<Replicas>,
    counted: Counted,
}

impl SharedPool {
    /// Puts `pool` behind a lock.
    pub fn new(pool: Pool) -> Self {
        Self(Arc::new(Shared {
            pool: Mutex::new(pool),
            effects: broadcast::channel(EFFECT_BACKLOG).0,
            outbox: Outbox::default(),
            queue: Queue::default(),
            feed: Feed::default(),
            replicas: OnceLock::new(),
            counted: Counted::default(),
        }))
    }

    /// From now on every lease is put before the other replicas, and they are told what is learned here.
    pub fn share(&self, replicas: shared::Shared) {
        // A second call changes nothing: there is one set of replicas in a process's life.
        let _ = self.0.replicas.set(Replicas::new(replicas));
    }

    pub(super) fn counted(&self) -> &Counted {
        &self.0.counted
    }

    pub(super) fn replicas(&self) -> Option<&Replicas> {
        self.0.replicas.get()
    }

    /// What the pool does from now on, command by command, in the order in which it happens.
    pub fn effects(&self) -> broadcast::Receiver<Effects> {
        self.0.effects.subscribe()
    }

    /// What happens, for those who follow it.
    pub fn feed(&self) -> &Feed {
        &self.0.feed
    }

    /// Tells those who follow something about a subscription.
    fn tell<T: Serialize>(&self, topic: Topic, subscription: &str, told: &T) {
        let organization = self.lock().organization_of(subscription);
        self.0.feed.publish(clock::now(), topic, organization.as_ref(), told);
    }

    /// Tells those who follow that a request was given a subscription.
    pub(super) fn tell_allocation(&self, client: &str, attempt: u32, subscription: &str, decision: &Decision) {
        let (session, reason) = (&decision.session, decision.reason);
        let told = AllocationTold {
            session: session.to_string(),
            client,
            subscription,
            attempt,
            kind: reason.kind(),
            reason: reason.to_string(),
        };
        self.tell(Topic::Allocation, subscription, &told);
    }

    /// Tells those who follow that an attempt failed; another may follow on another subscription.
    pub(super) fn tell_failure(&self, client: &str, attempt: u32, subscription: &str, failure: &Failure) {
        let (cause, _) = in_a_word(&outcome(failure));
        let told = FailureTold { client, subscription, attempt, cause, goes_on: failure.may_retry_elsewhere() };
        self.tell(Topic::Failover, subscription, &told);
    }

    /// Tells those who follow what an attempt used, if it was anything.
    pub(super) fn tell_use(&self, subscription: &str, client: &str, outcome: &'static str, spent: &Spent) {
        let Spent { usage, cost } = *spent;
        if cost == MicroUsd::ZERO && usage.total() == 0 {
            return;
        }
        let told = UsageTold {
            subscription,
            client,
            outcome,
            cost,
            input_tokens: usage.input,
            output_tokens: usage.output,
            cache_creation_tokens: usage.cache_creation,
            cache_read_tokens: usage.cache_read,
        };
        self.tell(Topic::Usage, subscription, &told);
    }

    /// Asks for a lease.
    pub(super) fn acquire(&self, ask: &Ask<'_>) -> Result<Lease, Refusal> {
        let now = clock::now();
        self.lend(now, |pool| pool.acquire(now, ask))
    }

    /// Why nobody could serve a request now; `None` if somebody could.
    pub(super) fn refusal_of(&self, ask: &Ask<'_>) -> Option<Refusal> {
        self.lock().refusal_of(clock::now(), ask)
    }

    /// Asks for a lease for a session that another replica has bound to `home`.
    pub(super) fn acquire_at(&self, ask: &Ask<'_>, home: &str) -> Result<Lease, Refusal> {
        let now = clock::now();
        self.lend(now, |pool| pool.acquire_at(now, ask, home))
    }

    fn lend(
        &self,
        now: Timestamp,
        acquire: impl FnOnce(&mut Pool) -> Result<Grant, Refusal>,
    ) -> Result<Lease, Refusal> {
        let mut pool = self.lock();
        let mut grant = acquire(&mut pool)?;
        self.0.outbox.put(&pool, now, std::mem::take(&mut grant.effects));
        drop(pool);
        self.deliver();
        Ok(Lease {
            pool: self.clone(),
            id: Some(grant.lease),
            subscription: grant.subscription,
            decision: grant.decision,
            placement: grant.placement,
            admission: None,
            spent: Spent::default(),
            spending: Spending::default(),
            is_second_chance: false,
            granted_at: now,
            trace: None,
        })
    }

    /// Tells the pool what the provider said of a subscription's limits.
    pub fn observe(&self, subscription: &str, report: &LimitReport) {
        // A report unlocks nothing, so nobody who waits is helped by it.
        self.run(|pool, now| ((), pool.observe(now, subscription, report)));
        if let Some(replicas) = self.replicas() {
            replicas.tell_limits(&subscription.into(), report);
        }
    }

    /// Looks at the pool without changing what it decides.
    pub fn peek<T>(&self, look: impl FnOnce(&mut Pool, Timestamp) -> T) -> T {
        look(&mut self.lock(), clock::now())
    }

    /// Runs `command` on the pool, publishes its effects, and hands what it freed to those who wait.
    pub fn with<T>(&self, command: impl FnOnce(&mut Pool, Timestamp) -> (T, Vec<Effect>)) -> T {
        let value = self.run(command);
        self.serve_waiting();
        value
    }

    pub(super) fn queue(&self) -> &Queue {
        &self.0.queue
    }

    fn run<T>(&self, command: impl FnOnce(&mut Pool, Timestamp) -> (T, Vec<Effect>)) -> T {
        let now = clock::now();
        let mut pool = self.lock();
        let (value, effects) = command(&mut pool, now);
        self.0.outbox.put(&pool, now, effects);
        drop(pool);
        self.deliver();
        value
    }

    /// Tells everybody who listens to the pool what happened beside it.
    pub(super) fn publish(&self, effect: Effect) {
        self.run(|_, _| ((), vec![effect]));
    }

    fn deliver(&self) {
        self.0.outbox.deliver(|Batch { at, effects, organizations }| {
            for (effect, organization) in effects.iter().zip(&organizations) {
                self.0.feed.publish(at, Topic::of(effect), organization.as_ref(), effect);
                if let Some(replicas) = self.replicas() {
                    replicas.tell_effect(effect);
                }
            }
            // An error only means that nobody listens.
            let _ = self.0.effects.send((at, effects));
        });
    }

    /// The pool's state is consistent between calls, so a panic elsewhere does not poison it.
    fn lock(&self) -> MutexGuard<'_, Pool> {
        self.0.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to run one request on one subscription. Ends in [`Lease::finish`], or as abandoned when it is dropped.
#[derive(Debug)]
pub(super) struct Lease {
    pool: SharedPool,
    id: Option<LeaseId>,
    /// Who serves.
    pub(super) subscription: Arc<str>,
    /// Why this one.
    pub(super) decision: Arc<Decision>,
    /// Where its session is.
    pub(super) placement: Placement,
    /// The other replicas' word.
    pub(super) admission: Option<Box<Admission>>,
    /// What has been used so far; counted however the lease ends.
    pub(super) spent: Spent,
    /// The client's account, on which that is booked.
    pub(super) spending: Spending,
    /// The same request has failed here before.
    pub(super) is_second_chance: bool,
    granted_at: Timestamp,
    /// Who is told what it was.
    trace: Option<Arc<Trace>>,
}

impl Lease {
    /// Ends the lease.
    pub(super) fn finish(mut self, outcome: Outcome) {
        self.end(outcome);
    }

    /// Takes the lease back as if it had never been: nothing has run.
    pub(super) fn cancel(mut self) {
        if let Some(id) = self.id.take() {
            self.pool.with(|pool, now| ((), pool.cancel(now, id)));
        }
    }

    /// Tells the pool what the provider said meanwhile.
    pub(super) fn observe(&self, report: &LimitReport) {
        self.pool.observe(&self.subscription, report);
    }

    /// Tells the pool what the provider said of use beyond the limits.
    pub(super) fn note_overage(&self, overage: &Overage) {
        self.pool.peek(|pool, now| pool.note_overage(now, &self.subscription, overage));
    }

    /// The lease serves an attempt of the request that `trace` goes with.
    pub(super) fn serve(&mut self, trace: Option<&Arc<Trace>>) {
        if let Some(trace) = trace {
            trace.attempt(&self.subscription);
        }
        self.trace = trace.cloned();
    }

    fn end(&mut self, outcome: Outcome) {
        let Some(id) = self.id.take() else { return };
        let (spent, trace) = (self.spent, self.trace.take());
        let word = in_a_word(&outcome);
        if let (Outcome::Limited(report), Some(replicas)) = (&outcome, self.pool.replicas()) {
            replicas.tell_limits(&self.subscription, report);
        }
        // Before the own pool hands the place on: whoever gets it is put before the others next.
        let record = uuid::Uuid::now_v7();
        if let Some(mut admission) = self.admission.take() {
            admission.bill(record.to_string().into(), self.spending.client().into());
            admission.settle(matches!(outcome, Outcome::Completed), spent.usage, spent.cost);
        }
        self.spending.book(clock::now(), spent.cost);
        let (at, session) = self.pool.with(|pool, now| {
            let effects = pool.finish(now, id, outcome, spent);
            let session = trace.as_ref().and_then(|trace| pool.session(trace.session()));
            ((now, session), effects)
        });
        self.pool.tell_use(&self.subscription, self.spending.client(), word.0, &spent);
        if let Some(trace) = trace {
            trace.ended((record, &self.subscription), (self.granted_at, at), word, spent, session);
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.end(Outcome::Abandoned);
    }
}
