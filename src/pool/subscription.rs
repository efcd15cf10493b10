//! One subscription as the pool knows it, and what it is good for at an instant.
//!
//! Everything that depends on time is asked with the time and reckoned from what was learned, so that time alone
//! recovers a subscription.

use std::sync::Arc;
use std::time::Duration;

use crate::conversation::{Family, Window};
use crate::units::{MicroUsd, Timestamp};

use super::breaker::Breaker;
use super::capacity::Starts;
use super::command::{Priority, Status, SubscriptionSettings};
use super::elsewhere::Held;
use super::explain::{Cause, Exclusion, Source};
use super::health::{HealthBreakdown, HealthInputs, block_percent};
use super::limits::{Lock, ProviderLimits};
use super::overage::HeardOverage;
use super::ramp::Ramp;
use super::select::Place;
use super::usage::{Figures, UsageLog};

/// From this share of the weekly budget on a subscription is `approaching` its limit.
pub(super) const APPROACHING_SHARE: f64 = 0.80;
/// From this share on it is `limited`, and takes no new session whatever its threshold.
pub(super) const LIMITED_SHARE: f64 = 0.95;
/// From this share on even its own sessions leave it.
pub(super) const STICKY_SHARE: f64 = 0.98;
/// How much earlier a low priority stops: the owner's reserve.
const LOW_PRIORITY_RESERVE: f64 = 0.15;
/// Provider figures are percentages with noise in the last bits.
const SHARE_TOLERANCE: f64 = 1e-9;

/// Not logged in, or without credit.
#[derive(Clone, Debug)]
pub(super) struct Quarantine {
    pub(super) since: Timestamp,
    /// Then one request finds out whether its owner has logged in again: the CLI follows a new login by itself.
    pub(super) until: Timestamp,
    /// Requests that found it logged out still.
    pub(super) tries: u32,
    /// What the provider said.
    pub(super) detail: String,
}

impl Quarantine {
    /// How long until a login is tried again: 5 minutes, doubling up to an hour.
    pub(super) fn pause(tries: u32) -> Duration {
        const FIRST: Duration = Duration::from_secs(300);
        const LONGEST: Duration = Duration::from_secs(3600);
        FIRST.saturating_mul(2_u32.saturating_pow(tries.min(8))).min(LONGEST)
    }
}

/// See the module's description.
#[derive(Clone, Debug)]
pub(super) struct Subscription {
    pub(super) settings: SubscriptionSettings,
    /// Client slots.
    pub(super) max_clients: u32,
    pub(super) usage: UsageLog,
    pub(super) limits: ProviderLimits,
    pub(super) overage: Option<HeardOverage>,
    pub(super) breaker: Breaker,
    pub(super) ramp: Option<Ramp>,
    pub(super) quarantine: Option<Quarantine>,
    /// When it left the configuration.
    pub(super) removed: Option<Timestamp>,
    /// When it was last switched on or off, or came into the pool.
    pub(super) switched_at: Timestamp,
    /// When it came into the pool as somebody new, of whom nothing was known.
    pub(super) joined: Timestamp,
    pub(super) in_flight: u32,
    /// Requests in flight that hold a client slot of their own.
    pub(super) own_slots: u32,
    /// Estimated cost of what is in flight.
    pub(super) reserved: MicroUsd,
    /// Estimated tokens of what is in flight.
    pub(super) reserved_tokens: u64,
    pub(super) starts: Starts,
    /// Other replicas use all that there is.
    pub(super) held: Option<Held>,
    /// When it was last granted, counted in grants.
    pub(super) last_granted: u64,
    /// When it was last granted to a request that could have gone elsewhere.
    pub(super) last_chosen: u64,
    /// Drawn anew whenever it is chosen.
    pub(super) lot: i64,
    /// Its place in the configuration.
    pub(super) position: u32,
    pub(super) last_usage: Option<Timestamp>,
    /// Available, approaching or limited by its budget, as last announced, and since when.
    pub(super) level: Status,
    pub(super) level_since: Timestamp,
    /// What the block had cost when anything last changed.
    pub(super) block_cost: MicroUsd,
    /// The score when anything last changed.
    pub(super) health: HealthBreakdown,
    /// Its place in the index.
    pub(super) place: Option<Place>,
    /// Why it can take no new session, as counted by the pool.
    pub(super) counted: Option<Cause>,
    /// When the pool will next look at it.
    pub(super) scheduled: Option<Timestamp>,
    /// The lock that was last seen.
    pub(super) seen_lock: Option<Lock>,
    /// Recoveries so far.
    pub(super) epoch: u32,
}

/// How much of the week is used.
#[derive(Clone, Copy, Debug)]
pub(super) struct WeekUse {
    /// By our own account, 1.0 being the budget.
    own: f64,
    /// By the provider's, if it said so.
    provider: Option<f64>,
}

impl WeekUse {
    /// The larger of the two.
    pub(super) fn share(&self) -> f64 {
        self.provider.map_or(self.own, |provider| provider.max(self.own))
    }

    pub(super) fn percent(&self) -> f64 {
        self.share() * 100.0
    }

    /// Whose figure is larger.
    pub(super) fn source(&self) -> Source {
        if self.provider.is_some_and(|provider| provider > self.own) { Source::Provider } else { Source::Account }
    }
}

impl Subscription {
    pub(super) fn new(settings: SubscriptionSettings, max_clients: u32, now: Timestamp) -> Self {
        Self {
            settings,
            max_clients,
            usage: UsageLog::default(),
            limits: ProviderLimits::default(),
            overage: None,
            breaker: Breaker::default(),
            ramp: None,
            quarantine: None,
            removed: None,
            switched_at: now,
            joined: now,
            in_flight: 0,
            own_slots: 0,
            reserved: MicroUsd::ZERO,
            reserved_tokens: 0,
            starts: Starts::default(),
            held: None,
            last_granted: 0,
            last_chosen: 0,
            lot: 0,
            position: 0,
            last_usage: None,
            level: Status::Available,
            level_since: now,
            block_cost: MicroUsd::ZERO,
            health: HealthBreakdown::default(),
            place: None,
            counted: None,
            scheduled: None,
            seen_lock: None,
            epoch: 0,
        }
    }

    /// Whether it was removed and has nothing more to do.
    pub(super) fn is_gone(&self) -> bool {
        self.removed.is_some() && self.in_flight == 0
    }

    pub(super) fn id(&self) -> Arc<str> {
        Arc::clone(&self.settings.id)
    }

    pub(super) fn week_use(&self, now: Timestamp, figures: &Figures) -> WeekUse {
        let budget = self.settings.weekly_budget;
        let own = if budget > MicroUsd::ZERO { figures.week.cost.as_usd() / budget.as_usd() } else { 1.0 };
        let provider = self.limits.reported_at(now, Window::SevenDay).map(|reported| reported.utilization);
        WeekUse { own, provider }
    }

    /// The block's use in percent: the larger of our own account and the provider's.
    pub(super) fn block_percent(&self, now: Timestamp, figures: &Figures) -> f64 {
        let own = block_percent(figures.block_tally.cost.as_usd());
        let provider = self.limits.reported_at(now, Window::FiveHour).map(|reported| reported.utilization * 100.0);
        provider.map_or(own, |provider| provider.max(own)).min(100.0)
    }

    /// The block's use as a share: the provider's word if there is one, else our own account.
    pub(super) fn block_share(&self, now: Timestamp, figures: &Figures) -> f64 {
        let provider = self.limits.reported_at(now, Window::FiveHour).map(|reported| reported.utilization);
        provider.unwrap_or_else(|| block_percent(figures.block_tally.cost.as_usd()) / 100.0)
    }

    pub(super) fn health_at(&self, now: Timestamp, figures: &Figures, clients: u32) -> HealthBreakdown {
        HealthBreakdown::of(&HealthInputs {
            weekly_percent: self.week_use(now, figures).percent(),
            block_percent: self.block_percent(now, figures),
            block_is_fresh: figures.block_tally.cost == MicroUsd::ZERO,
            clients,
            burn_rate: figures.burn_rate(),
        })
    }

    /// The budget's level: available, approaching or limited.
    pub(super) fn level_at(&self, now: Timestamp, figures: &Figures) -> Status {
        let reaches = |share| self.budget_spent(now, figures, share);
        if reaches(LIMITED_SHARE) {
            Status::Limited
        } else if reaches(APPROACHING_SHARE) {
            Status::Approaching
        } else {
            Status::Available
        }
    }

    /// What keeps every request away, whatever it asks for, for longer than requests take.
    pub(super) fn outage(&self, now: Timestamp) -> Option<Exclusion> {
        if let Some(removed) = self.removed {
            return Some(Exclusion::new(Cause::Removed, Some(removed), None));
        }
        if !self.settings.enabled {
            return Some(Exclusion::new(Cause::Disabled, Some(self.switched_at), None));
        }
        if let Some(quarantine) = self.quarantine.as_ref().filter(|quarantine| quarantine.until > now) {
            return Some(Exclusion::new(Cause::Unauthenticated, Some(quarantine.since), Some(quarantine.until)));
        }
        if let Some(lock) = self.limits.lock_at(now) {
            let cause = if lock.throttle { Cause::Throttled } else { Cause::ProviderLimit };
            return Some(Exclusion::new(cause, Some(lock.since), Some(lock.until)));
        }
        match self.breaker.at(now) {
            Breaker::Open { since, until } => Some(Exclusion::new(Cause::BreakerOpen, Some(since), Some(until))),
            Breaker::Closed { .. } | Breaker::HalfOpen { .. } => None,
        }
    }

    /// What keeps requests for one family away.
    pub(super) fn family_exclusion(&self, now: Timestamp, family: Family) -> Option<Exclusion> {
        let lock = self.limits.family_lock_at(now, family)?;
        Some(Exclusion::new(Cause::FamilyLimit, Some(lock.since), Some(lock.until)))
    }

    /// Whether `share` of the weekly budget is used, by our own account or the provider's.
    pub(super) fn budget_spent(&self, now: Timestamp, figures: &Figures, share: f64) -> bool {
        figures.week.cost >= self.share_of_budget(share) || self.provider_spent(now, share).is_some()
    }

    /// The same with the time at which it ends; that takes a walk through the records that have to age until then.
    pub(super) fn budget_exclusion(&self, now: Timestamp, figures: &Figures, share: f64) -> Option<Exclusion> {
        let limit = self.share_of_budget(share);
        let own = (figures.week.cost >= limit).then(|| self.usage.week_below_at(now, limit));
        if let Some(reported) = self.provider_spent(now, share) {
            let until = own.flatten().map_or(reported, |own| own.max(reported));
            let exclusion = Exclusion::new(Cause::BudgetSpent, None, Some(until));
            return Some(exclusion.told_by(Source::Provider));
        }
        own.map(|until| Exclusion::new(Cause::BudgetSpent, None, until))
    }

    /// When the provider's figure ends, if that is `share` of the week or more.
    fn provider_spent(&self, now: Timestamp, share: f64) -> Option<Timestamp> {
        let reported = self.limits.reported_at(now, Window::SevenDay)?;
        (reported.utilization >= share - SHARE_TOLERANCE).then(|| reported.expires_at())
    }

    /// Whether `share` of the weekly budget is used or reserved.
    pub(super) fn reserve_exclusion(&self, now: Timestamp, figures: &Figures, share: f64) -> Option<Exclusion> {
        if self.reserved == MicroUsd::ZERO {
            return None;
        }
        let own = figures.week.cost + self.reserved >= self.share_of_budget(share);
        let provider = self.limits.reported_at(now, Window::SevenDay).is_some_and(|reported| {
            let reserved = self.reserved.as_usd() / self.settings.weekly_budget.as_usd();
            reported.utilization + reserved >= share - SHARE_TOLERANCE
        });
        (own || provider).then(|| Exclusion::new(Cause::BudgetReserved, None, None))
    }

    /// The share of the weekly budget up to which it takes new sessions with requests of this priority. The owner's
    /// and the request's word add up: both can only move the threshold between 0.15 below it and 0.95.
    pub(super) fn new_session_share(&self, threshold: f64, request: Priority) -> f64 {
        let step = |share: f64, priority| match priority {
            Priority::Low => share - LOW_PRIORITY_RESERVE,
            Priority::Normal => share,
            Priority::High => share + (LIMITED_SHARE - threshold).max(0.0),
        };
        step(step(threshold, self.settings.priority), request).min(LIMITED_SHARE)
    }

    /// The least important requests for which it takes new sessions, as far as `spent` tells of a share of the budget.
    pub(super) fn least_priority(&self, threshold: f64, spent: impl Fn(f64) -> bool) -> Option<Priority> {
        let open = |priority: &Priority| !spent(self.new_session_share(threshold, *priority));
        [Priority::Low, Priority::Normal, Priority::High].into_iter().find(open)
    }

    /// What keeps a request away until another one ends.
    pub(super) fn congestion(
        &self,
        now: Timestamp,
        figures: &Figures,
        sessions: u32,
        needs_slot: bool,
    ) -> Option<Exclusion> {
        let cause = if matches!(self.breaker.at(now), Breaker::HalfOpen { probing: true, .. }) {
            Cause::Probing
        } else if self.ramp.is_some_and(|ramp| !ramp.admits()) {
            Cause::RampingUp
        } else if self.in_flight >= self.settings.max_concurrent {
            Cause::RequestsFull
        } else if let Some(exclusion) = self.capacity_exclusion(now, figures).or_else(|| self.held_at(now, needs_slot))
        {
            return Some(exclusion);
        } else if needs_slot && self.clients(sessions) >= self.max_clients {
            Cause::SlotsFull
        } else {
            return None;
        };
        Some(Exclusion::new(cause, None, None))
    }

    /// Client slots in use when `sessions` explicit sessions are assigned.
    pub(super) const fn clients(&self, sessions: u32) -> u32 {
        sessions.saturating_add(self.own_slots)
    }

    /// The next instant at which time alone changes what it is good for.
    pub(super) fn next_change(&self, now: Timestamp, figures: &Figures) -> Option<Timestamp> {
        let burning = figures.burn_rate() > 3.0;
        let breaker = match self.breaker {
            Breaker::Open { until, .. } => Some(until),
            Breaker::Closed { .. } | Breaker::HalfOpen { .. } => None,
        };
        let capacity = self.capacity_exclusion(now, figures).and_then(|full| full.until);
        let quarantine = self.quarantine.as_ref().map(|quarantine| quarantine.until).filter(|until| *until > now);
        let held = self.held_at(now, true).and_then(|held| held.until);
        [self.usage.next_change(now, burning), self.limits.next_change(now), breaker, capacity, quarantine, held]
            .into_iter()
            .flatten()
            .min()
    }

    fn share_of_budget(&self, share: f64) -> MicroUsd {
        MicroUsd::from_usd(self.settings.weekly_budget.as_usd() * share)
    }
}
