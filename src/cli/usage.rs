//! `auth-pool usage --organization`: what Anthropic counts for each key, beside what the pool has counted.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::say;
use super::status::Source;
use crate::app::{KeyReport, organization_report};
use crate::backend::anthropic_api::organization::KeyUsage;
use crate::config::{self, Env, Overrides};
use crate::units::{MicroUsd, Timestamp};

/// Arguments of `usage`.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// Ask Anthropic's Admin API; the variable `ANTHROPIC_ADMIN_API_KEY` holds the key
    #[arg(long, required = true)]
    organization: bool,
    /// How many days back, today included
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=31))]
    days: u32,
    /// The configuration whose subscriptions are looked for among the keys
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where the pool serves; its own account is left out when it does not
    #[arg(long, default_value = "http://127.0.0.1:3000")]
    url: String,
    /// The environment variable that holds an admin key of the pool
    #[arg(long, value_name = "NAME")]
    key_env: Option<String>,
    /// Where the Admin API is
    #[arg(long, value_name = "URL")]
    base_url: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// One key.
struct Row {
    key: String,
    /// The subscription of the configuration that has this key.
    subscription: Option<String>,
    used: KeyUsage,
    /// What the pool says it has spent in its week.
    own: Option<f64>,
}

pub(super) async fn run(args: Args, env: &Env) -> anyhow::Result<()> {
    let overrides = Overrides { config: args.config.clone(), listen: None };
    let config = match config::load(env, &overrides) {
        Ok(config) => Some(config),
        // Where nobody names a file there may be none, and no profile either.
        Err(_) if args.config.is_none() => None,
        Err(problems) => return Err(problems.into()),
    };
    let report = organization_report(config.as_ref(), env, args.base_url.as_deref(), args.days).await?;
    let own = own_account(&args, env).await;
    let of = |id: &String| own.as_ref().ok()?.get(id).copied();
    let rows: Vec<Row> = report
        .keys
        .into_iter()
        .map(|KeyReport { key, subscription, used }| Row {
            own: subscription.as_ref().and_then(of),
            key,
            subscription,
            used,
        })
        .collect();
    let (from, to, cost) = (report.from, report.to, report.cost);
    if args.json {
        say(&format!("{:#}", as_json(&rows, from, to, cost)));
    } else {
        say(&table(&rows, from, to, cost, own.err().as_deref()));
    }
    Ok(())
}

/// What the pool has counted, by subscription; or why that is not known.
async fn own_account(args: &Args, env: &Env) -> Result<HashMap<String, f64>, String> {
    let read = async { Source::at(&args.url, args.key_env.as_deref(), env)?.read().await };
    let debug = read.await.map_err(|error| format!("{error:#}"))?;
    let members = debug["status"].as_array().into_iter().flatten();
    Ok(members.filter_map(|one| Some((one["id"].as_str()?.to_owned(), one["weeklyUsed"].as_f64()?))).collect())
}

fn as_json(rows: &[Row], from: Timestamp, to: Timestamp, cost: MicroUsd) -> Value {
    let row = |row: &Row| {
        json!({
            "key": row.key, "subscription": row.subscription, "usage": row.used.usage,
            "costByListPrice": row.used.cost.as_usd(), "ownWeeklyUsed": row.own,
        })
    };
    json!({
        "from": from.to_string(), "to": to.to_string(), "reportedCost": cost.as_usd(),
        "keys": rows.iter().map(row).collect::<Vec<_>>(),
    })
}

fn table(rows: &[Row], from: Timestamp, to: Timestamp, cost: MicroUsd, unknown: Option<&str>) -> String {
    let mut text = format!("from {from} to {to}\n\n");
    let width = rows.iter().map(|row| row.key.chars().count()).max().unwrap_or(0).max(3);
    // Writing to a string does not fail.
    let _ = writeln!(
        text,
        "{:width$}  {:16}  {:>14}  {:>12}  {:>12}  {:>12}",
        "key", "subscription", "input tokens", "output", "list price", "own account"
    );
    for Row { key, subscription, used, own } in rows {
        let own = own.map_or_else(|| "-".to_owned(), |usd| format!("${usd:.2}"));
        let _ = writeln!(
            text,
            "{key:width$}  {:16}  {:>14}  {:>12}  {:>12}  {own:>12}",
            subscription.as_deref().unwrap_or("-"),
            used.usage.total_input(),
            used.usage.output,
            used.cost.to_string(),
        );
    }
    let _ = write!(text, "\nreported cost of the organisation: {cost}");
    text.push_str("\nlist price: tokens by the built-in prices; own account: the pool's last seven days");
    if let Some(why) = unknown {
        let _ = write!(text, "\nthe pool's own account is not known: {why}");
    }
    text
}
