//! Who may use the proxy. Of a key only its digest is kept.

use serde::Serialize;

use super::page::Item;
use super::sql::{Row, Sql};
use super::{AuditEntry, Page, Paged, Result, Scope, Store};
use crate::units::{MicroUsd, Timestamp};

const COLUMNS: &str = "id, organization_id, name, digest, hint, scopes, models, subscriptions, requests_per_minute, \
                       weekly_budget, priority, created_at, expires_at, revoked_at, last_used_at";

/// A key and what it may do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClientKey {
    /// From [`super::new_id`].
    pub id: String,
    /// Whose it is, where there are organisations.
    pub organization_id: Option<String>,
    /// Unique among those that were not withdrawn, over all organisations; shown in logs.
    pub name: String,
    /// SHA-256 of the key, 64 hexadecimal digits.
    #[serde(skip)]
    pub digest: String,
    /// The key's first characters, to tell keys apart.
    pub hint: String,
    /// What it may do: `chat`, `admin`.
    pub scopes: Vec<String>,
    /// The models it may use; `None` for all.
    pub models: Option<Vec<String>>,
    /// The subscriptions it may be served by; `None` for all.
    pub subscriptions: Option<Vec<String>>,
    /// Requests in a minute.
    pub requests_per_minute: Option<u64>,
    /// Micro-dollars in seven days.
    pub weekly_budget: Option<MicroUsd>,
    /// The highest priority it may ask for: `low`, `normal` or `high`.
    pub priority: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it ends by itself.
    pub expires_at: Option<Timestamp>,
    /// When it was withdrawn.
    pub revoked_at: Option<Timestamp>,
    /// When it was last used, to the minute.
    pub last_used_at: Option<Timestamp>,
}

impl Item for ClientKey {
    fn id(&self) -> &str {
        &self.id
    }
}

impl Store {
    /// Adds a key, and notes that; a [`super::StoreError::Conflict`] if its name, digest or id is taken. The name of one that
    /// was withdrawn is free: whoever has it is the same client.
    pub async fn create_client_key(&self, key: &ClientKey, noted: &AuditEntry) -> Result<()> {
        let mut sql = Sql::new("INSERT INTO client_keys (");
        sql.push(COLUMNS).push(") VALUES ");
        sql.tuple(
            "",
            [
                (&key.id).into(),
                (&key.organization_id).into(),
                (&key.name).into(),
                (&key.digest).into(),
                (&key.hint).into(),
                (&Some(key.scopes.clone())).into(),
                (&key.models).into(),
                (&key.subscriptions).into(),
                key.requests_per_minute.into(),
                key.weekly_budget.into(),
                (&key.priority).into(),
                key.created_at.into(),
                key.expires_at.into(),
                key.revoked_at.into(),
                key.last_used_at.into(),
            ],
        );
        self.change(sql, noted).await.map(drop)
    }

    /// Writes what a key may do, its name and its end, and notes that. Returns whether it exists.
    pub async fn update_client_key(&self, scope: &Scope, key: &ClientKey, noted: &AuditEntry) -> Result<bool> {
        let mut sql = Sql::new("UPDATE client_keys SET name = ");
        sql.bind(&key.name).push(", scopes = ").bind(&Some(key.scopes.clone()));
        sql.push(", models = ").bind(&key.models).push(", subscriptions = ").bind(&key.subscriptions);
        sql.push(", requests_per_minute = ").bind(key.requests_per_minute);
        sql.push(", weekly_budget = ").bind(key.weekly_budget).push(", priority = ").bind(&key.priority);
        sql.push(", expires_at = ").bind(key.expires_at).push(" WHERE id = ").bind(&key.id);
        sql.filter("organization_id =", scope.organization());
        self.change(sql, noted).await
    }

    /// Withdraws a key at `now`, and notes that; one that was withdrawn before keeps its time. Returns whether it exists.
    pub async fn revoke_client_key(&self, scope: &Scope, id: &str, now: Timestamp, noted: &AuditEntry) -> Result<bool> {
        let mut sql = Sql::new("UPDATE client_keys SET revoked_at = COALESCE(revoked_at, ");
        sql.bind(now).push(") WHERE id = ").bind(id);
        sql.filter("organization_id =", scope.organization());
        self.change(sql, noted).await
    }

    /// Notes that keys were used, each with the last time.
    pub async fn touch_client_keys(&self, used: &[(String, Timestamp)]) -> Result<()> {
        let touch = |(id, at): &(String, Timestamp)| {
            let mut sql = Sql::new("UPDATE client_keys SET last_used_at = ");
            sql.bind(*at).push(" WHERE id = ").bind(id);
            sql.push(" AND (last_used_at IS NULL OR last_used_at < ").bind(*at).push(")");
            sql
        };
        self.transaction(used.iter().map(touch).collect()).await.map(drop)
    }

    /// A key by its id.
    pub async fn client_key(&self, scope: &Scope, id: &str) -> Result<Option<ClientKey>> {
        let mut sql = select(scope);
        sql.filter("id =", Some(id));
        self.fetch(sql).await?.first().map(read).transpose()
    }

    /// A key by its digest.
    pub async fn client_key_by_digest(&self, digest: &str) -> Result<Option<ClientKey>> {
        let mut sql = select(&Scope::Everything);
        sql.filter("digest =", Some(digest));
        self.fetch(sql).await?.first().map(read).transpose()
    }

    /// Keys; those that were withdrawn only with `revoked`.
    pub async fn client_keys(&self, scope: &Scope, revoked: bool, page: &Page) -> Result<Paged<ClientKey>> {
        let mut sql = select(scope);
        if !revoked {
            sql.push(" AND revoked_at IS NULL");
        }
        self.page(sql, page, read).await
    }
}

fn select(scope: &Scope) -> Sql {
    let mut sql = Sql::new("SELECT ");
    sql.push(COLUMNS).push(" FROM client_keys WHERE TRUE");
    sql.filter("organization_id =", scope.organization());
    sql
}

fn read(row: &Row) -> Result<ClientKey> {
    Ok(ClientKey {
        id: row.text("id")?,
        organization_id: row.maybe_text("organization_id")?,
        name: row.text("name")?,
        digest: row.text("digest")?,
        hint: row.text("hint")?,
        scopes: row.names("scopes")?.unwrap_or_default(),
        models: row.names("models")?,
        subscriptions: row.names("subscriptions")?,
        requests_per_minute: row.maybe_count("requests_per_minute")?,
        weekly_budget: row.maybe_int("weekly_budget")?.map(MicroUsd::from_micros),
        priority: row.text("priority")?,
        created_at: row.time("created_at")?,
        expires_at: row.maybe_time("expires_at")?,
        revoked_at: row.maybe_time("revoked_at")?,
        last_used_at: row.maybe_time("last_used_at")?,
    })
}
