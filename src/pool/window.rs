//! Exact running sums over the newest part of a log.
//!
//! A window is a position in the log and the sum of everything behind it. Moving it forward subtracts what falls out,
//! so that reading costs nothing and sums never drift: they are integers.

use std::collections::VecDeque;
use std::time::Duration;

use crate::units::{MicroUsd, Timestamp};

use super::command::Spent;

/// One request's use.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record {
    pub(super) at: Timestamp,
    pub(super) cost: MicroUsd,
    pub(super) input: u32,
    pub(super) tokens: u32,
}

impl Record {
    pub(super) fn new(at: Timestamp, spent: &Spent) -> Self {
        Self {
            at,
            cost: spent.cost.max(MicroUsd::ZERO),
            input: u32::try_from(spent.usage.total_input()).unwrap_or(u32::MAX),
            tokens: u32::try_from(spent.usage.total()).unwrap_or(u32::MAX),
        }
    }
}

/// A sum of records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// Money.
    pub(super) cost: MicroUsd,
    /// Input tokens, cached or not.
    pub(super) input: u64,
    /// All tokens.
    pub(super) tokens: u64,
}

impl Tally {
    pub(super) fn add(&mut self, record: &Record) {
        self.cost += record.cost;
        self.input += u64::from(record.input);
        self.tokens += u64::from(record.tokens);
    }

    fn remove(&mut self, record: &Record) {
        self.cost -= record.cost;
        self.input -= u64::from(record.input);
        self.tokens -= u64::from(record.tokens);
    }
}

/// The records themselves, oldest first, numbered without gaps from the first one ever.
#[derive(Clone, Debug, Default)]
pub(super) struct Records {
    held: VecDeque<Record>,
    /// The number of the oldest held record.
    first: u64,
}

impl Records {
    fn at(&self, number: u64) -> Option<&Record> {
        let offset = usize::try_from(number.checked_sub(self.first)?).ok()?;
        self.held.get(offset)
    }

    pub(super) fn push(&mut self, record: Record) {
        self.held.push_back(record);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Record> {
        self.held.iter().copied()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    pub(super) fn oldest(&self) -> Option<Timestamp> {
        self.held.front().map(|record| record.at)
    }

    pub(super) fn newest(&self) -> Option<Timestamp> {
        self.held.back().map(|record| record.at)
    }

    pub(super) fn forget_before(&mut self, start: Timestamp) {
        while self.held.front().is_some_and(|record| record.at < start) {
            self.held.pop_front();
            self.first += 1;
        }
    }
}

/// Everything from one record on.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Window {
    /// The number of the first record inside.
    next: u64,
    pub(super) tally: Tally,
}

impl Window {
    /// A window that begins after the last record.
    pub(super) fn after(records: &Records) -> Self {
        Self { next: records.first + records.held.len() as u64, tally: Tally::default() }
    }

    /// Makes the window begin at `start`, which usually is a little later than before.
    pub(super) fn seek(&mut self, start: Timestamp, records: &Records) {
        while let Some(record) = records.at(self.next).filter(|record| record.at < start) {
            self.tally.remove(record);
            self.next += 1;
        }
        // A reset time that the provider corrects can move the start back.
        while let Some(before) = self.next.checked_sub(1)
            && let Some(record) = records.at(before).filter(|record| record.at >= start)
        {
            self.tally.add(record);
            self.next = before;
        }
    }

    /// When its sum falls below `limit` as its records become `length` old; `None` if it already is below.
    pub(super) fn falls_below(
        mut self,
        length: Duration,
        records: &Records,
        measure: impl Fn(&Tally) -> i64,
        limit: i64,
    ) -> Option<Timestamp> {
        let mut falls_at = None;
        while measure(&self.tally) >= limit
            && let Some(record) = records.at(self.next)
        {
            self.tally.remove(record);
            self.next += 1;
            falls_at = Some(record.at + length);
        }
        falls_at
    }

    /// When the oldest record inside is `length` old.
    pub(super) fn next_expiry(&self, length: Duration, records: &Records) -> Option<Timestamp> {
        records.at(self.next).map(|record| record.at + length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_takes_at_most_32_bytes() {
        assert!(size_of::<Record>() <= 32);
    }
}
