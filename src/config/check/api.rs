//! How an API is reached: its key and its address.

use reqwest::Url;

use super::Context;
use crate::config::model::Api;
use crate::config::problem::{FieldPath, Findings};
use crate::config::raw;

/// Anthropic's own address.
pub(super) const ANTHROPIC: &str = "https://api.anthropic.com";

/// The API of a subscription of type `api`; `None` when a part of it is unusable, which is then reported.
pub(super) fn of_subscription(
    raw: &raw::Subscription,
    at: &FieldPath,
    context: &Context<'_>,
    findings: &mut Findings,
) -> Option<Api> {
    let of_profiles = [
        ("configDir", raw.config_dir.is_some()),
        ("oauthTokenEnv", raw.oauth_token_env.is_some()),
        ("env", !raw.env.is_empty()),
    ];
    refuse(
        of_profiles,
        at,
        "belongs to subscriptions that are driven through the CLI; this one has the type `api`",
        findings,
    );
    let key_env = key_env(raw.api_key_env.as_ref(), raw.enabled, &at.key("apiKeyEnv"), context, findings);
    let base_url =
        raw.base_url.as_deref().map_or(Some(ANTHROPIC.to_owned()), |text| base_url(text, &at.key("baseUrl"), findings));
    Some(Api { key_env: key_env?, base_url: base_url?, models: raw.models.clone() })
}

/// Says that a CLI profile has no API.
pub(super) fn absent(raw: &raw::Subscription, at: &FieldPath, findings: &mut Findings) {
    let of_keys = [
        ("apiKeyEnv", raw.api_key_env.is_some()),
        ("baseUrl", raw.base_url.is_some()),
        ("models", !raw.models.is_empty()),
    ];
    refuse(of_keys, at, "belongs to subscriptions of type `api`; this one is driven through the CLI", findings);
}

fn refuse<const N: usize>(given: [(&str, bool); N], at: &FieldPath, why: &str, findings: &mut Findings) {
    for (field, _) in given.into_iter().filter(|(_, is_given)| *is_given) {
        findings.problem(at.key(field), why);
    }
}

/// The variable that holds a key.
pub(super) fn key_env(
    name: Option<&String>,
    enabled: bool,
    at: &FieldPath,
    context: &Context<'_>,
    findings: &mut Findings,
) -> Option<String> {
    let Some(name) = name else {
        if !findings.is_unusable(at) {
            findings.problem(at, "is missing: name the environment variable that holds the key");
        }
        return None;
    };
    // The name is not quoted: somebody may have written the key itself here.
    if enabled && context.env.var(name).is_none() {
        findings.problem(at, "names an environment variable that is not set");
    }
    Some(name.clone())
}

/// An address to which a path can be added.
pub(super) fn base_url(text: &str, at: &FieldPath, findings: &mut Findings) -> Option<String> {
    let url = match Url::parse(text) {
        Ok(url) => url,
        Err(error) => {
            findings.problem(at, format!("is not a URL: {error}"));
            return None;
        }
    };
    if !matches!(url.scheme(), "https" | "http") || url.host_str().is_none() {
        findings.problem(at, "must begin with `https://` (or `http://`) and a host");
        return None;
    }
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
        findings.problem(at, "must be an address without user, password, `?` and `#`");
        return None;
    }
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let is_loopback = host == "localhost" || host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback());
    if url.scheme() == "http" && !is_loopback {
        findings.warning(at, "is plain http: the key and all conversations can be read on the way");
    }
    Some(text.trim_end_matches('/').to_owned())
}
