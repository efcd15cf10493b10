//! What a subscription has used: the rolling week, the 5-hour block, and the speed.
//!
//! Records are kept one by one, so that sums are exact, and each window is a position in the same queue that only moves
//! on: recording and reading cost O(1) amortised.

use std::collections::VecDeque;
use std::time::Duration;

use crate::units::{MicroUsd, Timestamp};

/// The rolling week.
pub(super) const WEEK: Duration = Duration::from_hours(168);
/// The provider's usage block.
pub(super) const BLOCK: Duration = Duration::from_hours(5);
/// The burn rate is the cost of this long.
const BURN_WINDOW: Duration = Duration::from_hours(1);
/// Tokens per minute are counted over this long.
const TOKEN_WINDOW: Duration = Duration::from_mins(5);

/// One finished request.
#[derive(Clone, Copy, Debug)]
struct Record {
    at: Timestamp,
    cost: MicroUsd,
    tokens: u64,
}

/// The use of one subscription.
#[derive(Clone, Debug, Default)]
pub(super) struct Account {
    /// Records of the week, the oldest first.
    records: VecDeque<Record>,
    /// Records that have left the queue.
    dropped: u64,
    week_cost: MicroUsd,
    /// What is older than this has left the week; never goes back.
    week_floor: Timestamp,
    /// When the provider's own week resets, once it has said so.
    week_resets_at: Option<Timestamp>,
    burn: Tail<MicroUsd>,
    tokens: Tail<u64>,
    block: Option<Block>,
    last: Option<Timestamp>,
}

/// A shorter window over the same records: where it begins (as a count of all records ever), and its sum.
#[derive(Clone, Copy, Debug, Default)]
struct Tail<T> {
    begin: u64,
    sum: T,
}

/// A 5-hour block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block {
    /// When its first use was.
    pub start: Timestamp,
    /// When it ends: 5 h after its start, or when the provider says.
    pub end: Timestamp,
    /// What was spent in it.
    pub cost: MicroUsd,
}

impl Account {
    /// Counts one finished request.
    pub(super) fn record(&mut self, now: Timestamp, cost: MicroUsd, tokens: u64) {
        // A clock that goes back must not disorder the queue.
        let at = self.records.back().map_or(now, |last| last.at.max(now));
        self.records.push_back(Record { at, cost, tokens });
        self.week_cost += cost;
        self.burn.sum += cost;
        self.tokens.sum += tokens;
        match &mut self.block {
            Some(block) if at < block.end => block.cost += cost,
            block => *block = Some(Block { start: at, end: at + BLOCK, cost }),
        }
        self.last = Some(at);
        self.advance(now);
    }

    /// The provider's week ends at `resets_at`.
    pub(super) fn anchor_week(&mut self, now: Timestamp, resets_at: Timestamp) {
        self.week_resets_at = Some(resets_at);
        self.advance(now);
    }

    /// The provider's block ends at `resets_at`.
    pub(super) fn anchor_block(&mut self, now: Timestamp, resets_at: Timestamp) {
        if resets_at <= now {
            return;
        }
        match &mut self.block {
            Some(block) if now < block.end => block.end = resets_at,
            block => *block = Some(Block { start: resets_at - BLOCK, end: resets_at, cost: MicroUsd::ZERO }),
        }
    }

    /// Lets go of what has left the windows.
    fn advance(&mut self, now: Timestamp) {
        let anchored = self.week_resets_at.map(|reset| if reset <= now { reset } else { reset - WEEK });
        self.week_floor = self.week_floor.max(now - WEEK).max(anchored.unwrap_or_default());
        while let Some(first) = self.records.front()
            && first.at < self.week_floor
        {
            self.week_cost -= first.cost;
            if self.burn.begin <= self.dropped {
                self.burn.sum -= first.cost;
                self.burn.begin = self.dropped + 1;
            }
            if self.tokens.begin <= self.dropped {
                self.tokens.sum -= first.tokens;
                self.tokens.begin = self.dropped + 1;
            }
            self.dropped += 1;
            self.records.pop_front();
        }
        let Self { records, dropped, burn, tokens, .. } = self;
        let older = |begin: u64, window: Duration| {
            let index = usize::try_from(begin.saturating_sub(*dropped)).unwrap_or(usize::MAX);
            records.get(index).filter(|record| record.at < now - window)
        };
        while let Some(record) = older(burn.begin, BURN_WINDOW) {
            burn.sum -= record.cost;
            burn.begin += 1;
        }
        while let Some(record) = older(tokens.begin, TOKEN_WINDOW) {
            tokens.sum -= record.tokens;
            tokens.begin += 1;
        }
        if self.block.is_some_and(|block| block.end <= now) {
            self.block = None;
        }
    }

    /// Spent in the current week.
    pub(super) fn week(&mut self, now: Timestamp) -> MicroUsd {
        self.advance(now);
        self.week_cost
    }

    /// The current block; `None` between blocks.
    pub(super) fn block(&mut self, now: Timestamp) -> Option<Block> {
        self.advance(now);
        self.block
    }

    /// Dollars an hour, over the last 60 minutes.
    pub(super) fn burn_rate(&mut self, now: Timestamp) -> f64 {
        self.advance(now);
        self.burn.sum.as_usd()
    }

    /// Tokens a minute, over the last 5 minutes.
    #[expect(clippy::cast_precision_loss, reason = "exact below 2^53 tokens")]
    pub(super) fn tokens_per_minute(&mut self, now: Timestamp) -> f64 {
        self.advance(now);
        self.tokens.sum as f64 / 5.0
    }

    /// When something was last recorded.
    pub(super) fn last(&self) -> Option<Timestamp> {
        self.last
    }

    /// The first instant at which the week's cost is below `limit`, if nothing more is spent.
    pub(super) fn below(&mut self, now: Timestamp, limit: MicroUsd) -> Timestamp {
        let mut cost = self.week(now);
        if cost < limit {
            return now;
        }
        if let Some(reset) = self.week_resets_at.filter(|reset| *reset > now) {
            return reset;
        }
        for record in &self.records {
            cost -= record.cost;
            if cost < limit {
                return record.at + WEEK + Duration::from_millis(1);
            }
        }
        now + WEEK
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const DAY: Duration = Duration::from_secs(24 * 3600);
    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

    fn usd(dollars: i64) -> MicroUsd {
        MicroUsd::from_micros(dollars * 1_000_000)
    }

    #[test]
    fn the_week_counts_one_three_and_six_days_ago_but_not_eight() {
        let mut account = Account::default();
        for (days, cost) in [(8, 100), (6, 10), (3, 20), (1, 15)] {
            account.record(NOW - DAY * days, usd(cost), 0);
        }
        assert_eq!(account.week(NOW), usd(45));
    }

    #[test]
    fn a_hundred_records_of_one_millisecond_all_count() {
        let mut account = Account::default();
        for _ in 0..100 {
            account.record(NOW, MicroUsd::from_micros(1), 7);
        }
        assert_eq!(account.week(NOW), MicroUsd::from_micros(100));
        assert!((account.tokens_per_minute(NOW) - 140.0).abs() < 1e-9);
    }

    #[test]
    fn a_fresh_block_holds_only_its_own_use() {
        let mut account = Account::default();
        account.record(NOW, usd(9), 0);
        account.record(NOW + HOUR * 4, usd(1), 0);
        assert_eq!(account.block(NOW + HOUR * 4).map(|block| block.cost), Some(usd(10)));
        assert_eq!(account.block(NOW + HOUR * 5), None);
        account.record(NOW + HOUR * 6, usd(2), 0);
        let block = account.block(NOW + HOUR * 6).expect("a block");
        assert_eq!((block.cost, block.start, block.end), (usd(2), NOW + HOUR * 6, NOW + HOUR * 11));
    }

    #[test]
    fn the_providers_windows_win() {
        let mut account = Account::default();
        account.record(NOW, usd(9), 0);
        account.anchor_block(NOW, NOW + HOUR);
        assert_eq!(account.block(NOW + HOUR), None);
        account.anchor_week(NOW, NOW + DAY);
        assert_eq!(account.week(NOW + HOUR), usd(9));
        assert_eq!(account.week(NOW + DAY + HOUR), MicroUsd::ZERO);
    }

    #[test]
    fn burn_and_tokens_forget_at_their_own_pace() {
        let mut account = Account::default();
        account.record(NOW, usd(6), 500);
        assert!((account.burn_rate(NOW + HOUR) - 6.0).abs() < 1e-9);
        assert!(account.burn_rate(NOW + HOUR + Duration::from_millis(1)) < 1e-9);
        assert!(account.tokens_per_minute(NOW + HOUR) < 1e-9);
        assert_eq!(account.week(NOW + HOUR), usd(6));
        assert_eq!(account.week(NOW + DAY * 8), MicroUsd::ZERO);
        assert!(account.burn_rate(NOW + DAY * 8) < 1e-9);
    }

    #[test]
    fn the_return_below_a_limit_is_known() {
        let mut account = Account::default();
        account.record(NOW, usd(10), 0);
        account.record(NOW + HOUR, usd(10), 0);
        let back = account.below(NOW + HOUR, usd(15));
        assert_eq!(back, NOW + WEEK + Duration::from_millis(1));
        assert!(account.week(back) < usd(15));
    }

    #[test]
    fn a_record_is_small() {
        assert!(size_of::<Record>() <= 32);
    }
}
