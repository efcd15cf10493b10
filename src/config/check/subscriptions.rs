//! The members of the pool.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::Context;
use crate::config::config_dir;
use crate::config::env::CLAUDE_CONFIG_DIR;
use crate::config::model::{Kind, Priority, Subscription};
use crate::config::problem::{FieldPath, Findings, Place};
use crate::config::raw;
use crate::config::structure::nearest;
use crate::units::MicroUsd;

/// What a subscription without a word about money may spend in seven days, in US dollars.
const DEFAULT_BUDGET: f64 = 456.0;
/// The id of the user's own CLI profile.
pub(super) const DEFAULT_ID: &str = "default";
/// Holds a subscription's long-lived token in the CLI's environment.
const OAUTH_TOKEN: &str = "CLAUDE_CODE_OAUTH_TOKEN";

pub(super) fn check(file: &raw::File, context: &Context<'_>, findings: &mut Findings) -> Vec<Subscription> {
    let section = FieldPath::field("subscriptions");
    // With the pool off, the members are not looked at: their directories need not exist on this machine.
    let members = file.subscriptions.as_deref().filter(|_| context.pool_enabled());
    let Some(members) = members else {
        if findings.is_unusable(&section) {
            return Vec::new();
        }
        return default_profile(context, findings).into_iter().collect();
    };
    let mut seen = Seen::default();
    let mut checked = Vec::new();
    for (index, member) in members.iter().enumerate() {
        let Some(member) = member else { continue };
        let at = section.index(index);
        let subscription = Member { raw: member, at: &at, file, context }.check(findings);
        seen.once("id", member.id.as_deref(), &at, findings);
        seen.once("oauthTokenEnv", member.oauth_token_env.as_deref(), &at, findings);
        if let Some(subscription) = &subscription {
            let place = std::fs::canonicalize(&subscription.config_dir);
            let place = place.as_deref().unwrap_or(&subscription.config_dir);
            seen.once("configDir", Some(&place.to_string_lossy()), &at, findings);
        }
        checked.extend(subscription);
    }
    if !checked.is_empty() && checked.iter().all(|subscription| !subscription.enabled) {
        findings.warning(section, "are all switched off");
    }
    checked
}

/// Who was first to use a value that nobody else may use.
#[derive(Default)]
struct Seen(BTreeMap<(&'static str, String), FieldPath>);

impl Seen {
    fn once(&mut self, field: &'static str, value: Option<&str>, at: &FieldPath, findings: &mut Findings) {
        let Some(value) = value else { return };
        match self.0.entry((field, value.to_owned())) {
            std::collections::btree_map::Entry::Vacant(free) => {
                free.insert(at.clone());
            }
            std::collections::btree_map::Entry::Occupied(taken) => {
                let first = taken.get();
                let message = match field {
                    "id" => format!("`{value}` is already the id of {first}"),
                    _ => format!("is already that of {first}: the same account would be counted twice"),
                };
                findings.problem(at.key(field), message);
            }
        }
    }
}

/// The user's own CLI profile as the only subscription.
fn default_profile(context: &Context<'_>, findings: &mut Findings) -> Option<Subscription> {
    let Some(config_dir) = context.env.default_profile() else {
        findings.problem(Place::Variable("HOME".to_owned()), "is not set, so the Claude CLI's profile cannot be found");
        return None;
    };
    let config_dir = std::path::absolute(&config_dir).unwrap_or(config_dir);
    let variable = if context.env.var(CLAUDE_CONFIG_DIR).is_some() { CLAUDE_CONFIG_DIR } else { "HOME" };
    let place = Place::Variable(variable.to_owned());
    match config_dir::inspect(&config_dir) {
        Ok(None) => {}
        Ok(Some(unwise)) => findings.warning(place, unwise),
        Err(_) => {
            let shown = config_dir.display();
            let advice = "run `claude` and log in, or describe your subscriptions in a file (`auth-pool config init`)";
            findings.problem(place, format!("there is no Claude CLI profile at {shown}; {advice}"));
        }
    }
    Some(Subscription {
        id: DEFAULT_ID.to_owned(),
        email: None,
        kind: Kind::ClaudePro,
        config_dir,
        weekly_budget: context.settings.weekly_budget.unwrap_or_else(|| MicroUsd::from_usd(DEFAULT_BUDGET)),
        max_clients: None,
        max_concurrent: 10,
        enabled: true,
        priority: Priority::Normal,
        tier: None,
        organization: None,
        env: BTreeMap::new(),
        oauth_token_env: None,
    })
}

/// One subscription under check.
struct Member<'a> {
    raw: &'a raw::Subscription,
    at: &'a FieldPath,
    file: &'a raw::File,
    context: &'a Context<'a>,
}

impl Member<'_> {
    /// `None` when a part of it is unusable, which is then reported.
    fn check(&self, findings: &mut Findings) -> Option<Subscription> {
        let raw = self.raw;
        self.tier(findings);
        if raw.kind == Some(Kind::Api) {
            findings.problem(self.at.key("type"), "`api` subscriptions are not supported by this version");
            return None;
        }
        self.environment(findings);
        self.token(findings);
        let config_dir = self.config_dir(findings);
        let weekly_budget = self.weekly_budget(findings);
        Some(Subscription {
            id: raw.id.clone()?,
            email: raw.email.clone(),
            kind: raw.kind?,
            config_dir: config_dir?,
            weekly_budget: weekly_budget?,
            max_clients: raw.max_clients,
            max_concurrent: raw.max_concurrent,
            enabled: raw.enabled,
            priority: raw.priority,
            tier: raw.tier.clone(),
            organization: raw.organization_id.clone(),
            env: raw.env.clone(),
            oauth_token_env: raw.oauth_token_env.clone(),
        })
    }

    /// Messages about files name the subscription, because its number in the list means little to a reader.
    fn named(&self, message: &str) -> String {
        self.raw.id.as_ref().map_or_else(|| message.to_owned(), |id| format!("{message} (subscription `{id}`)"))
    }

    fn config_dir(&self, findings: &mut Findings) -> Option<PathBuf> {
        let at = self.at.key("configDir");
        let Some(text) = &self.raw.config_dir else {
            if !findings.is_unusable(&at) {
                findings
                    .problem(at, self.named("is missing: this type of subscription is driven through a CLI profile"));
            }
            return None;
        };
        let home = self.context.env.home();
        let path = match config_dir::resolve(text, &self.context.base, home.as_deref()) {
            Ok(path) => path,
            Err(message) => {
                findings.problem(at, self.named(&message));
                return None;
            }
        };
        if self.raw.enabled {
            self.inspect(&path, at, findings);
        }
        Some(path)
    }

    fn inspect(&self, path: &Path, at: FieldPath, findings: &mut Findings) {
        match config_dir::inspect(path) {
            Ok(None) => {}
            Ok(Some(unwise)) => findings.warning(at, self.named(&unwise)),
            Err(message) => findings.problem(at, self.named(&message)),
        }
    }

    fn weekly_budget(&self, findings: &mut Findings) -> Option<MicroUsd> {
        let budget = self.raw.weekly_budget.map(MicroUsd::from_usd);
        if budget.is_some_and(|budget| budget <= MicroUsd::ZERO) {
            findings.problem(self.at.key("weeklyBudget"), "must be at least 0.000001");
        }
        self.context.settings.weekly_budget.or(budget)
    }

    fn tier(&self, findings: &mut Findings) {
        let Some(tier) = &self.raw.tier else { return };
        let known = &self.file.rate_limits;
        if !known.contains_key(tier) && !findings.is_unusable(&FieldPath::field("rateLimits")) {
            let meant = nearest(tier, known.keys().map(String::as_str));
            let advice = meant.map(|meant| format!("; did you mean `{meant}`?")).unwrap_or_default();
            findings.problem(self.at.key("tier"), format!("`{tier}` is not a tier of `rateLimits`{advice}"));
        }
    }

    fn token(&self, findings: &mut Findings) {
        let Some(name) = &self.raw.oauth_token_env else { return };
        let at = self.at.key("oauthTokenEnv");
        if self.raw.env.contains_key(OAUTH_TOKEN) {
            findings.problem(&at, format!("says where the token is, and so does `env.{OAUTH_TOKEN}`; keep one"));
        }
        // The name is not quoted: somebody may have written the token itself here.
        if self.raw.enabled && self.context.env.var(name).is_none() {
            findings.problem(at, "names an environment variable that is not set");
        }
    }

    fn environment(&self, findings: &mut Findings) {
        let section = self.at.key("env");
        for (name, value) in &self.raw.env {
            let at = section.key(name);
            if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
                findings.problem(at, "is not a possible environment variable");
            } else if let Some(reason) = refused_variable(name) {
                findings.problem(at, format!("may not be set here: {reason}"));
            } else if name == OAUTH_TOKEN {
                let advice = "name the environment variable that holds it in `oauthTokenEnv` instead";
                findings.warning(at, format!("puts a token into this file; {advice}"));
            }
        }
    }
}

/// Why a CLI process may not be given this variable by a configuration, if it may not.
fn refused_variable(name: &str) -> Option<&'static str> {
    match name {
        CLAUDE_CONFIG_DIR => Some("it comes from `configDir`"),
        "ANTHROPIC_API_KEY" | "ANTHROPIC_AUTH_TOKEN" => {
            Some("the CLI would use that key instead of this subscription, and bill it")
        }
        "CLAUDE_CODE_USE_BEDROCK" | "CLAUDE_CODE_USE_VERTEX" | "CLAUDE_CODE_USE_FOUNDRY" => {
            Some("the CLI would use another provider instead of this subscription")
        }
        "CLAUDE_CODE_SIMPLE" => Some("the CLI would not log in with this subscription"),
        "CLAUDE_CODE_ENTRYPOINT" | "ANTHROPIC_CUSTOM_HEADERS" => Some("the CLI says itself what it is"),
        "CLAUDE_CODE_EXTRA_BODY" | "CLAUDE_CODE_MAX_OUTPUT_TOKENS" => Some("it is set for each request"),
        "NODE_OPTIONS" | "BUN_OPTIONS" => Some("it can load foreign code into the CLI"),
        _ if name.starts_with("LD_") || name.starts_with("DYLD_") => Some("it can load foreign code into the CLI"),
        _ => None,
    }
}
