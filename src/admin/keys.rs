//! Client keys that are made while the program runs.

use std::fmt::Write as _;

use aws_lc_rs::rand;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::fields::{Fields, Query};
use super::{Actor, Admin, AdminError, Body, Result, entry};
use crate::runtime::clock;
use crate::store::{self, AuditEntry, ClientKey, Page, Scope, StoreError};
use crate::units::MicroUsd;

/// Begins every key, so that people and scanners know one when they see it.
const PREFIX: &str = "ap-";
/// Characters that are kept to tell keys apart; the others have more than 200 bits.
const HINT: usize = 8;
const RIGHTS: [&str; 7] =
    ["scopes", "models", "subscriptions", "requestsPerMinute", "weeklyBudget", "maxPriority", "expiresAt"];
const MOST_REQUESTS: u64 = 1_000_000;

impl Admin {
    /// Makes a key. The answer holds it: it is shown this once, and cannot be found out again.
    pub async fn create_key(&self, actor: &Actor, body: Body) -> Result<Value> {
        let mut fields = Fields::new(body);
        let organization = actor.organization(fields.name("organizationId"))?;
        let name = fields.name("name");
        if name.is_none() && !fields.has("name") {
            fields.wrong("name", "is missing");
        }
        let mut key = ClientKey {
            id: store::new_id(),
            organization_id: organization,
            name: String::new(),
            digest: String::new(),
            hint: String::new(),
            scopes: vec!["chat".to_owned()],
            models: None,
            subscriptions: None,
            requests_per_minute: None,
            weekly_budget: None,
            priority: "high".to_owned(),
            created_at: clock::now(),
            expires_at: None,
            revoked_at: None,
            last_used_at: None,
        };
        take_rights(&mut key, &mut fields);
        fields.finish(&[["name", "organizationId"].as_slice(), &RIGHTS].concat())?;
        let Some(name) = name else { return Err(AdminError::Invalid(Vec::new())) };

        let _alone = self.0.changing.lock().await;
        if !is_operators(&key) && self.operators_keys(None).await?.0 == 0 {
            return Err(AdminError::Conflict(
                "the first key must have the scope `admin` and no organisation: as soon as there are keys, nobody gets in \
                 without one"
                    .to_owned(),
            ));
        }
        let text = new_key()?;
        key.name = key.organization_id.as_ref().map_or_else(|| name.clone(), |own| format!("{own}/{name}"));
        if self.0.host.is_configured_key(&key.name) {
            return Err(AdminError::Conflict(format!("a key of the configuration has the name `{name}` already")));
        }
        key.digest = hex(&Sha256::digest(text.as_bytes()));
        key.hint = text.chars().take(HINT).collect();
        let entry = key_entry(actor, "client_key.create", &key, json!({ "scopes": key.scopes }));
        match self.store().create_client_key(&key, &entry).await {
            Err(StoreError::Conflict(_)) => {
                return Err(AdminError::Conflict(format!("there is a key with the name `{name}` already")));
            }
            done => done?,
        }
        self.tell(&entry);
        // It is there, and told only this once: that it is not in use yet is no reason to lose it.
        let outcome = self.changed().await;
        let mut view = self.key_view(&key);
        view["key"] = text.into();
        if let Err(error) = outcome {
            view["warnings"] = json!([error.to_string()]);
        }
        Ok(view)
    }

    /// Keys, the newest first.
    pub async fn list_keys(&self, actor: &Actor, mut query: Query) -> Result<Value> {
        let scope = actor.scope_of(query.text("organizationId"))?;
        let (revoked, page) = (query.flag("revoked").unwrap_or(false), query.page());
        query.finish()?;
        let found = self.store().client_keys(&scope, revoked, &page).await?;
        let items: Vec<_> = found.items.iter().map(|key| self.key_view(key)).collect();
        Ok(json!({ "items": items, "next": found.next }))
    }

    /// One key.
    pub async fn read_key(&self, actor: &Actor, id: &str) -> Result<Value> {
        Ok(self.key_view(&self.key(actor, id).await?))
    }

    /// Changes what is named; `null` lifts a limit.
    pub async fn update_key(&self, actor: &Actor, id: &str, body: Body) -> Result<Value> {
        let _alone = self.0.changing.lock().await;
        let mut key = self.key(actor, id).await?;
        if key.revoked_at.is_some() {
            return Err(AdminError::Conflict("the key was revoked; make another".to_owned()));
        }
        let mut fields = Fields::new(body);
        let changed: Vec<&str> = RIGHTS.into_iter().filter(|name| fields.has(name)).collect();
        take_rights(&mut key, &mut fields);
        fields.finish(&RIGHTS)?;
        if !is_operators(&key) {
            self.keep_the_last(&key.id).await?;
        }
        let entry = key_entry(actor, "client_key.update", &key, json!({ "changed": changed }));
        if !self.store().update_client_key(&actor.scope(), &key, &entry).await? {
            return Err(AdminError::NotFound("client key"));
        }
        self.tell(&entry);
        self.changed().await?;
        Ok(self.key_view(&key))
    }

    /// Withdraws a key: it opens nothing from now on. What runs goes on.
    pub async fn revoke_key(&self, actor: &Actor, id: &str) -> Result<Value> {
        let _alone = self.0.changing.lock().await;
        let mut key = self.key(actor, id).await?;
        self.keep_the_last(&key.id).await?;
        let now = clock::now();
        let entry = key_entry(actor, "client_key.revoke", &key, json!({}));
        if !self.store().revoke_client_key(&actor.scope(), id, now, &entry).await? {
            return Err(AdminError::NotFound("client key"));
        }
        self.tell(&entry);
        self.changed().await?;
        key.revoked_at = key.revoked_at.or(Some(now));
        Ok(self.key_view(&key))
    }

    /// Refuses to take the operator's last key away as long as there are others: nobody could get in to make another.
    async fn keep_the_last(&self, id: &str) -> Result<()> {
        let (operators, others) = self.operators_keys(Some(id)).await?;
        if operators == 0 && (others > 0 || self.0.host.is_exposed()) {
            let message = "it is the last key with the scope `admin` and no organisation: without it nobody could manage \
                           this server";
            return Err(AdminError::Conflict(message.to_owned()));
        }
        Ok(())
    }

    /// How many keys open the operator's views, and how many others there are, but for the one with this id.
    async fn operators_keys(&self, without: Option<&str>) -> Result<(usize, usize)> {
        let configured = self.0.host.configured_keys();
        let (mut operators, mut all) = (configured.admins, configured.all);
        let now = clock::now();
        let mut page = Page { limit: Page::LARGEST, after: None };
        loop {
            let found = self.store().client_keys(&Scope::Everything, false, &page).await?;
            let counted = found.items.iter().filter(|key| without != Some(key.id.as_str()));
            for key in counted.filter(|key| key.expires_at.is_none_or(|end| end > now)) {
                all += 1;
                operators += usize::from(is_operators(key));
            }
            page.after = found.next;
            if page.after.is_none() {
                return Ok((operators, all - operators));
            }
        }
    }

    async fn key(&self, actor: &Actor, id: &str) -> Result<ClientKey> {
        if let Some(key) = self.store().client_key(&actor.scope(), id).await? {
            return Ok(key);
        }
        // Those of the file have no id; whoever names one by its name is told where it is.
        if actor.organization.is_none() && self.0.host.is_configured_key(id) {
            let message =
                format!("the key `{id}` stands in the configuration (`clientKeys`): change or remove it there");
            return Err(AdminError::Conflict(message));
        }
        Err(AdminError::NotFound("client key"))
    }

    fn key_view(&self, key: &ClientKey) -> Value {
        let mut view = serde_json::to_value(key).unwrap_or_default();
        if let Some(fields) = view.as_object_mut() {
            fields.insert("weeklyBudget".to_owned(), json!(key.weekly_budget.map(MicroUsd::as_usd)));
            fields.insert("maxPriority".to_owned(), json!(key.priority));
            fields.shift_remove("priority");
            fields.insert("weeklyUsed".to_owned(), json!(self.0.host.spent(&key.name)));
        }
        view
    }
}

fn key_entry(actor: &Actor, action: &str, key: &ClientKey, mut detail: Value) -> AuditEntry {
    detail["name"] = key.name.as_str().into();
    entry(actor, action, key.organization_id.as_deref(), &key.id, detail)
}

/// Opens what concerns the whole pool.
fn is_operators(key: &ClientKey) -> bool {
    key.organization_id.is_none() && key.scopes.iter().any(|scope| scope == "admin")
}

fn take_rights(key: &mut ClientKey, fields: &mut Fields) {
    if fields.has("scopes") {
        let scopes = fields.list("scopes").unwrap_or_default();
        for (index, _) in scopes.iter().enumerate().filter(|(_, scope)| !matches!(scope.as_str(), "chat" | "admin")) {
            fields.wrong(format!("scopes[{index}]"), "must be chat or admin");
        }
        key.scopes = ["chat", "admin"]
            .into_iter()
            .filter(|known| scopes.iter().any(|scope| scope == known))
            .map(str::to_owned)
            .collect();
        if key.scopes.is_empty() {
            key.scopes.push("chat".to_owned());
        }
    }
    if fields.has("models") {
        key.models = fields.list("models");
    }
    if fields.has("subscriptions") {
        key.subscriptions = fields.list("subscriptions");
    }
    if fields.has("requestsPerMinute") {
        key.requests_per_minute = fields.count("requestsPerMinute", MOST_REQUESTS);
    }
    if fields.has("weeklyBudget") {
        key.weekly_budget = fields.dollars("weeklyBudget");
    }
    if fields.has("maxPriority") {
        let priority = fields.word("maxPriority", &["low", "normal", "high"]);
        priority.unwrap_or("high").clone_into(&mut key.priority);
    }
    if fields.has("expiresAt") {
        key.expires_at = fields.instant("expiresAt");
        if key.expires_at.is_some_and(|end| end <= clock::now()) {
            fields.wrong("expiresAt", "must be in the future");
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// 256 random bits.
fn new_key() -> Result<String> {
    let mut bytes = [0; 32];
    rand::fill(&mut bytes).map_err(|_| AdminError::Unavailable("no random numbers".to_owned()))?;
    Ok(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes)))
}
