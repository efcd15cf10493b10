//! Accounts: subscriptions that are registered while the program runs.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;

use secrecy::SecretString;
use serde_json::{Map, Value, json};

use super::fields::{Fields, Query};
use super::member;
use super::{Actor, Admin, AdminError, Body, Result, entry};
use crate::runtime::clock;
use crate::secrets::Purpose;
use crate::store::{self, Account, AuditEntry, StoreError};

/// Fields that go to the pool as they would stand in the configuration.
const SETTINGS: [&str; 9] =
    ["email", "weeklyBudget", "maxClients", "maxConcurrent", "priority", "tier", "configDir", "baseUrl", "models"];
/// Of these, those that reach beyond an organisation: into this machine's files and its network.
const OPERATORS_ONLY: [&str; 2] = ["configDir", "baseUrl"];
const OWN: [&str; 7] = ["organizationId", "name", "type", "enabled", "apiKey", "oauthToken", "metadata"];
/// What may be spent in seven days where nobody says so, in US dollars; as for the user's own profile.
const DEFAULT_BUDGET: f64 = 456.0;
/// Names that are tried when the first one is taken.
const MOST_NAMES: u32 = 100;

impl Admin {
    /// Registers an account, and lets the running pool use it at once.
    pub async fn create_account(&self, actor: &Actor, body: Body) -> Result<Value> {
        let mut fields = Fields::new(body);
        let organization = actor.organization(fields.name("organizationId"))?;
        let name = fields.text("name", 100);
        if name.is_none() && !fields.has("name") {
            fields.wrong("name", "is missing");
        }
        let (api_key, token) = (fields.secret("apiKey"), fields.secret("oauthToken"));
        let kind = fields.word("type", &["claude-pro", "claude-max", "api"]);
        let kind = kind.or(api_key.is_some().then_some("api"));
        let enabled = fields.flag("enabled").unwrap_or(true);
        let metadata = fields.metadata().unwrap_or_else(|| json!({}));
        let mut settings = fields.pick(&SETTINGS);
        settings.retain(|_, value| !value.is_null());
        settings.entry("weeklyBudget").or_insert_with(|| json!(DEFAULT_BUDGET));
        let secret = check_kind(kind, api_key, token, settings.contains_key("configDir"), &mut fields);
        check_reach(actor, &settings, &mut fields);
        fields.finish(&[OWN.as_slice(), &SETTINGS].concat())?;
        let (Some(name), Some(kind)) = (name, kind) else { return Err(AdminError::Invalid(Vec::new())) };

        let _alone = self.0.changing.lock().await;
        let now = clock::now();
        let mut account = Account {
            id: store::new_id(),
            organization_id: organization,
            name: String::new(),
            kind: kind.to_owned(),
            enabled,
            settings: Value::Null,
            sealed_secret: None,
            metadata,
            created_at: now,
            updated_at: now,
        };
        settings.insert("name".to_owned(), name.as_str().into());
        account.settings = Value::Object(settings);
        account.sealed_secret = self.seal(&account, secret.as_ref())?;
        self.give_profile(&mut account, secret.is_some())?;
        let warnings = member::check(&account, secret.as_ref())?;
        self.add(actor, &mut account, &name).await?;
        self.changed().await?;
        let mut view = self.account_view(&account);
        if !warnings.is_empty() {
            view["warnings"] = json!(warnings);
        }
        Ok(view)
    }

    /// Stores an account under a name that nobody else in the pool has.
    async fn add(&self, actor: &Actor, account: &mut Account, name: &str) -> Result<()> {
        let slug = slug(name);
        for number in 1..=MOST_NAMES {
            account.name = if number == 1 { slug.clone() } else { format!("{slug}-{number}") };
            if self.0.host.is_configured(&account.name) {
                continue;
            }
            let entry = account_entry(actor, "account.create", account, json!({ "type": account.kind }));
            match self.store().create_account(account, &entry).await {
                Err(StoreError::Conflict("name")) => {}
                done => {
                    done?;
                    self.tell(&entry);
                    return Ok(());
                }
            }
        }
        Err(AdminError::Conflict(format!("there are {MOST_NAMES} accounts with this name already")))
    }

    /// Accounts, the newest first.
    pub async fn list_accounts(&self, actor: &Actor, mut query: Query) -> Result<Value> {
        let scope = actor.scope_of(query.text("organizationId"))?;
        let (enabled, page) = (query.flag("enabled"), query.page());
        query.finish()?;
        let found = self.store().accounts(&scope, enabled, &page).await?;
        let items: Vec<_> = found.items.iter().map(|account| self.account_view(account)).collect();
        Ok(json!({ "items": items, "next": found.next }))
    }

    /// One account.
    pub async fn read_account(&self, actor: &Actor, id: &str) -> Result<Value> {
        Ok(self.account_view(&self.account(actor, id).await?))
    }

    /// Changes what is named; `null` takes a setting back to its default.
    pub async fn update_account(&self, actor: &Actor, id: &str, body: Body) -> Result<Value> {
        let _alone = self.0.changing.lock().await;
        let before = self.account(actor, id).await?;
        let mut account = before.clone();
        let mut fields = Fields::new(body);
        for fixed in ["organizationId", "type"] {
            if fields.has(fixed) {
                fields.take(fixed);
                fields.wrong(fixed, "cannot be changed; register another account");
            }
        }
        let (api_key, token) = (fields.secret("apiKey"), fields.secret("oauthToken"));
        let has_dir = account.settings.get("configDir").is_some();
        let replaced = api_key.is_some() || token.is_some();
        let secret =
            if replaced { check_kind(known_kind(&account.kind), api_key, token, has_dir, &mut fields) } else { None };
        let name = fields.text("name", 100);
        let enabled = fields.flag("enabled");
        let metadata = fields.metadata();
        let changes = fields.pick(&SETTINGS);
        check_reach(actor, &changes, &mut fields);
        let named: Vec<String> = changes.keys().cloned().collect();
        fields.finish(&["name", "enabled", "apiKey", "oauthToken", "metadata"])?;

        if let Some(settings) = account.settings.as_object_mut() {
            for (field, value) in changes {
                if value.is_null() {
                    settings.shift_remove(&field);
                } else {
                    settings.insert(field, value);
                }
            }
            settings.entry("weeklyBudget").or_insert_with(|| json!(DEFAULT_BUDGET));
            if let Some(name) = name {
                settings.insert("name".to_owned(), name.into());
            }
        }
        account.enabled = enabled.unwrap_or(account.enabled);
        account.metadata = metadata.unwrap_or(account.metadata);
        if secret.is_some() {
            account.sealed_secret = self.seal(&account, secret.as_ref())?;
        }
        account.updated_at = clock::now();
        member::check(&account, secret.as_ref())?;
        self.save(actor, &before, &account, "account.update", json!({ "changed": named, "secret": replaced })).await
    }

    /// Switches an account on or off. Running answers go on.
    pub async fn switch_account(&self, actor: &Actor, id: &str, enabled: bool) -> Result<Value> {
        let _alone = self.0.changing.lock().await;
        let before = self.account(actor, id).await?;
        let account = Account { enabled, updated_at: clock::now(), ..before.clone() };
        let action = if enabled { "account.enable" } else { "account.disable" };
        self.save(actor, &before, &account, action, json!({})).await
    }

    async fn save(
        &self,
        actor: &Actor,
        before: &Account,
        account: &Account,
        action: &str,
        detail: Value,
    ) -> Result<Value> {
        let entry = account_entry(actor, action, account, detail);
        if !self.store().update_account(&actor.scope(), before, account, &entry).await? {
            self.account(actor, &account.id).await?;
            let changed = "somebody else has changed the account meanwhile; look at it and try again";
            return Err(AdminError::Conflict(changed.to_owned()));
        }
        self.tell(&entry);
        self.changed().await?;
        Ok(self.account_view(account))
    }

    /// Removes an account and its secret. What it used stays known.
    pub async fn delete_account(&self, actor: &Actor, id: &str) -> Result<Value> {
        let _alone = self.0.changing.lock().await;
        let account = self.account(actor, id).await?;
        let entry = account_entry(actor, "account.delete", &account, json!({}));
        if !self.store().delete_account(&actor.scope(), id, &entry).await? {
            return Err(AdminError::NotFound("account"));
        }
        self.tell(&entry);
        self.changed().await?;
        Ok(json!({ "id": id, "deleted": true }))
    }

    /// Forgets an account's failures, limits and quarantine.
    pub async fn reset_account(&self, actor: &Actor, id: &str) -> Result<Value> {
        let account = self.account(actor, id).await?;
        match self.0.host.reset(&account.name) {
            Some(true) => {}
            Some(false) => return Err(AdminError::Conflict("the account is not in the pool".to_owned())),
            None => return Err(no_pool()),
        }
        self.note(&account_entry(actor, "account.reset", &account, json!({}))).await;
        Ok(self.account_view(&account))
    }

    /// Looks whether an account could serve, by its login or its key. Nothing is billed.
    pub async fn test_account(&self, actor: &Actor, id: &str) -> Result<Value> {
        let account = self.account(actor, id).await?;
        // Each can start a process, so there is one at a time.
        let Ok(_alone) = self.0.testing.try_lock() else {
            return Err(AdminError::Conflict("an account is being tested; try again in a moment".to_owned()));
        };
        let outcome = self.0.host.test(&account.name).await.ok_or_else(no_pool)?;
        self.note(&account_entry(actor, "account.test", &account, json!({ "ok": outcome["ok"] }))).await;
        Ok(outcome)
    }

    async fn account(&self, actor: &Actor, id: &str) -> Result<Account> {
        self.store().account(&actor.scope(), id).await?.ok_or(AdminError::NotFound("account"))
    }

    fn seal(&self, account: &Account, secret: Option<&SecretString>) -> Result<Option<String>> {
        let Some(secret) = secret else { return Ok(None) };
        let vault = self.0.vault.as_ref().ok_or(AdminError::NoVault)?;
        let sealed = vault.seal(purpose_of(&account.kind), &account.id, secret).map_err(|_| AdminError::Sealing)?;
        Ok(Some(sealed))
    }

    /// A token needs no profile, but the CLI needs a place for its files.
    fn give_profile(&self, account: &mut Account, has_secret: bool) -> Result<()> {
        let Some(settings) = account.settings.as_object_mut() else { return Ok(()) };
        if account.kind == "api" || settings.contains_key("configDir") || !has_secret {
            return Ok(());
        }
        let dir = self.0.profiles.join(&account.id).join(".claude");
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&dir);
        made.map_err(|error| AdminError::Conflict(format!("no CLI profile could be made: {error}")))?;
        settings.insert("configDir".to_owned(), dir.to_string_lossy().into_owned().into());
        Ok(())
    }

    /// What is told of an account: nothing secret.
    fn account_view(&self, account: &Account) -> Value {
        let mut view = json!({
            "id": account.id,
            "organizationId": account.organization_id,
            "name": account.settings.get("name"),
            "subscription": account.name,
            "type": account.kind,
            "status": if account.enabled { "active" } else { "disabled" },
            "hasSecret": account.sealed_secret.is_some(),
            "metadata": account.metadata,
            "createdAt": account.created_at,
            "updatedAt": account.updated_at,
        });
        for (field, value) in account.settings.as_object().into_iter().flatten().filter(|(field, _)| *field != "name") {
            view[field] = value.clone();
        }
        let shadowed = self.0.host.is_configured(&account.name);
        let shadowed = shadowed
            .then(|| "the configuration has a subscription or a backend of the same name, which counts".to_owned());
        if let Some(problem) = shadowed.or_else(|| self.0.host.problem(&account.id)) {
            view["status"] = "unusable".into();
            view["problem"] = problem.into();
        }
        view["live"] = self.0.host.live(&account.name).unwrap_or_default();
        view
    }
}

fn account_entry(actor: &Actor, action: &str, account: &Account, mut detail: Value) -> AuditEntry {
    detail["subscription"] = account.name.as_str().into();
    entry(actor, action, account.organization_id.as_deref(), &account.id, detail)
}

fn no_pool() -> AdminError {
    AdminError::Unavailable("no pool runs here: start `auth-pool serve`".to_owned())
}

/// What an account's secret is used for.
pub(super) fn purpose_of(kind: &str) -> Purpose {
    if kind == "api" { Purpose::ApiKey } else { Purpose::OauthToken }
}

fn known_kind(kind: &str) -> Option<&'static str> {
    ["claude-pro", "claude-max", "api"].into_iter().find(|known| *known == kind)
}

/// The secret that goes with the kind of account.
fn check_kind(
    kind: Option<&str>,
    api_key: Option<SecretString>,
    token: Option<SecretString>,
    has_dir: bool,
    fields: &mut Fields,
) -> Option<SecretString> {
    match (kind, api_key, token) {
        (None, ..) => fields.wrong("type", "is missing: claude-pro, claude-max, or api with an `apiKey`"),
        (Some("api"), None, _) => fields.wrong("apiKey", "is missing: this is an account of type `api`"),
        (Some("api"), _, Some(_)) => fields.wrong("oauthToken", "belongs to claude-pro and claude-max"),
        (Some("api"), Some(key), None) => return Some(key),
        (Some(_), Some(_), _) => fields.wrong("apiKey", "belongs to accounts of type `api`"),
        (Some(_), None, None) if !has_dir => {
            fields.wrong("oauthToken", "is missing: give the token of `claude setup-token`, or `configDir`");
        }
        (Some(_), None, token) => return token,
    }
    None
}

fn check_reach(actor: &Actor, settings: &Map<String, Value>, fields: &mut Fields) {
    if actor.organization.is_some() {
        for field in OPERATORS_ONLY.into_iter().filter(|field| settings.contains_key(*field)) {
            fields.wrong(field, "may be set by the operator of the whole pool only");
        }
    }
}

/// A name that may stand in logs, headers and metrics.
fn slug(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let words: String = name.chars().map(plain).collect();
    let words: Vec<&str> = words.split('-').filter(|word| !word.is_empty()).collect();
    let slug: String = words.join("-").chars().take(48).collect();
    if slug.is_empty() { "account".to_owned() } else { slug.trim_end_matches('-').to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_becomes_one_that_the_pool_can_show() {
        assert_eq!(slug("Production Account"), "production-account");
        assert_eq!(slug("  ../É\u{202e}vil\u{0}  "), "vil");
        assert_eq!(slug("日本"), "account");
        assert!(slug(&"a b".repeat(100)).len() <= 48);
    }
}
