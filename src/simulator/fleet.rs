//! The subscriptions of a simulation: what their owners believe of them, and what is true.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::pool::{
    CapacityLimits, Priority, RebalanceSettings, SelectionSettings, Settings, Strategy, SubscriptionSettings,
};
use crate::units::{MicroUsd, Timestamp};

use super::random::Random;

/// The provider's long window.
pub(super) const WEEK: Duration = Duration::from_hours(7 * 24);
/// Weekly budgets in dollars, dealt out in turn: large and small subscriptions live in one pool.
const BUDGETS: [f64; 5] = [456.0, 228.0, 456.0, 114.0, 912.0];
/// A 5-hour window lets this share of the week pass.
const BLOCK_SHARE: f64 = 0.12;
/// How far the true budget is from the configured one, as the sigma of a log-normal factor.
const BUDGET_ERROR: f64 = 0.08;
/// The streams of random numbers that belong to members begin here; sessions use those below.
pub(super) const MEMBER_STREAMS: u64 = 1 << 48;

/// One subscription.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) id: Arc<str>,
    /// What the pool's configuration says.
    pub(super) configured: MicroUsd,
    /// What the provider lets pass in a week.
    pub(super) week_budget: MicroUsd,
    /// What the provider lets pass in a 5-hour window.
    pub(super) block_budget: MicroUsd,
    /// When its week resets first.
    pub(super) first_reset: Timestamp,
    /// Used of that week before the simulation begins.
    pub(super) used_before: MicroUsd,
}

/// All subscriptions.
#[derive(Clone, Debug)]
pub(super) struct Fleet {
    pub(super) members: Vec<Member>,
    places: HashMap<Arc<str>, u32>,
}

impl Fleet {
    /// `count` subscriptions whose weeks reset at any time of the week that begins at `start`. What was used of the
    /// running weeks fits a pool that has long been used at `load`. With `budget` all are as large.
    pub(super) fn new(seed: u64, count: u32, load: f64, start: Timestamp, budget: Option<MicroUsd>) -> Self {
        let members: Vec<_> = (0..count).map(|number| member(seed, number, load, start, budget)).collect();
        let places = (0..).zip(&members).map(|(place, member)| (Arc::clone(&member.id), place)).collect();
        Self { members, places }
    }

    /// The place of the member with this id.
    pub(super) fn position(&self, id: &str) -> Option<u32> {
        self.places.get(id).copied()
    }

    /// What all subscriptions together are paid for over this time.
    pub(super) fn paid(&self, length: Duration) -> MicroUsd {
        let week: MicroUsd = self.members.iter().map(|member| member.week_budget).sum();
        MicroUsd::from_usd(week.as_usd() * length.as_secs_f64() / WEEK.as_secs_f64())
    }

    /// The pool's rules for these members: those that hold where the configuration says nothing else.
    pub(super) fn settings(&self, strategy: Strategy, rebalancing: bool, seed: u64) -> Settings {
        let subscription = |member: &Member| SubscriptionSettings {
            id: Arc::clone(&member.id),
            email: None,
            kind: "claude-max".into(),
            weekly_budget: member.configured,
            max_clients: None,
            max_concurrent: 10,
            enabled: true,
            priority: Priority::Normal,
            organization: None,
            capacity: CapacityLimits::default(),
        };
        let defaults = Settings::default();
        Settings {
            subscriptions: self.members.iter().map(subscription).collect(),
            selection: SelectionSettings { strategy, fallbacks: [None; 2], seed },
            rebalancing: RebalanceSettings { enabled: rebalancing, ..defaults.rebalancing },
            ..defaults
        }
    }
}

fn member(seed: u64, number: u32, load: f64, start: Timestamp, budget: Option<MicroUsd>) -> Member {
    let mut random = Random::new(seed, MEMBER_STREAMS + 2 * u64::from(number));
    let configured = budget.unwrap_or_else(|| MicroUsd::from_usd(BUDGETS[number as usize % BUDGETS.len()]));
    let truth = configured.as_usd() * random.lognormal(1.0, BUDGET_ERROR).clamp(0.8, 1.25);
    let until_reset = WEEK.mul_f64(random.share());
    let gone = 1.0 - until_reset.as_secs_f64() / WEEK.as_secs_f64();
    let used = (gone * load * random.between(0.6, 1.2)).min(0.9);
    Member {
        id: format!("sub-{:05}", number + 1).into(),
        configured,
        week_budget: MicroUsd::from_usd(truth),
        block_budget: MicroUsd::from_usd(truth * BLOCK_SHARE),
        first_reset: start + until_reset,
        used_before: MicroUsd::from_usd(truth * used),
    }
}
