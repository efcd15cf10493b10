//! From the configuration's words to each part's own settings.

use std::collections::{HashMap, HashSet};
use std::num::NonZero;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};

use super::clients;
use crate::backend::Backend;
use crate::backend::claude_cli::{ClaudeCli, ClaudeCliBackend, CliFacts, Profile, Settings, SpareSettings, Timers};
use crate::config::{self, Config, Env, Source};
use crate::conversation::Catalog;
use crate::gateway::{self, Backends, QueueSettings};
use crate::pool::{self, CapacityLimits, Pool, SelectionSettings, SubscriptionSettings};
use crate::runtime::{clock, memory};
use crate::server;
use crate::units::MicroUsd;

/// What aliases mean if the CLI cannot be asked.
const FALLBACK_ALIASES: [(&str, &str); 3] =
    [("opus", "claude-opus-4-8"), ("sonnet", "claude-sonnet-5"), ("haiku", "claude-haiku-4-5-20251001")];

/// The model that spares are made for before the first request tells which is in demand.
const DEFAULT_ALIAS: &str = "sonnet";

/// Starts of the CLI that keep one core busy for a minute, at half a second each.
const SPAWNS_A_CORE: usize = 120;

/// A session without a request for this long is idle, and may be moved.
pub(super) const SESSION_IDLE_AFTER: Duration = Duration::from_mins(5);

/// A session without a request for this long is released.
pub(super) const SESSION_STALE_AFTER: Duration = Duration::from_hours(1);

pub(super) type CliBackends = Vec<(Arc<str>, ClaudeCliBackend)>;

pub(super) fn spare_settings(config: &Config) -> SpareSettings {
    let claude = &config.claude;
    let is_driven = |member: &&config::Subscription| member.enabled && member.config_dir.is_some();
    let subscriptions = config.subscriptions.iter().filter(is_driven).count();
    let max_processes = claude.max_processes as usize;
    SpareSettings {
        max_processes,
        max_memory: max_memory(config),
        // Never so many that no place is left for answers.
        max_spares: (subscriptions * claude.spares_per_subscription as usize).min(max_processes / 2),
        spares_per_kind: claude.spares_per_subscription as usize,
        idle_timeout: claude.keep_idle,
        max_line_bytes: usize::try_from(claude.max_line_bytes).unwrap_or(usize::MAX),
    }
}

/// Bytes that all CLI processes together may take: unless it is said, half of what this program and they may use.
pub(super) fn max_memory(config: &Config) -> u64 {
    config.claude.max_memory.or_else(|| memory::limit().map(|bytes| bytes / 2)).unwrap_or(u64::MAX)
}

/// What makes a subscription of the configuration a backend.
#[derive(Clone)]
pub(super) struct Profiles {
    pub env: Env,
    pub claude: ClaudeCli,
    /// The empty directory in which processes run.
    pub cwd: PathBuf,
}

impl Profiles {
    /// One backend for each subscription that is driven through the CLI.
    pub(super) fn backends(&self, config: &Config) -> CliBackends {
        let settings = Settings {
            command: config.claude.command.clone(),
            cwd: self.cwd.clone(),
            own_env: self.env.vars().clone(),
            timers: Timers {
                first_event: config.claude.first_event_timeout,
                idle: config.claude.idle_timeout,
                total: config.claude.total_timeout,
            },
        };
        let backend = |subscription: &config::Subscription| {
            let profile = self.profile(config, subscription);
            (Arc::from(subscription.id.as_str()), self.claude.backend(profile, settings.clone()))
        };
        config.subscriptions.iter().filter(|member| member.config_dir.is_some()).map(backend).collect()
    }

    fn profile(&self, config: &Config, subscription: &config::Subscription) -> Profile {
        // The user's own profile is reached by saying nothing: naming it would make the CLI look for parts of it
        // elsewhere.
        let is_users_own = config.source == Source::DefaultProfile || !config.enabled;
        let is_named = self.env.var(config::env::CLAUDE_CONFIG_DIR).is_some();
        Profile {
            subscription: subscription.id.clone(),
            config_dir: subscription.config_dir.clone().filter(|_| !is_users_own || is_named),
            env: subscription.env.clone(),
            oauth_token: subscription.oauth_token_env.as_deref().and_then(|name| self.env.var(name)).map(str::to_owned),
        }
    }
}

/// The backends of all subscriptions, for who runs no pool.
pub fn cli_backends(config: &Config, env: &Env, claude: &ClaudeCli, cwd: &Path) -> Vec<(Arc<str>, ClaudeCliBackend)> {
    Profiles { env: env.clone(), claude: claude.clone(), cwd: cwd.to_owned() }.backends(config)
}

/// What the installed CLI says of itself.
pub(super) async fn cli_facts(backends: &CliBackends) -> CliFacts {
    let Some((_, backend)) = backends.first() else { return CliFacts::default() };
    match backend.probe().await {
        Ok(facts) => {
            info!(version = facts.version, "Claude CLI");
            facts
        }
        Err(error) => {
            warn!(%error, "the CLI did not say what its model aliases mean; built-in ones are used");
            CliFacts::default()
        }
    }
}

/// The names of models: what the installed CLI says its aliases mean, and the operator's own.
pub(super) fn catalog(config: &Config, facts: &CliFacts) -> Catalog {
    let fallback = FALLBACK_ALIASES.into_iter().filter(|(alias, _)| !facts.aliases.contains_key(*alias));
    let told = facts.aliases.iter().map(|(alias, id)| (alias.as_str(), id.as_str()));
    Catalog::new(fallback.chain(told), config.models.iter().map(|(name, target)| (name.as_str(), target.as_str())))
}

/// The backends of subscriptions that take part, in the order of the configuration.
pub(super) fn enabled<'a>(config: &Config, backends: &'a CliBackends) -> Vec<&'a ClaudeCliBackend> {
    let enabled: HashSet<&str> =
        config.subscriptions.iter().filter(|member| member.enabled).map(|member| member.id.as_str()).collect();
    backends.iter().filter(|(id, _)| enabled.contains(&**id)).map(|(_, backend)| backend).collect()
}

/// Has processes started before the first request comes: for each subscription, or for as many as may have one.
pub(super) fn prepare_spares(config: &Config, backends: &CliBackends, catalog: &Catalog) {
    if let Some(model) = catalog.resolve(DEFAULT_ALIAS) {
        let most = spare_settings(config).max_spares;
        let first: Vec<_> = enabled(config, backends).into_iter().take(most).collect();
        // In reverse, because the one asked for last is made first.
        for backend in first.into_iter().rev() {
            backend.prepare(model);
        }
    }
}

/// All backends: those of CLI profiles and those of API keys.
pub(super) fn as_backends(profiles: CliBackends, keys: Backends) -> Backends {
    let profiles = profiles.into_iter().map(|(id, backend)| (id, Arc::new(backend) as Arc<dyn Backend>));
    profiles.chain(keys).collect()
}

pub(super) fn gateway_settings(config: &Config) -> gateway::Settings {
    let selection = &config.account_selection;
    gateway::Settings {
        max_attempts: if selection.retry_on_failure { selection.max_retries } else { 1 },
        deadline: config.claude.total_timeout,
        max_repeats: max_repeats(config),
        rebalancing: rebalancing(config),
        queue: QueueSettings {
            max_waiting: config.server.queue.max_waiting as usize,
            timeout: config.server.queue.timeout,
        },
    }
}

fn max_repeats(config: &Config) -> Option<u32> {
    let guard = config.runaway_guard;
    (guard.enabled && guard.repeated_prompts > 0).then_some(guard.repeated_prompts)
}

/// CLI processes that may be started within a minute.
pub(super) fn max_spawns(config: &Config) -> usize {
    let guard = config.runaway_guard;
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    match guard.spawns_per_minute {
        _ if !guard.enabled => usize::MAX,
        Some(most) => most as usize,
        None => cores * SPAWNS_A_CORE,
    }
}

fn rebalancing(config: &Config) -> pool::RebalanceSettings {
    let config::Rebalancing { enabled, cost_gap, max_moves, .. } = config.rebalancing;
    pool::RebalanceSettings { enabled, cost_gap, max_moves }
}

pub(super) fn pool(config: &Config) -> Pool {
    Pool::new(pool_settings(config), clock::now())
}

pub(super) fn pool_settings(config: &Config) -> pool::Settings {
    let breaker = &config.circuit_breaker;
    pool::Settings {
        subscriptions: config.subscriptions.iter().map(|member| subscription(config, member)).collect(),
        max_clients: config.max_clients_per_subscription,
        weekly_budget_threshold: config.weekly_budget_threshold,
        selection: selection(config),
        organizations: organizations(config),
        rebalancing: rebalancing(config),
        breaker: pool::BreakerSettings {
            failure_threshold: if breaker.enabled { breaker.failure_threshold } else { u32::MAX },
            success_threshold: breaker.success_threshold,
            reset_after: breaker.reset_timeout,
        },
        session_idle_after: SESSION_IDLE_AFTER,
        session_stale_after: SESSION_STALE_AFTER,
    }
}

fn strategy(strategy: config::Strategy) -> pool::Strategy {
    match strategy {
        config::Strategy::Health => pool::Strategy::Health,
        config::Strategy::LeastLoaded => pool::Strategy::LeastLoaded,
        config::Strategy::RoundRobin => pool::Strategy::RoundRobin,
        config::Strategy::Random => pool::Strategy::Random,
        config::Strategy::Priority => pool::Strategy::Priority,
        config::Strategy::Pace => pool::Strategy::Pace,
    }
}

fn organizations(config: &Config) -> HashMap<Arc<str>, SelectionSettings> {
    let selection = |own: &config::OrganizationSelection| {
        let mut fallbacks = own.fallbacks.iter().copied().map(strategy);
        let fallbacks = [fallbacks.next(), fallbacks.next()];
        SelectionSettings { strategy: strategy(own.strategy), fallbacks, seed: 0 }
    };
    config.organizations.iter().map(|(id, own)| (id.as_str().into(), selection(own))).collect()
}

fn selection(config: &Config) -> SelectionSettings {
    let mut fallbacks = config.account_selection.fallback_strategies.iter().copied().map(strategy);
    SelectionSettings {
        strategy: strategy(config.account_selection.strategy),
        fallbacks: [fallbacks.next(), fallbacks.next()],
        // Another order at every start, so that several pools do not choose alike.
        seed: uuid::Uuid::new_v4().as_u64_pair().0,
    }
}

/// The capacity of the tier that a subscription names.
fn capacity(config: &Config, subscription: &config::Subscription) -> CapacityLimits {
    let tier = subscription.tier.as_ref().and_then(|tier| config.rate_limits.get(tier));
    let Some(tier) = tier.filter(|_| config.capacity_tracking.enabled) else { return CapacityLimits::default() };
    CapacityLimits {
        requests_per_minute: tier.requests_per_minute,
        tokens_per_minute: tier.tokens_per_minute,
        input_tokens_per_minute: tier.input_tokens_per_minute,
        tokens_per_day: tier.tokens_per_day,
        cost_per_day: tier.cost_per_day.map(MicroUsd::from_usd),
    }
}

fn subscription(config: &Config, subscription: &config::Subscription) -> SubscriptionSettings {
    SubscriptionSettings {
        id: subscription.id.as_str().into(),
        email: subscription.email.as_deref().map(Into::into),
        kind: subscription.kind.as_str().into(),
        weekly_budget: subscription.weekly_budget,
        max_clients: subscription.max_clients,
        max_concurrent: subscription.max_concurrent,
        enabled: subscription.enabled,
        priority: match subscription.priority {
            config::Priority::Low => pool::Priority::Low,
            config::Priority::Normal => pool::Priority::Normal,
            config::Priority::High => pool::Priority::High,
        },
        organization: subscription.organization.as_deref().map(Into::into),
        capacity: capacity(config, subscription),
    }
}

/// `is_locked`: nobody may come in for now.
pub(super) fn server_settings(config: &Config, is_locked: bool) -> server::Settings {
    let server = &config.server;
    server::Settings {
        listen: vec![server.listen],
        cors_origins: server.cors_origins.clone(),
        max_body_bytes: usize::try_from(server.max_body_bytes).unwrap_or(usize::MAX),
        max_body_bytes_total: usize::try_from(server.max_body_bytes_total).unwrap_or(usize::MAX),
        header_read_timeout: server.header_read_timeout,
        max_connections: server.max_connections as usize,
        requests_per_minute: server.requests_per_minute.and_then(NonZeroU32::new),
        client_keys: config.client_keys.iter().map(clients::server_key).collect(),
        is_locked,
        ..server::Settings::default()
    }
}
