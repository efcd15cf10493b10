//! What is registered in the store joins what stands in the file, while the program runs.
//!
//! The store is read at the start, after every change that is made here, and every half minute, because another replica may
//! have changed it. Without a store, or while it does not answer, the file alone counts.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use futures_util::future::{BoxFuture, FutureExt as _};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tracing::{error, info, warn};

use super::organization::{KeyReport, organization_report};
use crate::admin::{Admin, ConfiguredKeys, Host, ProviderKey, ProviderUsage, Registered, load_registered};
use crate::config::env::{ENCRYPTION_KEY, ENCRYPTION_KEY_PREVIOUS};
use crate::config::{Config, Env, Scope};
use crate::gateway::{PooledGateway, SharedPool, Topic};
use crate::runtime::clock;
use crate::secrets::Vault;
use crate::store::Store;

/// How often the store is looked at for what others have changed.
const REVIEW: Duration = Duration::from_secs(30);
/// How often it is tried again while it could not be read at all.
const RETRY: Duration = Duration::from_secs(5);
/// How long the start waits for it.
const FIRST_LIMIT: Duration = Duration::from_secs(3);
/// Changes that wait to be taken over; whoever makes more waits.
const WAITING: usize = 16;

/// The keys that seal and open stored secrets; `None` without `ENCRYPTION_KEY`.
pub fn vault(env: &Env) -> anyhow::Result<Option<Vault>> {
    let Some(current) = env.var(ENCRYPTION_KEY) else { return Ok(None) };
    let previous = env.var(ENCRYPTION_KEY_PREVIOUS);
    let vault = Vault::new(current, None).context("environment variable ENCRYPTION_KEY")?;
    if previous.is_none() {
        return Ok(Some(vault));
    }
    Ok(Some(Vault::new(current, previous).context("environment variable ENCRYPTION_KEY_PREVIOUS")?))
}

/// What a look at the store shows.
pub struct Registration {
    /// The configuration with everything that is registered.
    pub config: Config,
    /// The environment that goes with it: the secrets are in it.
    pub env: Env,
    /// How many accounts and client keys are registered.
    pub counts: (usize, usize),
    /// Accounts that cannot be used, by their ids, and why.
    pub problems: Vec<(String, String)>,
}

/// What is registered in `store`, for who runs no pool.
pub async fn registered(config: &Config, env: &Env, store: &Store) -> anyhow::Result<Registration> {
    let registered = load_registered(store, vault(env)?.as_ref()).await?;
    let mut problems: Vec<_> = registered.problems.clone().into_iter().collect();
    problems.sort();
    Ok(Registration {
        config: registered.added_to(config),
        env: registered.environment(env),
        counts: (registered.subscriptions.len() + problems.len(), registered.client_keys.len()),
        problems,
    })
}

/// A change that is to be taken over, and who waits for that.
pub(super) type Change = oneshot::Sender<Result<(), String>>;

/// What is registered, and where it comes from. A cheap handle.
#[derive(Clone)]
pub(super) struct Registry {
    store: Option<Store>,
    vault: Option<Arc<Vault>>,
    env: Env,
    known: Arc<ArcSwap<Known>>,
}

/// What was last read.
#[derive(Default)]
struct Known {
    registered: Registered,
    /// Whether it was read at all.
    is_read: bool,
    /// The names that subscriptions and backends beside the pool have in the file.
    configured: HashSet<String>,
    keys: ConfiguredKeys,
    /// What stands in the file.
    file: Option<Arc<Config>>,
}

impl Registry {
    /// Opens the store and reads it. That it does not answer is no failure: it is tried again later.
    pub(super) async fn open(config: &Config, env: &Env, store: Option<Store>) -> anyhow::Result<Self> {
        let vault = vault(env)?.map(Arc::new);
        let registry = Self { store, vault, env: env.clone(), known: Arc::default() };
        registry.configure(config);
        if registry.store.is_some()
            && let Err(error) =
                timeout(FIRST_LIMIT, registry.read()).await.unwrap_or(Err("it does not answer".to_owned()))
        {
            error!(error, "the store cannot be read: registered accounts and keys are missing until it can");
        }
        Ok(registry)
    }

    /// Notes what stands in the file.
    pub(super) fn configure(&self, config: &Config) {
        let operators =
            config.client_keys.iter().filter(|key| key.scopes.contains(&Scope::Admin) && key.organization.is_none());
        let keys = ConfiguredKeys { admins: operators.count(), all: config.client_keys.len() };
        let known = self.known.load();
        self.known.store(Arc::new(Known {
            registered: known.registered.clone(),
            is_read: known.is_read,
            configured: config.names_of_usage().map(str::to_owned).collect(),
            keys,
            file: Some(Arc::new(config.clone())),
        }));
    }

    /// Reads the store. Returns whether anything is different now.
    pub(super) async fn read(&self) -> Result<bool, String> {
        let Some(store) = &self.store else { return Ok(false) };
        let registered = load_registered(store, self.vault.as_deref()).await.map_err(|error| error.to_string())?;
        let known = self.known.load();
        let is_new = !known.is_read || !registered.is_same(&known.registered);
        if is_new {
            let (accounts, keys) = (registered.subscriptions.len(), registered.client_keys.len());
            info!(accounts, keys, "what is registered was read");
            let Known { configured, keys, file, .. } = &**known;
            self.known.store(Arc::new(Known {
                registered,
                is_read: true,
                configured: configured.clone(),
                keys: *keys,
                file: file.clone(),
            }));
        }
        Ok(is_new)
    }

    /// The file's configuration with everything that is registered, and the environment that goes with it.
    pub(super) fn added_to(&self, config: &Config) -> (Config, Env) {
        let known = self.known.load();
        (known.registered.added_to(config), known.registered.environment(&self.env))
    }

    /// Whether the server can be reached from other machines, as far as the file says.
    fn is_exposed(&self) -> bool {
        self.known.load().file.as_ref().is_some_and(|file| file.server.is_exposed())
    }

    /// Whether there may be keys that are not known, because the store could not be read yet, and none that is. Without this
    /// a store that is away would let everybody in.
    pub(super) fn hides_keys(&self, all: &Config) -> bool {
        self.store.is_some() && !self.known.load().is_read && all.client_keys.is_empty()
    }

    /// Refuses to open the door to other machines when nobody has a key.
    pub(super) fn check_keys(&self, all: &Config) -> anyhow::Result<()> {
        if self.hides_keys(all) {
            error!("nobody gets in until the store can be read: it may hold client keys, and the file names none");
            return Ok(());
        }
        anyhow::ensure!(
            !all.server.is_exposed() || !all.client_keys.is_empty(),
            "{} can be reached from other machines, and there is no client key: name one in `clientKeys`, or make one with \
             `auth-pool keys create NAME --scopes chat,admin`",
            all.server.listen
        );
        Ok(())
    }

    /// When the store is worth a look again; never without one.
    pub(super) async fn due(&self) {
        if self.store.is_none() {
            return std::future::pending().await;
        }
        tokio::time::sleep(if self.known.load().is_read { REVIEW } else { RETRY }).await;
    }

    /// The operator's way to it, and what it asks of the running program.
    pub(super) fn admin(&self, gateway: &PooledGateway, pool: &SharedPool) -> (Option<Admin>, mpsc::Receiver<Change>) {
        let (changes, receiver) = mpsc::channel(WAITING);
        let admin = self.store.clone().map(|store| {
            let host = Running { gateway: gateway.clone(), pool: pool.clone(), registry: self.clone(), changes };
            let profiles = self.env.state_dir().unwrap_or_default().join("profiles");
            Admin::new(store, self.vault.clone(), Arc::new(host), profiles)
        });
        (admin, receiver)
    }
}

/// The running program, as the registry sees it.
struct Running {
    gateway: PooledGateway,
    pool: SharedPool,
    registry: Registry,
    changes: mpsc::Sender<Change>,
}

impl Host for Running {
    fn changed(&self) -> BoxFuture<'_, Result<(), String>> {
        async {
            let gone = || "the program is about to end".to_owned();
            let (change, done) = oneshot::channel();
            self.changes.send(change).await.map_err(|_| gone())?;
            done.await.unwrap_or_else(|_| Err(gone()))
        }
        .boxed()
    }

    fn is_configured(&self, subscription: &str) -> bool {
        self.registry.known.load().configured.contains(subscription)
    }

    fn is_configured_key(&self, name: &str) -> bool {
        let known = self.registry.known.load();
        known.file.iter().flat_map(|file| &file.client_keys).any(|key| key.full_name() == name)
    }

    fn configured_keys(&self) -> ConfiguredKeys {
        self.registry.known.load().keys
    }

    fn live(&self, subscription: &str) -> Option<Value> {
        // One of the file that has the same id is somebody else's.
        if self.is_configured(subscription) {
            return None;
        }
        let view = self.pool.peek(|pool, now| pool.view_of(now, subscription))?;
        serde_json::to_value(view).ok()
    }

    fn problem(&self, account: &str) -> Option<String> {
        self.registry.known.load().registered.problems.get(account).cloned()
    }

    fn reset(&self, subscription: &str) -> Option<bool> {
        Some(!self.is_configured(subscription) && self.pool.restore(subscription))
    }

    fn test<'a>(&'a self, subscription: &'a str) -> BoxFuture<'a, Option<Value>> {
        async {
            let outcome =
                if self.is_configured(subscription) { None } else { self.gateway.try_out(subscription).await };
            Some(outcome.unwrap_or_else(|| json!({ "ok": false, "error": "the account is not in the pool" })))
        }
        .boxed()
    }

    fn organization_usage(&self, days: u32) -> BoxFuture<'_, Result<ProviderUsage, String>> {
        async move {
            let file = self.registry.known.load().file.clone();
            let (config, env) = file.map(|file| self.registry.added_to(&file)).unzip();
            let env = env.as_ref().unwrap_or(&self.registry.env);
            let report = organization_report(config.as_ref(), env, None, days).await;
            let report = report.map_err(|error| format!("{error:#}"))?;
            let key = |KeyReport { key, subscription, used }| ProviderKey {
                key,
                subscription,
                usage: json!(used.usage),
                cost: used.cost,
            };
            let keys = report.keys.into_iter().map(key).collect();
            Ok(ProviderUsage { from: report.from, until: report.to, cost: report.cost, keys })
        }
        .boxed()
    }

    fn is_exposed(&self) -> bool {
        self.registry.is_exposed()
    }

    fn spent(&self, client: &str) -> Option<f64> {
        Some(self.gateway.clients().spent(clock::now(), client).as_usd())
    }

    fn tell_change(&self, organization: Option<&str>, action: &str, target: &str) {
        #[derive(Serialize)]
        struct Told<'a> {
            action: &'a str,
            target: &'a str,
        }
        let organization = organization.map(Arc::from);
        self.pool.feed().publish(clock::now(), Topic::Change, organization.as_ref(), &Told { action, target });
    }
}

/// Answers whoever waits for a change to be in use.
pub(super) fn settle(change: Change, outcome: Result<(), String>) {
    if change.send(outcome).is_err() {
        warn!("nobody waits for the change any more");
    }
}

/// Problems by account, for the operator's view.
pub(super) fn problems(registry: &Registry) -> impl Fn() -> Value + Send + Sync + 'static {
    let known = Arc::clone(&registry.known);
    move || {
        let known = known.load();
        let problems: HashMap<&str, &str> =
            known.registered.problems.iter().map(|(id, problem)| (id.as_str(), problem.as_str())).collect();
        json!({
            "read": known.is_read,
            "accounts": known.registered.subscriptions.len(),
            "clientKeys": known.registered.client_keys.len(),
            "problems": problems,
        })
    }
}
