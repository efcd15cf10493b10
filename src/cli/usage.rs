//! `auth-pool usage --organization`: what Anthropic counts for each key, beside what the pool has counted for the same time.

use std::collections::HashMap;
use std::fmt::Write as _;

use http::Method;
use serde_json::{Value, json};

use super::registry::{Office, Where, note};
use super::say;
use crate::app::{KeyReport, organization_report, registered, store_location};
use crate::backend::anthropic_api::organization::KeyUsage;
use crate::config::{self, Config, Env, Overrides};
use crate::store::{Location, Store};
use crate::units::{MicroUsd, Timestamp};

/// Arguments of `usage`.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// Ask Anthropic's Admin API; the variable `ANTHROPIC_ADMIN_API_KEY` holds the key
    #[arg(long, required = true)]
    organization: bool,
    /// How many days back, today (UTC) included
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=31))]
    days: u32,
    /// Where the Admin API is
    #[arg(long, value_name = "URL")]
    base_url: Option<String>,
    #[command(flatten)]
    at: Where,
}

/// One key.
struct Row {
    key: String,
    /// The subscription that has this key, or the backend beside the pool.
    subscription: Option<String>,
    used: KeyUsage,
    /// What was written down here for the same time; `None` where nobody knows.
    own: Option<MicroUsd>,
}

pub(super) async fn run(args: Args, env: &Env) -> anyhow::Result<()> {
    let overrides = Overrides { config: args.at.config.clone(), listen: None };
    let config = match config::load(env, &overrides) {
        Ok(config) => Some(config),
        // Where nobody names a file there may be none, and no profile either.
        Err(_) if args.at.config.is_none() => None,
        Err(problems) => return Err(problems.into()),
    };
    let (config, env_of_keys) = match config {
        Some(config) => with_registered(config, env).await,
        None => (None, env.clone()),
    };
    let report = organization_report(config.as_ref(), &env_of_keys, args.base_url.as_deref(), args.days).await?;
    let own = own_account(&args.at, env, report.from, report.to).await;
    let of = |id: &String| Some(own.as_ref().ok()?.get(id).copied().unwrap_or_default());
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
    if args.at.json {
        say(&format!("{:#}", as_json(&rows, from, to, cost)));
    } else {
        say(&table(&rows, from, to, cost, own.err().as_deref()));
    }
    Ok(())
}

/// The configuration with the accounts that are registered in its store, and the environment that holds their keys. Where
/// the store cannot be read, or not all of it, that is said and the others are shown.
async fn with_registered(config: Config, env: &Env) -> (Option<Config>, Env) {
    let read = async {
        let Some(location) = store_location(&config)? else { return Ok(None) };
        // Nothing is registered in a file that is not there, and none is made here.
        if let Location::Sqlite { path, .. } = &location
            && !path.exists()
        {
            return Ok(None);
        }
        let store = Store::open(location).await?;
        let read = registered(&config, env, &store).await;
        store.close().await;
        read.map(Some)
    };
    let read: anyhow::Result<_> = read.await;
    match read {
        Ok(Some(registration)) => {
            for (account, problem) in &registration.problems {
                note(&format!("the key of the account {account} is not known here: {problem}"));
            }
            (Some(registration.config), registration.env)
        }
        Ok(None) => (Some(config), env.clone()),
        Err(error) => {
            note(&format!("the keys of registered accounts are not known here: {error:#}"));
            (Some(config), env.clone())
        }
    }
}

/// What was written down from `from` until before `until`, by subscription; or why that is not known.
async fn own_account(
    at: &Where,
    env: &Env,
    from: Timestamp,
    until: Timestamp,
) -> Result<HashMap<String, MicroUsd>, String> {
    let read = async {
        let office = Office::open(at, env).await?;
        // To the millisecond, which its text is not.
        let (from, until) = (from.as_millis(), until.as_millis());
        let path = format!("usage?groupBy=subscription&from={from}&until={until}");
        office.ask(Method::GET, &path, None).await
    };
    let told = read.await.map_err(|error| format!("{error:#}"))?;
    let sums = told["items"].as_array().into_iter().flatten();
    let sum = |one: &Value| Some((one["key"].as_str()?.to_owned(), MicroUsd::from_micros(one["cost"].as_i64()?)));
    Ok(sums.filter_map(sum).collect())
}

fn as_json(rows: &[Row], from: Timestamp, to: Timestamp, cost: MicroUsd) -> Value {
    let row = |row: &Row| {
        json!({
            "key": row.key, "subscription": row.subscription, "usage": row.used.usage,
            "costByListPrice": row.used.cost.as_usd(), "ownCost": row.own.map(MicroUsd::as_usd),
            // Above zero: the key was used elsewhere too, or something of ours was lost.
            "difference": row.own.map(|own| (row.used.cost - own).as_usd()),
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
        let own = own.map_or_else(|| "-".to_owned(), |cost| cost.to_string());
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
    text.push_str(
        "\nlist price: tokens by the built-in prices; own account: what the pool wrote down for the same time",
    );
    if let Some(why) = unknown {
        let _ = write!(text, "\nthe pool's own account is not known: {why}");
    }
    text
}
