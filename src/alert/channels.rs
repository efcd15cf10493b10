//! Takes an alert to where it belongs.

use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use uuid::Uuid;

use super::message::{Alert, Channel, Severity};
use super::post::Target;
use super::rules::Notice;
use super::webhook::{Outcome, Pace, Sender};
use crate::runtime::tasks::Tasks;

/// Where the channels lead.
#[derive(Clone, Default)]
pub struct ChannelsSettings {
    /// The `webhook` channel.
    pub webhook: Option<Target>,
    /// The `slack` channel.
    pub slack: Option<Target>,
}

/// All channels. A cheap handle.
#[derive(Clone)]
pub struct Channels {
    webhook: Sender,
    slack: Sender,
}

impl Channels {
    /// Starts one task for each channel that leaves the machine.
    pub fn start(settings: ChannelsSettings, pace: Pace, tasks: &Tasks, stop: &CancellationToken) -> Self {
        Self {
            webhook: Sender::start("webhook", settings.webhook, pace, tasks, stop),
            slack: Sender::start("slack", settings.slack, pace, tasks, stop),
        }
    }

    /// Other addresses from now on.
    pub fn apply(&self, settings: ChannelsSettings) {
        self.webhook.retarget(settings.webhook);
        self.slack.retarget(settings.slack);
    }

    /// Sends an alert through its channels. Never waits.
    pub fn send(&self, notice: &Notice) {
        let id = id();
        for channel in &notice.channels {
            match self.sender(*channel) {
                None => log(&notice.alert, &id),
                Some(sender) => sender.send(body(*channel, &notice.alert, &id)),
            }
        }
    }

    /// Sends an alert through one channel, and tells what becomes of it. `None` for the log, which it has reached.
    pub fn send_noted(&self, channel: Channel, alert: &Alert) -> Option<oneshot::Receiver<Outcome>> {
        let id = id();
        let Some(sender) = self.sender(channel) else {
            log(alert, &id);
            return None;
        };
        Some(sender.send_noted(body(channel, alert, &id)))
    }

    /// What has become of all messages so far, by channel.
    pub fn counts(&self) -> Value {
        json!({ "webhook": self.webhook.counts(), "slack": self.slack.counts() })
    }

    fn sender(&self, channel: Channel) -> Option<&Sender> {
        match channel {
            Channel::Log => None,
            Channel::Webhook => Some(&self.webhook),
            Channel::Slack => Some(&self.slack),
        }
    }
}

fn id() -> String {
    Uuid::now_v7().to_string()
}

fn body(channel: Channel, alert: &Alert, id: &str) -> Value {
    match channel {
        Channel::Slack => json!({ "text": slack_text(alert) }),
        Channel::Webhook | Channel::Log => alert.to_json(id),
    }
}

/// Slack reads `<...>` as a link or a mention, and asks for these three to be written so.
fn slack_text(alert: &Alert) -> String {
    alert.to_text().replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn log(alert: &Alert, id: &str) {
    let Alert { kind, severity, subscription, message, data, resolved, .. } = alert;
    let (kind, subscription) = (kind.as_str(), subscription.as_deref());
    let data = serde_json::to_string(data).unwrap_or_default();
    match severity {
        Severity::Info => info!(id, kind, subscription, resolved, data, "alert: {message}"),
        Severity::Warning => warn!(id, kind, subscription, resolved, data, "alert: {message}"),
        Severity::Critical | Severity::Emergency => {
            error!(id, kind, subscription, resolved, data, severity = severity.as_str(), "alert: {message}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alert::Kind;
    use crate::units::Timestamp;

    #[test]
    fn slack_is_sent_text_that_mentions_nobody() {
        let alert = Alert {
            at: Timestamp::from_secs(1_800_000_000),
            kind: Kind::AuthFailed,
            severity: Severity::Critical,
            subscription: Some("sub1".into()),
            message: "Subscription sub1 cannot log in: <!channel> & more".to_owned(),
            data: serde_json::Map::new(),
            resolved: false,
        };
        assert_eq!(
            body(Channel::Slack, &alert, "id"),
            json!({
                "text": "[auth-pool] critical: Subscription sub1 cannot log in: &lt;!channel&gt; &amp; more"
            })
        );
    }
}
