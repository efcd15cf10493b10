//! One member of the pool: its state, and whether it can take a request now.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::conversation::{Family, Window};
use crate::units::{MicroUsd, Timestamp};

use super::breaker::Breaker;
use super::health::{Health, Inputs, block_percent};
use super::limits::ProviderLimits;
use super::usage::Account;
use super::{BreakerSettings, Priority, Status, SubscriptionSettings};

/// From this share of the weekly budget on a subscription is `approaching`.
const APPROACHING: f64 = 0.80;
/// From this share on it is `limited`: no new sessions.
const LIMITED: f64 = 0.95;
/// From this share on even its own sessions leave.
const LEAVE: f64 = 0.98;
/// How much earlier a `low` priority stops.
const LOW_RESERVE: f64 = 0.15;
/// How far a `high` priority goes.
const HIGH_THRESHOLD: f64 = 0.95;

/// Why something is as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Cause {
    /// In words.
    pub cause: String,
    /// Where it comes from: `configuration`, `own account`, `rejected request`, `breaker`, ...
    pub source: &'static str,
    /// Since when, where that is known.
    pub since: Option<Timestamp>,
    /// Until when, where that is known.
    pub until: Option<Timestamp>,
}

/// What kind of cause keeps a subscription from taking a request; decides the refusal when all are out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// This request has been there.
    Tried,
    /// Sessions hold all its slots: an idle one could give way.
    Slots,
    /// All requests it takes are running, or it is being tried out after a recovery.
    Busy,
    /// The provider.
    Provider,
    /// The weekly budget.
    Budget,
    /// Switched off, not logged in, or cut off by its breaker.
    Unhealthy,
}

#[derive(Clone, Debug)]
pub(super) struct Exclusion {
    pub kind: Kind,
    pub cause: Cause,
}

/// For whom a place is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// A new session that will hold a slot.
    NewSession,
    /// A request that needs a place only while it runs.
    OneOff,
    /// A one-off request whose conversation was here before.
    Returning,
    /// A session that has its slot here.
    OwnSession,
}

impl Purpose {
    /// Whether the conversation is here already, so that it stays as long as it is served at all.
    fn stays(self) -> bool {
        matches!(self, Self::Returning | Self::OwnSession)
    }
}

#[derive(Clone, Debug)]
pub(super) struct Subscription {
    pub settings: SubscriptionSettings,
    pub account: Account,
    pub limits: ProviderLimits,
    pub breaker: Breaker,
    /// Set when it cannot log in: what the provider said, and since when.
    pub unauthenticated: Option<(String, Timestamp)>,
    /// Removed from the configuration; only waits for its leases.
    pub removed: bool,
    /// Requests that run.
    pub in_flight: u32,
    /// What they are estimated to cost.
    pub reserved: MicroUsd,
    /// Explicit sessions that hold a slot.
    pub slots: u32,
    /// Requests in flight that hold a slot only while they run.
    pub one_offs: u32,
    /// After a recovery: the most requests at the same time, doubling with each success.
    pub ramp: Option<u32>,
    /// Counts allocations, to tell who was used least recently.
    pub last_allocated: u64,
    /// The status last told to the outside.
    pub announced: Status,
}

impl Subscription {
    pub(super) fn new(settings: SubscriptionSettings) -> Self {
        let announced = if settings.enabled { Status::Available } else { Status::Disabled };
        Self {
            settings,
            account: Account::default(),
            limits: ProviderLimits::default(),
            breaker: Breaker::default(),
            unauthenticated: None,
            removed: false,
            in_flight: 0,
            reserved: MicroUsd::ZERO,
            slots: 0,
            one_offs: 0,
            ramp: None,
            last_allocated: 0,
            announced,
        }
    }

    pub(super) fn id(&self) -> &Arc<str> {
        &self.settings.id
    }

    /// Share of the weekly budget that is used, 0 to 1 and beyond: the larger of our own account and the provider's.
    pub(super) fn weekly_share(&mut self, now: Timestamp) -> f64 {
        let own = self.own_weekly_share(now, MicroUsd::ZERO);
        own.max(self.limits.utilization(now, Window::SevenDay).unwrap_or(0.0))
    }

    fn own_weekly_share(&mut self, now: Timestamp, more: MicroUsd) -> f64 {
        let used = self.account.week(now) + more;
        used.as_usd() / self.settings.weekly_budget.as_usd().max(f64::MIN_POSITIVE)
    }

    /// Percent of the 5-hour block: the larger of our own account and the provider's.
    pub(super) fn block_percent(&mut self, now: Timestamp) -> f64 {
        let own = block_percent(self.block_cost(now).as_usd());
        own.max(self.limits.utilization(now, Window::FiveHour).unwrap_or(0.0) * 100.0)
    }

    pub(super) fn block_cost(&mut self, now: Timestamp) -> MicroUsd {
        self.account.block(now).map_or(MicroUsd::ZERO, |block| block.cost)
    }

    pub(super) fn health(&mut self, now: Timestamp) -> Health {
        Health::of(&Inputs {
            weekly_percent: self.weekly_share(now) * 100.0,
            block_percent: self.block_percent(now),
            clients: (self.slots + self.one_offs) as usize,
            burn_rate: self.account.burn_rate(now),
            fresh_block: self.block_cost(now) == MicroUsd::ZERO,
        })
    }

    /// The status, and why.
    pub(super) fn status(&mut self, now: Timestamp) -> (Status, Cause) {
        let configured =
            |cause: &str| Cause { cause: cause.to_owned(), source: "configuration", since: None, until: None };
        if self.removed {
            return (Status::Disabled, configured("it was removed from the configuration"));
        }
        if !self.settings.enabled {
            return (Status::Disabled, configured("it is switched off"));
        }
        if let Some((detail, since)) = &self.unauthenticated {
            let cause = Cause { cause: detail.clone(), source: "rejected request", since: Some(*since), until: None };
            return (Status::Unauthenticated, cause);
        }
        if let Some(lock) = self.limits.lock(now, None) {
            let Lock { cause, since, until, source } = Lock::of(lock);
            return (Status::Cooldown, Cause { cause, source, since: Some(since), until: Some(until) });
        }
        let share = self.weekly_share(now);
        let status = match share {
            share if share >= LIMITED => Status::Limited,
            share if share >= APPROACHING => Status::Approaching,
            _ => Status::Available,
        };
        let until = (status != Status::Available).then(|| {
            let floor = if status == Status::Limited { LIMITED } else { APPROACHING };
            self.below_share(now, floor)
        });
        let own = self.own_weekly_share(now, MicroUsd::ZERO);
        let source = if share > own { "provider" } else { "own account" };
        (status, Cause { cause: format!("{:.1} % of the week is used", share * 100.0), source, since: None, until })
    }

    /// When the week will be below `share`, if nothing more is spent.
    fn below_share(&mut self, now: Timestamp, share: f64) -> Timestamp {
        let limit = MicroUsd::from_usd(self.settings.weekly_budget.as_usd() * share);
        let own = self.account.below(now, limit);
        let provider = self
            .limits
            .windows(now)
            .find(|known| known.window == Window::SevenDay && known.utilization >= share)
            .and_then(|known| known.resets_at);
        own.max(provider.unwrap_or(now))
    }

    /// The share of the weekly budget from which on there are no new sessions.
    pub(super) fn threshold(&self, pool: f64) -> f64 {
        match self.settings.priority {
            Priority::Low => pool - LOW_RESERVE,
            Priority::Normal => pool,
            Priority::High => pool.max(HIGH_THRESHOLD),
        }
    }

    /// Why it cannot take a request now, if it cannot. The most lasting cause comes first.
    pub(super) fn exclusion(&mut self, now: Timestamp, rules: &Rules<'_>, purpose: Purpose) -> Option<Exclusion> {
        let (status, cause) = self.status(now);
        match status {
            Status::Disabled | Status::Unauthenticated => return Some(Exclusion { kind: Kind::Unhealthy, cause }),
            Status::Cooldown => return Some(Exclusion { kind: Kind::Provider, cause }),
            Status::Limited if !purpose.stays() => return Some(Exclusion { kind: Kind::Budget, cause }),
            _ => {}
        }
        if let Some(lock) = self.limits.lock(now, Some(rules.family)) {
            let Lock { cause, since, until, source } = Lock::of(lock);
            let cause = Cause { cause, source, since: Some(since), until: Some(until) };
            return Some(Exclusion { kind: Kind::Provider, cause });
        }
        if let Err((since, until)) = self.breaker.admits(now, self.in_flight, rules.breaker) {
            let probing = until <= now;
            let words = if probing { "it is being tried out after failures" } else { "it failed too often in a row" };
            let cause = Cause {
                cause: words.to_owned(),
                source: "breaker",
                since: Some(since),
                until: (!probing).then_some(until),
            };
            return Some(Exclusion { kind: if probing { Kind::Busy } else { Kind::Unhealthy }, cause });
        }
        // What runs is counted at its estimate, so that a burst cannot overshoot the budget.
        let limit = if purpose.stays() { LEAVE } else { self.threshold(rules.weekly_budget_threshold) };
        let committed = self.own_weekly_share(now, self.reserved).max(self.weekly_share(now));
        if committed >= limit {
            let cause = Cause {
                cause: format!(
                    "{:.1} % of the week is used or reserved; it stops at {:.0} %",
                    committed * 100.0,
                    limit * 100.0
                ),
                source: "own account",
                since: None,
                until: Some(self.below_share(now, limit)),
            };
            return Some(Exclusion { kind: Kind::Budget, cause });
        }
        self.full(rules, purpose).map(|(kind, words)| Exclusion {
            kind,
            cause: Cause { cause: words, source: "load", since: None, until: None },
        })
    }

    fn full(&self, rules: &Rules<'_>, purpose: Purpose) -> Option<(Kind, String)> {
        if self.in_flight >= self.settings.max_concurrent {
            return Some((Kind::Busy, format!("all {} request slots are taken", self.settings.max_concurrent)));
        }
        if let Some(most) = self.ramp.filter(|most| self.in_flight >= *most) {
            return Some((Kind::Busy, format!("it has just recovered and takes {most} at a time")));
        }
        if purpose != Purpose::OwnSession && self.free_slots(rules.max_clients) == 0 {
            return Some((Kind::Slots, "all client slots are taken".to_owned()));
        }
        None
    }

    /// Slots that no session and no one-off request holds.
    pub(super) fn free_slots(&self, max_clients: u32) -> u32 {
        self.settings.max_clients.unwrap_or(max_clients).saturating_sub(self.slots + self.one_offs)
    }

    /// A request went through.
    pub(super) fn succeeded(&mut self, breaker: &BreakerSettings) {
        self.breaker.success(breaker);
        self.limits.success();
        self.ramp = self.ramp.map(|most| most.saturating_mul(2)).filter(|most| *most < self.settings.max_concurrent);
    }

    /// What the current block will have cost at its end at the current burn rate.
    pub(super) fn projected_block_cost(&mut self, now: Timestamp) -> f64 {
        let burn = self.account.burn_rate(now);
        self.account.block(now).map_or(0.0, |block| block.cost.as_usd() + burn * hours(block.end.since(now)))
    }

    /// When the weekly budget will be spent at the current burn rate.
    pub(super) fn exhaustion(&mut self, now: Timestamp) -> Option<Timestamp> {
        let burn = self.account.burn_rate(now);
        let left = (self.settings.weekly_budget - self.account.week(now)).as_usd().max(0.0);
        let hours = left / burn;
        (burn > 0.0 && hours.is_finite() && hours < 24.0 * 365.0).then(|| now + Duration::from_secs_f64(hours * 3600.0))
    }
}

/// The rules of the pool that decide about a member.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules<'a> {
    pub family: Family,
    pub breaker: &'a BreakerSettings,
    pub weekly_budget_threshold: f64,
    pub max_clients: u32,
}

/// The parts of a provider's lock that are told.
struct Lock {
    cause: String,
    since: Timestamp,
    until: Timestamp,
    source: &'static str,
}

impl Lock {
    fn of(lock: &super::limits::Lock) -> Self {
        Self { cause: lock.cause.clone(), since: lock.since, until: lock.until, source: lock.source }
    }
}

fn hours(duration: Duration) -> f64 {
    duration.as_secs_f64() / 3600.0
}
