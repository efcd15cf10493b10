//! Named tasks: every background activity of the process has a name, can be counted, and is waited for at the end.

use std::future::Future;

use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

/// The tasks of one running pool. A cheap handle: clones share the same set.
#[derive(Clone, Debug, Default)]
pub struct Tasks(TaskTracker);

impl Tasks {
    /// Starts `future` in the background under `name`, which its log lines carry.
    #[expect(clippy::disallowed_methods, reason = "the one caller of tokio::spawn")]
    pub fn spawn<F>(&self, name: &'static str, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        tokio::spawn(self.0.track_future(future).instrument(tracing::debug_span!("task", name)))
    }

    /// Tasks that have not ended.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether every task has ended.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Waits until every task has ended. Tasks started meanwhile are waited for too.
    pub async fn finished(&self) {
        self.0.close();
        self.0.wait().await;
        self.0.reopen();
    }
}

/// Runs what may block for a moment on a thread of its own. `None` if it panicked, or the program stops.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    tokio::task::spawn_blocking(work).await.ok()
}
