//! What came out: figures for each strategy, for people and for programs.

use std::time::Duration;

use serde::Serialize;

use crate::units::{MicroUsd, Timestamp};

use super::contender::Contender;
use super::fleet::Fleet;
use super::provider::Rejections;
use super::random::real;

/// Counts that a run collects on its way.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    pub(super) asked: u64,
    pub(super) served: u64,
    /// The pool had nobody for them.
    pub(super) refused: u64,
    /// Every attempt failed at the provider.
    pub(super) failed: u64,
    pub(super) waited: u64,
    pub(super) rotated: u64,
    pub(super) rebalanced: u64,
    /// Served requests that found their conversation cached elsewhere.
    pub(super) cold: u64,
    pub(super) move_cost: MicroUsd,
    pub(super) work_asked: MicroUsd,
    pub(super) work_served: MicroUsd,
    pub(super) leaked: u64,
}

/// Where things stand at one instant.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Sample {
    /// When.
    pub at: Timestamp,
    /// Used of all budgets since the beginning, in micro-dollars.
    pub used: MicroUsd,
    /// Requests that were not served since the beginning.
    pub refused: u64,
}

/// What one strategy made of the trace. Shares are of 1; money is in dollars.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StrategyReport {
    /// Its name.
    pub strategy: &'static str,
    /// Requests that were asked; each was served, refused or failed.
    pub requests: u64,
    /// Requests that were served.
    pub served: u64,
    /// Requests that the pool had nobody for, also after waiting.
    pub refused: u64,
    /// Requests that failed at the provider at every attempt.
    pub failed: u64,
    /// Requests that waited for a place first.
    pub waited: u64,
    /// Sessions that the pool moved because their own subscription could not serve them any more.
    pub rotations: u64,
    /// Idle sessions that the rebalancer moved.
    pub rebalanced: u64,
    /// Requests that had to write a conversation anew that was cached on another subscription.
    pub cold_caches: u64,
    /// What that cost.
    pub cold_cache_cost: f64,
    /// Share of the asked work that was served; work is what requests cost on a warm cache.
    pub work_served: f64,
    /// Used of the paid budget, cold caches included.
    pub budget_used: f64,
    /// What expired unused at weekly resets.
    pub expired: f64,
    /// The busiest subscription against the mean, as shares of their own budgets.
    pub max_over_mean: f64,
    /// How unequal the shares are: 0 all the same, 1 one has all.
    pub gini: f64,
    /// Requests that the provider rejected because a window was used up.
    pub limit_rejections: u64,
    /// Requests that the provider throttled.
    pub throttles: u64,
    /// Requests that found the provider failing, overloaded or logged out.
    pub provider_failures: u64,
    /// Leases that were still out at the end; anything but 0 is a mistake.
    pub leaked: u64,
    /// The course of the week, hour by hour.
    pub samples: Vec<Sample>,
}

impl StrategyReport {
    pub(super) fn new(
        contender: Contender,
        fleet: &Fleet,
        length: Duration,
        tally: Tally,
        rejections: Rejections,
        accounts: &[(MicroUsd, MicroUsd)],
        samples: Vec<Sample>,
    ) -> Self {
        let charged: MicroUsd = accounts.iter().map(|(charged, _)| *charged).sum();
        let expired: MicroUsd = accounts.iter().map(|(_, expired)| *expired).sum();
        let budgets = fleet.members.iter().map(|member| member.week_budget.as_usd());
        let shares: Vec<f64> = accounts.iter().zip(budgets).map(|((used, _), budget)| used.as_usd() / budget).collect();
        let (max_over_mean, gini) = spread(shares);
        Self {
            strategy: contender.name,
            requests: tally.asked,
            served: tally.served,
            refused: tally.refused,
            failed: tally.failed,
            waited: tally.waited,
            rotations: tally.rotated,
            rebalanced: tally.rebalanced,
            cold_caches: tally.cold,
            cold_cache_cost: tally.move_cost.as_usd(),
            work_served: share(tally.work_served, tally.work_asked),
            budget_used: share(charged, fleet.paid(length)),
            expired: expired.as_usd(),
            max_over_mean,
            gini,
            limit_rejections: rejections.limits,
            throttles: rejections.throttles,
            provider_failures: rejections.failures,
            leaked: tally.leaked,
            samples,
        }
    }

    /// Share of the requests that were not served.
    pub fn unserved(&self) -> f64 {
        real(self.refused + self.failed) / real(self.requests.max(1))
    }
}

/// What no strategy can beat.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BoundReport {
    /// Requests in the trace.
    pub requests: u64,
    /// At most this many can be served.
    pub served: u64,
    /// At most this share of the asked work can be served.
    pub work_served: f64,
    /// That is this share of the paid budget.
    pub budget_used: f64,
    /// The most that can be used until each hour.
    pub samples: Vec<Sample>,
}

impl BoundReport {
    pub(super) fn new(
        paid: MicroUsd,
        requests: u64,
        asked: MicroUsd,
        served: u64,
        work: MicroUsd,
        samples: Vec<Sample>,
    ) -> Self {
        Self { requests, served, work_served: share(work, asked), budget_used: share(work, paid), samples }
    }
}

/// What was simulated.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Setup {
    /// Members of the pool.
    pub subscriptions: u32,
    /// Sessions in the trace.
    pub sessions: u64,
    /// Requests in the trace.
    pub requests: u64,
    /// What they cost on warm caches, in dollars.
    pub work: f64,
    /// What the subscriptions are paid for over this time, in dollars.
    pub paid: f64,
    /// How long it is, in days.
    pub days: f64,
    /// Where the random numbers begin.
    pub seed: u64,
    /// What the costs of a synthetic week were multiplied by to give the load.
    pub cost_factor: Option<f64>,
}

/// One trace, and what each strategy made of it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// What was simulated.
    pub setup: Setup,
    /// What no strategy can beat.
    pub bound: BoundReport,
    /// What each strategy made of it.
    pub strategies: Vec<StrategyReport>,
}

/// A share of one amount in another.
pub(super) fn share(part: MicroUsd, whole: MicroUsd) -> f64 {
    if whole > MicroUsd::ZERO { part.as_usd() / whole.as_usd() } else { 0.0 }
}

/// The greatest over the mean, and the Gini coefficient.
fn spread(mut shares: Vec<f64>) -> (f64, f64) {
    let sum: f64 = shares.iter().sum();
    if sum <= 0.0 {
        return (1.0, 0.0);
    }
    shares.sort_by(f64::total_cmp);
    let count = real(shares.len() as u64);
    let max = shares.last().copied().unwrap_or_default();
    let ranked: f64 = (1_u64..).zip(&shares).map(|(rank, share)| real(rank) * share).sum();
    (max * count / sum, (2.0 * ranked / (count * sum) - (count + 1.0) / count).max(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spread_of_equal_and_unequal_shares() {
        let (max_over_mean, gini) = spread(vec![0.5; 4]);
        assert!((max_over_mean - 1.0).abs() < 1e-12 && gini.abs() < 1e-12);
        // One of four has all: 1 - 1/4.
        let (max_over_mean, gini) = spread(vec![0.0, 0.0, 0.8, 0.0]);
        assert!((max_over_mean - 4.0).abs() < 1e-12 && (gini - 0.75).abs() < 1e-12);
        assert_eq!(spread(vec![0.0; 3]), (1.0, 0.0));
    }
}
