//! What a subscription has used: an exact log of seven days, with running sums over every window that counts.
//!
//! Recording and reading cost O(1) a record over its whole life; see [`super::window`].

use std::time::Duration;

use crate::units::{MicroUsd, Timestamp};

use super::command::Spent;
use super::window::{Record, Records, Tally, Window};

/// The provider's long window.
pub(super) const WEEK: Duration = Duration::from_hours(7 * 24);
/// The provider's short window.
pub(super) const BLOCK: Duration = Duration::from_hours(5);
/// Capacity is counted over this long,
pub(super) const MINUTE: Duration = Duration::from_mins(1);
/// and over this long.
pub(super) const DAY: Duration = Duration::from_hours(24);
/// Burn rate is the cost of this long.
const HOUR: Duration = Duration::from_hours(1);
/// Tokens per minute are averaged over this long.
const FIVE_MINUTES: Duration = Duration::from_mins(5);
/// How far beyond its length a reset time may lie before it is taken for a mistake.
const RESET_TOLERANCE: Duration = Duration::from_mins(1);

/// A 5-hour window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block {
    /// From here on, inclusive.
    pub(super) start: Timestamp,
    /// Until here, exclusive.
    pub(super) end: Timestamp,
}

/// What the log says at one instant.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Figures {
    /// The week so far.
    pub(super) week: Tally,
    /// The last 24 hours.
    pub(super) day: Tally,
    /// The last 60 minutes.
    pub(super) hour: Tally,
    /// The last 5 minutes.
    pub(super) five_minutes: Tally,
    /// The last minute.
    pub(super) minute: Tally,
    /// The current block, if one has begun.
    pub(super) block: Option<Block>,
    /// The current block's use; zero between blocks.
    pub(super) block_tally: Tally,
}

impl Figures {
    /// Dollars per hour, from the last hour.
    pub(super) fn burn_rate(&self) -> f64 {
        self.hour.cost.as_usd()
    }

    /// Tokens per minute, from the last five minutes.
    #[expect(clippy::cast_precision_loss, reason = "a rate for people; token counts stay far below 2^53")]
    pub(super) fn tokens_per_minute(&self) -> f64 {
        self.five_minutes.tokens as f64 / 5.0
    }

    /// What the block will have cost at its end if use goes on like this.
    pub(super) fn projected_block_cost(&self, now: Timestamp) -> f64 {
        let hours_left = self.block.map_or(0.0, |block| block.end.since(now).as_secs_f64() / 3600.0);
        self.block_tally.cost.as_usd() + self.burn_rate() * hours_left
    }

    /// When `budget` will be spent if use goes on like this.
    pub(super) fn exhaustion_at(&self, budget: MicroUsd, now: Timestamp) -> Option<Timestamp> {
        let left = (budget - self.week.cost).as_usd();
        if left <= 0.0 {
            return Some(now);
        }
        let hours = left / self.burn_rate();
        // Beyond a century nobody wants to know.
        (hours < 876_000.0).then(|| now + Duration::from_secs_f64(hours * 3600.0))
    }
}

/// The log of one subscription.
#[derive(Clone, Debug, Default)]
pub(super) struct UsageLog {
    records: Records,
    week: Window,
    day: Window,
    hour: Window,
    five_minutes: Window,
    minute: Window,
    block_window: Window,
    block: Option<Block>,
    /// When the provider's own week resets, once it has said so.
    week_reset: Option<Timestamp>,
    /// From when until when no sum changes unless something is added: then there is nothing to look for.
    settled: Option<(Timestamp, Timestamp)>,
}

impl UsageLog {
    /// Adds what a request used. `now` may lie a little before the last record's time when the clock was set back;
    /// the record then counts from that time on.
    pub(super) fn record(&mut self, now: Timestamp, spent: &Spent) {
        let at = self.records.newest().map_or(now, |newest| newest.max(now));
        self.advance(now);
        self.add(Record::new(at, spent));
    }

    /// Adds a record that is not older than any other.
    fn add(&mut self, record: Record) {
        if self.block.is_none_or(|block| record.at >= block.end) {
            self.block = Some(Block { start: record.at, end: record.at + BLOCK });
            self.block_window = self.empty_window();
        }
        self.records.push(record);
        let Self { week, day, hour, five_minutes, minute, block_window, .. } = self;
        for window in [week, day, hour, five_minutes, minute, block_window] {
            window.tally.add(&record);
        }
    }

    /// Takes in what was used before, and reckons everything anew. A block of the provider's stays; our own begins
    /// where the older records say so.
    pub(super) fn recall(&mut self, now: Timestamp, past: Vec<Record>) {
        let is_own = |block: &Block| self.records.oldest().is_some_and(|oldest| block.end == oldest + BLOCK);
        let told = self.block.filter(|block| now < block.end && !is_own(block));
        let mut all = past;
        all.extend(self.records.iter());
        all.sort_by_key(|record| record.at);
        *self = Self { week_reset: self.week_reset, ..Self::default() };
        for record in all {
            self.add(record);
        }
        if told.is_some() {
            self.block = told;
            self.settle_block();
        }
        self.advance(now);
    }

    /// Takes in when the provider's windows reset, as it was known before.
    pub(super) fn recall_resets(
        &mut self,
        now: Timestamp,
        week_reset: Option<Timestamp>,
        block: Option<(Timestamp, Timestamp)>,
    ) {
        if let Some(reset) = week_reset.filter(|_| self.week_reset.is_none()) {
            self.anchor_week(now, reset);
        }
        if let Some((start, end)) = block
            && start <= now
            && now < end
            && end <= start + BLOCK + RESET_TOLERANCE
        {
            self.block = Some(Block { start, end });
            self.settle_block();
        }
    }

    fn settle_block(&mut self) {
        if let Some(block) = self.block {
            self.block_window = self.empty_window();
            self.block_window.seek(block.start, &self.records);
            self.settled = None;
        }
    }

    /// The block at `now`.
    pub(super) fn block_at(&self, now: Timestamp) -> Option<Block> {
        self.block.filter(|block| now < block.end)
    }

    /// Lets go of what has become too old by `now`.
    pub(super) fn advance(&mut self, now: Timestamp) {
        if self.is_settled(now) {
            return;
        }
        self.week.seek(self.week_start(now), &self.records);
        self.day.seek(rolling_start(now, DAY), &self.records);
        self.hour.seek(rolling_start(now, HOUR), &self.records);
        self.five_minutes.seek(rolling_start(now, FIVE_MINUTES), &self.records);
        self.minute.seek(rolling_start(now, MINUTE), &self.records);
        if self.block.is_some_and(|block| now >= block.end) {
            self.block = None;
            self.block_window = self.empty_window();
        }
        self.records.forget_before(rolling_start(now, WEEK));
        self.settled = Some((now, self.settled_until(now)));
    }

    /// What the log says at `now`, whether or not it was advanced to it.
    pub(super) fn figures(&self, now: Timestamp) -> Figures {
        let settled = self.is_settled(now);
        let sought = |mut window: Window, start| {
            if !settled {
                window.seek(start, &self.records);
            }
            window.tally
        };
        let block = self.block.filter(|block| now < block.end);
        Figures {
            week: sought(self.week, self.week_start(now)),
            day: sought(self.day, rolling_start(now, DAY)),
            hour: sought(self.hour, rolling_start(now, HOUR)),
            five_minutes: sought(self.five_minutes, rolling_start(now, FIVE_MINUTES)),
            minute: sought(self.minute, rolling_start(now, MINUTE)),
            block,
            block_tally: if block.is_some() { self.block_window.tally } else { Tally::default() },
        }
    }

    /// The provider's week resets at `reset`.
    pub(super) fn anchor_week(&mut self, now: Timestamp, reset: Timestamp) {
        if reset > now && reset <= now + WEEK + RESET_TOLERANCE {
            self.week_reset = Some(reset);
            self.settled = None;
            self.advance(now);
        }
    }

    /// The provider's current block ends at `reset`.
    pub(super) fn anchor_block(&mut self, now: Timestamp, reset: Timestamp) {
        if reset > now && reset <= now + BLOCK + RESET_TOLERANCE {
            let block = Block { start: (reset - BLOCK).min(now), end: reset };
            self.block = Some(block);
            self.block_window.seek(block.start, &self.records);
            self.settled = None;
        }
    }

    /// When the sum of the week falls below `limit` if nothing is added; `None` if it already is.
    pub(super) fn week_below_at(&self, now: Timestamp, limit: MicroUsd) -> Option<Timestamp> {
        let mut week = self.week;
        week.seek(self.week_start(now), &self.records);
        if let Some(reset) = self.week_reset_after(now) {
            return (week.tally.cost >= limit).then_some(reset);
        }
        week.falls_below(WEEK, &self.records, |tally| tally.cost.as_micros(), limit.as_micros())
    }

    /// The same for the last minute or day and any measure of it.
    pub(super) fn below_at(
        &self,
        now: Timestamp,
        length: Duration,
        measure: impl Fn(&Tally) -> i64,
        limit: i64,
    ) -> Option<Timestamp> {
        let mut window = if length == DAY { self.day } else { self.minute };
        window.seek(rolling_start(now, length), &self.records);
        window.falls_below(length, &self.records, measure, limit)
    }

    /// The next instant at which time alone changes the week's sum, the block or (if `burning`) the last hour's sum.
    pub(super) fn next_change(&self, now: Timestamp, burning: bool) -> Option<Timestamp> {
        let week = match self.week_reset_after(now) {
            Some(reset) => Some(reset),
            None => self.week.next_expiry(WEEK, &self.records),
        };
        let hour = burning.then(|| self.hour.next_expiry(HOUR, &self.records)).flatten();
        let block = self.block.map(|block| block.end);
        [week, hour, block].into_iter().flatten().min()
    }

    /// When the provider's week that `now` lies in resets, if the provider has ever said when one does.
    pub(super) fn week_reset_after(&self, now: Timestamp) -> Option<Timestamp> {
        let mut reset = self.week_reset?;
        if reset <= now {
            let weeks = now.since(reset).as_millis() / WEEK.as_millis() + 1;
            reset = reset + WEEK * u32::try_from(weeks).unwrap_or(u32::MAX);
        }
        Some(reset)
    }

    /// Whether nothing of the last week is left.
    pub(super) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    fn is_settled(&self, now: Timestamp) -> bool {
        self.settled.is_some_and(|(from, until)| from <= now && now < until)
    }

    fn settled_until(&self, now: Timestamp) -> Timestamp {
        let rolling = [(self.day, DAY), (self.hour, HOUR), (self.five_minutes, FIVE_MINUTES), (self.minute, MINUTE)];
        let expiries = rolling.into_iter().filter_map(|(window, length)| window.next_expiry(length, &self.records));
        let oldest = self.records.oldest().map(|oldest| oldest + WEEK);
        // A new record is the first to leave the last minute, unless others are in it.
        expiries.chain(oldest).chain(self.next_change(now, false)).min().unwrap_or(now + MINUTE).min(now + MINUTE)
    }

    fn week_start(&self, now: Timestamp) -> Timestamp {
        // The provider's own week never reaches further back than seven days.
        match self.week_reset_after(now) {
            Some(reset) => (reset - WEEK).min(now),
            None => rolling_start(now, WEEK),
        }
    }

    fn empty_window(&self) -> Window {
        Window::after(&self.records)
    }
}

/// The first instant that is less than `length` before `now`.
fn rolling_start(now: Timestamp, length: Duration) -> Timestamp {
    now - length + Duration::from_millis(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conversation::Usage;

    fn spent(dollars: f64) -> Spent {
        Spent { usage: Usage { input: 60, output: 40, ..Usage::default() }, cost: MicroUsd::from_usd(dollars) }
    }

    fn now() -> Timestamp {
        Timestamp::from_secs(1_800_000_000)
    }

    #[test]
    fn the_week_counts_one_three_and_six_days_ago_but_not_eight() {
        let mut log = UsageLog::default();
        for (days, dollars) in [(8, 99.0), (6, 10.0), (3, 20.0), (1, 15.0)] {
            log.record(now() - DAY * days, &spent(dollars));
        }
        assert_eq!(log.figures(now()).week.cost, MicroUsd::from_usd(45.0));
        assert_eq!(log.figures(now() + DAY * 2).week.cost, MicroUsd::from_usd(35.0));
    }

    #[test]
    fn a_hundred_records_in_one_millisecond_all_count() {
        let mut log = UsageLog::default();
        for _ in 0..100 {
            log.record(now(), &spent(0.000_001));
        }
        let figures = log.figures(now());
        assert_eq!(figures.week.cost, MicroUsd::from_micros(100));
        assert_eq!(figures.five_minutes.tokens, 10_000);
    }

    #[test]
    fn a_block_is_five_hours_from_its_first_use_and_then_starts_afresh() {
        let mut log = UsageLog::default();
        log.record(now(), &spent(3.0));
        log.record(now() + Duration::from_hours(4), &spent(2.0));
        let block = log.figures(now() + Duration::from_hours(4));
        assert_eq!(block.block_tally.cost, MicroUsd::from_usd(5.0));
        let end = now() + BLOCK;
        assert_eq!(log.figures(end).block, None);
        assert_eq!(log.figures(end).block_tally.cost, MicroUsd::ZERO);
        log.record(end + Duration::from_mins(7), &spent(1.5));
        let fresh = log.figures(end + Duration::from_mins(8));
        assert_eq!(fresh.block_tally.cost, MicroUsd::from_usd(1.5));
        assert_eq!(fresh.block.map(|block| block.start), Some(end + Duration::from_mins(7)));
    }

    #[test]
    fn the_provider_decides_when_week_and_block_reset() {
        let mut log = UsageLog::default();
        log.record(now() - DAY * 6, &spent(10.0));
        log.record(now() - Duration::from_hours(3), &spent(4.0));
        log.record(now(), &spent(1.0));
        let week_reset = now() + DAY * 5;
        log.anchor_week(now(), week_reset);
        log.anchor_block(now(), now() + Duration::from_hours(3));
        assert_eq!(log.figures(now()).week.cost, MicroUsd::from_usd(5.0));
        assert_eq!(log.figures(now()).block_tally.cost, MicroUsd::from_usd(1.0));
        assert_eq!(log.figures(week_reset).week.cost, MicroUsd::ZERO);
        // A corrected reset brings the older record back.
        log.anchor_week(now(), now() + DAY / 2);
        assert_eq!(log.figures(now()).week.cost, MicroUsd::from_usd(15.0));
        // Nonsense changes nothing.
        log.anchor_week(now(), now() + DAY * 400);
        log.anchor_block(now(), now() - DAY);
        assert_eq!(log.figures(now()).week.cost, MicroUsd::from_usd(15.0));
    }

    #[test]
    fn rates_and_forecasts() {
        let mut log = UsageLog::default();
        log.record(now() - Duration::from_mins(61), &spent(7.0));
        log.record(now() - Duration::from_mins(59), &spent(2.0));
        log.record(now() - Duration::from_mins(1), &spent(3.0));
        let figures = log.figures(now());
        assert_eq!(figures.hour.cost, MicroUsd::from_usd(5.0));
        assert!((figures.tokens_per_minute() - 20.0).abs() < f64::EPSILON);
        let hours_left = 5.0 - 61.0 / 60.0;
        assert!((figures.projected_block_cost(now()) - (12.0 + 5.0 * hours_left)).abs() < 1e-9);
        assert_eq!(figures.exhaustion_at(MicroUsd::from_usd(22.0), now()), Some(now() + Duration::from_hours(2)));
        assert_eq!(figures.exhaustion_at(MicroUsd::from_usd(12.0), now()), Some(now()));
        assert_eq!(Figures::default().exhaustion_at(MicroUsd::from_usd(1.0), now()), None);
    }

    #[test]
    fn knows_when_the_week_falls_below_a_limit() {
        let mut log = UsageLog::default();
        for days in [5, 4, 3] {
            log.record(now() - DAY * days, &spent(10.0));
        }
        assert_eq!(log.week_below_at(now(), MicroUsd::from_usd(31.0)), None);
        assert_eq!(log.week_below_at(now(), MicroUsd::from_usd(30.0)), Some(now() + DAY * 2));
        assert_eq!(log.week_below_at(now(), MicroUsd::from_usd(15.0)), Some(now() + DAY * 3));
        log.anchor_week(now(), now() + DAY);
        assert_eq!(log.week_below_at(now(), MicroUsd::from_usd(15.0)), Some(now() + DAY));
    }

    #[test]
    fn a_clock_set_back_loses_nothing() {
        let mut log = UsageLog::default();
        log.record(now(), &spent(1.0));
        log.record(now() - DAY, &spent(2.0));
        assert_eq!(log.figures(now()).week.cost, MicroUsd::from_usd(3.0));
        assert_eq!(log.figures(now()).block_tally.cost, MicroUsd::from_usd(3.0));
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig {
            failure_persistence: None,
            ..proptest::prelude::ProptestConfig::default()
        })]

        /// Windows that move step by step say the same as adding up from the start.
        #[test]
        fn sums_are_exact_at_any_time(
            steps in proptest::collection::vec((0..3_u8, 0..40_000_000_u64, 0..5_000_000_i64), 1..80),
            glances in proptest::collection::vec(0..90_000_000_u64, 3),
        ) {
            let mut log = UsageLog::default();
            let mut all: Vec<(Timestamp, MicroUsd)> = Vec::new();
            let mut now = now();
            for (kind, millis, micros) in steps {
                // Often a short step, sometimes a long one.
                now = now + Duration::from_millis(if kind == 0 { millis } else { millis / 1000 });
                if kind < 2 {
                    let cost = MicroUsd::from_micros(micros);
                    log.record(now, &Spent { cost, ..Spent::default() });
                    all.push((now, cost));
                } else {
                    log.advance(now);
                }
                for glance in &glances {
                    let at = now + Duration::from_millis(*glance);
                    let sum = |length| -> MicroUsd {
                        all.iter().filter(|(then, _)| at.since(*then) < length).map(|(_, cost)| *cost).sum()
                    };
                    let figures = log.figures(at);
                    proptest::prop_assert_eq!(figures.week.cost, sum(WEEK));
                    proptest::prop_assert_eq!(figures.day.cost, sum(DAY));
                    proptest::prop_assert_eq!(figures.hour.cost, sum(HOUR));
                    proptest::prop_assert_eq!(figures.five_minutes.cost, sum(FIVE_MINUTES));
                    proptest::prop_assert_eq!(figures.minute.cost, sum(MINUTE));
                }
            }
        }
    }
}
