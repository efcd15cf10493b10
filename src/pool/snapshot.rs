//! The pool as its operator sees it: everything that decides, and why. Carries no secret.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use crate::units::{MicroUsd, Timestamp};

use super::Pool;
use super::breaker::Breaker;
use super::command::{Priority, Status};
use super::explain::{Exclusion, SessionLabel, Source};
use super::health::HealthBreakdown;
use super::limits::{Lock, window_name};
use super::session::{Age, Kind};
use super::subscription::Subscription;
use super::usage::Figures;

/// Sessions listed for each subscription; the rest is counted.
const SESSIONS_LISTED: usize = 100;
/// Members that one part of a look at all of them has at most: what a lock around it costs others stays below 50 us.
pub(super) const PART: usize = 64;
/// A part of the views ends sooner, because a view is much more work: after so many members,
const VIEWS_A_PART: usize = 8;
/// or as soon as it lists so many sessions.
const SESSIONS_A_PART: usize = 100;

/// The pool at one instant.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Snapshot {
    /// When it was taken.
    pub at: Timestamp,
    /// The pool in four figures.
    pub totals: Totals,
    /// The members, in the order of the configuration.
    #[serde(rename = "status")]
    pub subscriptions: Vec<SubscriptionView>,
}

/// See [`Snapshot::totals`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Totals {
    /// Members, enabled or not.
    pub subscriptions: usize,
    /// Members that a new session could be given to now.
    pub eligible: usize,
    /// Requests that run.
    pub in_flight: usize,
    /// Sessions known.
    pub sessions: usize,
}

/// The pool's health in few words; cheap.
pub type PoolHealth = Totals;

/// One subscription. Money is in dollars.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SubscriptionView {
    /// Its id.
    pub id: Arc<str>,
    /// The owner's address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub email: Option<Arc<str>>,
    /// `claude-pro`, `claude-max` or `api`.
    #[serde(rename = "type")]
    pub kind: Arc<str>,
    /// Used in the current week, by our own account.
    pub weekly_used: f64,
    /// What may be used in a week.
    pub weekly_budget: f64,
    /// The week's use in percent: the larger of our own account and the provider's.
    pub weekly_percent: f64,
    /// Used in the current block, by our own account.
    pub current_block_cost: f64,
    /// The block's use in percent: the larger of our own account (25 dollars are 100) and the provider's.
    pub block_percent: f64,
    /// What the block will have cost at its end if use goes on like this.
    pub projected_block_cost: f64,
    /// When the block ends.
    pub block_ends_at: Option<Timestamp>,
    /// Client slots in use.
    pub assigned_clients: u32,
    /// Client slots.
    pub max_clients: u32,
    /// 0 to 100.
    pub health_score: f64,
    /// The score's terms.
    pub health: HealthBreakdown,
    /// Its state.
    pub status: Status,
    /// Why it is in that state.
    pub status_cause: StatusCause,
    /// Why it can take no new session now, if it cannot.
    pub excluded: Option<Exclusion>,
    /// Dollars in the last hour.
    pub burn_rate: f64,
    /// Tokens a minute over the last five.
    pub tokens_per_minute: f64,
    /// When the weekly budget will be spent if use goes on like this.
    pub exhaustion_at: Option<Timestamp>,
    /// When something was last used.
    pub last_usage_update: Option<Timestamp>,
    /// Requests that run.
    pub in_flight: u32,
    /// Requests that may run at the same time now: fewer than configured while it recovers.
    pub max_concurrent: u32,
    /// Estimated cost of the requests that run.
    pub reserved: f64,
    /// What the provider last said of its windows.
    pub limits: Vec<WindowView>,
    /// Model families that the provider rejects.
    pub family_limits: Vec<FamilyLimitView>,
    /// The breaker.
    pub breaker: BreakerView,
    /// Sessions assigned to it, at most 100, the longest unused first.
    pub sessions: Vec<SessionView>,
    /// Sessions assigned to it, by how they bind.
    pub session_counts: BTreeMap<&'static str, u32>,
}

/// The week of one subscription: what alerts are decided on, and cheap enough to be looked at every second.
#[derive(Clone, Debug, PartialEq)]
pub struct UsageView {
    /// Its id.
    pub id: Arc<str>,
    /// Used in the current week, by our own account.
    pub weekly_used: MicroUsd,
    /// What may be used in a week.
    pub weekly_budget: MicroUsd,
    /// The larger of our own account's share of the budget and the provider's, 1.0 being all of it.
    pub weekly_share: f64,
    /// When the provider's week ends; `None` while nobody has said so, and seven rolling days count.
    pub week_ends: Option<Timestamp>,
    /// Dollars in the last hour.
    pub burn_rate: f64,
    /// When the weekly budget will be spent if use goes on like this.
    pub exhaustion_at: Option<Timestamp>,
}

/// Why a subscription is in its state: never unknown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StatusCause {
    /// In words.
    pub cause: String,
    /// On whose word.
    pub source: Source,
    /// Since when.
    pub since: Timestamp,
    /// When it ends by itself, if it does.
    pub until: Option<Timestamp>,
}

/// A window of the provider.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WindowView {
    /// `five_hour`, `seven_day`, `seven_day_opus`, ...
    pub window: String,
    /// 0.0 to 1.0, sometimes beyond; `None` if it is only known to be spent.
    pub utilization: Option<f64>,
    /// When it resets.
    pub resets_at: Option<Timestamp>,
    /// Whether requests are rejected until then.
    pub locked: bool,
    /// Always the provider.
    pub source: Source,
    /// When it said so.
    pub reported_at: Timestamp,
}

/// A model family that the provider rejects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FamilyLimitView {
    /// In words.
    pub cause: String,
    /// Since when.
    pub since: Timestamp,
    /// Until when.
    pub until: Timestamp,
}

/// A breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case", rename_all_fields = "camelCase")]
pub enum BreakerView {
    /// Lets requests pass.
    Closed {
        /// Failures in a row so far.
        failures: u32,
    },
    /// Lets nothing pass.
    Open {
        /// Since when.
        since: Timestamp,
        /// Until when.
        until: Timestamp,
    },
    /// Lets one request pass at a time.
    HalfOpen {
        /// Since when.
        since: Timestamp,
        /// Probes that succeeded.
        successes: u32,
        /// Whether a probe is on its way.
        probing: bool,
    },
}

impl From<Breaker> for BreakerView {
    fn from(breaker: Breaker) -> Self {
        match breaker {
            Breaker::Closed { failures } => Self::Closed { failures },
            Breaker::Open { since, until } => Self::Open { since, until },
            Breaker::HalfOpen { since, successes, probing } => Self::HalfOpen { since, successes, probing },
        }
    }
}

/// A session.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionView {
    /// Derived from the client's id, which it does not reveal.
    pub key: SessionLabel,
    /// `active` or `idle`.
    pub state: &'static str,
    /// When it was assigned to this subscription.
    pub since: Timestamp,
    /// When it was last used.
    pub last_used: Timestamp,
    /// Its requests that run.
    pub in_flight: u32,
}

impl Pool {
    /// One subscription, if there is one with this id.
    pub fn view_of(&mut self, now: Timestamp, subscription: &str) -> Option<SubscriptionView> {
        self.advance(now);
        let &at = self.by_id.get(subscription)?;
        Some(self.view(at, now))
    }

    /// Everything, for the operator. A pool that others wait for is better looked at in parts.
    pub fn snapshot(&self, now: Timestamp) -> Snapshot {
        let mut subscriptions = Vec::with_capacity(self.order.len());
        let mut next = Some(0);
        while let Some(from) = next {
            let (views, rest) = self.views(now, from);
            subscriptions.extend(views);
            next = rest;
        }
        Snapshot { at: now, totals: self.totals(now), subscriptions }
    }

    /// The pool in four figures, up to date at `now`.
    pub fn health(&mut self, now: Timestamp) -> PoolHealth {
        self.advance(now);
        self.totals(now)
    }

    /// Some members as their operator sees them, from position `from` on, and the position to go on from.
    pub fn views(&self, now: Timestamp, from: usize) -> (Vec<SubscriptionView>, Option<usize>) {
        let mut views = Vec::with_capacity(VIEWS_A_PART);
        let mut sessions = 0;
        for (position, &at) in self.order.iter().enumerate().skip(from) {
            if views.len() == VIEWS_A_PART || sessions >= SESSIONS_A_PART {
                return (views, Some(position));
            }
            let view = self.view(at, now);
            sessions += view.sessions.len();
            views.push(view);
        }
        (views, None)
    }

    /// What some members add to [`Self::health`], from position `from` on, and the position to go on from. The requests
    /// and sessions are those of the whole pool.
    pub fn totals_in_part(&self, now: Timestamp, from: usize) -> (Totals, Option<usize>) {
        let end = from.saturating_add(PART).min(self.order.len());
        let part = self.order.get(from..end).unwrap_or_default();
        (self.totals_of(now, part), (end < self.order.len()).then_some(end))
    }

    /// When time alone makes one of some members usable that now is not, from position `from` on, and the position to go
    /// on from.
    pub fn recovery_in_part(&self, now: Timestamp, from: usize) -> (Option<Timestamp>, Option<usize>) {
        let end = from.saturating_add(PART).min(self.order.len());
        let part = self.order.get(from..end).unwrap_or_default();
        let recovery = part.iter().filter_map(|&at| self.unavailability(at, now)?.until).min();
        (recovery, (end < self.order.len()).then_some(end))
    }

    /// The weeks of at most `most` members from position `from` on, without those that were removed, and the position
    /// to go on from. In parts, so that a large pool is never held for long.
    pub fn usage_views(&self, now: Timestamp, from: usize, most: usize) -> (Vec<UsageView>, Option<usize>) {
        let end = from.saturating_add(most).min(self.order.len());
        let part = self.order.get(from..end).unwrap_or_default();
        let members = part.iter().map(|&at| self.member(at)).filter(|member| member.removed.is_none());
        let views = members.map(|member| member.usage_view(now)).collect();
        (views, (end < self.order.len()).then_some(end))
    }

    fn totals(&self, now: Timestamp) -> Totals {
        self.totals_of(now, &self.order)
    }

    fn totals_of(&self, now: Timestamp, members: &[u32]) -> Totals {
        // Not from the index: it knows only of times that it was advanced to.
        let can_serve = |at: u32| match self.unavailability(at, now) {
            None => true,
            Some(exclusion) => exclusion.until.is_some_and(|until| until <= now),
        };
        Totals {
            subscriptions: members.len(),
            eligible: members.iter().filter(|&&at| can_serve(at)).count(),
            in_flight: self.leases.len(),
            sessions: self.sessions.len(),
        }
    }

    /// Why a member can take no new session of any family.
    pub(super) fn unavailability(&self, at: u32, now: Timestamp) -> Option<Exclusion> {
        self.member(at).outage(now).or_else(|| self.shortage(now, at, Priority::Normal))
    }

    fn view(&self, at: u32, now: Timestamp) -> SubscriptionView {
        let member = self.member(at);
        let figures = member.usage.figures(now);
        let clients = member.clients(self.explicit_sessions(at));
        let health = member.health_at(now, &figures, clients);
        let (status, status_cause) = member.status_at(now, &figures);
        SubscriptionView {
            id: member.id(),
            email: member.settings.email.clone(),
            kind: Arc::clone(&member.settings.kind),
            weekly_used: figures.week.cost.as_usd(),
            weekly_budget: member.settings.weekly_budget.as_usd(),
            weekly_percent: member.week_use(now, &figures).percent(),
            current_block_cost: figures.block_tally.cost.as_usd(),
            block_percent: member.block_percent(now, &figures),
            projected_block_cost: figures.projected_block_cost(now),
            block_ends_at: figures.block.map(|block| block.end),
            assigned_clients: clients,
            max_clients: member.max_clients,
            health_score: health.score,
            health,
            status,
            status_cause,
            excluded: self.unavailability(at, now),
            burn_rate: figures.burn_rate(),
            tokens_per_minute: figures.tokens_per_minute(),
            exhaustion_at: figures.exhaustion_at(member.settings.weekly_budget, now),
            last_usage_update: member.last_usage,
            in_flight: member.in_flight,
            max_concurrent: member.concurrency(),
            reserved: member.reserved.as_usd(),
            limits: member.windows(now),
            family_limits: member.family_limits(now),
            breaker: member.breaker.at(now).into(),
            sessions: self.session_views(at, now),
            session_counts: BTreeMap::from([
                ("explicit", self.sessions.count_at(at, Kind::Explicit)),
                ("fingerprint", self.sessions.count_at(at, Kind::Fingerprint)),
            ]),
        }
    }

    fn session_views(&self, at: u32, now: Timestamp) -> Vec<SessionView> {
        let ages = self.settings.ages();
        Kind::ALL
            .into_iter()
            .flat_map(|kind| self.sessions.at_home(at, kind))
            .filter_map(|(_, session)| {
                let state = match ages.of(session, now) {
                    Age::Active => "active",
                    Age::Idle => "idle",
                    Age::Stale => return None,
                };
                Some(SessionView {
                    key: session.label(),
                    state,
                    since: session.since,
                    last_used: session.last_used,
                    in_flight: session.in_flight,
                })
            })
            .take(SESSIONS_LISTED)
            .collect()
    }
}

impl Subscription {
    fn usage_view(&self, now: Timestamp) -> UsageView {
        let figures = self.usage.figures(now);
        UsageView {
            id: self.id(),
            weekly_used: figures.week.cost,
            weekly_budget: self.settings.weekly_budget,
            weekly_share: self.week_use(now, &figures).share(),
            week_ends: self.usage.week_reset_after(now),
            burn_rate: figures.burn_rate(),
            exhaustion_at: figures.exhaustion_at(self.settings.weekly_budget, now),
        }
    }

    /// The state and why: what keeps it out, else its budget.
    pub(super) fn status_at(&self, now: Timestamp, figures: &Figures) -> (Status, StatusCause) {
        let Some(outage) = self.outage(now) else { return self.budget_status(now, figures) };
        let status = match outage.cause {
            super::Cause::Disabled => Status::Disabled,
            super::Cause::Removed => Status::Draining,
            super::Cause::Unauthenticated => Status::Unauthenticated,
            _ => Status::Cooldown,
        };
        let cause = match (&self.quarantine, status) {
            (Some(quarantine), Status::Unauthenticated) if !quarantine.detail.is_empty() => quarantine.detail.clone(),
            (_, Status::Cooldown) => {
                self.limits.lock_at(now).map_or_else(|| outage.cause.to_string(), |lock| lock.cause())
            }
            _ => outage.cause.to_string(),
        };
        let since = outage.since.unwrap_or(self.switched_at);
        (status, StatusCause { cause, source: outage.source, since, until: outage.until })
    }

    fn budget_status(&self, now: Timestamp, figures: &Figures) -> (Status, StatusCause) {
        let level = self.level_at(now, figures);
        let lower_share = match level {
            Status::Limited => Some(super::subscription::LIMITED_SHARE),
            Status::Approaching => Some(super::subscription::APPROACHING_SHARE),
            _ => None,
        };
        let falls = lower_share.and_then(|share| self.budget_exclusion(now, figures, share));
        let cause = StatusCause {
            cause: self.level_cause(now, figures),
            source: self.week_use(now, figures).source(),
            since: if level == self.level { self.level_since } else { now },
            until: falls.and_then(|falls| falls.until),
        };
        (level, cause)
    }

    fn windows(&self, now: Timestamp) -> Vec<WindowView> {
        let locks: Vec<Lock> = self.limits.all_locks_at(now).filter(|lock| !lock.throttle).collect();
        let mut views: Vec<WindowView> = self
            .limits
            .all_reported_at(now)
            .map(|reported| {
                let lock = locks.iter().find(|lock| lock.window == Some(reported.window));
                WindowView {
                    window: window_name(reported.window),
                    utilization: Some(reported.utilization),
                    resets_at: lock.map(|lock| lock.until).or(reported.resets_at),
                    locked: lock.is_some(),
                    source: Source::Provider,
                    reported_at: reported.at,
                }
            })
            .collect();
        for lock in locks {
            let window = lock.window.map_or_else(|| "unnamed".to_owned(), window_name);
            if views.iter().all(|view| view.window != window) {
                views.push(WindowView {
                    window,
                    utilization: None,
                    resets_at: Some(lock.until),
                    locked: true,
                    source: Source::Provider,
                    reported_at: lock.since,
                });
            }
        }
        views
    }

    fn family_limits(&self, now: Timestamp) -> Vec<FamilyLimitView> {
        super::limits::FAMILIES
            .into_iter()
            .filter_map(|family| self.limits.family_lock_at(now, family))
            .map(|lock| FamilyLimitView { cause: lock.cause(), since: lock.since, until: lock.until })
            .collect()
    }

    /// Requests that may run at the same time now.
    fn concurrency(&self) -> u32 {
        let configured = self.settings.max_concurrent;
        self.ramp.map_or(configured, |ramp| ramp.allowance().min(configured))
    }
}
