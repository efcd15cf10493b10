//! What Anthropic itself counts for the organisation's keys, each beside the member of the configuration that has it.

use std::time::Duration;

use anyhow::{Context as _, bail};
use secrecy::SecretString;

use super::http_backends::proxy;
use crate::backend::anthropic_api::organization::{ApiKey, KeyUsage, Organization};
use crate::backend::http::{HttpClient, Key, Timers};
use crate::config::env::{ANTHROPIC_ADMIN_API_KEY, ANTHROPIC_ADMIN_BASE_URL};
use crate::config::{BackendKind, Config, Env};
use crate::runtime::clock;
use crate::units::{MicroUsd, Timestamp};

/// How long one page of a report may take.
const LIMIT: Duration = Duration::from_secs(30);

const DAY: Duration = Duration::from_hours(24);

/// What one key has used.
#[derive(Clone, Debug)]
pub struct KeyReport {
    /// As its owner calls it; its id where it is not among the organisation's keys any more.
    pub key: String,
    /// The subscription that has it, or the backend beside the pool.
    pub subscription: Option<String>,
    /// What was used.
    pub used: KeyUsage,
}

/// The reports of an organisation.
#[derive(Clone, Debug)]
pub struct OrganizationReport {
    /// From when on; the beginning of a day in UTC.
    pub from: Timestamp,
    /// Until when.
    pub to: Timestamp,
    /// What the provider says that all of it cost.
    pub cost: MicroUsd,
    /// By key, the dearest first.
    pub keys: Vec<KeyReport>,
}

/// Asks Anthropic's Admin API for the last `days` days, today included. The keys that the pool knows are found by their
/// hints among those of `config`; the keys themselves are in `env`.
pub async fn organization_report(
    config: Option<&Config>,
    env: &Env,
    base_url: Option<&str>,
    days: u32,
) -> anyhow::Result<OrganizationReport> {
    let Some(key) = env.var(ANTHROPIC_ADMIN_API_KEY) else {
        bail!(
            "the variable {ANTHROPIC_ADMIN_API_KEY} is not set: an organisation's admin makes such a key in the console"
        )
    };
    let timers = Timers { first_event: LIMIT, idle: LIMIT, total: LIMIT };
    let base_url = base_url.or_else(|| env.var(ANTHROPIC_ADMIN_BASE_URL));
    let key = Key::new(SecretString::from(key));
    let organization = Organization::new(HttpClient::new(&proxy(env))?, base_url, key, timers);
    let to = clock::now();
    let from = midnight(to) - DAY * days.saturating_sub(1);
    let keys = organization.keys().await.context("the organisation's keys")?;
    let mut by_key = organization.usage(from, to).await.context("the usage report")?;
    let cost = organization.cost(from, to).await.context("the cost report")?;
    let secrets = config.map(|config| secrets(config, env)).unwrap_or_default();
    let owner = |key: &ApiKey| secrets.iter().find(|(_, secret)| key.is(secret)).map(|(id, _)| id.clone());
    let mut reports: Vec<KeyReport> = keys
        .into_iter()
        .map(|key| {
            let used = by_key.remove(&Some(key.id.clone())).unwrap_or_default();
            KeyReport { subscription: owner(&key), key: key.name, used }
        })
        .collect();
    reports.extend(by_key.into_iter().map(|(id, used)| KeyReport {
        key: id.unwrap_or_else(|| "(no key)".to_owned()),
        subscription: None,
        used,
    }));
    reports.sort_by_key(|report| std::cmp::Reverse(report.used.cost));
    Ok(OrganizationReport { from, to, cost, keys: reports })
}

/// The keys that the configuration names, by whose they are.
fn secrets(config: &Config, env: &Env) -> Vec<(String, String)> {
    let members =
        config.subscriptions.iter().filter_map(|member| Some((member.id.clone(), &member.api.as_ref()?.key_env)));
    let backends = config.backends.iter().filter_map(|backend| match &backend.kind {
        BackendKind::AnthropicApi { key_env, .. } => Some((backend.name.clone(), key_env)),
        _ => None,
    });
    members.chain(backends).filter_map(|(id, key_env)| Some((id, env.var(key_env)?.to_owned()))).collect()
}

/// The beginning of the day in UTC: the reports count whole days.
fn midnight(now: Timestamp) -> Timestamp {
    let seconds = now.as_secs();
    Timestamp::from_secs(seconds - seconds.rem_euclid(24 * 3600))
}
