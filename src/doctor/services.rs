//! What the pool talks to beside the provider: alerts' channels.

use super::Finding;
use crate::app::alert_settings;
use crate::config::env::SLACK_WEBHOOK_URL;
use crate::config::{Config, Env};

/// A bot's token, which other programs post to Slack with.
const SLACK_BOT_TOKEN: &str = "SLACK_BOT_TOKEN";

pub(super) fn check(config: &Config, env: &Env) -> Vec<Finding> {
    let channels = alert_settings(config, env).channels;
    let try_it = "`auth-pool alerts test` sends one alert of each rule";
    let slack = if channels.slack.is_some() {
        Finding::ok("Slack", format!("{SLACK_WEBHOOK_URL} is set")).advise(try_it)
    } else if env.var(SLACK_BOT_TOKEN).is_some() {
        let seen = format!("{SLACK_BOT_TOKEN} is set, but alerts go through an incoming webhook");
        Finding::warning("Slack", seen, format!("set {SLACK_WEBHOOK_URL}"))
    } else {
        Finding::off("Slack", format!("{SLACK_WEBHOOK_URL} is not set"))
    };
    let webhook = match &channels.webhook {
        Some(target) if target.secret.is_none() => Finding::warning(
            "webhook",
            "configured, but its messages are not signed",
            "name in `notifications.webhookSecretEnv` the variable that holds a key",
        ),
        Some(_) => Finding::ok("webhook", "configured and signed").advise(try_it),
        None => Finding::off("webhook", "`notifications.webhookUrl` is not set"),
    };
    vec![slack, webhook]
}
