//! The backends beside the pool, and who steps in for whom.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Context;
use super::api::{self, ANTHROPIC};
use crate::config::model::{Backend, BackendKind, Routing, Subscription};
use crate::config::problem::{FieldPath, Findings};
use crate::config::raw;
use crate::config::span::{HOUR, Unit};
use crate::config::structure::nearest;

/// OpenAI's own address.
const OPENAI: &str = "https://api.openai.com/v1";

/// A name that leads elsewhere: `/v1/models/...`.
const TAKEN: [&str; 2] = ["models", "pool"];

pub(super) fn check(
    file: &raw::File,
    subscriptions: &[Subscription],
    context: &Context<'_>,
    findings: &mut Findings,
) -> Vec<Backend> {
    let section = FieldPath::field("backends");
    let mut first: BTreeMap<&str, FieldPath> = BTreeMap::new();
    let mut checked = Vec::new();
    for (index, backend) in file.backends.iter().enumerate() {
        let Some(backend) = backend else { continue };
        let at = section.index(index);
        if let Some(name) = backend.name.as_deref() {
            if TAKEN.contains(&name) {
                findings.problem(at.key("name"), format!("`{name}` is a name of its own"));
            }
            if let Some(other) = first.get(name) {
                findings.problem(at.key("name"), format!("`{name}` is already the name of {other}"));
            } else {
                first.insert(name, at.clone());
            }
        }
        checked.extend(Entry { raw: backend, at, file, subscriptions, context }.check(findings));
    }
    checked
}

/// One backend of the file, with what it is checked against.
struct Entry<'a> {
    raw: &'a raw::Backend,
    at: FieldPath,
    file: &'a raw::File,
    subscriptions: &'a [Subscription],
    context: &'a Context<'a>,
}

impl Entry<'_> {
    fn check(&self, findings: &mut Findings) -> Option<Backend> {
        let Self { raw, at, context, .. } = self;
        let kind = raw.kind?;
        let mut refuse = |fields: &[(&str, bool)], why: &str| {
            for (field, _) in fields.iter().filter(|(_, given)| *given) {
                findings.problem(at.key(field), why);
            }
        };
        let target = if kind == raw::BackendType::ClaudeCli {
            let of_apis = [
                ("baseUrl", raw.base_url.is_some()),
                ("apiKeyEnv", raw.api_key_env.is_some()),
                ("models", !raw.models.is_empty()),
            ];
            refuse(&of_apis, "belongs to a backend over HTTP; this one is the pool or a subscription of it");
            BackendKind::Pool { subscription: self.subscription(findings).ok()? }
        } else {
            let of_pool = [("accountId", raw.account_id.is_some()), ("configDir", raw.config_dir.is_some())];
            refuse(&of_pool, "belongs to a backend of type `claude-cli`");
            self.check_name(findings);
            let home = if kind == raw::BackendType::AnthropicApi { ANTHROPIC } else { OPENAI };
            let address = |text: &String| api::base_url(text, &at.key("baseUrl"), findings);
            let base_url = raw.base_url.as_ref().map_or_else(|| Some(home.to_owned()), address);
            let key_at = at.key("apiKeyEnv");
            // A server of one's own may need no key.
            let is_open = raw.api_key_env.is_none() && kind == raw::BackendType::OpenAiApi && raw.base_url.is_some();
            let key_env = if is_open {
                None
            } else {
                Some(api::key_env(raw.api_key_env.as_ref(), true, &key_at, context, findings)?)
            };
            let (base_url, models) = (base_url?, raw.models.clone());
            match kind {
                raw::BackendType::AnthropicApi => BackendKind::AnthropicApi { base_url, key_env: key_env?, models },
                _ => BackendKind::OpenAiApi { base_url, key_env, models },
            }
        };
        Some(Backend {
            name: raw.name.clone()?,
            kind: target,
            max_concurrent: raw.max_concurrent,
            supports_tools: raw.supports_tools,
        })
    }

    /// What is used is written down under one name, the subscription's or that of the backend beside the pool.
    fn check_name(&self, findings: &mut Findings) {
        let Some(name) = self.raw.name.as_deref() else { return };
        let members = self.file.subscriptions.iter().flatten();
        let same = |member: &Option<raw::Subscription>| member.as_ref().and_then(|one| one.id.as_deref()) == Some(name);
        let whose = match members.enumerate().find(|(_, member)| same(member)) {
            Some((index, _)) => FieldPath::field("subscriptions").index(index).key("id").to_string(),
            None if self.subscriptions.iter().any(|member| member.id == name) => "the user's own profile".to_owned(),
            None => return,
        };
        let message = format!(
            "`{name}` is the subscription {whose} as well: what both use would be written down as one; name the backend \
             otherwise"
        );
        findings.problem(self.at.key("name"), message);
    }

    /// The subscription that a backend of type `claude-cli` names; `None` is the whole pool.
    fn subscription(&self, findings: &mut Findings) -> Result<Option<String>, Reported> {
        let Self { raw, at, file, subscriptions, context } = self;
        if !context.pool_enabled() {
            // Its members are not looked at: whatever is named here is the user's own profile.
            return Ok(None);
        }
        let members = || file.subscriptions.iter().flatten().flatten();
        if let Some(id) = &raw.account_id {
            if !subscriptions.iter().any(|member| member.id == *id)
                && !members().any(|member| member.id.as_ref() == Some(id))
            {
                let meant = nearest(id, subscriptions.iter().map(|member| member.id.as_str()));
                let advice = meant.map(|meant| format!("; did you mean `{meant}`?")).unwrap_or_default();
                findings.problem(at.key("accountId"), format!("`{id}` is not the id of a subscription{advice}"));
                return Err(Reported);
            }
            let dir_of =
                members().find(|member| member.id.as_ref() == Some(id)).and_then(|member| member.config_dir.as_ref());
            if raw.config_dir.is_some() && raw.config_dir.as_ref() != dir_of {
                findings.problem(at.key("configDir"), format!("is not that of the subscription `{id}`"));
            }
            return Ok(Some(id.clone()));
        }
        let Some(config_dir) = &raw.config_dir else { return Ok(None) };
        let owner = members()
            .find(|member| member.config_dir.as_ref() == Some(config_dir))
            .and_then(|member| member.id.clone());
        if owner.is_none() {
            findings.problem(at.key("configDir"), "is not that of a subscription: name one in `accountId`");
        }
        owner.map(Some).ok_or(Reported)
    }
}

/// Something is wrong, and it has been said.
struct Reported;

pub(super) fn routing(file: &raw::File, findings: &mut Findings) -> Routing {
    let at = FieldPath::field("routing");
    let section = &file.routing;
    let names: Vec<&str> = file.backends.iter().flatten().filter_map(|backend| backend.name.as_deref()).collect();
    let mut known = |name: &str, at: FieldPath| {
        if !names.contains(&name) && !findings.is_unusable(&FieldPath::field("backends")) {
            let meant = nearest(name, names.iter().copied());
            let advice = meant.map(|meant| format!("; did you mean `{meant}`?")).unwrap_or_default();
            findings.problem(at, format!("`{name}` is not the name of a backend{advice}"));
        }
    };
    if let Some(name) = &section.default_backend {
        known(name, at.key("defaultBackend"));
    }
    let chain_at = at.key("fallbackChain");
    let mut chain: Vec<String> = Vec::new();
    for (index, name) in section.fallback_chain.iter().enumerate() {
        let Some(name) = name else { continue };
        known(name, chain_at.index(index));
        chain.push(name.clone());
    }
    if !chain.is_empty() && !file.fallback_when_exhausted {
        findings.warning(&chain_at, "is not used, because `fallbackWhenExhausted` is false");
    }
    Routing {
        default_backend: section.default_backend.clone(),
        fallback_chain: chain,
        fallback_after: section.fallback_after.resolve(
            &at.key("fallbackAfter"),
            Unit::Seconds,
            Duration::ZERO..=HOUR,
            findings,
        ),
    }
}
