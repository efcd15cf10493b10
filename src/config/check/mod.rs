//! From the raw file to the checked configuration: the rules that a schema cannot say.
//!
//! Every check reports and goes on. Where a value is unusable a harmless one takes its place: as soon as there is one
//! problem, nobody sees the result.

mod api;
mod backends;
mod client_keys;
mod notifications;
mod server;
mod subscriptions;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::config_dir;
use super::env::{Env, Settings};
use super::model::{CapacityTracking, CircuitBreaker, Claude, Config, Rebalancing, Source, Subscription};
use super::problem::{FieldPath, Findings};
use super::raw;
use super::sections::{AccountSelection, QuotaAlerts, Strategy};
use super::span::{DAY, SECOND, Span, Unit};
use super::store;
use super::structure::nearest;
use crate::conversation::{Catalog, Family};
use crate::units::MicroUsd;

/// What the checks know besides the file.
pub(super) struct Context<'a> {
    pub(super) env: &'a Env,
    pub(super) settings: Settings,
    /// The `--listen` argument.
    pub(super) listen: Option<&'a str>,
    pub(super) source: Source,
    /// Where relative paths start: the file's directory, absolute.
    pub(super) base: PathBuf,
}

impl Context<'_> {
    fn pool_enabled(&self) -> bool {
        self.settings.pool_enabled.unwrap_or(true)
    }
}

/// Checks everything; the result counts only if `findings` holds no problem.
pub(super) fn config(file: raw::File, context: &Context<'_>, findings: &mut Findings) -> Config {
    let at = FieldPath::field;
    models(&file.models, &at("models"), findings);
    selection(&file.account_selection, &at("accountSelection"), findings);
    quota_alerts(&file.quota_alerts, &file.notifications, &at("quotaAlerts"), context, findings);
    without_effect(&file, findings);
    let subscriptions = subscriptions::check(&file, context, findings);
    let backends = backends::check(&file, &subscriptions, context, findings);
    let profiles = subscriptions.iter().filter(|member| member.config_dir.is_some()).count();
    let claude = claude(&file.claude, &at("claude"), profiles > 0, context, findings);
    let spares = u64::from(claude.spares_per_subscription) * u64::try_from(profiles).unwrap_or(u64::MAX);
    if spares > u64::from(claude.max_processes) {
        findings.warning(
            at("claude").key("maxProcesses"),
            format!("is less than the {spares} processes that `sparesPerSubscription` asks for"),
        );
    }
    let store = store::check(&file.store, context, findings);
    Config {
        source: context.source.clone(),
        beside: Vec::new(),
        enabled: context.pool_enabled(),
        subscriptions,
        max_clients_per_subscription: file.max_clients_per_subscription,
        weekly_budget_threshold: file.weekly_budget_threshold,
        fallback_when_exhausted: file.fallback_when_exhausted,
        rebalancing: rebalancing(&file.rebalancing, &at("rebalancing"), context, findings),
        notifications: notifications::check(&file.notifications, context, findings),
        claude,
        server: server::server(&file, &store.place, context, findings),
        client_keys: client_keys::check(&file, context, findings),
        runaway_guard: file.runaway_guard,
        circuit_breaker: circuit_breaker(&file.circuit_breaker, &at("circuitBreaker"), findings),
        capacity_tracking: capacity_tracking(&file.capacity_tracking, &at("capacityTracking"), findings),
        organizations: client_keys::organizations(&file.organizations, findings),
        store,
        backends,
        routing: backends::routing(&file, findings),
        models: file.models,
        account_selection: file.account_selection,
        quota_alerts: file.quota_alerts,
        rate_limits: file.rate_limits,
        log_filter: context.settings.log_filter.clone().unwrap_or_else(|| "info".to_owned()),
        warnings: Vec::new(),
    }
}

/// The only member of a file.
pub(super) fn member(file: &raw::File, context: &Context<'_>, findings: &mut Findings) -> Option<Subscription> {
    subscriptions::check(file, context, findings).pop()
}

/// Says of every field that was changed and that nothing reads yet that it does nothing.
fn without_effect(file: &raw::File, findings: &mut Findings) {
    let default = raw::File::default();
    let breaker = &file.circuit_breaker;
    let changed = [("circuitBreaker", "timeout", breaker.timeout != default.circuit_breaker.timeout)];
    for (section, field, _) in changed.into_iter().filter(|(.., changed)| *changed) {
        findings.warning(FieldPath::field(section).key(field), "has no effect in this version");
    }
}

fn models(models: &BTreeMap<String, String>, at: &FieldPath, findings: &mut Findings) {
    const ALIASES: [(&str, &str); 3] = [("haiku", "haiku"), ("opus", "opus"), ("sonnet", "sonnet")];
    let catalog = Catalog::new(ALIASES, []);
    for (name, target) in models {
        let place = at.key(name);
        if name == target {
            findings.problem(place, "stands for itself; name a Claude model or a CLI alias such as `sonnet`");
        } else if models.get(target).is_some_and(|next| models.contains_key(next)) {
            findings.problem(place, format!("stands for `{target}`, which is more than one step from a model"));
        } else if !models.contains_key(target)
            && catalog.resolve(target).is_none()
            && Family::of(target) == Family::Other
        {
            let aliases = ALIASES.map(|(alias, _)| alias);
            let meant = nearest(target, aliases).or_else(|| catalog.nearest(target));
            let advice = meant.map(|meant| format!("; did you mean `{meant}`?")).unwrap_or_default();
            findings.warning(place, format!("`{target}` is not a model that this version knows{advice}"));
        }
    }
}

fn selection(section: &AccountSelection, at: &FieldPath, findings: &mut Findings) {
    let mut seen: Vec<Strategy> = vec![section.strategy];
    for strategy in &section.fallback_strategies {
        if seen.contains(strategy) {
            findings.warning(at.key("fallbackStrategies"), "names a strategy that has already been tried");
        }
        seen.push(*strategy);
    }
}

fn quota_alerts(
    section: &QuotaAlerts,
    notifications: &raw::Notifications,
    at: &FieldPath,
    context: &Context<'_>,
    findings: &mut Findings,
) {
    let thresholds = at.key("thresholds");
    let steps = [
        ("warning", section.thresholds.warning),
        ("critical", section.thresholds.critical),
        ("emergency", section.thresholds.emergency),
    ];
    for pair in steps.windows(2) {
        let [(lower, least), (name, value)] = pair else { continue };
        if value <= least && !findings.is_unusable(&thresholds) {
            findings.problem(thresholds.key(name), format!("must be greater than `{lower}`, which is {least}"));
        }
    }
    if section.enabled {
        notifications::check_quota(section.channels, &at.key("channels"), notifications, context, findings);
    }
}

fn rebalancing(
    section: &raw::Rebalancing,
    at: &FieldPath,
    context: &Context<'_>,
    findings: &mut Findings,
) -> Rebalancing {
    Rebalancing {
        enabled: context.settings.rebalancing.unwrap_or(section.enabled),
        interval: section.interval_seconds.resolve(&at.key("intervalSeconds"), Unit::Seconds, SECOND..=DAY, findings),
        cost_gap: MicroUsd::from_usd(section.cost_gap_threshold),
        max_moves: section.max_clients_to_move_per_cycle,
    }
}

/// Less than this is no room for a single CLI process.
const LEAST_MEMORY: u64 = 256 * 1024 * 1024;

/// `needed`: whether a subscription is driven through the CLI.
fn claude(
    section: &raw::Claude,
    at: &FieldPath,
    needed: bool,
    context: &Context<'_>,
    findings: &mut Findings,
) -> Claude {
    let mut span = |name: &str, span: &super::span::Span| {
        span.resolve(&at.key(name), Unit::Seconds, Duration::from_millis(100)..=DAY, findings)
    };
    let first_event_timeout = span("firstEventTimeout", &section.first_event_timeout);
    let idle_timeout = span("idleTimeout", &section.idle_timeout);
    let total_timeout = span("totalTimeout", &section.total_timeout);
    let keep_idle = span("keepIdle", &section.keep_idle);
    if !["firstEventTimeout", "idleTimeout", "totalTimeout"].iter().any(|name| findings.is_unusable(&at.key(name))) {
        for (name, timeout) in [("firstEventTimeout", first_event_timeout), ("idleTimeout", idle_timeout)] {
            if timeout > total_timeout {
                findings.problem(at.key(name), "must not be longer than `totalTimeout`");
            }
        }
    }
    Claude {
        command: command(&section.command, &at.key("command"), needed, context, findings),
        first_event_timeout,
        idle_timeout,
        total_timeout,
        keep_idle,
        max_processes: section.max_processes,
        max_memory: section
            .max_memory
            .as_ref()
            .map(|size| size.resolve(&at.key("maxMemory"), LEAST_MEMORY..=u64::MAX >> 1, findings)),
        spares_per_subscription: section.spares_per_subscription,
        max_line_bytes: section.max_line_bytes,
        usage_poll_interval: usage_poll_interval(&section.usage_poll_interval, &at.key("usagePollInterval"), findings),
        self_test: section.self_test,
    }
}

/// Nothing, or long enough not to be a burden on the provider.
fn usage_poll_interval(span: &Span, at: &FieldPath, findings: &mut Findings) -> Option<Duration> {
    let interval = span.resolve(at, Unit::Seconds, Duration::ZERO..=DAY, findings);
    if !interval.is_zero() && interval < SECOND {
        findings.problem(at, "must be 0 or at least 1s");
    }
    (!interval.is_zero()).then_some(interval)
}

/// A name is left to `PATH`; a path is made absolute, because processes start in a directory of their own. That it is
/// not there yet is only a warning: the CLI may be installed while the proxy runs.
fn command(text: &str, at: &FieldPath, needed: bool, context: &Context<'_>, findings: &mut Findings) -> PathBuf {
    if text.contains('/') {
        match config_dir::expand(text, &context.base, context.env.home().as_deref()) {
            Ok(path) => {
                if needed && !path.is_file() {
                    findings.warning(at, format!("{} does not exist", path.display()));
                }
                return path;
            }
            Err(message) => findings.problem(at, message),
        }
    } else if text.contains('\0') {
        findings.problem(at, "must not contain a NUL character");
    } else if needed && !in_path(text, context.env) {
        findings.warning(at, format!("`{text}` is not in PATH"));
    }
    PathBuf::from(text)
}

fn in_path(name: &str, env: &Env) -> bool {
    let directories = env.var("PATH").unwrap_or_default();
    directories
        .split(':')
        .filter(|directory| !directory.is_empty())
        .any(|directory| Path::new(directory).join(name).is_file())
}

fn circuit_breaker(section: &raw::CircuitBreaker, at: &FieldPath, findings: &mut Findings) -> CircuitBreaker {
    let millisecond = Duration::from_millis(1);
    CircuitBreaker {
        enabled: section.enabled,
        failure_threshold: section.failure_threshold,
        success_threshold: section.success_threshold,
        reset_timeout: section.reset_timeout_seconds.resolve(
            &at.key("resetTimeoutSeconds"),
            Unit::Seconds,
            millisecond..=DAY,
            findings,
        ),
        timeout: section.timeout.resolve(&at.key("timeout"), Unit::Milliseconds, millisecond..=DAY, findings),
    }
}

fn capacity_tracking(section: &raw::CapacityTracking, at: &FieldPath, findings: &mut Findings) -> CapacityTracking {
    CapacityTracking {
        enabled: section.enabled,
        sync_interval: section.sync_interval_seconds.resolve(
            &at.key("syncIntervalSeconds"),
            Unit::Seconds,
            SECOND..=DAY,
            findings,
        ),
        redis_key_prefix: section.redis_key_prefix.clone(),
        redis_ttl: section.redis_ttl_seconds.resolve(&at.key("redisTTLSeconds"), Unit::Seconds, SECOND..=DAY, findings),
        redis_timeout: section.redis_timeout.resolve(
            &at.key("redisTimeout"),
            Unit::Milliseconds,
            Duration::from_millis(1)..=SECOND * 30,
            findings,
        ),
    }
}
