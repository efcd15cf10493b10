//! One alert of each rule, to try out its channels.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::message::Alert;
use super::rules::{Notice, Rule, Rulebook, Trigger};
use crate::pool::{Effect, Runaway, UsageView};
use crate::units::{MicroUsd, Timestamp};

/// What a sample about nobody in particular is about.
const NOBODY: &str = "example";

/// What `rule` would send at `now` about `subscription`, marked as a test. Made by the rules themselves.
pub fn of(rule: &Rule, subscription: Option<&str>, now: Timestamp) -> Notice {
    let id: Arc<str> = subscription.unwrap_or(NOBODY).into();
    let mut book = Rulebook::new(std::slice::from_ref(rule));
    let share = match rule.trigger {
        Trigger::UsageThreshold { share } | Trigger::Quota { share, .. } => share,
        _ => 0.5,
    };
    let mut notices = book.look(now, vec![week(&id, share, now)]);
    if let Some(effect) = effect(&rule.trigger, &id, now) {
        notices.extend(book.hear(now, &effect));
    }
    let mut notice = notices.pop().unwrap_or_else(|| bare(rule, now));
    notice.alert.message = format!("Test: {}", notice.alert.message);
    notice.alert.data.insert("test".to_owned(), Value::Bool(true));
    notice
}

fn week(id: &Arc<str>, share: f64, now: Timestamp) -> UsageView {
    let (budget, burn_rate) = (456.0, 5.2);
    UsageView {
        id: Arc::clone(id),
        weekly_used: MicroUsd::from_usd(budget * share),
        weekly_budget: MicroUsd::from_usd(budget),
        weekly_share: share,
        week_ends: None,
        burn_rate,
        exhaustion_at: Some(now + Duration::from_secs_f64((budget * (1.0 - share)).max(0.0) / burn_rate * 3600.0)),
    }
}

fn effect(trigger: &Trigger, id: &Arc<str>, now: Timestamp) -> Option<Effect> {
    let (subscription, cause) = (Arc::clone(id), "this is a test".to_owned());
    match trigger {
        Trigger::Rotation => {
            let to = NOBODY.into();
            Some(Effect::Rotation { session: "test".to_owned(), from: subscription, to, cause })
        }
        Trigger::LimitReached => {
            Some(Effect::LimitReached { subscription, cause, until: now + Duration::from_hours(5) })
        }
        Trigger::AuthFailed => Some(Effect::AuthFailed { subscription, cause }),
        Trigger::Recovered => Some(Effect::Recovered { subscription, cause }),
        Trigger::Failover => Some(Effect::Failover { session: "test".to_owned(), backend: "test".into(), cause }),
        Trigger::ReplicasApart => Some(Effect::ReplicasApart { cause }),
        Trigger::Runaway => Some(Effect::RunawayGuard { what: Runaway::Loop, client: None, cause }),
        Trigger::UsageThreshold { .. } | Trigger::Quota { .. } => None,
    }
}

/// For a rule that nothing in the pool sets off.
fn bare(rule: &Rule, now: Timestamp) -> Notice {
    let alert = Alert {
        at: now,
        kind: rule.trigger.kind(),
        severity: super::Severity::Warning,
        subscription: None,
        message: "A request was served by the fallback backend".to_owned(),
        data: serde_json::Map::new(),
        resolved: false,
    };
    Notice { alert, channels: rule.channels.clone() }
}
