//! `auth-pool keys`.

use std::path::PathBuf;

use clap::Subcommand;
use http::Method;
use serde_json::{Value, json};

use super::office::{Office, Refused, Where, note};
use super::table::{Column, cell, table};
use crate::admin::rotate;
use crate::app::{store_location, vault};
use crate::cli::say;
use crate::config::{self, Env, Overrides};
use crate::store::Store;

/// What `auth-pool keys` can do.
#[derive(Debug, Subcommand)]
pub(in crate::cli) enum KeysCommand {
    /// Make a client key. It is shown this once
    Create(Box<Create>),
    /// Show the client keys; never the keys themselves
    List {
        #[command(flatten)]
        at: Where,
        /// Those that were revoked as well
        #[arg(long)]
        revoked: bool,
    },
    /// Withdraw a client key at once
    Revoke {
        /// Its id or its name
        key: String,
        #[command(flatten)]
        at: Where,
    },
    /// Seal all stored secrets with `ENCRYPTION_KEY`; those before it stand in `ENCRYPTION_KEY_PREVIOUS`
    Rotate {
        /// The configuration file [default: $`AUTH_POOL_CONFIG`, else config/auth-pool.json if it exists]
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Create {
    /// What it is called in logs
    name: String,
    /// chat, admin, or both, divided by a comma
    #[arg(long, value_delimiter = ',', default_value = "chat")]
    scopes: Vec<String>,
    /// The organisation on whose behalf it asks
    #[arg(long, value_name = "ID")]
    organization: Option<String>,
    /// The models it may use, divided by commas [default: all]
    #[arg(long, value_delimiter = ',')]
    models: Option<Vec<String>>,
    /// The subscriptions it may use, divided by commas [default: all of its organisation]
    #[arg(long, value_delimiter = ',')]
    subscriptions: Option<Vec<String>>,
    /// Requests it may send in a minute
    #[arg(long, value_name = "N")]
    requests_per_minute: Option<u64>,
    /// US dollars that it may spend in seven days
    #[arg(long, value_name = "USD")]
    weekly_budget: Option<f64>,
    /// The highest priority of its requests: low, normal or high
    #[arg(long, value_name = "PRIORITY")]
    max_priority: Option<String>,
    /// When it ends, for example 2027-01-01T00:00:00Z
    #[arg(long, value_name = "INSTANT")]
    expires_at: Option<String>,
    #[command(flatten)]
    at: Where,
}

pub(super) async fn run(command: KeysCommand, env: &Env) -> anyhow::Result<()> {
    match command {
        KeysCommand::Create(create) => make(*create, env).await,
        KeysCommand::List { at, revoked } => list(&at, revoked, env).await,
        KeysCommand::Revoke { key, at } => revoke(&key, &at, env).await,
        KeysCommand::Rotate { config } => reseal(config, env).await,
    }
}

async fn make(create: Create, env: &Env) -> anyhow::Result<()> {
    let mut body = json!({ "name": create.name, "scopes": create.scopes });
    let optional = [
        ("organizationId", create.organization.map(Value::from)),
        ("models", create.models.map(Value::from)),
        ("subscriptions", create.subscriptions.map(Value::from)),
        ("requestsPerMinute", create.requests_per_minute.map(Value::from)),
        ("weeklyBudget", create.weekly_budget.map(Value::from)),
        ("maxPriority", create.max_priority.map(Value::from)),
        ("expiresAt", create.expires_at.map(Value::from)),
    ];
    for (field, value) in optional {
        if let Some(value) = value {
            body[field] = value;
        }
    }
    let office = Office::open(&create.at, env).await?;
    let key = office.ask(Method::POST, "client-keys", Some(&body)).await?;
    if create.at.json {
        say(&format!("{key:#}"));
        return Ok(());
    }
    note(&format!("the key `{}` (id {}); it is not shown again:", cell(&key["name"]), cell(&key["id"])));
    // Alone on standard output, so that a script can take it.
    say(&cell(&key["key"]));
    Ok(())
}

async fn list(at: &Where, revoked: bool, env: &Env) -> anyhow::Result<()> {
    let office = Office::open(at, env).await?;
    let items = office.list("client-keys", if revoked { "&revoked=true" } else { "" }).await?;
    if at.json {
        say(&format!("{:#}", json!(items)));
        return Ok(());
    }
    let columns: &[Column] = &[
        ("NAME", |item| cell(&item["name"])),
        ("KEY", |item| format!("{}...", cell(&item["hint"]))),
        ("SCOPES", |item| cell(&item["scopes"])),
        ("PER MINUTE", |item| cell(&item["requestsPerMinute"])),
        ("BUDGET", |item| cell(&item["weeklyBudget"])),
        ("USED", |item| cell(&item["weeklyUsed"])),
        ("STATE", |item| if item["revokedAt"].is_null() { "active".to_owned() } else { "revoked".to_owned() }),
        ("ID", |item| cell(&item["id"])),
    ];
    say(&table(&items, columns));
    Ok(())
}

async fn revoke(called: &str, at: &Where, env: &Env) -> anyhow::Result<()> {
    let office = Office::open(at, env).await?;
    let all = office.list("client-keys", "").await?;
    let found = all.iter().find(|key| key["id"] == called || key["name"] == called);
    let Some(key) = found else {
        // One that stands in the file has no id: whoever is asked for it by its name says where it is.
        let is_name = called.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
        if is_name
            && let Err(error) = office.ask(Method::GET, &format!("client-keys/{called}"), None).await
            && error.downcast_ref::<Refused>().is_some_and(Refused::is_conflict)
        {
            return Err(error);
        }
        anyhow::bail!("there is no client key `{called}`")
    };
    let answer = office.ask(Method::DELETE, &format!("client-keys/{}", cell(&key["id"])), None).await?;
    let words = if at.json { format!("{answer:#}") } else { format!("`{}` is revoked", cell(&key["name"])) };
    say(&words);
    Ok(())
}

async fn reseal(config: Option<PathBuf>, env: &Env) -> anyhow::Result<()> {
    let Some(vault) = vault(env)? else { anyhow::bail!("ENCRYPTION_KEY is not set") };
    let config = config::load(env, &Overrides { config, listen: None })?;
    let Some(location) = store_location(&config)? else { anyhow::bail!("the configuration says that nothing is kept") };
    let store = Store::open(location).await?;
    let outcome = rotate(&store, &vault).await;
    store.close().await;
    let done = outcome?;
    say(&format!(
        "{} secrets sealed anew with the key {}, {} were sealed with it before; ENCRYPTION_KEY_PREVIOUS is not needed any more",
        done.resealed, done.key, done.kept
    ));
    Ok(())
}
