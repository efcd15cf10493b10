//! Who may use the proxy, and what each may use of it.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};

use super::Context;
use super::subscriptions::DEFAULT_ID;
use crate::config::model::{ClientKey, OrganizationSelection, Priority, Scope};
use crate::config::problem::{FieldPath, Findings};
use crate::config::raw;
use crate::config::structure::nearest;
use crate::runtime::clock;
use crate::units::{MicroUsd, Timestamp};

/// A key shorter than this can be guessed.
const SHORTEST_KEY: usize = 16;

pub(super) fn check(file: &raw::File, context: &Context<'_>, findings: &mut Findings) -> Vec<ClientKey> {
    let section = FieldPath::field("clientKeys");
    let mut checked: Vec<ClientKey> = Vec::new();
    for (index, key) in file.client_keys.iter().enumerate() {
        let Some(key) = key else { continue };
        let at = section.index(index);
        let Some(digest) = digest(key, &at, context, findings) else { continue };
        let Some(name) = key.name.clone() else { continue };
        if checked.iter().any(|other| other.name == name && other.organization == key.organization_id) {
            findings.problem(at.key("name"), format!("`{name}` is already the name of another key"));
        }
        if let Some(other) = checked.iter().find(|other| other.digest == digest) {
            findings.problem(&at, format!("is the same key as `{}`", other.name));
        }
        let weekly_budget = key.weekly_budget.map(MicroUsd::from_usd);
        if weekly_budget.is_some_and(|budget| budget <= MicroUsd::ZERO) {
            findings.problem(at.key("weeklyBudget"), "must be at least 0.000001");
        }
        let models = key.models.as_ref().map(|models| models.iter().flatten().cloned().collect());
        checked.push(ClientKey {
            name,
            digest,
            models,
            scopes: scopes(key, &at, findings),
            organization: key.organization_id.clone(),
            subscriptions: subscriptions(key, &at, file, context, findings),
            requests_per_minute: key.requests_per_minute,
            weekly_budget,
            max_priority: key.max_priority.unwrap_or(Priority::High),
            expires_at: expires_at(key, &at, findings),
        });
    }
    checked
}

pub(super) fn organizations(
    organizations: &BTreeMap<String, Option<raw::Organization>>,
    findings: &mut Findings,
) -> BTreeMap<String, OrganizationSelection> {
    let mut checked = BTreeMap::new();
    for (id, organization) in organizations {
        if !is_name(id) {
            let at = FieldPath::field("organizations").key(id);
            findings.problem(at, "must be a name of letters, digits, `.`, `_` and `-`, at most 64 of them");
        }
        let selection = organization.as_ref().and_then(|organization| organization.account_selection.as_ref());
        if let Some(selection) = selection
            && let Some(strategy) = selection.strategy
        {
            let fallbacks = selection.fallback_strategies.clone();
            checked.insert(id.clone(), OrganizationSelection { strategy, fallbacks });
        }
    }
    checked
}

/// As [`raw::NAME`] says.
fn is_name(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    text.len() <= 64
        && text.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric())
        && text.bytes().all(is_plain)
}

fn scopes(key: &raw::ClientKey, at: &FieldPath, findings: &mut Findings) -> Vec<Scope> {
    let Some(scopes) = &key.scopes else {
        return if key.admin { vec![Scope::Chat, Scope::Admin] } else { vec![Scope::Chat] };
    };
    if key.admin {
        findings.problem(at.key("admin"), "is short for both `scopes`, which stand here as well; keep one");
    }
    let mut scopes: Vec<Scope> = scopes.iter().flatten().copied().collect();
    scopes.sort_unstable();
    scopes.dedup();
    scopes
}

/// A subscription that is not in the file may be one that was registered while the proxy runs.
fn subscriptions(
    key: &raw::ClientKey,
    at: &FieldPath,
    file: &raw::File,
    context: &Context<'_>,
    findings: &mut Findings,
) -> Option<Vec<String>> {
    let listed: Vec<String> = key.subscriptions.as_ref()?.iter().flatten().cloned().collect();
    let members = file.subscriptions.iter().flatten().flatten();
    let mut known: Vec<&str> = members.filter_map(|member| member.id.as_deref()).collect();
    if file.subscriptions.is_none() {
        known.push(DEFAULT_ID);
    }
    for (index, id) in listed.iter().enumerate().filter(|_| context.pool_enabled()) {
        if !known.contains(&id.as_str()) && !findings.is_unusable(&FieldPath::field("subscriptions")) {
            let meant = nearest(id, known.iter().copied());
            let advice = meant.map(|meant| format!("; did you mean `{meant}`?")).unwrap_or_default();
            let place = at.key("subscriptions").index(index);
            findings.warning(place, format!("`{id}` is not a subscription of this file{advice}"));
        }
    }
    Some(listed)
}

fn expires_at(key: &raw::ClientKey, at: &FieldPath, findings: &mut Findings) -> Option<Timestamp> {
    let text = key.expires_at.as_ref()?;
    let at = at.key("expiresAt");
    let Some(instant) = Timestamp::parse_rfc3339(text) else {
        findings.problem(at, "must be an instant, for example `2027-01-01T00:00:00Z`");
        return None;
    };
    if instant <= clock::now() {
        findings.warning(at, "is over: the key opens nothing any more");
    }
    Some(instant)
}

fn digest(key: &raw::ClientKey, at: &FieldPath, context: &Context<'_>, findings: &mut Findings) -> Option<[u8; 32]> {
    match (&key.sha256, &key.env) {
        (Some(digits), None) => decode_hex(digits),
        (None, Some(name)) => {
            // The name is not quoted: somebody may have written the key itself here.
            let Some(value) = context.env.var(name) else {
                findings.problem(at.key("env"), "names an environment variable that is not set");
                return None;
            };
            if value.len() < SHORTEST_KEY {
                findings.warning(at.key("env"), format!("holds a key of less than {SHORTEST_KEY} characters"));
            }
            Some(Sha256::digest(value.as_bytes()).into())
        }
        (Some(_), Some(_)) => {
            findings.problem(at, "has `sha256` and `env`; keep one");
            None
        }
        (None, None) => {
            if !findings.is_unusable(&at.key("sha256")) && !findings.is_unusable(&at.key("env")) {
                findings.problem(at, "needs `sha256`, or `env` with the name of the variable that holds the key");
            }
            None
        }
    }
}

fn decode_hex(digits: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_digests_are_decoded() {
        let digest = decode_hex(&"0aF1".repeat(16));
        assert_eq!(digest.map(|bytes| [bytes[0], bytes[31]]), Some([0x0a, 0xf1]));
    }
}
