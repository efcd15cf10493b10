//! What happens on one connection, so that one on which nothing happens can be closed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Settings;

/// The requests of one connection. A cheap handle: clones share the same state.
#[derive(Clone, Debug)]
pub(super) struct Activity(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// Requests that run; for a stream, when the connection last asked it for more.
    running: HashMap<u64, Option<Instant>>,
    /// Requests so far; names the next one.
    count: u64,
    /// Since when no request runs, if none does.
    idle_since: Instant,
}

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It stays.
    Keep,
    /// It has sent no complete request yet, and had its time.
    Silent,
    /// It has had requests, but none for a long time.
    Idle,
    /// Its client does not read what it asked for.
    Stalled,
}

impl Activity {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(State { running: HashMap::new(), count: 0, idle_since: Instant::now() })))
    }

    /// A request begins; it ends when the guard is dropped.
    pub(super) fn begin(&self) -> Running {
        let mut state = self.lock();
        state.count += 1;
        let id = state.count;
        state.running.insert(id, None);
        Running { activity: self.clone(), id }
    }

    /// Judges the connection.
    pub(super) fn verdict(&self, settings: &Settings) -> Verdict {
        // A stream's keep-alive wakes the connection, so one that is read is asked for more at least that often.
        let stall = settings.stall_timeout.max(settings.sse_keep_alive * 2);
        let state = self.lock();
        if state.running.is_empty() {
            let idle = state.idle_since.elapsed();
            return match state.count {
                0 if idle >= settings.header_read_timeout => Verdict::Silent,
                1.. if idle >= settings.idle_timeout => Verdict::Idle,
                _ => Verdict::Keep,
            };
        }
        let stalled = |asked: &Option<Instant>| asked.is_some_and(|asked| asked.elapsed() >= stall);
        if state.running.values().any(stalled) { Verdict::Stalled } else { Verdict::Keep }
    }

    /// How often [`Activity::verdict`] is worth asking for.
    pub(super) fn interval(settings: &Settings) -> Duration {
        let shortest = settings.header_read_timeout.min(settings.idle_timeout).min(settings.stall_timeout);
        (shortest / 4).clamp(Duration::from_millis(10), Duration::from_secs(5))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that could panic runs under the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request that runs.
#[derive(Debug)]
pub(super) struct Running {
    activity: Activity,
    id: u64,
}

impl Running {
    /// The connection asks for more of the answer.
    pub(super) fn asked(&self) {
        self.activity.lock().running.insert(self.id, Some(Instant::now()));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut state = self.activity.lock();
        state.running.remove(&self.id);
        state.idle_since = Instant::now();
    }
}
