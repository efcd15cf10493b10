//! A turn's events on their way to whoever asked: read as fast as the process writes, however slowly they are taken.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use futures_util::stream::{Stream, StreamExt as _};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::turn::Turn;
use crate::backend::{EventStream, Failure, FailureKind};
use crate::conversation::Event;
use crate::runtime::tasks::Tasks;

/// Bytes of an answer that may wait for a client who reads slowly.
const MAX_BACKLOG_BYTES: usize = 16 * 1024 * 1024;

/// Runs `turn` in a task of its own: what has to be stopped at once is seen at once. Dropping the stream ends the task.
pub(super) fn run(turn: Turn, tasks: &Tasks) -> EventStream {
    let (sender, events) = mpsc::unbounded_channel();
    let backlog = Arc::new(AtomicUsize::new(0));
    let task = tasks.spawn("claude-cli-turn", pump(turn, sender, Arc::clone(&backlog)));
    Answer { events, backlog, task: task.abort_handle() }.boxed()
}

async fn pump(mut turn: Turn, events: mpsc::UnboundedSender<Result<Event, Failure>>, backlog: Arc<AtomicUsize>) {
    while let Some(event) = turn.next().await {
        let waiting = size(&event) + backlog.fetch_add(size(&event), Ordering::Relaxed);
        if events.send(event).is_err() {
            return;
        }
        if waiting > MAX_BACKLOG_BYTES {
            let _ = events.send(Err(Failure::new(FailureKind::Overflow, "the client reads too slowly")));
            return;
        }
    }
}

/// What an event takes up while it waits, roughly.
fn size(event: &Result<Event, Failure>) -> usize {
    let text = match event {
        Ok(Event::Text(text) | Event::Thinking(text) | Event::ToolInput { json: text, .. }) => text.len(),
        _ => 0,
    };
    size_of::<Event>() + text
}

/// The events of a turn as they come. Dropping it ends the turn.
struct Answer {
    events: mpsc::UnboundedReceiver<Result<Event, Failure>>,
    backlog: Arc<AtomicUsize>,
    task: AbortHandle,
}

impl Stream for Answer {
    type Item = Result<Event, Failure>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let event = ready!(self.events.poll_recv(cx));
        if let Some(event) = &event {
            self.backlog.fetch_sub(size(event), Ordering::Relaxed);
        }
        Poll::Ready(event)
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.task.abort();
    }
}
