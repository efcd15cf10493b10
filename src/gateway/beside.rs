//! A request on a backend beside the pool, and who pays for it.
//!
//! The pool has leases for that; what is beside it has an [`Account`]. However the request ends (complete, broken off,
//! dropped by a client that left) what it used is booked, counted, told and kept exactly once.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_util::stream::{Stream, StreamExt as _};
use tokio::sync::OwnedSemaphorePermit;

use super::Call;
use super::attempt::{CHARS_PER_TOKEN, outcome, seen};
use super::clients::Spending;
use super::lease::SharedPool;
use super::record::{Trace, in_a_word};
use super::routing::NamedBackend;
use crate::backend::{EventStream, Failure};
use crate::conversation::{Event, Price, Usage};
use crate::pool::{Outcome, Spent};
use crate::runtime::clock;
use crate::units::Timestamp;

/// A running request of a backend beside the pool.
pub(super) struct Run {
    events: EventStream,
    account: Account,
    finished: bool,
    /// Given back at the end.
    _place: OwnedSemaphorePermit,
}

impl Run {
    pub(super) fn new(events: EventStream, account: Account, place: OwnedSemaphorePermit) -> Self {
        Self { events, account, finished: false, _place: place }
    }
}

impl Stream for Run {
    type Item = Result<Event, Failure>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            let item = ready!(self.events.poll_next_unpin(cx));
            match &item {
                // These are for the pool.
                Some(Ok(Event::Limits(_) | Event::Settled(_))) => continue,
                Some(Ok(event)) => {
                    self.account.note(event);
                    if matches!(event, Event::Finished { .. }) {
                        self.finished = true;
                        self.account.outcome = Outcome::Completed;
                        self.account.settle();
                    }
                }
                Some(Err(_)) if self.finished => return Poll::Ready(None),
                Some(Err(failure)) => {
                    self.account.named.note_failure(failure);
                    self.account.outcome = outcome(failure);
                    self.account.settle();
                }
                None => {}
            }
            return Poll::Ready(item);
        }
    }
}

/// What such a request uses, and on whose account.
pub(super) struct Account {
    named: NamedBackend,
    pool: SharedPool,
    spending: Spending,
    price: Price,
    begun_at: Timestamp,
    trace: Option<Arc<Trace>>,
    meter: Meter,
    outcome: Outcome,
    is_settled: bool,
}

impl Account {
    /// For a request that is about to run.
    pub(super) fn open(
        call: &Call,
        named: NamedBackend,
        pool: SharedPool,
        spending: Spending,
        trace: Option<Arc<Trace>>,
    ) -> Self {
        Self {
            named,
            pool,
            spending,
            price: call.request.model.price,
            begun_at: clock::now(),
            trace,
            meter: Meter { input: call.request.estimated_tokens(), ..Meter::default() },
            outcome: Outcome::Abandoned,
            is_settled: false,
        }
    }

    fn note(&mut self, event: &Event) {
        self.meter.note(event);
    }

    fn settle(&mut self) {
        if std::mem::replace(&mut self.is_settled, true) {
            return;
        }
        let now = clock::now();
        let usage = self.meter.read();
        // What the endpoint charges is not known: the model that was asked for is the measure.
        let spent = Spent { usage, cost: self.price.cost_with_short_cache(&usage) };
        self.named.note_usage(&usage);
        self.spending.book(now, spent.cost);
        let (record, name) = (uuid::Uuid::now_v7(), self.named.shared_name());
        if let Some(replicas) = self.pool.replicas().filter(|_| usage.total() > 0) {
            replicas.tell_used(record, name, self.spending.client(), &spent);
        }
        let word = in_a_word(&self.outcome);
        self.pool.tell_use(name, self.spending.client(), word.0, &spent);
        if let Some(trace) = &self.trace {
            trace.ended((record, name), (self.begun_at, now), word, spent, None);
        }
    }
}

impl Drop for Account {
    /// A client that leaves has used what was used until then.
    fn drop(&mut self) {
        self.settle();
    }
}

/// What an answer has used, as far as it has come. What the endpoint does not tell (many leave out the usage, and none
/// tells it before the end) is reckoned from what was sent and seen.
#[derive(Debug, Default)]
struct Meter {
    /// What the request is estimated to be, in tokens.
    input: u64,
    output_chars: u64,
    /// The endpoint took the request; before that it costs nothing.
    began: bool,
    /// It told how much it was, if it ever does.
    finished: bool,
    told: Usage,
}

impl Meter {
    fn note(&mut self, event: &Event) {
        self.began = true;
        self.finished |= matches!(event, Event::Finished { .. });
        match event {
            Event::Started(usage) | Event::Finished { usage, .. } => self.told = *usage,
            event => self.output_chars += seen(event),
        }
    }

    fn read(&self) -> Usage {
        let mut usage = self.told;
        if self.began && usage.total_input() == 0 {
            usage.input = self.input;
        }
        if !self.finished || usage.output == 0 {
            usage.output = usage.output.max(self.output_chars.div_ceil(CHARS_PER_TOKEN));
        }
        usage
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conversation::StopReason;

    fn used(events: &[Event]) -> (u64, u64) {
        let mut meter = Meter { input: 100, ..Meter::default() };
        for event in events {
            meter.note(event);
        }
        let usage = meter.read();
        (usage.total_input(), usage.output)
    }

    fn started(input: u64) -> Event {
        Event::Started(Usage { input, ..Usage::default() })
    }

    fn finished(input: u64, output: u64) -> Event {
        Event::Finished { stop: StopReason::EndTurn, usage: Usage { input, output, ..Usage::default() } }
    }

    fn text(chars: usize) -> Event {
        Event::Text("\u{e4}".repeat(chars))
    }

    #[test]
    fn what_the_endpoint_tells_counts_and_what_it_does_not_is_reckoned() {
        assert_eq!(used(&[]), (0, 0), "nobody took the request");
        assert_eq!(used(&[started(7), text(40)]), (7, 10), "cut short: the input is known");
        assert_eq!(used(&[started(0), text(41)]), (100, 11), "cut short, and nothing was told");
        assert_eq!(used(&[started(0), text(40), finished(9, 3)]), (9, 3));
        assert_eq!(used(&[started(0), text(40), finished(0, 0)]), (100, 10), "an endpoint without usage");
        let call = Event::ToolInput { index: 0, json: "{\"a\":1}".to_owned() };
        assert_eq!(used(&[started(0), Event::Thinking("hmmm".to_owned()), call]), (100, 3));
    }
}
