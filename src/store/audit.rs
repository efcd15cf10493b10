//! Who changed what.

use serde::Serialize;
use serde_json::Value;

use super::page::Item;
use super::sql::{Row, Sql};
use super::{Page, Paged, Result, Scope, Store};
use crate::units::Timestamp;

const COLUMNS: &str = "id, organization_id, at, actor, action, target, detail";

/// A change that somebody made. Is never changed itself.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditEntry {
    /// From [`super::new_id`].
    pub id: String,
    /// Whose it is, where there are organisations.
    pub organization_id: Option<String>,
    /// When it was made.
    pub at: Timestamp,
    /// Whose key made it; `local` on the machine itself.
    pub actor: String,
    /// What was done: `account.create`, `client_key.revoke`, ...
    pub action: String,
    /// To what.
    pub target: String,
    /// What changed; nothing secret.
    pub detail: Value,
}

impl Item for AuditEntry {
    fn id(&self) -> &str {
        &self.id
    }
}

/// Which changes are meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuditFilter {
    /// Whose.
    pub scope: Scope,
    /// By this key.
    pub actor: Option<String>,
    /// Of this kind.
    pub action: Option<String>,
    /// To this.
    pub target: Option<String>,
    /// From then on.
    pub from: Option<Timestamp>,
    /// Before then.
    pub until: Option<Timestamp>,
}

impl Store {
    /// Notes something that was done and that is not kept here itself; twice is once.
    pub async fn add_audit(&self, entry: &AuditEntry) -> Result<()> {
        let mut sql = insert(entry);
        sql.push(" ON CONFLICT (id) DO NOTHING");
        self.execute(sql).await.map(drop)
    }

    /// Makes a change and notes it, both or neither of them. Returns whether there was anything to change; if not, nothing
    /// is noted.
    pub(super) async fn change(&self, sql: Sql, noted: &AuditEntry) -> Result<bool> {
        self.transaction_if(vec![sql, insert(noted)], |changed| changed.first().is_some_and(|rows| *rows > 0)).await
    }

    /// Changes, the newest first.
    pub async fn audit(&self, filter: &AuditFilter, page: &Page) -> Result<Paged<AuditEntry>> {
        let mut sql = Sql::new("SELECT ");
        sql.push(COLUMNS).push(" FROM audit_log WHERE TRUE");
        sql.filter("organization_id =", filter.scope.organization());
        sql.filter("actor =", filter.actor.as_deref());
        sql.filter("action =", filter.action.as_deref());
        sql.filter("target =", filter.target.as_deref());
        sql.filter("at >=", filter.from);
        sql.filter("at <", filter.until);
        self.long_page(sql, page, read).await
    }
}

pub(super) fn insert(entry: &AuditEntry) -> Sql {
    let mut sql = Sql::new("INSERT INTO audit_log (");
    sql.push(COLUMNS).push(") VALUES ");
    sql.tuple(
        "",
        [
            (&entry.id).into(),
            (&entry.organization_id).into(),
            entry.at.into(),
            (&entry.actor).into(),
            (&entry.action).into(),
            (&entry.target).into(),
            (&entry.detail).into(),
        ],
    );
    sql
}

fn read(row: &Row) -> Result<AuditEntry> {
    Ok(AuditEntry {
        id: row.text("id")?,
        organization_id: row.maybe_text("organization_id")?,
        at: row.time("at")?,
        actor: row.text("actor")?,
        action: row.text("action")?,
        target: row.text("target")?,
        detail: row.json("detail")?,
    })
}
