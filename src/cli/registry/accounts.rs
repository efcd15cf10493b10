//! `auth-pool accounts`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Subcommand;
use http::Method;
use serde_json::{Value, json};

use super::office::{Office, Where, note, secret};
use super::table::{cell, table};
use crate::backend::claude_cli::hand_over;
use crate::cli::say;
use crate::config::{self, Env, Overrides};

/// What `auth-pool accounts` can do.
#[derive(Debug, Subcommand)]
pub(in crate::cli) enum AccountsCommand {
    /// Register an account; a running pool uses it at once
    Add(Box<Add>),
    /// Show the registered accounts
    List {
        #[command(flatten)]
        at: Where,
        /// Only those of this organisation
        #[arg(long, value_name = "ID")]
        organization: Option<String>,
    },
    /// Look whether an account could serve, by its login or its key; nothing is billed
    Test(One),
    /// Switch an account off; running answers go on
    Disable(One),
    /// Switch an account on again
    Enable(One),
    /// Forget an account's failures, limits and failed logins
    Reset(One),
    /// Remove an account and its secret
    Remove(One),
    /// Run the Claude CLI's own login in an account's profile, in this terminal
    Login {
        #[command(flatten)]
        one: One,
        /// Make a long-lived token (`claude setup-token`) instead
        #[arg(long)]
        setup_token: bool,
    },
}

/// One account.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct One {
    /// Its id, its name in the pool, or its own name
    account: String,
    #[command(flatten)]
    at: Where,
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Add {
    /// What it is called
    name: String,
    /// What it is: claude-pro, claude-max or api
    #[arg(long = "type", value_name = "TYPE")]
    kind: String,
    /// The organisation it belongs to
    #[arg(long, value_name = "ID")]
    organization: Option<String>,
    /// The variable that holds its API key (type api) or long-lived token
    #[arg(long, value_name = "NAME", conflicts_with = "secret_stdin")]
    secret_env: Option<String>,
    /// Read its API key or long-lived token from standard input
    #[arg(long)]
    secret_stdin: bool,
    /// The CLI profile, where it has one
    #[arg(long, value_name = "DIR")]
    config_dir: Option<PathBuf>,
    /// US dollars that may be spent in seven days
    #[arg(long, value_name = "USD")]
    weekly_budget: Option<f64>,
    /// The entry of `rateLimits` that holds for it
    #[arg(long)]
    tier: Option<String>,
    /// low, normal or high
    #[arg(long)]
    priority: Option<String>,
    /// Where the Messages API is, if not at Anthropic itself
    #[arg(long, value_name = "URL")]
    base_url: Option<String>,
    #[command(flatten)]
    at: Where,
}

pub(super) async fn run(command: AccountsCommand, env: &Env) -> anyhow::Result<()> {
    match command {
        AccountsCommand::Add(add) => create(*add, env).await,
        AccountsCommand::List { at, organization } => list(&at, organization, env).await,
        AccountsCommand::Test(one) => test(&one, env).await,
        AccountsCommand::Disable(one) => act(&one, Method::POST, "/disable", env).await,
        AccountsCommand::Enable(one) => act(&one, Method::POST, "/enable", env).await,
        AccountsCommand::Reset(one) => act(&one, Method::POST, "/reset", env).await,
        AccountsCommand::Remove(one) => act(&one, Method::DELETE, "", env).await,
        AccountsCommand::Login { one, setup_token } => login(&one, setup_token, env).await,
    }
}

async fn create(add: Add, env: &Env) -> anyhow::Result<()> {
    let secret = secret(add.secret_env.as_deref(), add.secret_stdin, env)?;
    let mut body = json!({ "name": add.name, "type": add.kind });
    let config_dir = add.config_dir.map(std::path::absolute).transpose()?;
    let optional = [
        ("organizationId", add.organization.map(Value::from)),
        ("configDir", config_dir.map(|dir| dir.to_string_lossy().into_owned().into())),
        ("weeklyBudget", add.weekly_budget.map(Value::from)),
        ("tier", add.tier.map(Value::from)),
        ("priority", add.priority.map(Value::from)),
        ("baseUrl", add.base_url.map(Value::from)),
        (if add.kind == "api" { "apiKey" } else { "oauthToken" }, secret.map(Value::from)),
    ];
    for (field, value) in optional {
        if let Some(value) = value {
            body[field] = value;
        }
    }
    let office = Office::open(&add.at, env).await?;
    let account = office.ask(Method::POST, "claude-accounts", Some(&body)).await?;
    for warning in account["warnings"].as_array().into_iter().flatten() {
        note(&format!("warning: {}", cell(warning)));
    }
    let words = format!("registered as `{}` (id {})", cell(&account["subscription"]), cell(&account["id"]));
    show(&add.at, &account, &words);
    Ok(())
}

async fn list(at: &Where, organization: Option<String>, env: &Env) -> anyhow::Result<()> {
    let office = Office::open(at, env).await?;
    let query = organization.map(|id| format!("&organizationId={id}")).unwrap_or_default();
    let items = office.list("claude-accounts", &query).await?;
    let text = table(
        &items,
        &[
            ("NAME", |item| cell(&item["name"])),
            ("SUBSCRIPTION", |item| cell(&item["subscription"])),
            ("TYPE", |item| cell(&item["type"])),
            ("STATUS", |item| cell(&item["status"])),
            ("ORGANISATION", |item| cell(&item["organizationId"])),
            ("POOL", |item| cell(&item["live"]["status"])),
            ("ID", |item| cell(&item["id"])),
        ],
    );
    show(at, &json!(items), &text);
    for item in items.iter().filter(|item| item["problem"].is_string()) {
        note(&format!("`{}` is not in the pool: {}", cell(&item["subscription"]), cell(&item["problem"])));
    }
    Ok(())
}

async fn act(one: &One, method: Method, action: &str, env: &Env) -> anyhow::Result<()> {
    let office = Office::open(&one.at, env).await?;
    let account = office.account(&one.account).await?;
    let path = format!("claude-accounts/{}{action}", cell(&account["id"]));
    let answer = office.ask(method, &path, None).await?;
    let done = match action {
        "" => "removed",
        "/disable" => "disabled",
        "/enable" => "enabled",
        _ => "reset",
    };
    show(&one.at, &answer, &format!("`{}` is {done}", cell(&account["subscription"])));
    Ok(())
}

async fn test(one: &One, env: &Env) -> anyhow::Result<()> {
    let office = Office::open(&one.at, env).await?;
    let account = office.account(&one.account).await?;
    let path = format!("claude-accounts/{}/test", cell(&account["id"]));
    let answer = office.ask(Method::POST, &path, None).await?;
    let name = cell(&account["subscription"]);
    if answer["ok"] != true {
        bail!("`{name}` cannot serve: {}", cell(&answer["error"]));
    }
    let words = format!("`{name}`: {} ({} ms)", cell(&answer["seen"]), cell(&answer["latencyMs"]));
    show(&one.at, &answer, &words);
    Ok(())
}

/// Hands the terminal to the official CLI. Nothing of what it says or is told passes through here.
async fn login(one: &One, setup_token: bool, env: &Env) -> anyhow::Result<()> {
    let overrides = Overrides { config: one.at.config.clone(), listen: None };
    let config = config::load(env, &overrides)?;
    let configured = config.subscriptions.iter().find(|member| member.id == one.account);
    let dir = if let Some(member) = configured {
        member.config_dir.clone()
    } else {
        let account = Office::open(&one.at, env).await?.account(&one.account).await?;
        account["configDir"].as_str().map(PathBuf::from)
    };
    let dir = dir.with_context(|| format!("`{}` has no CLI profile to log in", one.account))?;
    let users_own = env.default_profile().is_some_and(|own| own == dir) && env.var("CLAUDE_CONFIG_DIR").is_none();
    let args: &[&str] = if setup_token { &["setup-token"] } else { &["auth", "login"] };
    note(&format!("`{}` {} in {}", config.claude.command.display(), args.join(" "), dir.display()));
    let profile = (!users_own).then_some(dir.as_path());
    let status = hand_over(Path::new(&config.claude.command), args, profile).await;
    let status = status.with_context(|| format!("`{}` cannot be started", config.claude.command.display()))?;
    anyhow::ensure!(status.success(), "the CLI ended with {status}");
    if setup_token {
        note("keep the token with `auth-pool accounts add --secret-stdin`, or name its variable in `oauthTokenEnv`");
    }
    Ok(())
}

fn show(at: &Where, answer: &Value, words: &str) {
    if at.json {
        say(&format!("{answer:#}"));
    } else {
        say(words);
    }
}
