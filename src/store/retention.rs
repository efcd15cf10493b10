//! What is kept for how long, so that the store does not grow without end.

use std::time::Duration;

use super::sql::Sql;
use super::usage::DAY;
use super::{Database, Result, Store};
use crate::units::Timestamp;

/// Rows that one transaction moves or removes: it takes a moment however much there is, and lets writers in after it.
const TURN: u32 = 5000;

/// What grows without end, and what its age is told by.
const TABLES: [(&str, &str); 4] = [
    ("activities", "started_at"),
    ("quota_alerts", "created_at"),
    ("audit_log", "at"),
    ("sticky_sessions", "last_used"),
];

/// How long things are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Single usage records; then only the sum of each day is kept. Never less than the 8 days that budgets need.
    pub usage: Duration,
    /// The sums of days.
    pub usage_days: Duration,
    /// Activities.
    pub activities: Duration,
    /// Alerts that are over, and those that never will be.
    pub alerts: Duration,
    /// The audit log.
    pub audit: Duration,
    /// Sessions that nobody used.
    pub sessions: Duration,
}

/// What was too old.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Usage records that became part of a day's sum.
    pub usage: u64,
    /// Everything else that was removed.
    pub others: u64,
}

impl Store {
    /// Sums up and removes what is too old at `now`.
    pub async fn prune(&self, now: Timestamp, retention: &Retention) -> Result<Pruned> {
        let usage = self.sum_up_usage(now - retention.usage.max(DAY * 8)).await?;
        let ages = [retention.activities, retention.alerts, retention.audit, retention.sessions];
        // One row a day, subscription, client and model: few.
        let mut days = Sql::new("DELETE FROM usage_days WHERE day < ");
        days.bind(now - retention.usage_days);
        let mut others = self.execute(days).await?;
        for ((table, time), age) in TABLES.into_iter().zip(ages) {
            others += self.remove(table, time, now - age).await?;
        }
        Ok(Pruned { usage, others })
    }

    /// Removes what is older than `before`, some at a time: what is gone stays gone if it ends in between.
    async fn remove(&self, table: &str, time: &str, before: Timestamp) -> Result<u64> {
        let mut removed = 0;
        loop {
            let mut sql = Sql::new("DELETE FROM ");
            sql.push(table).push(" WHERE id IN (SELECT id FROM ").push(table);
            sql.push(" WHERE ").push(time).push(" < ").bind(before);
            sql.push(" ORDER BY ").push(time).push(" LIMIT ").bind(i64::from(TURN)).push(")");
            let count = self.execute(sql).await?;
            removed += count;
            if count < u64::from(TURN) {
                return Ok(removed);
            }
        }
    }

    /// Replaces the records of whole days (UTC) before `before` by their sums. Some records at a time: nothing is lost or
    /// counted twice if it ends in between.
    async fn sum_up_usage(&self, before: Timestamp) -> Result<u64> {
        let end = start_of_day(before);
        let mut removed = 0;
        loop {
            let Some(until) = self.turn_until(end).await? else { return Ok(removed) };
            // Two programs that do this at the same time would both count what both read, and a record that comes in
            // between would be removed but not counted.
            let mut statements = match self.0.database {
                Database::Sqlite(_) => Vec::new(),
                Database::Postgres(_) => vec![
                    Sql::new("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"),
                    Sql::new("LOCK TABLE usage_days IN SHARE ROW EXCLUSIVE MODE"),
                ],
            };
            statements.extend([sum_up(until), forget(until)]);
            let changed = self.transaction(statements).await?;
            removed += changed.last().copied().unwrap_or_default();
        }
    }

    /// Before when some thousand records lie that are older than `end`; `None` if there is none.
    async fn turn_until(&self, end: Timestamp) -> Result<Option<Timestamp>> {
        let mut sql = Sql::new("SELECT MAX(at) AS latest FROM (SELECT at FROM usage_records WHERE at < ");
        sql.bind(end).push(" ORDER BY at LIMIT ").bind(i64::from(TURN)).push(") AS oldest");
        let latest = self.fetch(sql).await?.first().map(|row| row.maybe_time("latest")).transpose()?.flatten();
        // All that were made in the same millisecond go together.
        Ok(latest.map(|latest| latest + Duration::from_millis(1)))
    }
}

fn sum_up(until: Timestamp) -> Sql {
    const SUMS: [&str; 7] = [
        "cost",
        "input_tokens",
        "output_tokens",
        "reasoning_tokens",
        "cache_creation_tokens",
        "cache_read_tokens",
        "duration_ms",
    ];
    let mut sql = Sql::new("INSERT INTO usage_days (day, organization_id, subscription, client, model, requests");
    for column in SUMS {
        sql.push(", ").push(column);
    }
    sql.push(") SELECT at - at % 86400000, COALESCE(organization_id, ''), subscription, client, model, COUNT(*)");
    for column in SUMS {
        sql.push(", CAST(SUM(").push(column).push(") AS BIGINT)");
    }
    sql.push(" FROM usage_records WHERE at < ").bind(until);
    sql.push(" GROUP BY 1, 2, 3, 4, 5 ON CONFLICT (day, organization_id, subscription, client, model) DO UPDATE SET ");
    sql.push("requests = usage_days.requests + excluded.requests");
    for column in SUMS {
        sql.push(", ").push(column).push(" = usage_days.").push(column).push(" + excluded.").push(column);
    }
    sql
}

fn forget(until: Timestamp) -> Sql {
    let mut sql = Sql::new("DELETE FROM usage_records WHERE at < ");
    sql.bind(until);
    sql
}

fn start_of_day(at: Timestamp) -> Timestamp {
    let day = i64::try_from(DAY.as_millis()).unwrap_or(i64::MAX);
    Timestamp::from_millis(at.as_millis() - at.as_millis().rem_euclid(day))
}
