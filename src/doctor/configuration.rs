//! The configuration: whether it loads, and what is unwise about it.

use super::{Finding, config_path, is_unconfigured};
use crate::config::env::ANTHROPIC_API_KEY;
use crate::config::{self, BackendKind, Config, Env, Overrides};

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
                (_, true) if uses_default_key(&config) => {
                    Finding::ok(CHECK, "no file: the key in ANTHROPIC_API_KEY is the only subscription")
                }
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

/// What the key in `ANTHROPIC_API_KEY` is for.
pub(super) fn default_account(config: &Config, env: &Env) -> Finding {
    const CHECK: &str = "default account";
    if env.var(ANTHROPIC_API_KEY).is_none() {
        return Finding::off(CHECK, format!("{ANTHROPIC_API_KEY} is not set"));
    }
    if uses_default_key(config) {
        return Finding::ok(CHECK, format!("the key in {ANTHROPIC_API_KEY} takes part"));
    }
    let seen = format!("{ANTHROPIC_API_KEY} is set, and left alone: {} says who serves", config.source);
    let seen = if is_unconfigured(config) {
        format!("{ANTHROPIC_API_KEY} is set, and left alone: the user's own CLI profile serves")
    } else {
        seen
    };
    Finding::off(CHECK, seen).advise("to use it, name it in `apiKeyEnv` of a subscription of type `api`")
}

/// Whether anybody in the configuration has that key.
fn uses_default_key(config: &Config) -> bool {
    let is_it = |name: &String| name == ANTHROPIC_API_KEY;
    config.subscriptions.iter().filter_map(|member| member.api.as_ref()).any(|api| is_it(&api.key_env))
        || config.backends.iter().any(|backend| match &backend.kind {
            BackendKind::AnthropicApi { key_env, .. } => is_it(key_env),
            BackendKind::OpenAiApi { key_env, .. } => key_env.as_ref().is_some_and(is_it),
            BackendKind::Pool { .. } => false,
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn the_default_key_is_told_apart_from_a_profile() {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join(".claude")).unwrap();
        let path = home.path().join("auth-pool.json");
        let find = |file: &str, vars: &[(&str, &str)]| {
            std::fs::write(&path, file).unwrap();
            let own = [("HOME", home.path().to_str().unwrap())];
            let env: Env = vars.iter().chain(&own).map(|(name, value)| ((*name).into(), (*value).into())).collect();
            let overrides = Overrides { config: Some(path.clone()), listen: None };
            let config = load(&env, &overrides, &mut Vec::new()).unwrap();
            default_account(&config, &env).verdict
        };
        let key = (ANTHROPIC_API_KEY, "sk-ant-api03-x");
        let member = r#"{"subscriptions": [
            {"id": "a", "type": "api", "apiKeyEnv": "ANTHROPIC_API_KEY", "weeklyBudget": 1}
        ]}"#;
        assert_eq!(find(member, &[key]), Verdict::Ok);
        assert_eq!(find("{}", &[key]), Verdict::Off);
        assert_eq!(find("{}", &[]), Verdict::Off);
        let backend = r#"{"backends": [{"name": "b", "type": "anthropic-api", "apiKeyEnv": "ANTHROPIC_API_KEY"}]}"#;
        assert_eq!(find(backend, &[key]), Verdict::Ok);
    }
}
