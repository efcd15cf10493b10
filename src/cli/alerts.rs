//! `auth-pool alerts`: try the alerts' channels out.

use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;
use futures_util::future::join_all;
use tokio_util::sync::CancellationToken;

use super::say;
use crate::alert::{Alert, Channel, Channels, Outcome, Pace, Trigger, sample};
use crate::app::alert_settings;
use crate::config::{self, Env, Overrides};
use crate::runtime::{clock, tasks::Tasks};

/// What `auth-pool alerts` can do.
#[derive(Debug, Subcommand)]
pub(super) enum AlertsCommand {
    /// Send one alert of each configured rule through its channels, and say how each fared.
    Test {
        /// The configuration file [default: $`AUTH_POOL_CONFIG`, else config/auth-pool.json if it exists]
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
}

/// Somebody is waiting: one more chance, and no long pauses.
const PACE: Pace = Pace {
    queue: 1,
    attempts: 2,
    first_pause: Duration::from_secs(1),
    longest_pause: Duration::from_secs(2),
    attempt_limit: Duration::from_secs(5),
    flush_limit: Duration::ZERO,
};

/// One alert through one channel.
struct Row {
    rule: String,
    channel: Channel,
    outcome: Result<String, String>,
}

pub(super) async fn run(command: AlertsCommand, env: &Env) -> anyhow::Result<()> {
    let AlertsCommand::Test { config } = command;
    let config = config::load(env, &Overrides { config, listen: None })?;
    let settings = alert_settings(&config, env);
    let (tasks, stop) = (Tasks::default(), CancellationToken::new());
    let subscription = config.subscriptions.first().map(|subscription| subscription.id.as_str());
    let mut rows = Vec::new();
    for rule in &settings.rules {
        let alert = sample::of(rule, subscription, clock::now()).alert;
        for channel in &rule.channels {
            // A queue of its own for each: one that hangs does not keep the others waiting.
            let channels = Channels::start(settings.channels.clone(), PACE, &tasks, &stop);
            rows.push(try_out(channels, *channel, describe(&rule.trigger), alert.clone()));
        }
    }
    let rows = join_all(rows).await;
    stop.cancel();
    tasks.finished().await;

    if rows.is_empty() {
        say("no alert rule is in force: there is nothing to send");
        return Ok(());
    }
    say(&table(&rows));
    let failed = rows.iter().filter(|row| row.outcome.is_err()).count();
    anyhow::ensure!(failed == 0, "{failed} of {} alerts did not arrive", rows.len());
    Ok(())
}

async fn try_out(channels: Channels, channel: Channel, rule: String, alert: Alert) -> Row {
    let outcome = match channels.send_noted(channel, &alert) {
        None => Ok("logged".to_owned()),
        Some(outcome) => match outcome.await {
            Ok(Outcome::Delivered { attempts: 1 }) => Ok("delivered".to_owned()),
            Ok(Outcome::Delivered { attempts }) => Ok(format!("delivered at attempt {attempts}")),
            Ok(Outcome::GivenUp { cause }) => Err(cause),
            Ok(Outcome::Dropped) | Err(_) => Err("not sent".to_owned()),
        },
    };
    Row { rule, channel, outcome }
}

fn describe(trigger: &Trigger) -> String {
    match trigger {
        Trigger::UsageThreshold { share } | Trigger::Quota { share, .. } => {
            format!("{} {:.0} %", trigger.kind(), share * 100.0)
        }
        _ => trigger.kind().to_string(),
    }
}

fn table(rows: &[Row]) -> String {
    let width = rows.iter().map(|row| row.rule.len()).max().unwrap_or(0);
    let lines = rows.iter().map(|Row { rule, channel, outcome }| {
        let (mark, text) = match outcome {
            Ok(text) => ("ok    ", text),
            Err(text) => ("FAILED", text),
        };
        format!("{rule:width$}  {:7}  {mark}  {text}", channel.as_str())
    });
    lines.collect::<Vec<_>>().join("\n")
}
