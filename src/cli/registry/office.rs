//! Where the terminal's requests go: to the running program, or to the store.

use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::Method;
use serde_json::Value;

use crate::admin::{Actor, Admin, Alone, ConfiguredKeys};
use crate::api::Content;
use crate::api::admin::{Request, handle};
use crate::app::{store_location, vault};
use crate::config::{self, Env, Overrides, Scope};
use crate::store::Store;

/// A test of an account may take this long.
const LIMIT: Duration = Duration::from_secs(90);
/// The variable that holds an admin key, if nobody names another.
const KEY: &str = "AUTH_POOL_KEY";

/// Where to ask.
#[derive(Clone, Debug, clap::Args)]
pub(in crate::cli) struct Where {
    /// Where the pool serves
    #[arg(long, default_value = "http://127.0.0.1:3000")]
    url: String,
    /// The environment variable that holds an admin key [default: $`AUTH_POOL_KEY`, if it is set]
    #[arg(long, value_name = "NAME")]
    key_env: Option<String>,
    /// The configuration file, where no pool runs [default: $`AUTH_POOL_CONFIG`, else config/auth-pool.json if it exists]
    #[arg(long, value_name = "FILE")]
    pub(in crate::cli) config: Option<std::path::PathBuf>,
    /// Print the answer as JSON
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

/// Takes requests.
pub(in crate::cli) enum Office {
    /// The running program.
    Running { client: reqwest::Client, base: String, key: Option<String> },
    /// The store itself.
    Store(Box<Admin>),
}

/// A request that was refused.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(super) struct Refused {
    code: String,
    message: String,
}

impl Refused {
    /// Whether it does not go together with what is there.
    pub(super) fn is_conflict(&self) -> bool {
        self.code == "conflict"
    }
}

impl Office {
    pub(in crate::cli) async fn open(at: &Where, env: &Env) -> anyhow::Result<Self> {
        let base = at.url.trim_end_matches('/');
        let base = if base.contains("://") { base.to_owned() } else { format!("http://{base}") };
        let key = match &at.key_env {
            Some(name) => Some(env.var(name).with_context(|| format!("the variable {name} is not set"))?.to_owned()),
            None => env.var(KEY).map(str::to_owned),
        };
        // A proxy that leads out of the house is the wrong way to the pool.
        let client = reqwest::Client::builder().no_proxy().timeout(LIMIT).build()?;
        match client.get(format!("{base}/health/live")).send().await {
            Ok(_) => Ok(Self::Running { client, base, key }),
            Err(error) if error.is_connect() => Self::store(at, env, &base).await,
            Err(_) => bail!("{base} does not answer"),
        }
    }

    /// Without a running program.
    async fn store(at: &Where, env: &Env, base: &str) -> anyhow::Result<Self> {
        let overrides = Overrides { config: at.config.clone(), listen: None };
        let config = config::load(env, &overrides)?;
        let location = store_location(&config)?;
        let location = location.context("nothing is listening, and the configuration says that nothing is kept")?;
        note(&format!("nothing is listening on {base}: working on the store itself"));
        let subscriptions = config.names_of_usage().map(str::to_owned).collect();
        let configured = config.client_keys;
        let key_names = configured.iter().map(config::ClientKey::full_name).collect();
        let operators =
            configured.iter().filter(|key| key.scopes.contains(&Scope::Admin) && key.organization.is_none());
        let keys = ConfiguredKeys { admins: operators.count(), all: configured.len() };
        let profiles = env.state_dir().unwrap_or_default().join("profiles");
        let vault = vault(env)?.map(Arc::new);
        let store = Store::open(location).await?;
        Ok(Self::Store(Box::new(Admin::new(
            store,
            vault,
            Arc::new(Alone { keys, key_names, subscriptions }),
            profiles,
        ))))
    }

    /// Sends a request; `path` begins behind `/api/v1/admin/`.
    pub(in crate::cli) async fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
        let bytes = body.map(serde_json::to_vec).transpose()?.unwrap_or_default();
        let (is_success, answer) = match self {
            Self::Running { client, base, key } => {
                let query = query.map(|query| format!("?{query}")).unwrap_or_default();
                let mut request = client.request(method, format!("{base}/api/v1/admin/{path}{query}")).body(bytes);
                if let Some(key) = key {
                    request = request.bearer_auth(key);
                }
                let answer = request.send().await.context("the pool did not answer")?;
                let is_success = answer.status().is_success();
                (is_success, answer.json().await.context("the pool's answer is not understood")?)
            }
            Self::Store(admin) => {
                let request = Request { actor: Actor::local(), method: &method, path, query, body: Bytes::from(bytes) };
                let reply = handle(Some(&**admin), request).await;
                let Content::Json(bytes) = &reply.content else { bail!("there is no answer") };
                (reply.status.is_success(), serde_json::from_slice(bytes)?)
            }
        };
        if is_success {
            return Ok(answer);
        }
        let answer: Value = answer;
        let message = answer["error"]["message"].as_str().unwrap_or("the request was refused");
        match answer["error"]["code"].as_str() {
            Some("invalid_api_key" | "insufficient_permissions") => {
                bail!("{message} Put an admin key into {KEY}, or name its variable with --key-env.")
            }
            code => Err(Refused { code: code.unwrap_or_default().to_owned(), message: message.to_owned() }.into()),
        }
    }

    /// Every entry of a list.
    pub(super) async fn list(&self, path: &str, query: &str) -> anyhow::Result<Vec<Value>> {
        let (mut items, mut after) = (Vec::new(), String::new());
        // Bounded by what a store of any sense holds.
        for _ in 0..1000 {
            let page = self.ask(Method::GET, &format!("{path}?limit=1000{query}{after}"), None).await?;
            items.extend(page["items"].as_array().cloned().unwrap_or_default());
            let Some(next) = page["next"].as_str() else { break };
            after = format!("&after={next}");
        }
        Ok(items)
    }

    /// The id of the account that is called so: by its id, its name in the pool, or its own name.
    pub(super) async fn account(&self, called: &str) -> anyhow::Result<Value> {
        let all = self.list("claude-accounts", "").await?;
        let is_called = |account: &&Value| {
            ["id", "subscription", "name"].iter().any(|field| account[*field].as_str() == Some(called))
        };
        let mut found = all.iter().filter(is_called);
        let Some(first) = found.next() else { bail!("there is no account `{called}`") };
        if found.next().is_some() {
            bail!("several accounts are called `{called}`: name one by its id");
        }
        Ok(first.clone())
    }
}

/// A secret from a variable, or a line of standard input.
pub(super) fn secret(from_env: Option<&str>, from_stdin: bool, env: &Env) -> anyhow::Result<Option<String>> {
    if let Some(name) = from_env {
        return Ok(Some(env.var(name).with_context(|| format!("the variable {name} is not set"))?.to_owned()));
    }
    if !from_stdin {
        return Ok(None);
    }
    if std::io::stdin().is_terminal() {
        note("paste the secret and press Enter:");
    }
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    let line = line.trim();
    anyhow::ensure!(!line.is_empty(), "standard input holds no secret");
    Ok(Some(line.to_owned()))
}

/// Something for whoever reads along, apart from the answer.
pub(in crate::cli) fn note(text: &str) {
    let mut err = std::io::stderr().lock();
    let _ = writeln!(err, "auth-pool: {text}");
}
