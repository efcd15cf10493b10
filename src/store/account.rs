//! Subscriptions that were registered while the program runs.

use std::fmt;

use serde_json::Value;

use super::page::Item;
use super::sql::{Row, Sql};
use super::{AuditEntry, Page, Paged, Result, Scope, Store, audit};
use crate::units::Timestamp;

const COLUMNS: &str =
    "id, organization_id, name, kind, enabled, settings, sealed_secret, metadata, created_at, updated_at";

/// A registered subscription.
#[derive(Clone, PartialEq)]
pub struct Account {
    /// From [`super::new_id`].
    pub id: String,
    /// Whose it is, where there are organisations.
    pub organization_id: Option<String>,
    /// Its name in the pool; unique over all organisations.
    pub name: String,
    /// `claude-pro`, `claude-max` or `api`.
    pub kind: String,
    /// Whether it takes part.
    pub enabled: bool,
    /// Its settings, as in the configuration; nothing secret.
    pub settings: Value,
    /// Its API key or token, encrypted by whoever registers it. Means nothing here.
    pub sealed_secret: Option<String>,
    /// What its owner wants to remember of it.
    pub metadata: Value,
    /// When it was registered.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
}

impl fmt::Debug for Account {
    /// Without its secret, though that is encrypted.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Account")
            .field("id", &self.id)
            .field("organization_id", &self.organization_id)
            .field("name", &self.name)
            .field("kind", &self.kind)
            .field("enabled", &self.enabled)
            .finish_non_exhaustive()
    }
}

impl Item for Account {
    fn id(&self) -> &str {
        &self.id
    }
}

impl Store {
    /// Adds a subscription, and notes that; a [`super::StoreError::Conflict`] if its name or id is taken.
    pub async fn create_account(&self, account: &Account, noted: &AuditEntry) -> Result<()> {
        let mut sql = Sql::new("INSERT INTO claude_accounts (");
        sql.push(COLUMNS).push(") VALUES ");
        sql.tuple(
            "",
            [
                (&account.id).into(),
                (&account.organization_id).into(),
                (&account.name).into(),
                (&account.kind).into(),
                account.enabled.into(),
                (&account.settings).into(),
                (&account.sealed_secret).into(),
                (&account.metadata).into(),
                account.created_at.into(),
                account.updated_at.into(),
            ],
        );
        self.change(sql, noted).await.map(drop)
    }

    /// Writes everything of a subscription but its id, its owner and when it was registered, unless somebody else has
    /// changed it since it was read as `before`, and notes that. Returns whether it was written.
    pub async fn update_account(
        &self,
        scope: &Scope,
        before: &Account,
        account: &Account,
        noted: &AuditEntry,
    ) -> Result<bool> {
        let mut sql = Sql::new("UPDATE claude_accounts SET name = ");
        sql.bind(&account.name).push(", kind = ").bind(&account.kind);
        sql.push(", enabled = ").bind(account.enabled).push(", settings = ").bind(&account.settings);
        sql.push(", sealed_secret = ").bind(&account.sealed_secret).push(", metadata = ").bind(&account.metadata);
        sql.push(", updated_at = ").bind(account.updated_at).push(" WHERE id = ").bind(&account.id);
        sql.push(" AND updated_at = ").bind(before.updated_at);
        // Sealed with another key, it is the same account.
        match &before.sealed_secret {
            Some(sealed) => sql.push(" AND sealed_secret = ").bind(sealed),
            None => sql.push(" AND sealed_secret IS NULL"),
        };
        sql.filter("organization_id =", scope.organization());
        self.change(sql, noted).await
    }

    /// Puts other sealed secrets in the place of those that are there: (id, old, new) each, and notes that. All or none: returns
    /// whether every old one was still there.
    pub async fn replace_secrets(&self, changes: &[(String, String, String)], noted: &AuditEntry) -> Result<bool> {
        let replace = |(id, old, new): &(String, String, String)| {
            let mut sql = Sql::new("UPDATE claude_accounts SET sealed_secret = ");
            sql.bind(new).push(" WHERE id = ").bind(id).push(" AND sealed_secret = ").bind(old);
            sql
        };
        let statements = changes.iter().map(replace).chain([audit::insert(noted)]).collect();
        self.transaction_if(statements, |changed| changed.iter().all(|rows| *rows == 1)).await
    }

    /// Removes a subscription, and notes that. What it used stays known. Returns whether it existed.
    pub async fn delete_account(&self, scope: &Scope, id: &str, noted: &AuditEntry) -> Result<bool> {
        let mut sql = Sql::new("DELETE FROM claude_accounts WHERE id = ");
        sql.bind(id).filter("organization_id =", scope.organization());
        self.change(sql, noted).await
    }

    /// A subscription by its id.
    pub async fn account(&self, scope: &Scope, id: &str) -> Result<Option<Account>> {
        self.one_account(scope, "id =", id).await
    }

    /// A subscription by its name in the pool.
    pub async fn account_by_name(&self, scope: &Scope, name: &str) -> Result<Option<Account>> {
        self.one_account(scope, "name =", name).await
    }

    async fn one_account(&self, scope: &Scope, condition: &str, value: &str) -> Result<Option<Account>> {
        let mut sql = select(scope);
        sql.filter(condition, Some(value));
        self.fetch(sql).await?.first().map(read).transpose()
    }

    /// Registered subscriptions; with `enabled` only those that take part, or only those that do not.
    pub async fn accounts(&self, scope: &Scope, enabled: Option<bool>, page: &Page) -> Result<Paged<Account>> {
        let mut sql = select(scope);
        sql.filter("enabled =", enabled);
        self.page(sql, page, read).await
    }
}

fn select(scope: &Scope) -> Sql {
    let mut sql = Sql::new("SELECT ");
    sql.push(COLUMNS).push(" FROM claude_accounts WHERE TRUE");
    sql.filter("organization_id =", scope.organization());
    sql
}

fn read(row: &Row) -> Result<Account> {
    Ok(Account {
        id: row.text("id")?,
        organization_id: row.maybe_text("organization_id")?,
        name: row.text("name")?,
        kind: row.text("kind")?,
        enabled: row.flag("enabled")?,
        settings: row.json("settings")?,
        sealed_secret: row.maybe_text("sealed_secret")?,
        metadata: row.json("metadata")?,
        created_at: row.time("created_at")?,
        updated_at: row.time("updated_at")?,
    })
}
