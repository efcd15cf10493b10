//! Takes over a changed configuration while requests run.
//!
//! The whole file is checked before anything changes; a bad one changes nothing and is shown in the log and in
//! `/debug/auth-pool`. What cannot change in a running process (the address) is named.

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::alerts;
use super::cli_watch::CliWatch;
use super::http_backends::HttpBackends;
use super::parts::{self, Profiles};
use super::rebalancer::Rebalancer;
use super::registry::{self, Change, Registry};
use super::usage_poll::UsagePoll;
use crate::alert::Alerts;
use crate::backend::claude_cli::CliFacts;
use crate::config::{Config, Env, Kind, Overrides, Problems, Watcher};
use crate::gateway::{PooledGateway, SharedPool};
use crate::runtime::tasks::Tasks;
use crate::server;

/// The parts that follow the configuration.
pub(super) struct Target {
    pub pool: SharedPool,
    pub gateway: PooledGateway,
    pub server: Arc<ArcSwap<server::Settings>>,
    pub alerts: Alerts,
    pub rebalancer: Rebalancer,
    pub usage_poll: UsagePoll,
    pub cli_watch: CliWatch,
    /// Says that the CLI was replaced.
    pub replacements: mpsc::Receiver<()>,
    pub registry: Registry,
    /// Changes of what is registered.
    pub registrations: mpsc::Receiver<Change>,
    pub profiles: Profiles,
    pub http: HttpBackends,
    pub facts: CliFacts,
}

/// Follows the file, and SIGHUP, from now on. Without a file, one that appears is noticed.
pub(super) fn start(
    mut target: Target,
    mut file: Config,
    env: Env,
    overrides: Overrides,
    tasks: &Tasks,
    stop: &CancellationToken,
) {
    let (watcher, mut changes) = Watcher::start(tasks, env, overrides, &file);
    let mut hangup = match signal(SignalKind::hangup()) {
        Ok(hangup) => hangup,
        Err(error) => return warn!(%error, "SIGHUP is not heard: the configuration is followed by its file only"),
    };
    let stop = stop.clone();
    let mut current = target.registry.added_to(&file).0;
    tasks.spawn("reload", async move {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = hangup.recv() => watcher.reload(),
                Some(change) = target.registrations.recv() => {
                    let outcome = target.registry.read().await;
                    if let Ok(true) = outcome {
                        current = join(&mut target, &current, &file).await;
                    }
                    registry::settle(change, outcome.map(drop));
                }
                () = target.registry.due() => match target.registry.read().await {
                    Ok(true) => current = join(&mut target, &current, &file).await,
                    Ok(false) => {}
                    Err(error) => warn!(error, "the store cannot be read"),
                },
                Some(()) = target.replacements.recv() => ask_again(&mut target, &current).await,
                change = changes.recv() => match change {
                    Some(Ok(config)) => {
                        target.registry.configure(&config);
                        file = config;
                        current = join(&mut target, &current, &file).await;
                    }
                    Some(Err(problems)) => refuse(&target, &problems),
                    None => return,
                },
            }
        }
    });
}

/// Takes over the file together with what is registered. Returns both.
async fn join(target: &mut Target, old: &Config, file: &Config) -> Config {
    let (all, env) = target.registry.added_to(file);
    target.profiles.env = env.clone();
    target.http.follow(env);
    take_over(target, old, &all).await;
    all
}

async fn take_over(target: &mut Target, old: &Config, new: &Config) {
    let backends = target.profiles.backends(new);
    if old.claude.command != new.claude.command {
        // Another build can mean other models by the same alias.
        target.facts = parts::cli_facts(&backends).await;
    }
    // First the backends, then the pool: nobody is given a subscription that has no backend yet.
    let catalog = parts::catalog(new, &target.facts);
    target.profiles.claude.retain(parts::spare_settings(new).max_spares, parts::enabled(new, &backends));
    parts::prepare_spares(new, &backends, &catalog);
    target.usage_poll.apply(new, &backends);
    target.cli_watch.apply(new);
    let backends = parts::as_backends(backends, target.http.subscriptions(new));
    target.gateway.route(target.http.routing(new));
    target.gateway.replace(backends, catalog, parts::gateway_settings(new));
    target.profiles.claude.set_max_memory(parts::max_memory(new));
    target.profiles.claude.set_max_spawns(parts::max_spawns(new));
    target.profiles.claude.set_idle_timeout(new.claude.keep_idle);
    target.pool.with(|pool, now| ((), pool.apply(now, parts::pool_settings(new))));
    if old.claude.command != new.claude.command {
        forget_failures(target, new);
    }
    target.gateway.clients().apply(super::clients::rules(new));
    let is_locked = target.registry.hides_keys(new);
    target.server.store(Arc::new(parts::server_settings(new, is_locked)));
    target.rebalancer.apply(new);
    target.alerts.apply(alerts::settings(new, &target.profiles.env));
    target.gateway.set_config_problems(None);
    for warning in &new.warnings {
        warn!(%warning, "configuration");
    }
    for field in needs_restart(old, new) {
        warn!(field, "this change takes effect at the next start");
    }
    info!(source = %new.source, subscriptions = new.subscriptions.len(), "the changed configuration is in force");
}

/// Another build of the CLI can be a mended one, and mean other models by the same alias.
async fn ask_again(target: &mut Target, current: &Config) {
    forget_failures(target, current);
    target.facts = parts::cli_facts(&target.profiles.backends(current)).await;
    target.gateway.rename(parts::catalog(current, &target.facts));
}

/// The CLI is another one: its subscriptions serve at once, also those that the old one has cut off.
fn forget_failures(target: &Target, config: &Config) {
    let by_cli = config.subscriptions.iter().filter(|member| member.kind != Kind::Api).map(|member| &*member.id);
    let closed = target.pool.with(|pool, now| pool.forget_failures(now, by_cli));
    if !closed.is_empty() {
        info!(subscriptions = ?closed, "the CLI is another one now: their breakers are closed");
    }
}

fn refuse(target: &Target, problems: &Problems) {
    error!(%problems, "the changed configuration is not taken over");
    target.gateway.set_config_problems(serde_json::to_value(problems).ok());
}

/// Changed fields that are read once.
fn needs_restart<'a>(old: &Config, new: &Config) -> impl Iterator<Item = &'a str> {
    let (old_server, new_server) = (&old.server, &new.server);
    let (old_tracking, new_tracking) = (&old.capacity_tracking, &new.capacity_tracking);
    let changed = [
        ("server.listen", old_server.listen != new_server.listen),
        ("server.maxConnections", old_server.max_connections != new_server.max_connections),
        ("server.drainTimeout", old_server.drain_timeout != new_server.drain_timeout),
        ("claude.maxProcesses", old.claude.max_processes != new.claude.max_processes),
        ("claude.sparesPerSubscription", old.claude.spares_per_subscription != new.claude.spares_per_subscription),
        ("claude.maxLineBytes", old.claude.max_line_bytes != new.claude.max_line_bytes),
        ("capacityTracking.redisKeyPrefix", old_tracking.redis_key_prefix != new_tracking.redis_key_prefix),
        ("capacityTracking.redisTTLSeconds", old_tracking.redis_ttl != new_tracking.redis_ttl),
        ("capacityTracking.redisTimeout", old_tracking.redis_timeout != new_tracking.redis_timeout),
        ("capacityTracking.syncIntervalSeconds", old_tracking.sync_interval != new_tracking.sync_interval),
        ("store", old.store != new.store),
    ];
    changed.into_iter().filter_map(|(field, changed)| changed.then_some(field))
}
