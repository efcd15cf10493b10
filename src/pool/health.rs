//! The health score: how good a place a subscription is for a new session, from 0 to 100.

use serde::Serialize;

/// What a full 5-hour block is taken to cost, in dollars.
const FULL_BLOCK_USD: f64 = 25.0;
/// The burn rate, in dollars an hour, up to which speed costs nothing.
const FREE_BURN: f64 = 3.0;

/// What the score is computed from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Inputs {
    /// Percent of the weekly budget: the larger of our own account and the provider's.
    pub weekly_percent: f64,
    /// Percent of the block: the larger of our own account and the provider's.
    pub block_percent: f64,
    /// Sessions that hold a slot.
    pub clients: usize,
    /// Dollars an hour.
    pub burn_rate: f64,
    /// Whether nothing was spent in the current block.
    pub fresh_block: bool,
}

/// The score and the terms it is the sum of.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    /// 0 to 100.
    pub score: f64,
    /// `-0.5 * weekly%`.
    pub weekly: f64,
    /// `-0.3 * block%`.
    pub block: f64,
    /// `-5 * clients`.
    pub clients: f64,
    /// `-2 * max(0, burn rate - 3)`.
    pub burn: f64,
    /// `+10` for a block in which nothing was spent yet.
    pub fresh_block: f64,
}

impl Health {
    /// `clamp(0..100, 100 - 0.5*weekly% - 0.3*block% - 5*clients - 2*max(0, burn-3) + (block cost == 0 ? 10 : 0))`.
    #[expect(clippy::cast_precision_loss, reason = "client counts are small")]
    pub(super) fn of(inputs: &Inputs) -> Self {
        let weekly = -0.5 * inputs.weekly_percent;
        let block = -0.3 * inputs.block_percent;
        let clients = -5.0 * inputs.clients as f64;
        let burn = -2.0 * (inputs.burn_rate - FREE_BURN).max(0.0);
        let fresh_block = if inputs.fresh_block { 10.0 } else { 0.0 };
        let score = (100.0 + weekly + block + clients + burn + fresh_block).clamp(0.0, 100.0);
        Self { score, weekly, block, clients, burn, fresh_block }
    }
}

/// Percent of a full block that `usd` dollars are.
pub(super) fn block_percent(usd: f64) -> f64 {
    (usd / FULL_BLOCK_USD * 100.0).min(100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(weekly_used: f64, block_cost: f64, clients: usize, burn_rate: f64, expect: f64) {
        let health = Health::of(&Inputs {
            weekly_percent: weekly_used / 456.0 * 100.0,
            block_percent: block_percent(block_cost),
            clients,
            burn_rate,
            fresh_block: block_cost == 0.0,
        });
        assert!((health.score - expect).abs() < 1e-9, "{health:?}, expected {expect}");
    }

    #[test]
    fn worked_values() {
        // 100 - 0.5*43.859649... - 0.3*40 - 10 = 56.070175438596...
        check(200.0, 10.0, 2, 0.0, 100.0 - 100.0 / 456.0 * 100.0 - 12.0 - 10.0);
        // 100 - 43.859649... - 24 - 25 = 7.14035...
        check(400.0, 20.0, 5, 0.0, 100.0 - 200.0 / 456.0 * 100.0 - 24.0 - 25.0);
        // 100 - 10.964912... - 6 = 83.035...
        check(100.0, 5.0, 0, 0.0, 100.0 - 50.0 / 456.0 * 100.0 - 6.0);
        // Untouched: 110 is cut to 100.
        check(0.0, 0.0, 0, 0.0, 100.0);
        // Two clients on a fresh block still score 100; three do not.
        check(0.0, 0.0, 2, 0.0, 100.0);
        check(0.0, 0.0, 3, 0.0, 95.0);
        // A block beyond 25 dollars counts as full: 100 - 30.
        check(0.0, 60.0, 0, 0.0, 70.0);
        // Burn above 3 dollars an hour: 100 - 0.3*4 - 2*2.2 = 94.4.
        check(0.0, 1.0, 0, 5.2, 94.4);
        check(456.0, 25.0, 10, 20.0, 0.0);
    }
}
