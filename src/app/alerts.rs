//! From the configuration's words to the alerts' settings, and from the pool to the alerts.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::alert::{self, Alerts, ChannelsSettings, Rule, Severity, Target, Trigger};
use crate::config::env::SLACK_WEBHOOK_URL;
use crate::config::{Config, Env, RuleKind};
use crate::gateway::{SharedPool, Topic};
use crate::pool::UsageView;
use crate::runtime::{clock, tasks::Tasks};
use crate::units::Timestamp;

/// Subscriptions that are looked at in one go, so that no request waits for a large pool to be looked at.
const PART: usize = 64;

pub(super) fn start(pool: &SharedPool, config: &Config, env: &Env, tasks: &Tasks, stop: &CancellationToken) -> Alerts {
    let (effects, pool) = (pool.effects(), pool.clone());
    Alerts::start(settings(config, env), effects, move || weeks(&pool), tasks, stop)
}

/// Tells those who follow the pool's events what the operator is told.
pub(super) fn tell_followers(pool: &SharedPool, alerts: &Alerts, tasks: &Tasks, stop: &CancellationToken) {
    let (pool, mut told, stop) = (pool.clone(), alerts.told(), stop.clone());
    tasks.spawn("followed alerts", async move {
        while let Some(next) = stop.run_until_cancelled(told.recv()).await {
            match next {
                Ok(alert) => {
                    let subscription = alert.subscription.as_deref();
                    let organization = subscription.and_then(|id| pool.peek(|pool, _| pool.organization_of(id)));
                    pool.feed().publish(alert.at, Topic::Alert, organization.as_ref(), &told_of(&alert));
                }
                Err(RecvError::Lagged(missed)) => warn!(missed, "too many alerts at once: followers miss some"),
                Err(RecvError::Closed) => return,
            }
        }
    });
}

fn told_of(alert: &alert::Alert) -> Value {
    json!({
        "type": alert.kind,
        "severity": alert.severity,
        "subscription": alert.subscription,
        "message": alert.message,
        "data": alert.data,
        "resolved": alert.resolved,
    })
}

fn weeks(pool: &SharedPool) -> (Timestamp, Vec<UsageView>) {
    let (mut weeks, mut next) = (Vec::new(), Some(0));
    while let Some(from) = next {
        let (part, rest) = pool.with(|pool, now| (pool.usage_views(now, from, PART), Vec::new()));
        weeks.extend(part);
        next = rest;
    }
    (clock::now(), weeks)
}

/// What the configuration says of alerts.
pub fn settings(config: &Config, env: &Env) -> alert::Settings {
    let notifications = &config.notifications;
    let target =
        |url: &str, secret| Target { url: url.to_owned(), secret, allow_hosts: notifications.allow_hosts.clone() };
    let secret = notifications.webhook_secret_env.as_deref().and_then(|name| env.var(name)).map(str::to_owned);
    alert::Settings {
        rules: rules(config).chain(quota_rules(config)).collect(),
        channels: ChannelsSettings {
            webhook: notifications.webhook_url.as_deref().map(|url| target(url, secret)),
            slack: env.var(SLACK_WEBHOOK_URL).map(|url| target(url, None)),
        },
        ..alert::Settings::default()
    }
}

fn rules(config: &Config) -> impl Iterator<Item = Rule> {
    let enabled = config.notifications.rules.iter().filter(|rule| rule.enabled);
    enabled.map(|rule| Rule {
        trigger: match rule.kind {
            RuleKind::UsageThreshold { threshold } => Trigger::UsageThreshold { share: threshold },
            RuleKind::Failover => Trigger::Failover,
            RuleKind::Rotation => Trigger::Rotation,
            RuleKind::LimitReached => Trigger::LimitReached,
            RuleKind::AuthFailed => Trigger::AuthFailed,
            RuleKind::Recovered => Trigger::Recovered,
            RuleKind::ReplicasApart => Trigger::ReplicasApart,
            RuleKind::Runaway => Trigger::Runaway,
        },
        channels: rule.channels.iter().filter_map(|channel| channel_of(*channel)).collect(),
    })
}

fn quota_rules(config: &Config) -> impl Iterator<Item = Rule> {
    let quota = &config.quota_alerts;
    let (thresholds, wanted) = (quota.thresholds, quota.channels);
    let more = [(alert::Channel::Webhook, wanted.webhook), (alert::Channel::Slack, wanted.slack)];
    let more = more.into_iter().filter_map(|(channel, wanted)| wanted.then_some(channel));
    let channels: BTreeSet<_> = more.chain([alert::Channel::Log]).collect();
    let levels = [
        (thresholds.warning, Severity::Warning),
        (thresholds.critical, Severity::Critical),
        (thresholds.emergency, Severity::Emergency),
    ];
    levels.into_iter().filter(|_| quota.enabled).map(move |(percent, severity)| Rule {
        trigger: Trigger::Quota { share: percent / 100.0, severity },
        channels: channels.clone(),
    })
}

/// The configuration accepts no `email`: nothing here sends mail.
fn channel_of(channel: crate::config::Channel) -> Option<alert::Channel> {
    match channel {
        crate::config::Channel::Log => Some(alert::Channel::Log),
        crate::config::Channel::Webhook => Some(alert::Channel::Webhook),
        crate::config::Channel::Slack => Some(alert::Channel::Slack),
        crate::config::Channel::Email => None,
    }
}
