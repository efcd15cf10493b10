//! The file as it is written. The JSON Schema is generated from these types and their comments; defaults live here.
//!
//! A field that the schema requires is still an `Option`: what the schema check has reported is taken out before these
//! types are read, and the other checks go on with what is left.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::model::{Channel, Kind, Priority, Scope};
use super::sections::{AccountSelection, QuotaAlerts, RateLimit, RunawayGuard, Strategy, without_holes};
use super::size::Size;
use super::span::Span;
use super::store;

/// Configuration of auth-pool.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
#[schemars(title = "auth-pool.json")]
pub(super) struct File {
    /// Where an editor finds this schema; not used by the program.
    #[serde(rename = "$schema", skip_serializing_if = "Option::is_none")]
    pub(super) schema: Option<String>,
    /// The members of the pool. Without this section the user's own CLI profile is the only member.
    #[schemars(with = "Vec<Subscription>", length(min = 1))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) subscriptions: Option<Vec<Option<Subscription>>>,
    /// Sessions that a subscription takes unless it says otherwise.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub(super) max_clients_per_subscription: u32,
    /// Share of the weekly budget from which on a subscription is given no new session.
    #[schemars(range(max = 1), extend("exclusiveMinimum" = 0))]
    pub(super) weekly_budget_threshold: f64,
    /// Whether the backends of `routing.fallbackChain` serve when no subscription can.
    pub(super) fallback_when_exhausted: bool,
    /// How idle sessions are moved from dear to cheap subscriptions.
    pub(super) rebalancing: Rebalancing,
    /// Which alerts are sent, and where.
    pub(super) notifications: Notifications,
    /// Names that clients use, and the model id or CLI alias each stands for, for example `"gpt-4o": "sonnet"`.
    #[schemars(with = "BTreeMap<String, Name>")]
    pub(super) models: BTreeMap<String, String>,
    /// How the CLI is run.
    pub(super) claude: Claude,
    /// How clients are served.
    pub(super) server: Server,
    /// Who may use the proxy. Without any, it serves on loopback only.
    #[schemars(with = "Vec<ClientKey>")]
    pub(super) client_keys: Vec<Option<ClientKey>>,
    /// How a subscription is chosen.
    pub(super) account_selection: AccountSelection,
    /// What stops programs that have run away.
    pub(super) runaway_guard: RunawayGuard,
    /// When a failing subscription is left alone.
    pub(super) circuit_breaker: CircuitBreaker,
    /// Alerts on the share of a budget that is used.
    pub(super) quota_alerts: QuotaAlerts,
    /// How capacity counters are kept.
    pub(super) capacity_tracking: CapacityTracking,
    /// Organisations that decide something for themselves, by their id. Subscriptions and client keys name theirs in
    /// `organizationId`; it need not stand here.
    #[schemars(with = "BTreeMap<String, Organization>")]
    pub(super) organizations: BTreeMap<String, Option<Organization>>,
    /// Backends beside the pool. Each is asked by its name (`/v1/NAME/chat/completions`), or steps in for the pool.
    #[schemars(with = "Vec<Backend>")]
    pub(super) backends: Vec<Option<Backend>>,
    /// Who serves first, and who steps in.
    pub(super) routing: Routing,
    /// Capacity limits by tier; a subscription names its `tier`.
    pub(super) rate_limits: BTreeMap<String, RateLimit>,
    /// Where usage, limits, sessions and what is registered by the admin API are kept over restarts.
    pub(super) store: store::Section,
}

impl Default for File {
    fn default() -> Self {
        Self {
            schema: None,
            subscriptions: None,
            max_clients_per_subscription: 15,
            weekly_budget_threshold: 0.85,
            fallback_when_exhausted: true,
            rebalancing: Rebalancing::default(),
            notifications: Notifications::default(),
            models: BTreeMap::new(),
            claude: Claude::default(),
            server: Server::default(),
            client_keys: Vec::new(),
            account_selection: AccountSelection::default(),
            runaway_guard: RunawayGuard::default(),
            circuit_breaker: CircuitBreaker::default(),
            quota_alerts: QuotaAlerts::default(),
            capacity_tracking: CapacityTracking::default(),
            organizations: BTreeMap::new(),
            backends: Vec::new(),
            routing: Routing::default(),
            rate_limits: BTreeMap::new(),
            store: store::Section::default(),
        }
    }
}

/// Text of at least one character.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline)]
struct Name(#[schemars(length(min = 1))] String);

/// What a name of a subscription, a key or a tier looks like: it is shown in logs, headers and metrics.
pub(super) const NAME: &str = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$";
/// What the name of an environment variable looks like.
pub(super) const VARIABLE: &str = "^[A-Za-z_][A-Za-z0-9_]*$";
/// A SHA-256 digest in hexadecimal.
pub(super) const DIGEST: &str = "^[0-9A-Fa-f]{64}$";

/// A member of the pool.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Subscription {
    /// Unique name.
    #[schemars(required, regex(pattern = NAME))]
    pub(super) id: Option<String>,
    /// The owner's address, shown to the operator.
    #[schemars(length(min = 1, max = 254))]
    pub(super) email: Option<String>,
    /// What it is.
    #[serde(rename = "type")]
    #[schemars(required)]
    pub(super) kind: Option<Kind>,
    /// For `claude-pro` and `claude-max`: the CLI profile, a directory whose path has a part that begins with `.claude`. `~` is the home directory; a
    /// relative path starts at this file's directory.
    pub(super) config_dir: Option<String>,
    /// US dollars that may be spent in seven days.
    #[schemars(required, range(max = 1_000_000_000), extend("exclusiveMinimum" = 0))]
    pub(super) weekly_budget: Option<f64>,
    /// Sessions at the same time, where it differs from `maxClientsPerSubscription`.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub(super) max_clients: Option<u32>,
    /// Requests at the same time.
    #[serde(default = "max_concurrent")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub(super) max_concurrent: u32,
    /// Whether it takes part.
    #[serde(default = "yes")]
    pub(super) enabled: bool,
    /// How much of the owner's reserve the pool may use.
    #[serde(default)]
    pub(super) priority: Priority,
    /// The entry of `rateLimits` that holds for it.
    #[schemars(regex(pattern = NAME))]
    pub(super) tier: Option<String>,
    /// The organisation it belongs to: only keys with the same `organizationId` may use it.
    #[schemars(regex(pattern = NAME))]
    pub(super) organization_id: Option<String>,
    /// Added to the environment of its CLI processes.
    #[serde(default)]
    pub(super) env: BTreeMap<String, String>,
    /// Names the environment variable that holds its long-lived token (`claude setup-token`).
    #[schemars(regex(pattern = VARIABLE))]
    pub(super) oauth_token_env: Option<String>,
    /// For `api`: names the environment variable that holds its key.
    #[schemars(regex(pattern = VARIABLE))]
    pub(super) api_key_env: Option<String>,
    /// For `api`: where the Messages API is, if not at Anthropic itself.
    pub(super) base_url: Option<String>,
    /// For `api`: what the models are called there, by exact id, family (`opus`, `sonnet`, ...) or `*` for all others.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, Name>")]
    pub(super) models: BTreeMap<String, String>,
}

fn max_concurrent() -> u32 {
    10
}

fn yes() -> bool {
    true
}

/// A backend beside the pool, or a name for the pool or one of its members.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Backend {
    /// Unique.
    #[schemars(required, regex(pattern = NAME))]
    pub(super) name: Option<String>,
    /// What it is.
    #[serde(rename = "type")]
    #[schemars(required)]
    pub(super) kind: Option<BackendType>,
    /// Over HTTP: its address. Needed for `openai-api` unless it is OpenAI itself.
    pub(super) base_url: Option<String>,
    /// Over HTTP: names the environment variable that holds its key. A server of one's own may need none.
    #[schemars(regex(pattern = VARIABLE))]
    pub(super) api_key_env: Option<String>,
    /// Over HTTP: what models are called there, by exact id, family (`opus`, `sonnet`, ...) or `*` for all others.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, Name>")]
    pub(super) models: BTreeMap<String, String>,
    /// For `claude-cli`: the subscription; without it the whole pool.
    #[schemars(regex(pattern = NAME))]
    pub(super) account_id: Option<String>,
    /// For `claude-cli`: the subscription by its `configDir`.
    pub(super) config_dir: Option<String>,
    /// Over HTTP: requests at the same time.
    #[serde(default = "backend_max_concurrent")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub(super) max_concurrent: u32,
    /// Over HTTP: whether it is given requests with tools.
    #[serde(default = "yes")]
    pub(super) supports_tools: bool,
}

fn backend_max_concurrent() -> u32 {
    100
}

/// What a backend is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum BackendType {
    /// The pool, or one subscription of it.
    ClaudeCli,
    /// The Messages API.
    AnthropicApi,
    /// Anything that speaks OpenAI's chat completions.
    #[serde(rename = "openai-api")]
    OpenAiApi,
}

/// Who serves first, and who steps in.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Routing {
    /// The backend that requests without a name are given to first; the pool if left out.
    #[schemars(regex(pattern = NAME))]
    pub(super) default_backend: Option<String>,
    /// The backends that step in, one after the other, when the one before cannot serve.
    #[schemars(with = "Vec<Name>")]
    pub(super) fallback_chain: Vec<Option<String>>,
    /// How long a request waits for a busy pool before somebody steps in; a number counts seconds.
    pub(super) fallback_after: Span,
}

impl Default for Routing {
    fn default() -> Self {
        Self { default_backend: None, fallback_chain: Vec::new(), fallback_after: Span::text("0s") }
    }
}

/// How idle sessions are moved from dear to cheap subscriptions.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Rebalancing {
    /// Whether they are moved at all.
    pub(super) enabled: bool,
    /// Time between two cycles; a number counts seconds.
    pub(super) interval_seconds: Span,
    /// The least difference of block cost, in US dollars, between the dearest and the cheapest subscription.
    #[schemars(range(min = 0, max = 1_000_000_000))]
    pub(super) cost_gap_threshold: f64,
    /// The most sessions one cycle moves.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub(super) max_clients_to_move_per_cycle: u32,
}

impl Default for Rebalancing {
    fn default() -> Self {
        Self {
            enabled: true,
            interval_seconds: Span::Number(300.0),
            cost_gap_threshold: 5.0,
            max_clients_to_move_per_cycle: 3,
        }
    }
}

/// Which alerts are sent, and where.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Notifications {
    /// One entry for each kind of alert.
    #[schemars(with = "Vec<Rule>")]
    pub(super) rules: Vec<Option<Rule>>,
    /// Where the `webhook` channel posts: `https`, on a public address.
    pub(super) webhook_url: Option<String>,
    /// Names the environment variable that holds the key with which webhooks are signed.
    #[schemars(regex(pattern = VARIABLE))]
    pub(super) webhook_secret_env: Option<String>,
    /// Hosts that a webhook may reach though they are private, or over plain http.
    #[schemars(with = "Vec<Name>")]
    pub(super) allow_hosts: Vec<Option<String>>,
}

/// One kind of alert and its channels.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Rule {
    /// What it tells.
    #[serde(rename = "type")]
    #[schemars(required)]
    pub(super) kind: Option<RuleType>,
    /// For `usage_threshold`: the share of the weekly budget, 0.8 for 80 %.
    #[schemars(range(max = 1), extend("exclusiveMinimum" = 0))]
    pub(super) threshold: Option<f64>,
    /// Where it goes.
    #[serde(default = "log", deserialize_with = "without_holes")]
    pub(super) channels: Vec<Channel>,
    /// Whether it is in force.
    #[serde(default = "yes")]
    pub(super) enabled: bool,
}

fn log() -> Vec<Channel> {
    vec![Channel::Log]
}

/// What an alert tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum RuleType {
    /// A subscription has used a share of its weekly budget.
    UsageThreshold,
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
    /// Redis is out of reach, so that each replica counts by itself; its return is told too.
    ReplicasApart,
    /// The runaway guard stops something that goes in circles: the same prompt, starts of CLI processes, or requests that come
    /// back; its end is told too.
    Runaway,
}

/// How the CLI is run.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Claude {
    /// The CLI: a name looked for in `PATH`, or a path (`~` is the home directory; a relative path starts at this
    /// file's directory).
    #[schemars(length(min = 1))]
    pub(super) command: String,
    /// The longest wait for the first sign of an answer; a number counts seconds.
    pub(super) first_event_timeout: Span,
    /// The longest pause within an answer; a number counts seconds.
    pub(super) idle_timeout: Span,
    /// The longest a request may take with all its attempts, but for its wait in the queue; a number counts seconds.
    pub(super) total_timeout: Span,
    /// How long a process is kept that nobody comes back to: with a conversation that does not go on, also while it waits
    /// for the results of tools, or ready for a model that nobody asks for. A number counts seconds.
    pub(super) keep_idle: Span,
    /// CLI processes at the same time, over all subscriptions. Each takes 100 to 130 MB.
    #[schemars(range(min = 1, max = 100_000))]
    pub(super) max_processes: u32,
    /// Memory that all CLI processes together may take, as measured (PSS); half of the machine's when left out.
    pub(super) max_memory: Option<Size>,
    /// Processes started ahead of need for each subscription.
    #[schemars(range(min = 0, max = 100))]
    pub(super) spares_per_subscription: u32,
    /// The longest line accepted from the CLI, in bytes.
    #[schemars(range(min = 65_536, max = 1_073_741_824))]
    pub(super) max_line_bytes: u64,
    /// How often an idle process of each subscription is asked how full the provider's windows are; a number counts
    /// seconds, 0 switches it off.
    pub(super) usage_poll_interval: Span,
    /// Whether a CLI that is not known yet is tried out against the built-in stand-in, in the background.
    pub(super) self_test: bool,
}

impl Default for Claude {
    fn default() -> Self {
        Self {
            command: "claude".to_owned(),
            first_event_timeout: Span::text("60s"),
            idle_timeout: Span::text("120s"),
            total_timeout: Span::text("30m"),
            keep_idle: Span::text("10m"),
            max_processes: 32,
            max_memory: None,
            spares_per_subscription: 1,
            max_line_bytes: 16 * 1024 * 1024,
            usage_poll_interval: Span::text("5m"),
            self_test: true,
        }
    }
}

/// How clients are served.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Server {
    /// Address and port, for example `127.0.0.1:3000`; port 0 takes any free one.
    pub(super) listen: String,
    /// Web origins that may call the proxy from a browser, for example `https://app.example.com`; `*` stands alone.
    #[schemars(with = "Vec<String>")]
    pub(super) cors_origins: Vec<Option<String>>,
    /// The largest request body, in bytes.
    #[schemars(range(min = 1024, max = 1_073_741_824))]
    pub(super) max_body_bytes: u64,
    /// The most that the bodies of all running requests may take together, in bytes; further ones are refused. Read once.
    #[schemars(range(min = 1024, max = 1_099_511_627_776_u64))]
    pub(super) max_body_bytes_total: u64,
    /// How long running requests may go on after the order to stop; a number counts seconds.
    pub(super) drain_timeout: Span,
    /// How long a client may take over its request's head; a number counts seconds.
    pub(super) header_read_timeout: Span,
    /// Connections at the same time.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub(super) max_connections: u32,
    /// Requests that a client key may send in a minute unless it says otherwise; without keys, that each address may
    /// send. There is no limit when left out.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub(super) requests_per_minute: Option<u32>,
    /// Where requests wait while every subscription is busy.
    pub(super) queue: Queue,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:3000".to_owned(),
            cors_origins: Vec::new(),
            max_body_bytes: 32 * 1024 * 1024,
            max_body_bytes_total: 256 * 1024 * 1024,
            drain_timeout: Span::text("30s"),
            header_read_timeout: Span::text("10s"),
            max_connections: 1024,
            requests_per_minute: None,
            queue: Queue::default(),
        }
    }
}

/// Where requests wait while every subscription is busy.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Queue {
    /// Requests that may wait at the same time; with 0 they are refused at once.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub(super) max_waiting: u32,
    /// The longest a request waits; a number counts seconds.
    pub(super) timeout: Span,
}

impl Default for Queue {
    fn default() -> Self {
        Self { max_waiting: 100, timeout: Span::text("30s") }
    }
}

/// Somebody who may use the proxy. The key itself is never written here.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct ClientKey {
    /// Unique; shown in logs.
    #[schemars(required, regex(pattern = NAME))]
    pub(super) name: Option<String>,
    /// SHA-256 of the key, 64 hexadecimal digits (`printf %s KEY | sha256sum`).
    #[schemars(regex(pattern = DIGEST))]
    pub(super) sha256: Option<String>,
    /// Names the environment variable that holds the key, instead of `sha256`.
    #[schemars(regex(pattern = VARIABLE))]
    pub(super) env: Option<String>,
    /// The models it may use; all when left out.
    #[serde(default)]
    #[schemars(with = "Vec<Name>", length(min = 1))]
    pub(super) models: Option<Vec<Option<String>>>,
    /// Whether it may see and steer the pool, too: short for both `scopes`.
    #[serde(default)]
    pub(super) admin: bool,
    /// What it is for; `chat` when left out.
    #[serde(default)]
    #[schemars(with = "Vec<Scope>", length(min = 1))]
    pub(super) scopes: Option<Vec<Option<Scope>>>,
    /// The organisation on whose behalf it asks: it may use that one's subscriptions, and no others.
    #[schemars(regex(pattern = NAME))]
    pub(super) organization_id: Option<String>,
    /// The ids of the subscriptions it may use; all of its organisation when left out.
    #[serde(default)]
    #[schemars(with = "Vec<Name>", length(min = 1))]
    pub(super) subscriptions: Option<Vec<Option<String>>>,
    /// Requests it may send in a minute, where it differs from `server.requestsPerMinute`.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub(super) requests_per_minute: Option<u32>,
    /// US dollars that it may spend in any seven days.
    #[schemars(range(max = 1_000_000_000), extend("exclusiveMinimum" = 0))]
    pub(super) weekly_budget: Option<f64>,
    /// The highest priority of its requests; a higher one counts as this.
    pub(super) max_priority: Option<Priority>,
    /// When it stops opening anything, for example `2027-01-01T00:00:00Z`.
    pub(super) expires_at: Option<String>,
}

/// What an organisation decides for itself.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Organization {
    /// How one of its subscriptions is chosen, where it differs from the pool's way.
    pub(super) account_selection: Option<OrganizationSelection>,
}

/// How one of an organisation's subscriptions is chosen.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct OrganizationSelection {
    /// What decides.
    #[schemars(required)]
    pub(super) strategy: Option<Strategy>,
    /// What decides where the strategy sees no difference, in this order.
    #[serde(default, deserialize_with = "without_holes")]
    #[schemars(length(max = 2))]
    pub(super) fallback_strategies: Vec<Strategy>,
}

/// When a failing subscription is left alone.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct CircuitBreaker {
    /// Whether there is a breaker.
    pub(super) enabled: bool,
    /// Consecutive failures that open it.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub(super) failure_threshold: u32,
    /// Successes that close it again.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub(super) success_threshold: u32,
    /// How long a probing request may take; a number counts milliseconds.
    pub(super) timeout: Span,
    /// How long it stays open before one request may probe; a number counts seconds.
    pub(super) reset_timeout_seconds: Span,
}

impl Default for CircuitBreaker {
    fn default() -> Self {
        Self {
            enabled: true,
            failure_threshold: 5,
            success_threshold: 2,
            timeout: Span::Number(60_000.0),
            reset_timeout_seconds: Span::Number(300.0),
        }
    }
}

/// How capacity counters are kept.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct CapacityTracking {
    /// Whether limits by tier are counted at all.
    pub(super) enabled: bool,
    /// Time between two exchanges with the other replicas; a number counts seconds.
    pub(super) sync_interval_seconds: Span,
    /// Begins the name of every shared counter.
    #[schemars(length(min = 1, max = 200))]
    pub(super) redis_key_prefix: String,
    /// How long a shared counter lives without use; a number counts seconds.
    #[serde(rename = "redisTTLSeconds")]
    pub(super) redis_ttl_seconds: Span,
    /// How long one request waits for the shared counters before it is counted by this replica only; a number counts
    /// milliseconds.
    pub(super) redis_timeout: Span,
}

impl Default for CapacityTracking {
    fn default() -> Self {
        Self {
            enabled: true,
            sync_interval_seconds: Span::Number(60.0),
            redis_key_prefix: "claude:capacity:".to_owned(),
            redis_ttl_seconds: Span::Number(300.0),
            redis_timeout: Span::text("50ms"),
        }
    }
}
