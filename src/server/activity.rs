//! What happens on one connection, so that one on which nothing happens can be closed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::Settings;

tokio::task_local! {
    /// Ends the HTTP/2 stream whose task this is.
    static CUT: CancellationToken;
}

/// Runs the task of an HTTP/2 stream, which [`Activity::verdict`] can end without its connection. Dropping it resets the
/// stream.
pub(super) async fn cuttable<F: Future>(stream: F) {
    let cut = CancellationToken::new();
    let _ = CUT.scope(cut.clone(), cut.run_until_cancelled(stream)).await;
}

/// The requests of one connection. A cheap handle: clones share the same state.
#[derive(Clone, Debug)]
pub(super) struct Activity(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// Requests that run.
    running: HashMap<u64, Request>,
    /// Requests so far; names the next one.
    count: u64,
    /// Since when no request runs, if none does.
    idle_since: Instant,
}

#[derive(Debug)]
struct Request {
    /// For an answer that is streamed, when the connection last asked it for more.
    asked: Option<Instant>,
    /// Ends it by itself; `None` where the connection has to end with it.
    cut: Option<CancellationToken>,
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
        state.running.insert(id, Request { asked: None, cut: CUT.try_with(CancellationToken::clone).ok() });
        Running { activity: self.clone(), id }
    }

    /// Judges the connection. Of several requests on it, those whose client does not read are ended here.
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
        let is_stalled = |request: &&Request| request.asked.is_some_and(|asked| asked.elapsed() >= stall);
        let mut verdict = Verdict::Keep;
        for stalled in state.running.values().filter(is_stalled) {
            match &stalled.cut {
                Some(cut) if cut.is_cancelled() => {}
                Some(cut) => {
                    tracing::warn!("a client does not read its answer; ending the HTTP/2 stream");
                    cut.cancel();
                }
                None => verdict = Verdict::Stalled,
            }
        }
        verdict
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
        if let Some(request) = self.activity.lock().running.get_mut(&self.id) {
            request.asked = Some(Instant::now());
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut state = self.activity.lock();
        state.running.remove(&self.id);
        state.idle_since = Instant::now();
    }
}
