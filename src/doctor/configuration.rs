//! The configuration: whether it loads, and what is unwise about it.

use super::{Finding, config_path, is_unconfigured};
use crate::config::{self, Config, Env, Overrides};

/// The checked configuration, or `None` when there is no going on without it.
pub(super) fn load(env: &Env, overrides: &Overrides, findings: &mut Vec<Finding>) -> Option<Config> {
    const CHECK: &str = "configuration";
    match config::load(env, overrides) {
        Ok(config) => {
            let members = config.subscriptions.iter().filter(|member| member.enabled).count();
            let seen =
                format!("{}: {members} of {} subscriptions take part", config.source, config.subscriptions.len());
            findings.push(match (members, is_unconfigured(&config)) {
                (0, _) => Finding::failed(CHECK, seen, "set `enabled` of a subscription to true"),
                (_, true) => Finding::ok(CHECK, "no file: the user's own CLI profile is the only subscription")
                    .advise(format!("`auth-pool config init` writes {}", config_path(env, overrides))),
                (_, false) => Finding::ok(CHECK, seen),
            });
            let warnings = config.warnings.iter();
            findings.extend(
                warnings.map(|warning| Finding::warning(CHECK, warning.to_string(), "see README, Configuration")),
            );
            Some(config)
        }
        Err(problems) => {
            let advice = "correct it; `auth-pool config schema` describes every field";
            findings
                .extend(problems.problems.iter().map(|problem| Finding::failed(CHECK, problem.to_string(), advice)));
            None
        }
    }
}
