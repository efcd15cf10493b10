//! Requests that wait because everybody who could serve them is busy.
//!
//! Whoever frees a place hands it on at once: when a lease ends, the first request that the pool will now serve is given
//! its lease, before anybody who comes later can ask. So nobody is woken in vain and nobody is overtaken, but for those
//! of higher priority, and but for a request that cannot use the place: it does not hold up the others.
//!
//! A request's place is a [`Ticket`]; dropping it, as a client's leaving does, gives the place up.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, timeout_at};

use super::lease::{Lease, SharedPool};
use crate::conversation::Family;
use crate::pool::{Ask, Cause, Only, Priority, Refusal, RefusalReason};
use crate::runtime::clock;
use crate::runtime::tasks::Tasks;
use crate::units::Timestamp;

/// Requests that are tried in vain when a place is free. What one cannot use another may (its session has a slot, its
/// model is not limited), but every try takes the pool's lock and leaves a decision behind.
const MOST_VAIN_TRIES: usize = 4;
/// Different rights whose requests are tried in vain when a place is free.
const MOST_VAIN_RIGHTS: usize = 16;

/// How often the time is looked at while somebody waits. Known recoveries are met to the millisecond.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
const SHORTEST_PAUSE: Duration = Duration::from_millis(5);

/// How many may wait, and how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueSettings {
    /// Requests that may wait at the same time; 0 refuses at once.
    pub max_waiting: usize,
    /// The longest a request waits.
    pub timeout: Duration,
}

/// The queue in figures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct QueueCounts {
    pub waiting: usize,
    pub high: usize,
    pub normal: usize,
    pub low: usize,
    /// Requests that waited and were served.
    pub served: u64,
    /// Requests that waited until their time was over.
    pub timed_out: u64,
    /// Requests that found no place to wait.
    pub turned_away: u64,
    /// Requests whose client left while they waited.
    pub left: u64,
}

/// Those who wait.
#[derive(Debug, Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    /// How many wait; read without the lock by everybody who ends a lease.
    waiting: AtomicUsize,
    /// Nobody waits any more.
    emptied: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// By priority, the highest first; the longest waiting first.
    lines: [VecDeque<Waiter>; 3],
    last_ticket: u64,
    closed: bool,
    /// Whether somebody looks at the time.
    timed: bool,
    counts: QueueCounts,
}

#[derive(Debug)]
struct Waiter {
    ticket: u64,
    ask: Ask<'static>,
    exclude: Vec<Arc<str>>,
    until: Timestamp,
    verdict: oneshot::Sender<Result<Lease, Refusal>>,
}

/// How a request for a lease begins.
#[derive(Debug)]
pub(super) enum Entry {
    /// At its end.
    Leased(Lease),
    /// In the queue.
    Waiting(Ticket),
    /// Not at all: nobody can serve it, and waiting would not help or is not possible.
    Refused(Refusal),
}

/// Why a request that waited has no lease.
#[derive(Debug)]
pub(super) enum Unserved {
    /// Its time was over, or nobody can serve it any more.
    Refused(Refusal),
    /// The queue was closed.
    Closed,
}

/// A place in the queue.
#[derive(Debug)]
pub(super) struct Ticket {
    pool: SharedPool,
    number: u64,
    line: usize,
    deadline: Instant,
    refusal: Option<Refusal>,
    verdict: oneshot::Receiver<Result<Lease, Refusal>>,
}

const fn line_of(priority: Priority) -> usize {
    match priority {
        Priority::High => 0,
        Priority::Normal => 1,
        Priority::Low => 2,
    }
}

impl Queue {
    pub(super) fn counts(&self) -> QueueCounts {
        let state = self.lock();
        let [high, normal, low] = [0, 1, 2].map(|line: usize| state.lines[line].len());
        QueueCounts { waiting: high + normal + low, high, normal, low, ..state.counts }
    }

    /// Sends everybody away, and lets nobody wait from now on.
    pub(super) fn close(&self) {
        let waiting = {
            let mut state = self.lock();
            state.closed = true;
            let waiting = std::mem::take(&mut state.lines);
            self.note(&state);
            waiting
        };
        // Without a verdict the waiting ones learn that the queue is closed.
        drop(waiting);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the number of those who wait known.
    fn note(&self, state: &State) {
        let waiting = state.lines.iter().map(VecDeque::len).sum();
        self.waiting.store(waiting, Ordering::Release);
        if waiting == 0 {
            self.emptied.notify_one();
        }
    }
}

impl SharedPool {
    /// Asks for a lease, and for a place in the queue if everybody is busy.
    pub(super) fn enter(&self, ask: &Ask<'_>, settings: &QueueSettings, tasks: &Tasks) -> Result<Entry, Unserved> {
        // Under the queue's lock, so that no place that gets free meanwhile is overlooked.
        let mut state = self.queue().lock();
        let refusal = match self.acquire(ask) {
            Ok(lease) => return Ok(Entry::Leased(lease)),
            Err(refusal) => refusal,
        };
        let until = clock::now() + settings.timeout;
        if refusal.reason != RefusalReason::Busy || !ends_by(&refusal, until, true) || settings.timeout.is_zero() {
            return Ok(Entry::Refused(refusal));
        }
        if state.closed {
            return Err(Unserved::Closed);
        }
        if state.lines.iter().map(VecDeque::len).sum::<usize>() >= settings.max_waiting {
            state.counts.turned_away += 1;
            return Ok(Entry::Refused(refusal));
        }
        state.last_ticket += 1;
        let (number, line) = (state.last_ticket, line_of(ask.priority));
        let (sender, verdict) = oneshot::channel();
        state.lines[line].push_back(Waiter {
            ticket: number,
            ask: Ask { exclude: &[], ..ask.clone() },
            exclude: ask.exclude.to_vec(),
            until,
            verdict: sender,
        });
        self.queue().note(&state);
        if !std::mem::replace(&mut state.timed, true) {
            tasks.spawn("queue", watch_the_time(self.clone()));
        }
        Ok(Entry::Waiting(Ticket {
            pool: self.clone(),
            number,
            line,
            deadline: Instant::now() + settings.timeout,
            refusal: Some(refusal),
            verdict,
        }))
    }

    /// Hands places that are free to those who wait.
    pub(super) fn serve_waiting(&self) {
        if self.queue().waiting.load(Ordering::Acquire) == 0 {
            return;
        }
        // A lease that nobody takes must not end under the lock, because its end leads here again.
        let mut unclaimed = Vec::new();
        let mut state = self.queue().lock();
        // By rights: those who may use other subscriptions are not kept waiting by those who may not.
        let mut vain: Vec<(Option<Arc<Only>>, usize)> = Vec::new();
        let mut closed: Vec<Family> = Vec::new();
        'all: for line in 0..state.lines.len() {
            let mut index = 0;
            while let Some(waiter) = state.lines[line].get(index) {
                if vain.len() > MOST_VAIN_RIGHTS {
                    break 'all;
                }
                let tried = vain.iter().position(|(only, _)| *only == waiter.ask.only);
                let is_hopeless = tried.is_some_and(|tried| vain[tried].1 == MOST_VAIN_TRIES);
                if is_hopeless || closed.contains(&waiter.ask.family) {
                    index += 1;
                    continue;
                }
                let verdict = self.acquire(&Ask { exclude: &waiter.exclude, ..waiter.ask.clone() });
                if let Err(refusal) = &verdict
                    && ends_by(refusal, waiter.until, refusal.reason == RefusalReason::Busy)
                {
                    if is_for_all(refusal) {
                        closed.push(waiter.ask.family);
                    }
                    match tried {
                        Some(tried) => vain[tried].1 += 1,
                        None => vain.push((waiter.ask.only.clone(), 1)),
                    }
                    index += 1;
                    continue;
                }
                let Some(waiter) = state.lines[line].remove(index) else { break };
                state.counts.served += u64::from(verdict.is_ok());
                unclaimed.extend(waiter.verdict.send(verdict).err());
            }
        }
        self.queue().note(&state);
        drop(state);
        drop(unclaimed);
    }
}

/// Whether what keeps everybody busy may end by `until`. With nothing known that is the case if a request that runs can
/// end it (`at_any_moment`).
fn ends_by(refusal: &Refusal, until: Timestamp, at_any_moment: bool) -> bool {
    refusal.retry_at.map_or(at_any_moment, |at| at <= until)
}

/// Whether a refusal says that no other request for the same family can be served either, whatever its session, size or
/// earlier tries.
fn is_for_all(refusal: &Refusal) -> bool {
    refusal.decision.excluded.iter().all(|excluded| match excluded.cause {
        Cause::SlotsFull
        | Cause::BudgetSpent
        | Cause::BudgetReserved
        | Cause::CapacityFull
        | Cause::AlreadyTried
        | Cause::NotAllowed => false,
        Cause::Disabled
        | Cause::Removed
        | Cause::Unauthenticated
        | Cause::ProviderLimit
        | Cause::FamilyLimit
        | Cause::Throttled
        | Cause::BreakerOpen
        | Cause::Probing
        | Cause::RampingUp
        | Cause::RequestsFull => true,
    })
}

/// Serves those who wait when time alone has made that possible; ends when nobody waits.
async fn watch_the_time(pool: SharedPool) {
    loop {
        let recovery = pool.recovery_at();
        {
            let mut state = pool.queue().lock();
            if state.lines.iter().all(VecDeque::is_empty) {
                state.timed = false;
                return;
            }
        }
        let pause = match recovery {
            Some(at) => at.since(clock::now()).clamp(SHORTEST_PAUSE, LONGEST_PAUSE),
            None => LONGEST_PAUSE,
        };
        let emptied = tokio::time::timeout(pause, pool.queue().emptied.notified()).await.is_ok();
        let due = recovery.is_some_and(|at| at <= clock::now());
        if due && !emptied {
            pool.serve_waiting();
            // What should have recovered and has not is not asked again and again.
            let _ = tokio::time::timeout(SHORTEST_PAUSE * 20, pool.queue().emptied.notified()).await;
        }
    }
}

impl Ticket {
    /// Waits for the lease.
    pub(super) async fn lease(mut self) -> Result<Lease, Unserved> {
        let verdict = if let Ok(verdict) = timeout_at(self.deadline, &mut self.verdict).await {
            verdict.ok()
        } else {
            if self.leave(|counts| &mut counts.timed_out)
                && let Some(refusal) = self.refusal.take()
            {
                return Err(Unserved::Refused(refusal));
            }
            // Not there any more: it was served at this very moment.
            self.verdict.try_recv().ok()
        };
        match verdict {
            Some(Ok(lease)) => Ok(lease),
            Some(Err(refusal)) => Err(Unserved::Refused(refusal)),
            None => Err(Unserved::Closed),
        }
    }

    /// Gives the place up, if it is still held, and counts why.
    fn leave(&self, count: impl FnOnce(&mut QueueCounts) -> &mut u64) -> bool {
        let mut state = self.pool.queue().lock();
        let line = &mut state.lines[self.line];
        let Ok(index) = line.binary_search_by_key(&self.number, |waiter| waiter.ticket) else { return false };
        line.remove(index);
        *count(&mut state.counts) += 1;
        self.pool.queue().note(&state);
        true
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.leave(|counts| &mut counts.left);
    }
}
