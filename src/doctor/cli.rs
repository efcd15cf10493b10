//! The Claude CLI: whether it is there, what it can do, and who is logged in.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use crate::app::cli_backends;
use crate::backend::claude_cli::{
    Binary, ClaudeCli, ClaudeCliBackend, Feature, Features, Login, SpareSettings, Support,
};
use crate::config::{Config, Env, Kind, Subscription};
use crate::runtime::tasks::Tasks;
use crate::selftest::{self, Subject};

use super::Finding;

/// Answers of `auth status` and the like are short.
const MAX_LINE_BYTES: usize = 1024 * 1024;

pub(super) async fn check(config: &Config, env: &Env, state_dir: Option<&Path>, tasks: &Tasks) -> Vec<Finding> {
    const CHECK: &str = "Claude CLI";
    let members: Vec<&Subscription> =
        config.subscriptions.iter().filter(|member| member.enabled && member.kind != Kind::Api).collect();
    if members.is_empty() {
        return vec![Finding::off(CHECK, "no subscription uses it")];
    }
    let command = &config.claude.command;
    let binary = match Binary::find(command, env.var("PATH")) {
        Ok(binary) => binary,
        Err(error) => {
            let advice = "install it (`npm install -g @anthropic-ai/claude-code`), or name it in `claude.command`";
            return vec![Finding::failed(CHECK, format!("`{}` cannot be run: {error}", command.display()), advice)];
        }
    };
    // No CLI runs in a folder that others may write, as they may with some umasks.
    let folder_for_us = Permissions::from_mode(0o700);
    let cwd = match tempfile::Builder::new().prefix("auth-pool-doctor-").permissions(folder_for_us).tempdir() {
        Ok(cwd) => cwd,
        Err(error) => return vec![Finding::failed(CHECK, format!("no temporary directory: {error}"), "make room")],
    };
    let limits = SpareSettings {
        max_processes: 2,
        max_memory: u64::MAX,
        max_spares: 0,
        spares_per_kind: 0,
        idle_timeout: Duration::ZERO,
        max_line_bytes: MAX_LINE_BYTES,
    };
    let claude = ClaudeCli::new(limits, tasks);
    let backends = cli_backends(config, env, &claude, cwd.path());
    let mut findings = Vec::new();
    if let Some((_, backend)) = backends.first() {
        findings.push(version(CHECK, backend, &binary).await);
    }
    for member in members {
        let Some((_, backend)) = backends.iter().find(|(id, _)| **id == *member.id) else { continue };
        findings.push(login(member, backend.login().await));
    }
    claude.close();
    findings.extend(features(config, env, &binary, state_dir, tasks).await);
    findings
}

async fn version(check: &str, backend: &ClaudeCliBackend, binary: &Binary) -> Finding {
    let path = binary.path.display();
    match backend.probe().await {
        Ok(facts) => {
            let version = facts.version.unwrap_or_else(|| "of an unknown version".to_owned());
            let aliases: Vec<String> = facts.aliases.iter().map(|(alias, id)| format!("{alias} = {id}")).collect();
            Finding::ok(check, format!("{version}, {path} ({})", aliases.join(", ")))
        }
        Err(error) => Finding::failed(
            check,
            format!("{path} does not answer: {error:#}"),
            "run it by hand; newer builds do not answer while they cannot reach the provider",
        ),
    }
}

fn login(member: &Subscription, login: anyhow::Result<Login>) -> Finding {
    let check = format!("login {}", member.id);
    let profile = member.config_dir.as_deref().unwrap_or(Path::new("")).display();
    let advice = format!("`CLAUDE_CONFIG_DIR={profile} claude`, then /login");
    match login {
        Err(error) => Finding::failed(check, format!("it cannot be asked: {error:#}"), advice),
        Ok(login) if !login.logged_in => Finding::failed(check, format!("nobody is logged in at {profile}"), advice),
        Ok(login) => {
            let method = login.auth_method.unwrap_or_else(|| "unknown method".to_owned());
            let Some(plan) = login.subscription_type else {
                return Finding::ok(check, format!("logged in ({method})"));
            };
            let seen = format!("logged in ({method}, plan {plan})");
            // Other plans (team, enterprise) have no word of their own in the file.
            let expected = match plan.as_str() {
                "pro" => Some(Kind::ClaudePro),
                "max" => Some(Kind::ClaudeMax),
                _ => None,
            };
            match expected.filter(|kind| *kind != member.kind) {
                Some(kind) => Finding::warning(
                    check,
                    format!("{seen}, configured as `{}`", member.kind),
                    format!("set its `type` to `{kind}`, and `weeklyBudget` to what that plan allows"),
                ),
                None => Finding::ok(check, seen),
            }
        }
    }
}

/// Tries the CLI out, whatever is remembered of it, and remembers what was seen.
async fn features(
    config: &Config,
    env: &Env,
    binary: &Binary,
    state_dir: Option<&Path>,
    tasks: &Tasks,
) -> Vec<Finding> {
    let subject = Subject { command: config.claude.command.clone(), own_env: env.vars().clone() };
    let features = selftest::run(&subject, tasks).await;
    let mut findings = show(&features);
    if let Some(dir) = state_dir.filter(|_| features.is_complete())
        && let Err(error) = selftest::memory(dir).remember(binary, &features)
    {
        let seen = format!("what was seen cannot be kept: {error:#}");
        findings.push(Finding::warning("CLI self-test", seen, "it is repeated at every start"));
    }
    findings
}

fn show(features: &Features) -> Vec<Finding> {
    let finding = |feature: Feature| {
        let check = format!("CLI {feature}");
        match features.support(feature) {
            Some(Support::Has) => Finding::ok(check, "works"),
            Some(Support::Lacks(seen)) => {
                Finding::failed(check, seen.as_str(), format!("{}; install another version", feature.without()))
            }
            Some(Support::Unknown(why)) => {
                Finding::warning(check, why.as_str(), "name the CLI itself in `claude.command`, not a wrapper")
            }
            None => Finding::off(check, "not tried"),
        }
    };
    Feature::ALL.into_iter().map(finding).collect()
}
