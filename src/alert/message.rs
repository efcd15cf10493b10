//! One alert, and how machines and people read it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::pool::UsageView;
use crate::units::Timestamp;

/// What an alert tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A subscription has used a share of its weekly budget that a rule names.
    UsageThreshold,
    /// A subscription has used a share of its weekly budget that `quotaAlerts` names.
    QuotaAlert,
    /// A request was served by the fallback backend.
    Failover,
    /// A session moved because its subscription could no longer serve it.
    Rotation,
    /// The provider limits a subscription.
    LimitReached,
    /// A subscription cannot log in.
    AuthFailed,
    /// A subscription can be used again.
    Recovered,
    /// The server that replicas share is out of reach, so that each counts by itself.
    ReplicasApart,
    /// The runaway guard stops something that goes in circles.
    Runaway,
    /// The store does not take what is to be kept over a restart.
    StoreFailed,
}

impl Kind {
    /// As written in the message.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::UsageThreshold => "usage_threshold",
            Self::QuotaAlert => "quota_alert",
            Self::Failover => "failover",
            Self::Rotation => "rotation",
            Self::LimitReached => "limit_reached",
            Self::AuthFailed => "auth_failed",
            Self::Recovered => "recovered",
            Self::ReplicasApart => "replicas_apart",
            Self::Runaway => "runaway",
            Self::StoreFailed => "store_failed",
        }
    }
}

impl Kind {
    /// The kind that is written so.
    pub fn parse(name: &str) -> Option<Self> {
        let all = [
            Self::UsageThreshold,
            Self::QuotaAlert,
            Self::Failover,
            Self::Rotation,
            Self::LimitReached,
            Self::AuthFailed,
            Self::Recovered,
            Self::ReplicasApart,
            Self::Runaway,
            Self::StoreFailed,
        ];
        all.into_iter().find(|kind| kind.as_str() == name)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Good to know.
    Info,
    /// Will need somebody.
    Warning,
    /// Needs somebody.
    Critical,
    /// Something has stopped.
    Emergency,
}

impl Severity {
    /// As written in the message.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Critical => "critical",
            Self::Emergency => "emergency",
        }
    }
}

/// Where alerts go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Channel {
    /// The program's own log.
    Log,
    /// A signed JSON `POST`.
    Webhook,
    /// A Slack incoming webhook.
    Slack,
}

impl Channel {
    /// As written in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::Webhook => "webhook",
            Self::Slack => "slack",
        }
    }
}

/// Something the operator is told.
#[derive(Clone, Debug, PartialEq)]
pub struct Alert {
    /// When it happened.
    pub at: Timestamp,
    /// What it tells.
    pub kind: Kind,
    /// How bad it is.
    pub severity: Severity,
    /// Whom it is about, if about one.
    pub subscription: Option<Arc<str>>,
    /// For people.
    pub message: String,
    /// For machines.
    pub data: Map<String, Value>,
    /// Whether it says that an earlier alert of the same kind, subscription and threshold is over.
    pub resolved: bool,
}

impl Alert {
    /// The webhook's message. Every attempt at delivering it carries the same `id`, so that the receiver can tell a
    /// repetition from a second alert.
    pub fn to_json(&self, id: &str) -> Value {
        let mut message = json!({
            "id": id,
            "at": self.at.to_string(),
            "type": self.kind,
            "severity": self.severity,
            "subscriptionId": self.subscription,
            "message": self.message,
            "data": self.data,
        });
        if self.resolved {
            message["resolved"] = Value::Bool(true);
        }
        message
    }

    /// What people read in a chat: two lines at most.
    pub fn to_text(&self) -> String {
        let state = if self.resolved { "resolved" } else { self.severity.as_str() };
        let mut text = format!("[auth-pool] {state}: {}", self.message);
        let figure = |name: &str| self.data.get(name).filter(|value| !value.is_null()).map(plain);
        let mut figures = Vec::new();
        if let (Some(used), Some(budget)) = (figure("weeklyUsed"), figure("weeklyBudget")) {
            figures.push(format!("${used} of ${budget} used this week"));
        }
        if let Some(rate) = figure("burnRate").filter(|rate| rate != "0") {
            figures.push(format!("${rate} in the last hour"));
        }
        if let Some(left) = figure("estimatedTimeUntilExhaustion") {
            figures.push(format!("spent in {left} at this rate"));
        }
        if !figures.is_empty() {
            text.push('\n');
            text.push_str(&figures.join(", "));
        }
        text
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// The figures of a subscription's week, as in every alert about it.
pub(super) fn figures(usage: &UsageView, now: Timestamp) -> Map<String, Value> {
    let left = usage.exhaustion_at.map(|instant| approximate(instant.since(now)));
    let fields = [
        ("weeklyUsed", number(usage.weekly_used.as_usd())),
        ("weeklyBudget", number(usage.weekly_budget.as_usd())),
        ("weeklyPercent", Value::from(percent(usage.weekly_share))),
        ("burnRate", number(usage.burn_rate)),
        ("estimatedTimeUntilExhaustion", Value::from(left)),
    ];
    fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// With one digit, rounded down: 79.99 has not reached 80.
fn percent(share: f64) -> String {
    format!("{:.1}", ((share + TOLERANCE) * 1000.0).floor() / 10.0)
}

/// Sums of money are exact, but shares of them are not: 364.8 of 456 shall be 80 percent.
pub(super) const TOLERANCE: f64 = 1e-9;

/// To the cent; without a fraction where there is none, because readers of `388.0` see more than was meant.
#[expect(clippy::cast_possible_truncation, reason = "whole and small: checked in the line before")]
pub(super) fn number(value: f64) -> Value {
    let cents = (value * 100.0).round() / 100.0;
    if cents.fract() == 0.0 && cents.abs() < 1e15 { Value::from(cents as i64) } else { Value::from(cents) }
}

/// A length of time in the one unit that says enough.
pub(super) fn approximate(time: Duration) -> String {
    const HOUR: u64 = 60;
    const DAY: u64 = 24 * HOUR;
    let minutes = time.as_secs().div_ceil(60);
    let (count, unit) = match minutes {
        0..=119 => (minutes, "minute"),
        120..=2879 => ((minutes + HOUR / 2) / HOUR, "hour"),
        _ => ((minutes + DAY / 2) / DAY, "day"),
    };
    format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::MicroUsd;

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

    /// The worked example that users of the format have.
    fn example() -> Alert {
        let usage = UsageView {
            id: "sub1".into(),
            weekly_used: MicroUsd::from_usd(388.0),
            weekly_budget: MicroUsd::from_usd(456.0),
            weekly_share: 388.0 / 456.0,
            week_ends: None,
            burn_rate: 5.2,
            exhaustion_at: Some(NOW + Duration::from_hours(12)),
        };
        Alert {
            at: NOW,
            kind: Kind::UsageThreshold,
            severity: Severity::Warning,
            subscription: Some("sub1".into()),
            message: "Subscription sub1 at 85% weekly budget".to_owned(),
            data: figures(&usage, NOW),
            resolved: false,
        }
    }

    #[test]
    fn the_message_is_the_documented_one_plus_id_and_time() {
        let expected = json!({
            "id": "the-id",
            "at": "2027-01-15T08:00:00Z",
            "type": "usage_threshold",
            "severity": "warning",
            "subscriptionId": "sub1",
            "message": "Subscription sub1 at 85% weekly budget",
            "data": {
                "weeklyUsed": 388,
                "weeklyBudget": 456,
                "weeklyPercent": "85.0",
                "burnRate": 5.2,
                "estimatedTimeUntilExhaustion": "12 hours"
            }
        });
        assert_eq!(example().to_json("the-id").to_string(), expected.to_string(), "byte for byte");
        let resolved = Alert { resolved: true, ..example() };
        assert_eq!(resolved.to_json("x")["resolved"], true);
    }

    #[test]
    fn people_read_a_sentence_and_the_figures() {
        assert_eq!(
            example().to_text(),
            "[auth-pool] warning: Subscription sub1 at 85% weekly budget\n\
             $388 of $456 used this week, $5.2 in the last hour, spent in 12 hours at this rate"
        );
        let bare = Alert { data: Map::new(), resolved: true, ..example() };
        assert_eq!(bare.to_text(), "[auth-pool] resolved: Subscription sub1 at 85% weekly budget");
    }

    #[test]
    fn lengths_of_time_have_one_unit() {
        for (minutes, text) in [
            (0, "0 minutes"),
            (1, "1 minute"),
            (119, "119 minutes"),
            (120, "2 hours"),
            (12 * 60 + 20, "12 hours"),
            (47 * 60 + 59, "48 hours"),
            (48 * 60, "2 days"),
            (6 * 24 * 60, "6 days"),
        ] {
            assert_eq!(approximate(Duration::from_mins(minutes)), text);
        }
    }

    #[test]
    fn percent_is_rounded_down_and_money_to_the_cent() {
        assert_eq!(percent(0.7999), "79.9");
        assert_eq!(percent(364.8 / 456.0), "80.0");
        assert_eq!(percent(1.0), "100.0");
        assert_eq!(number(5.199_999).to_string(), "5.2");
        assert_eq!(number(-0.001).to_string(), "0");
    }
}
