//! The checked configuration: what the rest of the program works with.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::problem::Problem;
use super::sections::{AccountSelection, QuotaAlerts, RateLimit, RunawayGuard, Strategy};
use super::store::Store;
use crate::units::{MicroUsd, Timestamp};

/// Where a configuration came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A file.
    File(PathBuf),
    /// No file: the user's own CLI profile is the only subscription.
    DefaultProfile,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::DefaultProfile => f.write_str("no configuration file"),
        }
    }
}

/// Everything the program was told, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where it came from.
    pub source: Source,
    /// Files beside it whose sections count as its own.
    pub beside: Vec<&'static str>,
    /// Whether there is a pool. Otherwise the one subscription is the user's own CLI profile.
    pub enabled: bool,
    /// The pool's members, at least one.
    pub subscriptions: Vec<Subscription>,
    /// Sessions that a subscription takes unless it says otherwise.
    pub max_clients_per_subscription: u32,
    /// Share of the weekly budget from which on a subscription is given no new session; above 0, at most 1.
    pub weekly_budget_threshold: f64,
    /// Whether the fallback chain serves when no subscription can.
    pub fallback_when_exhausted: bool,
    /// How idle sessions are moved.
    pub rebalancing: Rebalancing,
    /// Which alerts are sent, and where.
    pub notifications: Notifications,
    /// The names in `/v1/NAME/chat/completions`.
    pub backends: Vec<Backend>,
    /// Who serves first, and who steps in.
    pub routing: Routing,
    /// Names that clients use, and the model or alias each stands for.
    pub models: BTreeMap<String, String>,
    /// How the CLI is run.
    pub claude: Claude,
    /// How clients are served.
    pub server: Server,
    /// Who may use the proxy; anybody who can reach it when empty.
    pub client_keys: Vec<ClientKey>,
    /// How a subscription is chosen.
    pub account_selection: AccountSelection,
    /// What stops programs that have run away.
    pub runaway_guard: RunawayGuard,
    /// When a failing subscription is left alone.
    pub circuit_breaker: CircuitBreaker,
    /// Alerts on the share of a budget that is used.
    pub quota_alerts: QuotaAlerts,
    /// How capacity counters are kept.
    pub capacity_tracking: CapacityTracking,
    /// How an organisation's subscriptions are chosen, for those that decide it for themselves.
    pub organizations: BTreeMap<String, OrganizationSelection>,
    /// Capacity limits by the tier that a subscription names.
    pub rate_limits: BTreeMap<String, RateLimit>,
    /// Where things are kept over restarts, and for how long.
    pub store: Store,
    /// What is logged: a level, or a list like `info,auth_pool::pool=debug`.
    pub log_filter: String,
    /// What is legal but unwise.
    pub warnings: Vec<Problem>,
}

/// A member of the pool.
#[derive(Clone, PartialEq)]
pub struct Subscription {
    /// Unique name.
    pub id: String,
    /// The owner's address, shown to the operator.
    pub email: Option<String>,
    /// What it is.
    pub kind: Kind,
    /// The CLI profile, absolute; `None` for an API key.
    pub config_dir: Option<PathBuf>,
    /// How its API is reached; `None` for a CLI profile.
    pub api: Option<Api>,
    /// What may be spent in seven days; above zero.
    pub weekly_budget: MicroUsd,
    /// Sessions at the same time, where it differs from the pool's.
    pub max_clients: Option<u32>,
    /// Requests at the same time.
    pub max_concurrent: u32,
    /// Whether it takes part.
    pub enabled: bool,
    /// How much of the owner's reserve the pool may use.
    pub priority: Priority,
    /// The entry of [`Config::rate_limits`] that holds for it.
    pub tier: Option<String>,
    /// The organisation it belongs to.
    pub organization: Option<String>,
    /// Added to the environment of its CLI processes. Can hold secrets.
    pub env: BTreeMap<String, String>,
    /// Names the environment variable that holds its long-lived token; that variable is set.
    pub oauth_token_env: Option<String>,
}

impl fmt::Debug for Subscription {
    /// Names the variables of `env` but not their values.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription")
            .field("id", &self.id)
            .field("kind", &self.kind)
            .field("config_dir", &self.config_dir)
            .field("api", &self.api)
            .field("weekly_budget", &self.weekly_budget)
            .field("enabled", &self.enabled)
            .field("env", &self.env.keys().collect::<Vec<_>>())
            .field("oauth_token_env", &self.oauth_token_env)
            .finish_non_exhaustive()
    }
}

/// How an API is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Api {
    /// Names the environment variable that holds the key; that variable is set.
    pub key_env: String,
    /// Its address; `http` or `https`, without a query.
    pub base_url: String,
    /// What models are called there, by exact id, family or `*`.
    pub models: BTreeMap<String, String>,
}

/// A backend beside the pool, or a name for a part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Unique.
    pub name: String,
    /// What it is.
    pub kind: BackendKind,
    /// Requests at the same time.
    pub max_concurrent: u32,
    /// Whether it is given requests with tools.
    pub supports_tools: bool,
}

/// See [`Backend`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackendKind {
    /// The pool.
    Pool {
        /// Only this subscription of it.
        subscription: Option<String>,
    },
    /// The Messages API.
    AnthropicApi {
        /// Its address.
        base_url: String,
        /// Names the environment variable that holds the key; that variable is set.
        key_env: String,
        /// What models are called there, by exact id, family or `*`.
        models: BTreeMap<String, String>,
    },
    /// OpenAI's chat completions.
    OpenAiApi {
        /// Its address, up to `/chat/completions`.
        base_url: String,
        /// Names the environment variable that holds the key, if it needs one; that variable is set.
        key_env: Option<String>,
        /// What models are called there, by exact id, family or `*`.
        models: BTreeMap<String, String>,
    },
}

/// Who serves first, and who steps in. All names are those of backends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routing {
    /// Who is asked first; the pool when `None`.
    pub default_backend: Option<String>,
    /// Who steps in, in this order.
    pub fallback_chain: Vec<String>,
    /// How long a request waits for a busy pool before somebody steps in.
    pub fallback_after: Duration,
}

/// What a subscription is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A Claude Pro subscription, driven through the CLI.
    ClaudePro,
    /// A Claude Max subscription, driven through the CLI.
    ClaudeMax,
    /// An API key.
    Api,
}

impl Kind {
    /// As written in the file.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ClaudePro => "claude-pro",
            Self::ClaudeMax => "claude-max",
            Self::Api => "api",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How much of the owner's reserve the pool may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// New sessions stop 0.15 before the threshold.
    Low,
    /// New sessions stop at the threshold.
    #[default]
    Normal,
    /// New sessions go on to 0.95.
    High,
}

/// How idle sessions are moved from dear to cheap subscriptions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rebalancing {
    /// Whether they are moved at all.
    pub enabled: bool,
    /// Time between two cycles.
    pub interval: Duration,
    /// The least difference of block cost between the dearest and the cheapest subscription.
    pub cost_gap: MicroUsd,
    /// The most sessions one cycle moves.
    pub max_moves: u32,
}

/// Which alerts are sent, and where.
#[derive(Clone, Default, PartialEq)]
pub struct Notifications {
    /// In the order of the file.
    pub rules: Vec<Rule>,
    /// Where the `webhook` channel posts. Can hold a secret; `https` unless its host is in `allow_hosts`.
    pub webhook_url: Option<String>,
    /// Names the environment variable that holds the key of the webhook's signature; that variable is set.
    pub webhook_secret_env: Option<String>,
    /// Hosts that a webhook may reach though they are private, or over plain http. In lower case.
    pub allow_hosts: Vec<String>,
}

impl fmt::Debug for Notifications {
    /// Leaves out the URL: for many services it is the credential.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Notifications").field("rules", &self.rules).finish_non_exhaustive()
    }
}

/// One kind of alert and its channels.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// What it tells.
    pub kind: RuleKind,
    /// Where to.
    pub channels: Vec<Channel>,
    /// Whether it is in force.
    pub enabled: bool,
}

/// See [`Rule`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RuleKind {
    /// A subscription has used this share of its weekly budget.
    UsageThreshold {
        /// Above 0, at most 1.
        threshold: f64,
    },
    /// A request was served by a backend beside the pool, because the pool could not.
    Failover,
    /// A session moved because its subscription could no longer serve it.
    Rotation,
    /// The provider limits a subscription.
    LimitReached,
    /// A subscription cannot log in.
    AuthFailed,
    /// A subscription can be used again.
    Recovered,
    /// The server that replicas share is out of reach.
    ReplicasApart,
    /// The runaway guard stops something.
    Runaway,
}

/// Where alerts go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Channel {
    /// A JSON `POST` to `webhookUrl`.
    Webhook,
    /// The program's own log.
    Log,
    /// The Slack incoming webhook named by the environment variable `SLACK_WEBHOOK_URL`.
    Slack,
    /// Mail. Refused by the configuration's check: nothing here sends mail.
    Email,
}

/// How the CLI is run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claude {
    /// A name looked for in `PATH`, or an absolute path.
    pub command: PathBuf,
    /// The longest wait for the first sign of an answer.
    pub first_event_timeout: Duration,
    /// The longest pause within an answer.
    pub idle_timeout: Duration,
    /// The longest a whole answer may take.
    pub total_timeout: Duration,
    /// How long a process is kept that nobody comes back to.
    pub keep_idle: Duration,
    /// CLI processes at the same time, over all subscriptions.
    pub max_processes: u32,
    /// Bytes that all of them together may take; `None` is half of the machine's memory.
    pub max_memory: Option<u64>,
    /// Processes started ahead of need for each subscription.
    pub spares_per_subscription: u32,
    /// The longest line accepted from the CLI, in bytes.
    pub max_line_bytes: u64,
    /// How often an idle process of each subscription is asked how full the provider's windows are; `None` is never.
    pub usage_poll_interval: Option<Duration>,
    /// Whether a CLI that is not known yet is tried out against the stand-in.
    pub self_test: bool,
}

/// How clients are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// The address served on; off loopback only when there are client keys.
    pub listen: SocketAddr,
    /// Web origins that may call the proxy from a browser: none, some, or `*` alone.
    pub cors_origins: Vec<String>,
    /// The largest request body, in bytes.
    pub max_body_bytes: u64,
    /// The most that the bodies of all running requests may take together, in bytes.
    pub max_body_bytes_total: u64,
    /// How long running requests may go on after the order to stop.
    pub drain_timeout: Duration,
    /// How long a client may take over its request's head.
    pub header_read_timeout: Duration,
    /// Connections at the same time.
    pub max_connections: u32,
    /// Requests that a client may send in a minute unless its key says otherwise.
    pub requests_per_minute: Option<u32>,
    /// Where requests wait while every subscription is busy.
    pub queue: Queue,
}

impl Server {
    /// Whether it can be reached from other machines.
    pub fn is_exposed(&self) -> bool {
        !self.listen.ip().to_canonical().is_loopback()
    }
}

/// See [`Server::queue`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queue {
    /// Requests that may wait at the same time; with 0 they are refused at once.
    pub max_waiting: u32,
    /// The longest a request waits.
    pub timeout: Duration,
}

/// Somebody who may use the proxy.
#[derive(Clone, PartialEq, Eq)]
pub struct ClientKey {
    /// Unique; shown in logs.
    pub name: String,
    /// SHA-256 of the key.
    pub digest: [u8; 32],
    /// The models it may use; all when `None`.
    pub models: Option<Vec<String>>,
    /// What it is for, at least one.
    pub scopes: Vec<Scope>,
    /// The organisation on whose behalf it asks.
    pub organization: Option<String>,
    /// The subscriptions it may use; all of its organisation when `None`.
    pub subscriptions: Option<Vec<String>>,
    /// Requests in a minute, where it differs from [`Server::requests_per_minute`].
    pub requests_per_minute: Option<u32>,
    /// What it may spend in any seven days.
    pub weekly_budget: Option<MicroUsd>,
    /// The highest priority of its requests.
    pub max_priority: Priority,
    /// When it stops opening anything.
    pub expires_at: Option<Timestamp>,
}

impl Config {
    /// The names under which it is written down what was used: those of subscriptions, and of backends beside the pool.
    pub fn names_of_usage(&self) -> impl Iterator<Item = &str> {
        let is_beside = |backend: &&Backend| !matches!(backend.kind, BackendKind::Pool { .. });
        let backends = self.backends.iter().filter(is_beside).map(|backend| backend.name.as_str());
        self.subscriptions.iter().map(|member| member.id.as_str()).chain(backends)
    }
}

impl ClientKey {
    /// As logs, sessions and usage call it. Names need to differ within an organisation only.
    pub fn full_name(&self) -> String {
        match &self.organization {
            Some(organization) => format!("{organization}/{}", self.name),
            None => self.name.clone(),
        }
    }
}

/// What a client key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// To ask models.
    Chat,
    /// To see and steer the pool.
    Admin,
}

/// See [`Config::organizations`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrganizationSelection {
    /// What decides.
    pub strategy: Strategy,
    /// What decides where the strategy sees no difference.
    pub fallbacks: Vec<Strategy>,
}

impl fmt::Debug for ClientKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientKey").field("name", &self.name).field("scopes", &self.scopes).finish_non_exhaustive()
    }
}

/// When a failing subscription is left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CircuitBreaker {
    /// Whether there is one.
    pub enabled: bool,
    /// Consecutive failures that open it.
    pub failure_threshold: u32,
    /// Successes that close it again.
    pub success_threshold: u32,
    /// How long it stays open before one request may probe.
    pub reset_timeout: Duration,
    /// How long a probing request may take.
    pub timeout: Duration,
}

/// How capacity counters are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CapacityTracking {
    /// Whether limits by tier are counted at all.
    pub enabled: bool,
    /// Time between two exchanges with the other replicas.
    pub sync_interval: Duration,
    /// Begins the name of every shared counter.
    pub redis_key_prefix: String,
    /// How long a shared counter lives without use.
    pub redis_ttl: Duration,
    /// How long one request waits for the shared counters before it is counted here only.
    pub redis_timeout: Duration,
}
