//! The process environment; the only place that reads it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use super::problem::{Findings, Place};
use crate::units::MicroUsd;

/// Switches the pool on or off.
pub const AUTH_POOL_ENABLED: &str = "AUTH_POOL_ENABLED";
/// Names the configuration file.
pub const AUTH_POOL_CONFIG: &str = "AUTH_POOL_CONFIG";
/// Replaces the weekly budget of every subscription, in US dollars.
pub const WEEKLY_BUDGET: &str = "WEEKLY_BUDGET";
/// Switches the rebalancer on or off.
pub const AUTH_POOL_REBALANCING_ENABLED: &str = "AUTH_POOL_REBALANCING_ENABLED";
/// The address to listen on.
pub const HOST: &str = "HOST";
/// The port to listen on.
pub const PORT: &str = "PORT";
/// What is logged.
pub const LOG_LEVEL: &str = "LOG_LEVEL";
/// The Slack incoming webhook of the `slack` channel.
pub const SLACK_WEBHOOK_URL: &str = "SLACK_WEBHOOK_URL";
/// The key of the only subscription, where there is neither a file nor a CLI profile.
pub const ANTHROPIC_API_KEY: &str = "ANTHROPIC_API_KEY";
/// The directory for what this program keeps between runs.
pub const AUTH_POOL_STATE_DIR: &str = "AUTH_POOL_STATE_DIR";
/// The server that several replicas share. Can hold a password.
pub const REDIS_URL: &str = "REDIS_URL";
/// Where things are kept over restarts.
pub const DATABASE_URL: &str = "DATABASE_URL";
/// The service's state directory, as systemd names it.
pub const STATE_DIRECTORY: &str = "STATE_DIRECTORY";
/// Where the user's programs keep their state.
pub const XDG_STATE_HOME: &str = "XDG_STATE_HOME";
/// Seals stored secrets: 64 hexadecimal digits.
pub const ENCRYPTION_KEY: &str = "ENCRYPTION_KEY";
/// Keys before it, divided by commas; they only open what they sealed.
pub const ENCRYPTION_KEY_PREVIOUS: &str = "ENCRYPTION_KEY_PREVIOUS";
/// The key of the organisation's Admin API, for its usage and cost reports.
pub const ANTHROPIC_ADMIN_API_KEY: &str = "ANTHROPIC_ADMIN_API_KEY";
/// Where that API is, if not at Anthropic itself.
pub const ANTHROPIC_ADMIN_BASE_URL: &str = "ANTHROPIC_ADMIN_BASE_URL";
/// The user's own CLI profile, where it is not `~/.claude`.
pub const CLAUDE_CONFIG_DIR: &str = "CLAUDE_CONFIG_DIR";

/// The environment, taken once when the process starts, or made up by a test.
#[derive(Clone, Default)]
pub struct Env(BTreeMap<String, String>);

impl Env {
    /// The environment of this process. Variables that are not UTF-8 text are left out.
    pub fn from_process() -> Self {
        std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect()
    }

    /// The value of a variable; `None` when it is not set or empty, as `NAME=` in an env file means.
    pub fn var(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The same without one variable.
    #[must_use]
    pub fn without(&self, name: &str) -> Self {
        self.0.iter().filter(|(known, _)| *known != name).map(|(name, value)| (name.clone(), value.clone())).collect()
    }

    /// Every variable, for whoever composes a child's environment. Can hold secrets.
    pub fn vars(&self) -> &BTreeMap<String, String> {
        &self.0
    }

    /// The user's home directory.
    pub fn home(&self) -> Option<PathBuf> {
        self.var("HOME").map(PathBuf::from)
    }

    /// The profile that the user's own `claude` uses.
    pub fn default_profile(&self) -> Option<PathBuf> {
        self.var(CLAUDE_CONFIG_DIR).map(PathBuf::from).or_else(|| Some(self.home()?.join(".claude")))
    }

    /// The directory for what this program keeps between runs: `AUTH_POOL_STATE_DIR`, else what systemd gives to the
    /// service, else the user's own (`$XDG_STATE_HOME/auth-pool`, `~/.local/state/auth-pool`). It may not exist yet.
    pub fn state_dir(&self) -> Option<PathBuf> {
        // systemd may name several; the first is ours.
        let of_service = || self.var("STATE_DIRECTORY").and_then(|list| list.split(':').next()).map(PathBuf::from);
        let of_user = || {
            let base = self.var("XDG_STATE_HOME").map(PathBuf::from);
            Some(base.or_else(|| Some(self.home()?.join(".local/state")))?.join("auth-pool"))
        };
        self.var(AUTH_POOL_STATE_DIR).map(PathBuf::from).or_else(of_service).or_else(of_user)
    }

    /// Reads every setting, and reports each one that makes no sense.
    pub(super) fn settings(&self, findings: &mut Findings) -> Settings {
        let mut read = Reader { env: self, findings };
        Settings {
            pool_enabled: read.parsed(AUTH_POOL_ENABLED, "must be true or false", parse_bool),
            weekly_budget: read.parsed(WEEKLY_BUDGET, "must be a number of US dollars greater than 0", parse_budget),
            rebalancing: read.parsed(AUTH_POOL_REBALANCING_ENABLED, "must be true or false", parse_bool),
            host: read.parsed(HOST, "must be an IP address or `localhost`", parse_host),
            port: read.parsed(PORT, "must be a port number, 0 to 65535", |text| text.parse().ok()),
            log_filter: read.parsed(
                LOG_LEVEL,
                "must be `off`, `error`, `warn`, `info`, `debug` or `trace`, or a list like `info,auth_pool::pool=debug`",
                parse_log_filter,
            ),
        }
    }
}

impl FromIterator<(String, String)> for Env {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(vars: I) -> Self {
        Self(vars.into_iter().collect())
    }
}

impl fmt::Debug for Env {
    /// Names only: values can be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// What the environment says; it wins over the file.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Settings {
    pub(super) pool_enabled: Option<bool>,
    pub(super) weekly_budget: Option<MicroUsd>,
    pub(super) rebalancing: Option<bool>,
    pub(super) host: Option<IpAddr>,
    pub(super) port: Option<u16>,
    pub(super) log_filter: Option<String>,
}

struct Reader<'a> {
    env: &'a Env,
    findings: &'a mut Findings,
}

impl Reader<'_> {
    fn parsed<T>(&mut self, name: &str, rule: &str, parse: impl FnOnce(&str) -> Option<T>) -> Option<T> {
        let parsed = parse(self.env.var(name)?.trim());
        if parsed.is_none() {
            self.findings.problem(Place::Variable(name.to_owned()), rule);
        }
        parsed
    }
}

fn parse_bool(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Some(true),
        "false" | "0" | "no" | "off" => Some(false),
        _ => None,
    }
}

fn parse_budget(text: &str) -> Option<MicroUsd> {
    let usd: f64 = text.parse().ok()?;
    // The same bounds as `weeklyBudget` in the file; NaN is outside of them.
    (usd > 0.0 && usd <= 1e9).then(|| MicroUsd::from_usd(usd)).filter(|budget| *budget > MicroUsd::ZERO)
}

pub(super) fn parse_host(text: &str) -> Option<IpAddr> {
    if text.eq_ignore_ascii_case("localhost") {
        return Some(Ipv4Addr::LOCALHOST.into());
    }
    text.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

fn parse_log_filter(text: &str) -> Option<String> {
    let is_level = |word: &str| {
        matches!(word.to_ascii_lowercase().as_str(), "off" | "error" | "warn" | "info" | "debug" | "trace")
    };
    let well_formed = text.split(',').all(|part| is_level(part.rsplit('=').next().unwrap_or(part).trim()));
    well_formed.then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(vars: &[(&str, &str)]) -> Env {
        vars.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn every_bad_variable_is_reported_by_name() {
        let names = [AUTH_POOL_ENABLED, WEEKLY_BUDGET, AUTH_POOL_REBALANCING_ENABLED, HOST, PORT, LOG_LEVEL];
        let mut findings = Findings::default();
        let bad = env(&names.map(|name| (name, "-nonsense-")));
        assert_eq!(bad.settings(&mut findings), Settings::default());
        let problems = findings.finish("environment".into()).unwrap_err();
        assert_eq!(problems.problems.len(), names.len());
        for name in names {
            assert!(problems.to_string().contains(&format!("environment variable {name}: must be")), "{problems}");
        }
        assert!(!problems.to_string().contains("-nonsense-"), "values are not quoted");
    }

    #[test]
    fn good_variables_are_read_and_empty_ones_are_not_set() {
        let mut findings = Findings::default();
        let settings = env(&[
            (AUTH_POOL_ENABLED, "TRUE"),
            (WEEKLY_BUDGET, "500"),
            (AUTH_POOL_REBALANCING_ENABLED, ""),
            (HOST, "::1"),
            (PORT, "0"),
            (LOG_LEVEL, "info,auth_pool::pool=debug"),
        ])
        .settings(&mut findings);
        assert!(findings.finish(String::new()).is_ok());
        assert_eq!(settings.pool_enabled, Some(true));
        assert_eq!(settings.weekly_budget, Some(MicroUsd::from_usd(500.0)));
        assert_eq!(settings.rebalancing, None);
        assert_eq!((settings.host, settings.port), (Some("::1".parse().unwrap()), Some(0)));
    }

    #[test]
    fn a_budget_must_be_more_than_nothing() {
        for bad in ["0", "-1", "x", "NaN", "inf", "1e-9", "1e12"] {
            assert_eq!(parse_budget(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_state_directory_follows_the_most_particular_wish() {
        let all = [
            ("HOME", "/home/me", "/home/me/.local/state/auth-pool"),
            ("XDG_STATE_HOME", "/state", "/state/auth-pool"),
            ("STATE_DIRECTORY", "/var/lib/auth-pool:/var/lib/other", "/var/lib/auth-pool"),
            (AUTH_POOL_STATE_DIR, "/srv/pool", "/srv/pool"),
        ];
        assert_eq!(Env::default().state_dir(), None);
        for count in 1..=all.len() {
            let vars: Vec<(&str, &str)> = all.iter().take(count).map(|(name, value, _)| (*name, *value)).collect();
            assert_eq!(env(&vars).state_dir(), Some(PathBuf::from(all[count - 1].2)));
        }
    }

    #[test]
    fn debug_shows_names_only() {
        assert_eq!(format!("{:?}", env(&[("TOKEN", "s3cret")])), "{\"TOKEN\"}");
    }
}
