//! Alerts, and when what they told of was over.

use serde::Serialize;

use super::page::Item;
use super::sql::{Row, Sql};
use super::{AuditEntry, Page, Paged, Result, Scope, Store};
use crate::units::Timestamp;

const COLUMNS: &str = "id, organization_id, account, kind, severity, message, current_value, limit_value, percentage, \
                       quota_type, threshold, created_at, resolved_at";

/// Alerts that one statement names.
const NAMED_AT_ONCE: usize = 500;

/// How far two words of the same threshold may be apart, in percent.
const ROUNDING: f64 = 0.001;

/// An alert.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Alert {
    /// From [`super::new_id`].
    pub id: String,
    /// Whose it is, where there are organisations.
    pub organization_id: Option<String>,
    /// The subscription; `None` for what concerns the whole program.
    pub account: Option<String>,
    /// What it tells: `usage_threshold`, `limit_reached`, ...
    #[serde(rename = "type")]
    pub kind: String,
    /// `info`, `warning`, `critical` or `emergency`.
    pub severity: String,
    /// In words.
    pub message: String,
    /// What was measured, for example micro-dollars used.
    pub current_value: Option<i64>,
    /// What may be used.
    #[serde(rename = "limit")]
    pub limit_value: Option<i64>,
    /// The first as a share of the second, in percent.
    pub percentage: Option<f64>,
    /// What is measured, for example `weekly_budget`.
    pub quota_type: Option<String>,
    /// The share, in percent, from which on it is told.
    pub threshold: Option<f64>,
    /// When it was raised.
    pub created_at: Timestamp,
    /// When what it told of was over.
    pub resolved_at: Option<Timestamp>,
}

impl Item for Alert {
    fn id(&self) -> &str {
        &self.id
    }
}

/// Which alerts are meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AlertFilter {
    /// Whose.
    pub scope: Scope,
    /// Of this subscription.
    pub account: Option<String>,
    /// Of this kind.
    pub kind: Option<String>,
    /// Of this severity.
    pub severity: Option<String>,
    /// Only those that are over, or only those that are not.
    pub resolved: Option<bool>,
    /// Raised from then on.
    pub from: Option<Timestamp>,
    /// Raised before then.
    pub until: Option<Timestamp>,
}

impl Store {
    /// Writes alerts; those that are there already are left as they are.
    pub async fn add_alerts(&self, alerts: &[Alert]) -> Result<()> {
        self.transaction(alerts.iter().map(insert).collect()).await.map(drop)
    }

    /// Says that what the open alerts of a kind told of a subscription was over at `at`; where a threshold is named, only
    /// of that one. Returns how many there were.
    pub async fn resolve_alerts(
        &self,
        account: &str,
        kind: &str,
        threshold: Option<f64>,
        at: Timestamp,
    ) -> Result<u64> {
        self.execute(resolve(account, kind, threshold, at)).await
    }

    /// Says of these alerts that they are over. Those that were over before keep their time. Returns how many were not.
    pub async fn close_alerts(&self, ids: &[String], at: Timestamp) -> Result<u64> {
        let mut closed = 0;
        for ids in ids.chunks(NAMED_AT_ONCE) {
            closed += self.execute(close(ids, at)).await?;
        }
        Ok(closed)
    }

    /// Says of alerts of the whole program that somebody is there who will tell their end, also of those that
    /// [`Store::close_lost_alerts`] has closed.
    pub async fn hold_alerts(&self, ids: &[String], now: Timestamp) -> Result<()> {
        for ids in ids.chunks(NAMED_AT_ONCE) {
            let mut sql = Sql::new("UPDATE quota_alerts SET heard_at = ");
            // One that was taken for lost meanwhile is open again; one that somebody has ended is not.
            sql.bind(now).push(", resolved_at = NULL WHERE (resolved_at IS NULL OR resolved_at = heard_at)");
            sql.one_of("id", ids);
            self.execute(sql).await?;
        }
        Ok(())
    }

    /// Says of those alerts of the whole program that they are over whose end nobody will tell: that were raised, and last
    /// held, before `silent_since`. Returns how many there were.
    pub async fn close_lost_alerts(&self, silent_since: Timestamp, at: Timestamp) -> Result<u64> {
        let mut sql = Sql::new("UPDATE quota_alerts SET resolved_at = ");
        // The same time twice says who has ended it.
        sql.bind(at).push(", heard_at = ").bind(at).push(" WHERE resolved_at IS NULL AND account IS NULL");
        sql.push(" AND COALESCE(heard_at, created_at) < ").bind(silent_since);
        self.execute(sql).await
    }

    /// Says of one alert that it is over, and notes that. One that was over before keeps its time. Returns whether it exists.
    pub async fn resolve_alert(&self, scope: &Scope, id: &str, at: Timestamp, noted: &AuditEntry) -> Result<bool> {
        let mut sql = Sql::new("UPDATE quota_alerts SET resolved_at = COALESCE(resolved_at, ");
        sql.bind(at).push(") WHERE id = ").bind(id);
        sql.filter("organization_id =", scope.organization());
        self.change(sql, noted).await
    }

    /// Alerts, the newest first.
    pub async fn alerts(&self, filter: &AlertFilter, page: &Page) -> Result<Paged<Alert>> {
        let mut sql = Sql::new("SELECT ");
        sql.push(COLUMNS).push(" FROM quota_alerts WHERE TRUE");
        sql.filter("organization_id =", filter.scope.organization());
        sql.filter("account =", filter.account.as_deref());
        sql.filter("kind =", filter.kind.as_deref());
        sql.filter("severity =", filter.severity.as_deref());
        sql.filter("created_at >=", filter.from);
        sql.filter("created_at <", filter.until);
        match filter.resolved {
            Some(true) => sql.push(" AND resolved_at IS NOT NULL"),
            Some(false) => sql.push(" AND resolved_at IS NULL"),
            None => &mut sql,
        };
        self.long_page(sql, page, read).await
    }
}

pub(super) fn insert(alert: &Alert) -> Sql {
    let mut sql = Sql::new("INSERT INTO quota_alerts (");
    sql.push(COLUMNS).push(") VALUES ");
    sql.tuple(
        "",
        [
            (&alert.id).into(),
            (&alert.organization_id).into(),
            (&alert.account).into(),
            (&alert.kind).into(),
            (&alert.severity).into(),
            (&alert.message).into(),
            alert.current_value.into(),
            alert.limit_value.into(),
            alert.percentage.into(),
            (&alert.quota_type).into(),
            alert.threshold.into(),
            alert.created_at.into(),
            alert.resolved_at.into(),
        ],
    );
    sql.push(" ON CONFLICT (id) DO NOTHING");
    sql
}

pub(super) fn resolve(account: &str, kind: &str, threshold: Option<f64>, at: Timestamp) -> Sql {
    let mut sql = Sql::new("UPDATE quota_alerts SET resolved_at = ");
    sql.bind(at).push(" WHERE resolved_at IS NULL AND kind = ").bind(kind).push(" AND account = ").bind(account);
    if let Some(threshold) = threshold {
        sql.push(" AND ABS(threshold - ").bind(Some(threshold)).push(") <= ").bind(Some(ROUNDING));
    }
    sql.filter("created_at <=", Some(at));
    sql
}

/// There must be ids, and not too many: each is bound.
pub(super) fn close(ids: &[String], at: Timestamp) -> Sql {
    let mut sql = Sql::new("UPDATE quota_alerts SET resolved_at = ");
    sql.bind(at).push(" WHERE resolved_at IS NULL").one_of("id", ids);
    sql
}

fn read(row: &Row) -> Result<Alert> {
    Ok(Alert {
        id: row.text("id")?,
        organization_id: row.maybe_text("organization_id")?,
        account: row.maybe_text("account")?,
        kind: row.text("kind")?,
        severity: row.text("severity")?,
        message: row.text("message")?,
        current_value: row.maybe_int("current_value")?,
        limit_value: row.maybe_int("limit_value")?,
        percentage: row.maybe_real("percentage")?,
        quota_type: row.maybe_text("quota_type")?,
        threshold: row.maybe_real("threshold")?,
        created_at: row.time("created_at")?,
        resolved_at: row.maybe_time("resolved_at")?,
    })
}
