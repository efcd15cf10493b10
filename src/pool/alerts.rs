//! Facts worth an alert: a subscription's weekly use has crossed a threshold, or has come back from it.
//!
//! Each crossing is told once. It can be told again only after use has fallen clearly below the threshold, as it does
//! when a week resets, so that use which ages out record by record does not make an alert flutter.

use serde::Serialize;

use crate::units::Timestamp;

use super::command::Effect;
use super::subscription::Subscription;
use super::usage::Figures;

/// How far below a threshold its alert is over, as a share of the budget.
const RESOLVED_BELOW: f64 = 0.05;
/// Shares carry noise in the last bits.
const TOLERANCE: f64 = 1e-9;

/// The shares of the weekly budget that are told, 1.0 being all of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AlertSettings {
    /// Of the `usage_threshold` rules.
    pub thresholds: Vec<f64>,
    /// Of the quota alerts, if they are wanted.
    pub quota: Option<QuotaThresholds>,
}

/// See [`AlertSettings::quota`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QuotaThresholds {
    /// 0.80
    pub warning: f64,
    /// 0.95
    pub critical: f64,
    /// 1.00
    pub emergency: f64,
}

/// How bad a quota alert is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// From 80 % on.
    Warning,
    /// From 95 % on.
    Critical,
    /// From 100 % on.
    Emergency,
}

/// How much of its weekly budget a subscription has used. Money is in dollars.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct BudgetUse {
    /// Used in the current week, by our own account.
    pub weekly_used: f64,
    /// What may be used in a week.
    pub weekly_budget: f64,
    /// The larger of our own account and the provider's, in percent.
    pub weekly_percent: f64,
    /// Dollars in the last hour.
    pub burn_rate: f64,
    /// When the budget will be spent if use goes on like this.
    pub exhaustion_at: Option<Timestamp>,
}

/// A threshold that is told.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Level {
    share: f64,
    /// For quota alerts.
    severity: Option<Severity>,
}

impl AlertSettings {
    fn levels(&self) -> impl Iterator<Item = Level> {
        let rules = self.thresholds.iter().map(|share| Level { share: *share, severity: None });
        let quota = self.quota.into_iter().flat_map(|quota| {
            [
                (quota.warning, Severity::Warning),
                (quota.critical, Severity::Critical),
                (quota.emergency, Severity::Emergency),
            ]
        });
        rules.chain(quota.map(|(share, severity)| Level { share, severity: Some(severity) }))
    }
}

impl Subscription {
    /// Tells which thresholds were crossed since this was last asked.
    pub(super) fn announce_crossings(
        &mut self,
        now: Timestamp,
        figures: &Figures,
        settings: &AlertSettings,
        effects: &mut Vec<Effect>,
    ) {
        if self.removed.is_some() {
            return;
        }
        let share = self.week_use(now, figures).share();
        for level in settings.levels() {
            let told = self.told.iter().position(|told| *told == level);
            match told {
                None if share >= level.share - TOLERANCE => {
                    self.told.push(level);
                    effects.push(self.crossing(now, figures, level, false));
                }
                Some(told) if share < level.share - RESOLVED_BELOW => {
                    self.told.remove(told);
                    effects.push(self.crossing(now, figures, level, true));
                }
                _ => {}
            }
        }
    }

    /// Forgets what was told of thresholds that no longer exist.
    pub(super) fn forget_crossings(&mut self, settings: &AlertSettings) {
        self.told.retain(|told| settings.levels().any(|level| level == *told));
    }

    fn crossing(&self, now: Timestamp, figures: &Figures, level: Level, resolved: bool) -> Effect {
        let subscription = self.id();
        let threshold = level.share;
        let usage = BudgetUse {
            weekly_used: figures.week.cost.as_usd(),
            weekly_budget: self.settings.weekly_budget.as_usd(),
            weekly_percent: self.week_use(now, figures).percent(),
            burn_rate: figures.burn_rate(),
            exhaustion_at: figures.exhaustion_at(self.settings.weekly_budget, now),
        };
        match level.severity {
            None => Effect::UsageThreshold { subscription, threshold, resolved, usage },
            Some(severity) => Effect::Quota { subscription, severity, threshold, resolved, usage },
        }
    }
}
