//! The pool behind its lock, and leases that cannot leak.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::broadcast;

use super::clients::Spending;
use super::queue::Queue;
use super::record::{Trace, in_a_word};
use crate::conversation::LimitReport;
use crate::pool::{Ask, Decision, Effect, LeaseId, Outcome, Pool, Refusal, Spent};
use crate::runtime::clock;
use crate::units::Timestamp;

/// Effects that a slow listener may be behind before it misses some.
const EFFECT_BACKLOG: usize = 1024;

/// The pool as the outside uses it: every call is one short lock, and its effects go to whoever listens.
#[derive(Clone, Debug)]
pub struct SharedPool(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    pool: Mutex<Pool>,
    effects: broadcast::Sender<(Timestamp, Effect)>,
    queue: Queue,
}

impl SharedPool {
    /// Puts `pool` behind a lock.
    pub fn new(pool: Pool) -> Self {
        Self(Arc::new(Shared {
            pool: Mutex::new(pool),
            effects: broadcast::channel(EFFECT_BACKLOG).0,
            queue: Queue::default(),
        }))
    }

    /// What the pool does from now on.
    pub fn effects(&self) -> broadcast::Receiver<(Timestamp, Effect)> {
        self.0.effects.subscribe()
    }

    /// Asks for a lease.
    pub(super) fn acquire(&self, ask: &Ask<'_>) -> Result<Lease, Refusal> {
        let now = clock::now();
        let grant = self.lock().acquire(now, ask)?;
        self.publish(now, grant.effects);
        Ok(Lease {
            pool: self.clone(),
            id: Some(grant.lease),
            subscription: grant.subscription,
            decision: grant.decision,
            spent: Spent::default(),
            spending: Spending::default(),
            granted_at: now,
            trace: None,
        })
    }

    /// Tells the pool what the provider said of a subscription's limits.
    pub fn observe(&self, subscription: &str, report: &LimitReport) {
        // A report unlocks nothing, so nobody who waits is helped by it.
        self.run(|pool, now| ((), pool.observe(now, subscription, report)));
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
        let (value, effects) = command(&mut self.lock(), now);
        self.publish(now, effects);
        value
    }

    fn publish(&self, now: Timestamp, effects: Vec<Effect>) {
        for effect in effects {
            // An error only means that nobody listens.
            let _ = self.0.effects.send((now, effect));
        }
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
    /// What has been used so far; counted however the lease ends.
    pub(super) spent: Spent,
    /// The client's account, on which that is booked.
    pub(super) spending: Spending,
    granted_at: Timestamp,
    /// Who is told what it was.
    trace: Option<Arc<Trace>>,
}

impl Lease {
    /// Ends the lease.
    pub(super) fn finish(mut self, outcome: Outcome) {
        self.end(outcome);
    }

    /// Tells the pool what the provider said meanwhile.
    pub(super) fn observe(&self, report: &LimitReport) {
        self.pool.observe(&self.subscription, report);
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
        self.spending.book(clock::now(), spent.cost);
        let (at, session) = self.pool.with(|pool, now| {
            let effects = pool.finish(now, id, outcome, spent);
            let session = trace.as_ref().and_then(|trace| pool.session(trace.session()));
            ((now, session), effects)
        });
        if let Some(trace) = trace {
            trace.ended(&self.subscription, (self.granted_at, at), word, spent, session);
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.end(Outcome::Abandoned);
    }
}
