//! Capacity: what a subscription may use in any minute and in any day, as its tier allows.
//!
//! Windows roll: what was used leaves them a minute or a day later. Requests in flight count with their estimates, so
//! that a burst cannot run over a limit before its use is known.

use std::collections::VecDeque;
use std::time::Duration;

use crate::units::{MicroUsd, Timestamp};

use super::explain::{Cause, Exclusion};
use super::subscription::Subscription;
use super::usage::{DAY, Figures, MINUTE};
use super::window::Tally;

/// What a subscription may use; a limit that is left out does not exist.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CapacityLimits {
    /// Requests in any minute.
    pub requests_per_minute: Option<u64>,
    /// Tokens of all kinds in any minute.
    pub tokens_per_minute: Option<u64>,
    /// Input tokens in any minute.
    pub input_tokens_per_minute: Option<u64>,
    /// Tokens of all kinds in any day.
    pub tokens_per_day: Option<u64>,
    /// Money in any day.
    pub cost_per_day: Option<MicroUsd>,
}

/// When requests began, as far as a limit on them needs it.
#[derive(Clone, Debug, Default)]
pub(super) struct Starts(VecDeque<Timestamp>);

impl Starts {
    /// A request begins. `limit` bounds what is kept: more than that many starts a minute are not admitted.
    pub(super) fn note(&mut self, now: Timestamp, limit: Option<u64>) {
        let kept = limit.map_or(0, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
        self.0.push_back(now);
        while self.0.len() > kept || self.0.front().is_some_and(|start| now.since(*start) >= MINUTE) {
            self.0.pop_front();
        }
    }

    /// A request that began then did not run after all.
    pub(super) fn undo(&mut self, start: Timestamp) {
        if let Some(index) = self.0.iter().rposition(|at| *at == start) {
            self.0.remove(index);
        }
    }

    /// When one more request is within `limit`, unless it is now.
    fn free_at(&self, now: Timestamp, limit: u64) -> Option<Timestamp> {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let oldest = self.0.get(self.0.len().checked_sub(limit)?)?;
        Some(*oldest + MINUTE).filter(|free_at| *free_at > now)
    }
}

impl Subscription {
    /// Which capacity limit keeps requests away, and until when; of several the one that lasts longest.
    pub(super) fn capacity_exclusion(&self, now: Timestamp, figures: &Figures) -> Option<Exclusion> {
        let CapacityLimits {
            requests_per_minute,
            tokens_per_minute,
            input_tokens_per_minute,
            tokens_per_day,
            cost_per_day,
        } = self.settings.capacity;
        let requests = requests_per_minute.and_then(|limit| self.starts.free_at(now, limit));
        let estimate = self.reserved_tokens;
        let minute = |limit: Option<u64>, estimate, measure| {
            self.window_full(now, MINUTE, &figures.minute, signed(limit?), estimate, measure)
        };
        let day =
            |limit: Option<i64>, estimate, measure| self.window_full(now, DAY, &figures.day, limit?, estimate, measure);
        let full = [
            requests.map(|free_at| full_until(Some(free_at))),
            minute(tokens_per_minute, signed(estimate), tokens),
            minute(input_tokens_per_minute, signed(estimate), input),
            day(tokens_per_day.map(signed), signed(estimate), tokens),
            day(cost_per_day.map(MicroUsd::as_micros), self.reserved.as_micros(), cost),
        ];
        full.into_iter().flatten().max_by_key(|exclusion| exclusion.until)
    }

    /// Whether a window is full, by what was used or only together with the estimates of what is in flight. Those have no
    /// end of their own: a request can end at any moment.
    fn window_full(
        &self,
        now: Timestamp,
        length: Duration,
        used: &Tally,
        limit: i64,
        estimate: i64,
        measure: fn(&Tally) -> i64,
    ) -> Option<Exclusion> {
        let full = measure(used).saturating_add(estimate) >= limit;
        full.then(|| full_until(self.usage.below_at(now, length, measure, limit)))
    }
}

const fn full_until(until: Option<Timestamp>) -> Exclusion {
    Exclusion::new(Cause::CapacityFull, None, until)
}

fn tokens(tally: &Tally) -> i64 {
    signed(tally.tokens)
}

fn input(tally: &Tally) -> i64 {
    signed(tally.input)
}

fn cost(tally: &Tally) -> i64 {
    tally.cost.as_micros()
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
