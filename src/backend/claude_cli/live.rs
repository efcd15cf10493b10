//! Live processes: those that stay with their conversation after an answer, until it goes on.
//!
//! A further turn in the process that holds the conversation costs a twentieth of a new process. So every process that has
//! ended its turn well is kept here under the number of what it holds ([`super::key`]). It belongs to nobody else: only a
//! request whose turns extend exactly that, of the same caller and for the same kind of process, takes it. What is taken
//! is gone from here, so of two requests that continue the same conversation at once the second one starts a process of
//! its own.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::key::Key;
use super::kinds::Kinds;
use super::launch::Launch;
use super::options::Applied;
use super::process::Process;
use super::tools::{OpenCall, Shells};
use crate::runtime::tasks::Tasks;
use crate::units::MicroUsd;

/// How often kept processes are looked at that nobody has come back to.
const SWEEP_INTERVAL: Duration = Duration::from_secs(15);

/// A process and what is known of it.
#[derive(Debug)]
pub(super) struct Kept {
    pub process: Process,
    pub state: Held,
}

/// What a process has been told so far.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// What is set in it.
    pub applied: Applied,
    /// What its requests have cost so far: it only tells the sum of all.
    pub spent: MicroUsd,
    /// The tools it knows.
    pub shells: Shells,
    /// The calls it waits for, in order; none if it has ended its turn.
    pub calls: Vec<OpenCall>,
}

/// The store of live processes. A cheap handle.
#[derive(Clone, Debug)]
pub(super) struct Live(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// How long nobody may come back to a process.
    idle_timeout: watch::Sender<Duration>,
    state: Mutex<State>,
    /// Set when the CLI was seen to answer a call by itself.
    tools_fail: AtomicBool,
    /// A process has ended its turn: from now on it may give way.
    idle: Notify,
    closing: CancellationToken,
}

#[derive(Debug, Default)]
struct State {
    /// The least recently used first.
    entries: Vec<Entry>,
    next_id: u64,
    /// Others are not kept.
    kinds: Kinds,
    closed: bool,
}

#[derive(Debug)]
struct Entry {
    id: u64,
    key: Key,
    launch: Arc<Launch>,
    since: Instant,
    process: Slot,
}

#[derive(Debug)]
enum Slot {
    /// Its answer is complete, its bookkeeping is not.
    Settling(oneshot::Receiver<Kept>),
    Ready(Box<Kept>),
}

impl Entry {
    fn ready(&self) -> Option<&Kept> {
        match &self.process {
            Slot::Ready(kept) => Some(kept),
            Slot::Settling(_) => None,
        }
    }
}

/// How many processes are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LiveCounts {
    /// Those that have ended their turn.
    pub idle: usize,
    /// Those that wait for the results of calls.
    pub parked: usize,
}

/// A process that goes on with its conversation, or will in a moment.
#[derive(Debug)]
pub(super) struct Taken(Slot);

impl Taken {
    /// The process; `None` if it did not come to a good end of its turn.
    pub(super) async fn ready(self) -> Option<Kept> {
        let kept = match self.0 {
            Slot::Ready(kept) => *kept,
            Slot::Settling(kept) => kept.await.ok()?,
        };
        (!kept.process.has_ended()).then_some(kept)
    }
}

/// A place in the store for a process whose answer is complete. Dropping it gives the place up.
#[derive(Debug)]
pub(super) struct Reservation {
    live: Live,
    id: u64,
    process: Option<oneshot::Sender<Kept>>,
}

impl Reservation {
    /// Keeps the process, or hands it to the request that waits for it already.
    pub(super) fn keep(mut self, kept: Kept) {
        let Some(sender) = self.process.take() else { return };
        let mut state = self.live.state();
        if let Some(entry) = state.entries.iter_mut().find(|entry| entry.id == self.id) {
            entry.process = Slot::Ready(Box::new(kept));
            self.live.0.idle.notify_one();
            return;
        }
        drop(state);
        // Nobody waits where the store was closed or the request has gone: then the process goes too.
        drop(sender.send(kept));
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.process.is_some() {
            self.live.state().entries.retain(|entry| entry.id != self.id);
        }
    }
}

impl Live {
    /// An empty store. A process to which nobody comes back within `idle_timeout` is let go.
    pub(super) fn new(idle_timeout: Duration, tasks: &Tasks) -> Self {
        let live = Self(Arc::new(Shared {
            idle_timeout: watch::channel(idle_timeout).0,
            state: Mutex::default(),
            tools_fail: AtomicBool::new(false),
            idle: Notify::new(),
            closing: CancellationToken::new(),
        }));
        tasks.spawn("claude-cli-live", sweep(live.clone()));
        live
    }

    /// Changes how long nobody may come back to a process, also for those that are kept already.
    pub(super) fn set_idle_timeout(&self, idle_timeout: Duration) {
        self.0.idle_timeout.send_replace(idle_timeout);
    }

    /// Waits until a process has ended its turn, since this was asked last. For one listener.
    pub(super) async fn has_idle(&self) {
        self.0.idle.notified().await;
    }

    /// The process of the kind `launch` that holds the conversation `key`, if there is one.
    pub(super) fn take(&self, launch: &Launch, key: Key) -> Option<Taken> {
        let mut state = self.state();
        // The youngest: the oldest goes first when room is needed.
        let position = state.entries.iter().rposition(|entry| entry.key == key && *entry.launch == *launch)?;
        Some(Taken(state.entries.remove(position).process))
    }

    /// A place for a process that will hold the conversation `key` as soon as its bookkeeping is done. A request that
    /// continues it finds it from now on.
    pub(super) fn reserve(&self, launch: &Arc<Launch>, key: Key) -> Option<Reservation> {
        let (sender, receiver) = oneshot::channel();
        let mut state = self.state();
        if state.closed || !state.kinds.have(launch) {
            return None;
        }
        let id = state.next_id;
        state.next_id += 1;
        let (launch, since) = (Arc::clone(launch), Instant::now());
        state.entries.push(Entry { id, key, launch, since, process: Slot::Settling(receiver) });
        Some(Reservation { live: self.clone(), id, process: Some(sender) })
    }

    /// Whether the CLI may be trusted to deliver calls and to wait for their results. Where it may not, a turn that
    /// calls tools ends its process, and their results are replayed in another one.
    pub(super) fn trusts_tools(&self) -> bool {
        !self.0.tools_fail.load(Ordering::Relaxed)
    }

    /// Forgets what was seen of the CLI: it is another one now.
    pub(super) fn trust_tools(&self) {
        self.0.tools_fail.store(false, Ordering::Relaxed);
    }

    /// Remembers that the CLI has answered a call by itself.
    pub(super) fn distrust_tools(&self) {
        if !self.0.tools_fail.swap(true, Ordering::Relaxed) {
            warn!("this build of the CLI answers calls by itself: from now on a call of a tool ends its process");
        }
    }

    /// Lets go of the process that was used longest ago; those that wait for results only when there are no others.
    /// Whether there was one. Its place is free when it is gone.
    pub(super) fn evict_oldest(&self) -> bool {
        self.evict(|_| true)
    }

    /// The same, but for those that wait for results, which are worth more than others.
    pub(super) fn evict_oldest_idle(&self) -> bool {
        self.evict(|kept| kept.state.calls.is_empty())
    }

    fn evict(&self, may_go: impl Fn(&Kept) -> bool) -> bool {
        let mut state = self.state();
        // One that has ended by itself has no place any more that would be free then.
        let is = |entry: &Entry, parked: bool| {
            let goes = |kept: &Kept| kept.state.calls.is_empty() != parked && may_go(kept) && !kept.process.has_ended();
            entry.ready().is_some_and(goes)
        };
        let oldest = |parked| state.entries.iter().position(|entry| is(entry, parked));
        let Some(position) = oldest(false).or_else(|| oldest(true)) else { return false };
        let evicted = state.entries.remove(position);
        drop(state);
        debug!(pid = evicted.ready().and_then(|kept| kept.process.id()), "a live process gives way");
        true
    }

    /// Keeps only processes of these kinds from now on.
    pub(super) fn retain(&self, kinds: &Kinds) {
        self.state().kinds = kinds.clone();
        self.retain_entries(|entry| kinds.have(&entry.launch));
    }

    /// Lets go of all processes and keeps no more.
    pub(super) fn close(&self) {
        self.state().closed = true;
        self.0.closing.cancel();
        self.retain_entries(|_| false);
    }

    pub(super) fn counts(&self) -> LiveCounts {
        let state = self.state();
        let ready = state.entries.iter().filter_map(Entry::ready);
        ready.fold(LiveCounts::default(), |counts, kept| {
            if kept.state.calls.is_empty() {
                LiveCounts { idle: counts.idle + 1, ..counts }
            } else {
                LiveCounts { parked: counts.parked + 1, ..counts }
            }
        })
    }

    /// Those that go are killed outside the lock.
    fn retain_entries(&self, stays: impl Fn(&Entry) -> bool) {
        let gone: Vec<Entry> = {
            let mut state = self.state();
            let (kept, gone) = std::mem::take(&mut state.entries).into_iter().partition(|entry| stays(entry));
            state.entries = kept;
            gone
        };
        drop(gone);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets go of processes that nobody has come back to, and of those that have ended by themselves.
async fn sweep(live: Live) {
    let mut changes = live.0.idle_timeout.subscribe();
    loop {
        let idle_timeout = *changes.borrow_and_update();
        live.retain_entries(|entry| {
            entry.ready().is_none_or(|kept| entry.since.elapsed() < idle_timeout && !kept.process.has_ended())
        });
        let pause = SWEEP_INTERVAL.min(idle_timeout / 2).max(Duration::from_millis(10));
        // Either way it is time to look again.
        let look = timeout(pause, changes.changed());
        if live.0.closing.run_until_cancelled(look).await.is_none() {
            return;
        }
    }
}
