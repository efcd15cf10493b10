//! From the gateway's, the pool's and the alerts' words to the store's.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast::{self, error::RecvError};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::program_alerts::Raised;
use super::restore::Recalled;
use super::running::Running;
use crate::alert::{self, Alerts, Severity};
use crate::gateway::{Progress, ProgressState, Recorder, SharedPool, Used};
use crate::pool::{Effect, Learned, PastSession};
use crate::runtime::clock;
use crate::store::{Activity, ActivityStatus, Alert, StickySession, SubscriptionState, UsageRecord, Writer, new_id};

/// Takes what requests leave behind into the store's buffer.
pub struct Keeper {
    writer: Writer,
    running: Running,
}

impl Keeper {
    /// Keeps it with `writer`.
    pub fn new(writer: Writer) -> Self {
        Self { writer, running: Running::default() }
    }

    /// What runs, as it is told.
    pub(super) fn running(&self) -> Running {
        self.running.clone()
    }
}

/// A client of an organisation is named after it.
fn organization_of(client: &str) -> Option<String> {
    client.split_once('/').map(|(organization, _)| organization.to_owned())
}

impl Recorder for Keeper {
    fn used(&self, used: Used<'_>) {
        let request = used.request;
        self.writer.add_usage(UsageRecord {
            id: used.id.to_string(),
            organization_id: organization_of(&request.client),
            subscription: used.subscription.to_string(),
            client: request.client.to_string(),
            session: request.session.to_string(),
            model: request.model.to_string(),
            activity_id: Some(request.id.to_string()),
            at: used.at,
            cost: used.spent.cost,
            usage: used.spent.usage,
            duration_ms: used.duration_ms,
            outcome: used.outcome.to_owned(),
        });
    }

    fn progress(&self, progress: &Progress) {
        let status = match progress.state {
            ProgressState::Running => ActivityStatus::Running,
            ProgressState::Completed => ActivityStatus::Completed,
            ProgressState::Failed => ActivityStatus::Failed,
            ProgressState::Cancelled => ActivityStatus::Cancelled,
        };
        let is_over = status != ActivityStatus::Running;
        self.running.note(progress.id, is_over);
        let took = progress.updated_at.since(progress.started_at).as_millis();
        self.writer.put_activity(Activity {
            id: progress.id.to_string(),
            organization_id: organization_of(&progress.client),
            client: progress.client.to_string(),
            session: progress.session.to_string(),
            model: progress.model.to_string(),
            subscription: progress.subscription.as_deref().map(str::to_owned),
            status,
            attempts: progress.attempts.into(),
            started_at: progress.started_at,
            updated_at: progress.updated_at,
            completed_at: is_over.then_some(progress.updated_at),
            input_tokens: progress.usage.total_input(),
            output_tokens: progress.usage.output,
            cost: progress.cost,
            duration_ms: is_over.then(|| u64::try_from(took).unwrap_or(u64::MAX)),
            error: progress.error.clone(),
            revision: progress.revision,
        });
    }

    fn session(&self, session: PastSession) {
        self.writer.put_session(StickySession {
            id: session.id,
            subscription: session.subscription.to_string(),
            since: session.since,
            last_used: session.last_used,
        });
    }
}

/// Keeps what the pool learns of subscriptions: at once when something happens to one, else as it is found to differ.
/// Of whoever was not given back what is kept nothing is written.
pub(super) async fn states(
    writer: Writer,
    pool: SharedPool,
    recalled: Recalled,
    tick: Duration,
    stop: CancellationToken,
) {
    let mut kept: HashMap<Arc<str>, Learned> = HashMap::new();
    let mut effects = pool.effects();
    let mut ticks = interval(tick);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let goes_on = tokio::select! {
            () = stop.cancelled() => false,
            _ = ticks.tick() => true,
            effect = effects.recv() => match effect {
                Ok((_, effects)) if effects.iter().all(is_minor) => continue,
                Ok(_) | Err(RecvError::Lagged(_)) => true,
                Err(RecvError::Closed) => false,
            },
        };
        let (now, learned) = pool.peek(|pool, now| (now, pool.learned(now)));
        for (subscription, learned) in learned {
            if kept.get(&subscription) == Some(&learned) || !recalled.knows(&subscription) {
                continue;
            }
            let state = serde_json::to_value(&learned).unwrap_or_default();
            writer.put_state(SubscriptionState { subscription: subscription.to_string(), state, updated_at: now });
            kept.insert(subscription, learned);
        }
        if !goes_on {
            return;
        }
    }
}

/// What need not be kept at once.
const fn is_minor(effect: &Effect) -> bool {
    matches!(effect, Effect::Rotation { .. } | Effect::Moved { .. } | Effect::StatusChanged { .. })
}

/// Keeps what the operator is told. Those of the whole program that are open are in `raised`.
pub(super) async fn alerts(
    writer: Writer,
    pool: SharedPool,
    raised: Raised,
    mut told: broadcast::Receiver<alert::Alert>,
    stop: CancellationToken,
) {
    while let Some(next) = stop.run_until_cancelled(told.recv()).await {
        match next {
            Ok(alert) if alert.resolved => match alert.subscription.as_deref().map(str::to_owned) {
                Some(account) => {
                    writer.resolve_alerts(account, alert.kind.as_str().to_owned(), threshold_of(&alert), alert.at);
                }
                None => raised.end(&alert).into_iter().for_each(|id| writer.close_alert(id, alert.at)),
            },
            Ok(alert) => keep(&writer, &pool, &raised, alert),
            Err(RecvError::Lagged(missed)) => warn!(missed, "too many alerts at once: some are not kept"),
            Err(RecvError::Closed) => return,
        }
    }
}

/// The share of a week that it tells of, in percent.
fn threshold_of(alert: &alert::Alert) -> Option<f64> {
    alert.data.get("threshold")?.as_f64()
}

fn keep(writer: &Writer, pool: &SharedPool, raised: &Raised, alert: alert::Alert) {
    let account = alert.subscription.as_deref().map(str::to_owned);
    let organization = account.as_deref().and_then(|account| pool.peek(|pool, _| pool.organization_of(account)));
    if alert.kind == alert::Kind::Recovered
        && let Some(account) = &account
    {
        // What this says is over was told as one of these.
        for kind in [alert::Kind::LimitReached, alert::Kind::AuthFailed] {
            writer.resolve_alerts(account.clone(), kind.as_str().to_owned(), None, alert.at);
        }
    }
    // What is no state is over when it is told.
    let is_event = matches!(alert.kind, alert::Kind::Recovered | alert::Kind::Rotation | alert::Kind::Failover);
    let id = new_id();
    if account.is_none() && !is_event {
        raised.begin(&alert, id.clone());
    }
    // Dollars in the message; micro-dollars here.
    let micros =
        |name: &str| alert.data.get(name)?.as_f64().map(|usd| crate::units::MicroUsd::from_usd(usd).as_micros());
    let percentage = alert.data.get("weeklyPercent").and_then(|text| text.as_str()?.parse().ok());
    let is_quota = matches!(alert.kind, alert::Kind::QuotaAlert | alert::Kind::UsageThreshold);
    writer.add_alert(Alert {
        id,
        organization_id: organization.map(|id| id.to_string()),
        account,
        kind: alert.kind.as_str().to_owned(),
        severity: alert.severity.as_str().to_owned(),
        current_value: micros("weeklyUsed"),
        limit_value: micros("weeklyBudget"),
        percentage,
        quota_type: is_quota.then(|| "weekly_budget".to_owned()),
        threshold: threshold_of(&alert),
        created_at: alert.at,
        resolved_at: is_event.then_some(alert.at),
        message: alert.message,
    });
}

/// Tells the operator when the store does not take what is to be kept, and when it does again.
pub(super) async fn tell(writer: Writer, alerts: Alerts, stop: CancellationToken) {
    let mut watch = writer.watch();
    while let Some(change) = stop.run_until_cancelled(watch.changed()).await {
        let now = clock::now();
        let health = writer.health();
        match change {
            Some(error) => alerts.tell(
                now,
                alert::Kind::StoreFailed,
                Severity::Critical,
                format!("The store ({}) does not take what is to be kept: {error}. Requests are served; records wait in memory", health.location),
            ),
            None => alerts.over(now, alert::Kind::StoreFailed, format!("The store ({}) is well again", health.location)),
        }
    }
}
