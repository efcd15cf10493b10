//! From a stored account to a member of the pool.
//!
//! A stored account is written as it would stand in the configuration, and checked by the very same rules. Its secret gets
//! the name of an environment variable that exists only inside this process, because that is how the configuration speaks of
//! secrets: in the account's own words there is none.

use std::collections::HashMap;

use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Value, json};

use super::accounts::purpose_of;
use super::fields::Mistake;
use super::{AdminError, Result};
use crate::config::{self, Config, Env, Scope as KeyScope, Subscription};
use crate::secrets::Vault;
use crate::store::{Account, ClientKey, Page, Scope, Store, StoreError};
use crate::units::MicroUsd;

/// Begins the names of the variables.
const VARIABLE: &str = "AUTH_POOL_STORED_";
/// Accounts or keys that are read; beyond it something is wrong.
const MOST: usize = 100_000;

/// What is registered, fit for the pool.
#[derive(Clone, Default)]
pub struct Registered {
    /// The members.
    pub subscriptions: Vec<Subscription>,
    /// The keys that open anything.
    pub client_keys: Vec<config::ClientKey>,
    /// The secrets, by the names of variables that the members use.
    pub variables: Vec<(String, String)>,
    /// Why accounts are left out, by their ids.
    pub problems: HashMap<String, String>,
}

impl Registered {
    /// The configuration with everything that is registered. What stands in the file comes first, and wins.
    pub fn added_to(&self, config: &Config) -> Config {
        let mut all = config.clone();
        let is_new = |member: &&Subscription| !config.names_of_usage().any(|known| known == member.id);
        all.subscriptions.extend(self.subscriptions.iter().filter(is_new).cloned());
        let is_new = |key: &&config::ClientKey| {
            !config.client_keys.iter().any(|known| {
                known.digest == key.digest || known.name == key.name && known.organization == key.organization
            })
        };
        all.client_keys.extend(self.client_keys.iter().filter(is_new).cloned());
        for member in &mut all.subscriptions {
            if member.tier.as_ref().is_some_and(|tier| !config.rate_limits.contains_key(tier)) {
                member.tier = None;
            }
        }
        all
    }

    /// Whether it is the same as `other`, secrets included.
    pub fn is_same(&self, other: &Self) -> bool {
        self.subscriptions == other.subscriptions
            && self.client_keys == other.client_keys
            && self.variables == other.variables
            && self.problems == other.problems
    }

    /// The environment with the secrets in it.
    pub fn environment(&self, env: &Env) -> Env {
        env.vars().iter().map(|(name, value)| (name.clone(), value.clone())).chain(self.variables.clone()).collect()
    }
}

/// Reads everything that is registered. An account that cannot be used is left out, with the reason.
pub async fn load_registered(store: &Store, vault: Option<&Vault>) -> std::result::Result<Registered, StoreError> {
    let mut registered = Registered::default();
    let mut page = Page { limit: Page::LARGEST, after: None };
    let mut accounts = Vec::new();
    while accounts.len() < MOST {
        let found = store.accounts(&Scope::Everything, None, &page).await?;
        accounts.extend(found.items);
        page.after = found.next;
        if page.after.is_none() {
            break;
        }
    }
    // The oldest first, so that a new one does not move the others.
    for account in accounts.into_iter().rev() {
        match open(&account, vault) {
            Ok((member, secret)) => {
                registered.subscriptions.push(member);
                registered
                    .variables
                    .extend(secret.map(|secret| (variable(&account.id), secret.expose_secret().to_owned())));
            }
            Err(problem) => {
                tracing::warn!(account = account.id, subscription = account.name, problem, "the account is left out");
                registered.problems.insert(account.id, problem);
            }
        }
    }
    page.after = None;
    while registered.client_keys.len() < MOST {
        let found = store.client_keys(&Scope::Everything, false, &page).await?;
        registered.client_keys.extend(found.items.iter().filter_map(key));
        page.after = found.next;
        if page.after.is_none() {
            break;
        }
    }
    Ok(registered)
}

fn open(account: &Account, vault: Option<&Vault>) -> std::result::Result<(Subscription, Option<SecretString>), String> {
    let secret = match (&account.sealed_secret, vault) {
        (None, _) => None,
        (Some(_), None) => return Err("its secret is encrypted, and ENCRYPTION_KEY is not set".to_owned()),
        (Some(sealed), Some(vault)) => {
            let opened = vault.open(purpose_of(&account.kind), &account.id, sealed);
            Some(opened.map_err(|error| format!("its secret cannot be opened: {error}"))?)
        }
    };
    let checked = checked(account, secret.as_ref());
    let (member, _) = checked.map_err(|mistakes| super::fields::words(&mistakes))?;
    Ok((member, secret))
}

/// Checks an account as the configuration would. Returns what is legal but unwise.
pub(super) fn check(account: &Account, secret: Option<&SecretString>) -> Result<Vec<String>> {
    // What is not known here stands for what is stored: a secret of decent length.
    let kept = account.sealed_secret.as_ref().map(|_| SecretString::from("a-secret-that-is-kept"));
    let (_, warnings) = checked(account, secret.or(kept.as_ref())).map_err(AdminError::Invalid)?;
    Ok(warnings)
}

type Checked = std::result::Result<(Subscription, Vec<String>), Vec<Mistake>>;

fn checked(account: &Account, secret: Option<&SecretString>) -> Checked {
    let mut member = account.settings.clone();
    let Some(fields) = member.as_object_mut() else {
        return Err(vec![Mistake { path: "settings".to_owned(), message: "must be an object".to_owned() }]);
    };
    fields.shift_remove("name");
    let tier = fields.shift_remove("tier");
    // It is given its name in the pool when it is stored.
    let id = if account.name.is_empty() { "new" } else { &account.name };
    for (field, value) in [("id", json!(id)), ("type", json!(account.kind)), ("enabled", json!(account.enabled))] {
        fields.insert(field.to_owned(), value);
    }
    if let Some(organization) = &account.organization_id {
        fields.insert("organizationId".to_owned(), json!(organization));
    }
    let mut vars = Vec::new();
    if let Some(secret) = secret {
        let field = if account.kind == "api" { "apiKeyEnv" } else { "oauthTokenEnv" };
        fields.insert(field.to_owned(), json!(variable(&account.id)));
        vars.push((variable(&account.id), secret.expose_secret().to_owned()));
    }
    let tier = match tier {
        None => None,
        Some(Value::String(tier)) if (1..=64).contains(&tier.len()) => Some(tier),
        Some(_) => {
            let message = "must be the name of a tier".to_owned();
            return Err(vec![Mistake { path: "tier".to_owned(), message }]);
        }
    };
    match config::check_member(&member, &vars.into_iter().collect()) {
        Ok((mut member, warnings)) => {
            member.tier = tier;
            Ok((member, warnings.iter().map(ToString::to_string).collect()))
        }
        Err(problems) => Err(problems
            .into_iter()
            .map(|problem| Mistake { path: problem.place.to_string(), message: problem.message })
            .collect()),
    }
}

/// The variable that stands for an account's secret inside this process.
fn variable(account: &str) -> String {
    format!("{VARIABLE}{}", account.replace('-', "_"))
}

/// A key as the configuration knows keys; `None` if its row makes no sense.
fn key(key: &ClientKey) -> Option<config::ClientKey> {
    let scopes = key.scopes.iter().filter_map(|scope| match scope.as_str() {
        "chat" => Some(KeyScope::Chat),
        "admin" => Some(KeyScope::Admin),
        _ => None,
    });
    let own_name = key.organization_id.as_ref().and_then(|own| key.name.strip_prefix(&format!("{own}/")));
    let digest = decode_hex(&key.digest)?;
    Some(config::ClientKey {
        name: own_name.unwrap_or(&key.name).to_owned(),
        digest,
        models: key.models.clone(),
        scopes: scopes.collect(),
        organization: key.organization_id.clone(),
        subscriptions: key.subscriptions.clone(),
        requests_per_minute: key.requests_per_minute.and_then(|count| u32::try_from(count).ok()),
        weekly_budget: key.weekly_budget.filter(|budget| *budget > MicroUsd::ZERO),
        max_priority: match key.priority.as_str() {
            "low" => config::Priority::Low,
            "normal" => config::Priority::Normal,
            _ => config::Priority::High,
        },
        expires_at: key.expires_at,
    })
}

fn decode_hex(digits: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if digits.len() != 64 || !digits.is_ascii() {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}
