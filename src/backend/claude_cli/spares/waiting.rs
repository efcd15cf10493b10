//! Who waits for a start or for a place, counted while it waits; and the right to start.

use tokio::sync::{oneshot, watch};

use super::Spares;

/// Keeps others from starting while it is held, but for [`super::START_LIMIT`] at most: one that hangs must not stop
/// everybody.
#[derive(Debug)]
pub(in crate::backend::claude_cli) struct Starting(
    #[expect(dead_code, reason = "its drop is what counts")] pub(super) oneshot::Sender<()>,
);

/// Counts among those who wait for their turn to start while it lives.
pub(super) struct WaitingToStart<'a>(&'a watch::Sender<usize>);

impl<'a> WaitingToStart<'a> {
    pub(super) fn new(waiting: &'a watch::Sender<usize>) -> Self {
        waiting.send_modify(|count| *count += 1);
        Self(waiting)
    }
}

impl Drop for WaitingToStart<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

/// Counts among those who wait for a place while it lives.
pub(super) struct WaitingForPlace<'a>(&'a Spares);

impl<'a> WaitingForPlace<'a> {
    pub(super) fn new(spares: &'a Spares) -> Self {
        spares.state().waiting_for_place += 1;
        Self(spares)
    }
}

impl Drop for WaitingForPlace<'_> {
    fn drop(&mut self) {
        self.0.state().waiting_for_place -= 1;
    }
}
