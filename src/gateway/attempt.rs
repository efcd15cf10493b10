//! One attempt: a backend's stream under a lease.
//!
//! However the stream ends (complete, failed, dropped by a client that left) the lease is finished exactly once with
//! what was really used.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_util::stream::{Stream, StreamExt as _};

use super::lease::Lease;
use crate::backend::{EventStream, Failure, FailureKind};
use crate::conversation::{Event, Price};
use crate::pool::Outcome;
use crate::runtime::tasks::Tasks;

/// Characters of output that count as one token where the provider could not tell.
pub(super) const CHARS_PER_TOKEN: u64 = 4;

/// A running attempt.
pub(super) struct Attempt {
    events: Option<EventStream>,
    lease: Option<Lease>,
    price: Price,
    output_chars: u64,
    /// The client's answer is complete; only bookkeeping is left.
    finished: bool,
    /// Where the bookkeeping goes on when the client has left; `None` once it has gone there.
    background: Option<Tasks>,
}

impl Attempt {
    pub(super) fn new(events: EventStream, lease: Lease, price: Price, tasks: Tasks) -> Self {
        Self {
            events: Some(events),
            lease: Some(lease),
            price,
            output_chars: 0,
            finished: false,
            background: Some(tasks),
        }
    }

    fn note(&mut self, event: &Event) {
        let Some(lease) = &mut self.lease else { return };
        match event {
            Event::Started(usage) => lease.spent.usage = *usage,
            Event::Text(_) | Event::Thinking(_) | Event::ToolInput { .. } => self.output_chars += seen(event),
            Event::Finished { usage, .. } => {
                self.finished = true;
                lease.spent.usage = *usage;
                lease.spent.cost = self.price.cost(usage);
            }
            Event::Limits(report) => lease.observe(report),
            Event::Overage(overage) => lease.note_overage(overage),
            Event::Settled(cost) => lease.spent.cost = *cost,
            Event::ToolUse { .. } => {}
        }
    }

    /// Ends the work and the lease.
    fn end(&mut self, outcome: Outcome) {
        self.events = None;
        if let Some(mut lease) = self.lease.take() {
            let is_counted_already = lease.is_second_chance && matches!(outcome, Outcome::Unavailable);
            let outcome = if is_counted_already { Outcome::Overloaded } else { outcome };
            if !self.finished && lease.spent.usage.total() > 0 {
                // Cut short: the input is known, the output is what was seen of it.
                let usage = &mut lease.spent.usage;
                usage.output = usage.output.max(self.output_chars.div_ceil(CHARS_PER_TOKEN));
                lease.spent.cost = self.price.cost(usage);
            }
            lease.finish(outcome);
        }
    }
}

impl Stream for Attempt {
    type Item = Result<Event, Failure>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            let Some(events) = &mut self.events else { return Poll::Ready(None) };
            match ready!(events.poll_next_unpin(cx)) {
                Some(Ok(event)) => {
                    self.note(&event);
                    if !matches!(event, Event::Limits(_) | Event::Overage(_) | Event::Settled(_)) {
                        return Poll::Ready(Some(Ok(event)));
                    }
                }
                Some(Err(failure)) => {
                    let outcome = if self.finished { Outcome::Completed } else { outcome(&failure) };
                    self.end(outcome);
                    return Poll::Ready(if self.finished { None } else { Some(Err(failure)) });
                }
                None => {
                    let outcome = if self.finished { Outcome::Completed } else { Outcome::Abandoned };
                    self.end(outcome);
                    return Poll::Ready(None);
                }
            }
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if !self.finished {
            self.end(Outcome::Abandoned);
            return;
        }
        // The client has its answer. What it cost is heard in the background.
        let Some(tasks) = self.background.take() else { return self.end(Outcome::Completed) };
        let (Some(events), Some(lease)) = (self.events.take(), self.lease.take()) else { return };
        let mut rest = Self {
            events: Some(events),
            lease: Some(lease),
            price: self.price,
            output_chars: self.output_chars,
            finished: true,
            background: None,
        };
        tasks.spawn("settle", async move { while rest.next().await.is_some() {} });
    }
}

/// Characters of output in an event.
pub(super) fn seen(event: &Event) -> u64 {
    match event {
        Event::Text(text) | Event::Thinking(text) | Event::ToolInput { json: text, .. } => text.chars().count() as u64,
        _ => 0,
    }
}

/// What a failure means for the subscription.
pub(super) fn outcome(failure: &Failure) -> Outcome {
    match &failure.kind {
        FailureKind::Limited(report) => Outcome::Limited(report.clone()),
        FailureKind::Unauthenticated | FailureKind::Billing => {
            Outcome::Unauthenticated { detail: failure.detail.clone() }
        }
        FailureKind::ModelNotFound
        | FailureKind::PromptTooLong
        | FailureKind::TooLarge
        | FailureKind::InvalidRequest => Outcome::ClientError,
        // Nothing was learned about the subscription: a full disk or a missing CLI is the machine's, and would open the
        // breaker of every subscription for minutes after it is over.
        FailureKind::Lacking
        | FailureKind::Runaway
        | FailureKind::Spawn
        | FailureKind::NoProcess
        | FailureKind::Overflow
        | FailureKind::TimedOut { timer: "total" } => Outcome::Abandoned,
        FailureKind::Unavailable { status: Some(503 | 529) } => Outcome::Overloaded,
        FailureKind::Unavailable { .. } | FailureKind::TimedOut { .. } => Outcome::Unavailable,
        FailureKind::Crashed | FailureKind::Protocol => Outcome::BackendFailed,
    }
}
