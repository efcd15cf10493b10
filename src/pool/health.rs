//! The health score: how good a home a subscription is for a new session.

use serde::Serialize;

/// What goes into the score.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct HealthInputs {
    /// Share of the weekly budget used, in percent.
    pub(super) weekly_percent: f64,
    /// Share of the 5-hour block used, in percent, at most 100.
    pub(super) block_percent: f64,
    /// Whether the block has cost nothing yet.
    pub(super) block_is_fresh: bool,
    /// Sessions that hold a slot, and requests in flight that hold one of their own.
    pub(super) clients: u32,
    /// Dollars per hour.
    pub(super) burn_rate: f64,
}

/// A block that has cost this much counts as full, in dollars.
const FULL_BLOCK_USD: f64 = 25.0;
/// Dollars per hour that cost no points.
const FREE_BURN_RATE: f64 = 3.0;

/// The score and what each term added or took.
///
/// `clamp(0..100, 100 - 0.5*weekly% - 0.3*block% - 5*clients - 2*max(0, burn - 3) + (block cost == 0 ? 10 : 0))`
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HealthBreakdown {
    /// For the week: half a point a percent.
    pub weekly: f64,
    /// For the block: 0.3 points a percent.
    pub block: f64,
    /// For the sessions it has: 5 points each.
    pub clients: f64,
    /// For burning more than 3 dollars an hour: 2 points a dollar.
    pub burn_rate: f64,
    /// 10 points for a block that has not begun.
    pub fresh_block: f64,
    /// The score, 0 to 100.
    pub score: f64,
}

impl HealthBreakdown {
    pub(super) fn of(inputs: &HealthInputs) -> Self {
        let mut breakdown = Self {
            weekly: -0.5 * inputs.weekly_percent,
            block: -0.3 * inputs.block_percent,
            clients: -5.0 * f64::from(inputs.clients),
            burn_rate: -2.0 * (inputs.burn_rate - FREE_BURN_RATE).max(0.0),
            fresh_block: if inputs.block_is_fresh { 10.0 } else { 0.0 },
            score: 0.0,
        };
        breakdown.score = breakdown.unclamped().clamp(0.0, 100.0);
        breakdown
    }

    /// The sum before it is cut to 0..100. It orders subscriptions whose scores are equal only because of the cut.
    pub(super) fn unclamped(&self) -> f64 {
        100.0 + self.weekly + self.block + self.clients + self.burn_rate + self.fresh_block
    }
}

/// How full a block that has cost `usd` is, in percent.
pub(super) fn block_percent(usd: f64) -> f64 {
    (usd / FULL_BLOCK_USD * 100.0).min(100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score(weekly_used: f64, block_cost: f64, clients: u32, burn_rate: f64) -> f64 {
        HealthBreakdown::of(&HealthInputs {
            weekly_percent: weekly_used / 456.0 * 100.0,
            block_percent: block_percent(block_cost),
            block_is_fresh: block_cost == 0.0,
            clients,
            burn_rate,
        })
        .score
    }

    #[track_caller]
    fn check(weekly_used: f64, block_cost: f64, clients: u32, burn_rate: f64, by_hand: &str) {
        assert_eq!(format!("{:.12}", score(weekly_used, block_cost, clients, burn_rate)), by_hand);
    }

    #[test]
    fn worked_scores() {
        // 100 - 21.929824561404 - 12 - 10
        check(200.0, 10.0, 2, 0.0, "56.070175438596");
        // 100 - 43.859649122807 - 24 - 25
        check(400.0, 20.0, 5, 0.0, "7.140350877193");
        // 100 - 10.964912280702 - 6
        check(100.0, 5.0, 0, 0.0, "83.035087719298");
        // 100 + 10, cut
        check(0.0, 0.0, 0, 0.0, "100.000000000000");
        // 100 - 25 + 10 - 15
        check(228.0, 0.0, 3, 0.0, "70.000000000000");
        // A burn rate of 3 is free; 5.2 costs 2 * 2.2.
        check(0.0, 25.0, 0, 3.0, "70.000000000000");
        check(0.0, 25.0, 0, 5.2, "65.600000000000");
        // A block beyond 25 dollars costs no more than a full one.
        check(0.0, 50.0, 0, 0.0, "70.000000000000");
        // 100 - 50 - 30 - 75, cut
        check(456.0, 25.0, 15, 0.0, "0.000000000000");
    }

    #[test]
    fn the_more_loaded_the_lower() {
        assert!(score(400.0, 20.0, 5, 0.0) < score(200.0, 10.0, 2, 0.0));
        assert!(score(200.0, 10.0, 2, 0.0) < score(100.0, 5.0, 0, 0.0));
    }

    #[test]
    fn the_terms_add_up_to_the_score() {
        let breakdown = HealthBreakdown::of(&HealthInputs {
            weekly_percent: 40.0,
            block_percent: 20.0,
            block_is_fresh: false,
            clients: 1,
            burn_rate: 4.0,
        });
        let terms = [breakdown.weekly, breakdown.block, breakdown.clients, breakdown.burn_rate, breakdown.fresh_block];
        for (term, by_hand) in terms.into_iter().zip([-20.0, -6.0, -5.0, -2.0, 0.0]) {
            assert!((term - by_hand).abs() < 1e-10, "{term} is not {by_hand}");
        }
        assert!((breakdown.score - 67.0).abs() < 1e-10);
    }
}
