//! The pool as the operator sees it: everything, and no secret.

use std::sync::Arc;

use serde::Serialize;

use super::health::Health;
use super::session::shown;
use super::subscription::{Cause, Purpose, Rules};
use super::{Decision, Pool, Priority, Status};
use crate::conversation::{Family, Window};
use crate::units::Timestamp;

/// Sessions that are listed for each subscription; the rest are counted.
const MOST_SESSIONS: usize = 100;

/// Decisions that are listed.
const LISTED_DECISIONS: usize = 20;

/// See [`Pool::snapshot`].
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Snapshot {
    /// One entry for each subscription.
    pub status: Vec<SubscriptionView>,
    /// The whole pool.
    pub totals: Totals,
    /// The last decisions, the newest last.
    pub decisions: Vec<Arc<Decision>>,
}

/// The pool in a few numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Totals {
    /// Members.
    pub subscriptions: usize,
    /// Members that a new session could be given to now.
    pub eligible: usize,
    /// Requests that run.
    pub in_flight: usize,
    /// Sessions that hold a slot.
    pub sessions: usize,
    /// Conversations that are recognised without a session id.
    pub fingerprints: usize,
}

/// One subscription. Money is in dollars, times are milliseconds since the Unix epoch.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SubscriptionView {
    /// Unique name.
    pub id: Arc<str>,
    /// The owner's address.
    pub email: Option<Arc<str>>,
    /// `claude-pro`, `claude-max` or `api`.
    #[serde(rename = "type")]
    pub kind: Arc<str>,
    /// Its state.
    pub status: Status,
    /// Why it is in that state.
    pub status_cause: Cause,
    /// Why it would not be given a new session now; `null` if it would.
    pub excluded: Option<Cause>,
    /// Spent in the current week.
    pub weekly_used: f64,
    /// What may be spent in a week.
    pub weekly_budget: f64,
    /// The larger of our own account and the provider's, in percent.
    pub weekly_percent: f64,
    /// Spent in the current 5-hour block.
    pub current_block_cost: f64,
    /// The larger of our own account and the provider's, in percent.
    pub block_percent: f64,
    /// When the block ends.
    pub block_ends_at: Option<Timestamp>,
    /// What the block will have cost at its end, at the current burn rate.
    pub projected_block_cost: f64,
    /// Dollars an hour.
    pub burn_rate: f64,
    /// Over the last five minutes.
    pub tokens_per_minute: f64,
    /// When the weekly budget will be spent, at the current burn rate.
    pub exhaustion_at: Option<Timestamp>,
    /// When use was last recorded.
    pub last_usage_update: Option<Timestamp>,
    /// The health score.
    pub health_score: f64,
    /// Its terms.
    pub health: Health,
    /// Sessions that hold a slot.
    pub assigned_clients: u32,
    /// Requests that run.
    pub in_flight: u32,
    /// What they are estimated to cost.
    pub reserved: f64,
    /// After a recovery: requests it takes at a time.
    pub ramp: Option<u32>,
    /// How much of the owner's reserve the pool may use.
    pub priority: Priority,
    /// `closed`, `open` or `half_open`.
    pub breaker: &'static str,
    /// What the provider says of its windows.
    pub windows: Vec<WindowView>,
    /// The sessions that hold a slot, the longest unused first; at most 100 are listed.
    pub sessions: Vec<SessionView>,
}

/// A window of the provider's.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WindowView {
    /// `five_hour`, `seven_day`, or `seven_day_` and a family.
    pub window: String,
    /// 0 to 1 and beyond.
    pub utilization: f64,
    /// When it resets.
    pub resets_at: Option<Timestamp>,
}

/// A session that holds a slot.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionView {
    /// Its id, shortened.
    pub session: String,
    /// `active` or `idle`.
    pub state: &'static str,
    /// Its requests that run.
    pub in_flight: u32,
    /// When it was last used.
    pub last_used: Timestamp,
}

impl Pool {
    /// The pool in a few numbers.
    pub fn totals(&mut self, now: Timestamp) -> Totals {
        self.release_stale(now);
        let rules = rules(&self.settings);
        let members = self.members.values_mut().filter(|member| !member.removed);
        let mut totals = Totals {
            in_flight: self.leases.len(),
            sessions: self.explicit.len(),
            fingerprints: self.fingerprints.len(),
            ..Totals::default()
        };
        for member in members {
            totals.subscriptions += 1;
            totals.eligible += usize::from(member.exclusion(now, &rules, Purpose::NewSession).is_none());
        }
        totals
    }

    /// Everything about the pool that an operator may want to see.
    pub fn snapshot(&mut self, now: Timestamp) -> Snapshot {
        let totals = self.totals(now);
        let numbers: Vec<u32> = self.members.keys().copied().collect();
        let status = numbers.into_iter().filter_map(|number| self.view(number, now)).collect();
        let skipped = self.decisions.len().saturating_sub(LISTED_DECISIONS);
        Snapshot { status, totals, decisions: self.decisions.iter().skip(skipped).cloned().collect() }
    }

    fn view(&mut self, number: u32, now: Timestamp) -> Option<SubscriptionView> {
        let sessions = self.session_views(number, now);
        let rules = rules(&self.settings);
        let member = self.members.get_mut(&number)?;
        if member.removed && member.in_flight == 0 {
            return None;
        }
        let (status, status_cause) = member.status(now);
        let health = member.health(now);
        let windows = member
            .limits
            .windows(now)
            .map(|known| WindowView {
                window: window_name(known.window),
                utilization: known.utilization,
                resets_at: known.resets_at,
            })
            .collect();
        Some(SubscriptionView {
            id: Arc::clone(member.id()),
            email: member.settings.email.clone(),
            kind: Arc::clone(&member.settings.kind),
            status,
            status_cause,
            excluded: member.exclusion(now, &rules, Purpose::NewSession).map(|exclusion| exclusion.cause),
            weekly_used: member.account.week(now).as_usd(),
            weekly_budget: member.settings.weekly_budget.as_usd(),
            weekly_percent: member.weekly_share(now) * 100.0,
            current_block_cost: member.block_cost(now).as_usd(),
            block_percent: member.block_percent(now),
            block_ends_at: member.account.block(now).map(|block| block.end),
            projected_block_cost: member.projected_block_cost(now),
            burn_rate: member.account.burn_rate(now),
            tokens_per_minute: member.account.tokens_per_minute(now),
            exhaustion_at: member.exhaustion(now),
            last_usage_update: member.account.last(),
            health_score: health.score,
            health,
            assigned_clients: member.slots,
            in_flight: member.in_flight,
            reserved: member.reserved.as_usd(),
            ramp: member.ramp,
            priority: member.settings.priority,
            breaker: member.breaker.name(now, &self.settings.breaker),
            windows,
            sessions,
        })
    }

    fn session_views(&self, number: u32, now: Timestamp) -> Vec<SessionView> {
        let mut sessions: Vec<_> = self.explicit.iter().filter(|(_, session)| session.subscription == number).collect();
        sessions.sort_by(|left, right| (left.1.last_used, left.0).cmp(&(right.1.last_used, right.0)));
        let idle_after = self.settings.session_idle_after;
        sessions
            .into_iter()
            .take(MOST_SESSIONS)
            .map(|(key, session)| SessionView {
                session: shown(key),
                state: if session.is_idle(now, idle_after) { "idle" } else { "active" },
                in_flight: session.in_flight,
                last_used: session.last_used,
            })
            .collect()
    }
}

fn rules(settings: &super::Settings) -> Rules<'_> {
    Rules {
        family: Family::Other,
        breaker: &settings.breaker,
        weekly_budget_threshold: settings.weekly_budget_threshold,
        max_clients: settings.max_clients,
    }
}

fn window_name(window: Window) -> String {
    match window {
        Window::FiveHour => "five_hour".to_owned(),
        Window::SevenDay => "seven_day".to_owned(),
        Window::SevenDayFamily(family) => format!("seven_day_{family}"),
    }
}
