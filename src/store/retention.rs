//! What is kept for how long, so that the store does not grow without end.

use std::time::Duration;

use super::sql::Sql;
use super::usage::DAY;
use super::{Database, Result, Store};
use crate::units::Timestamp;

/// Days that are summed up in one go at most, so that no transaction becomes large.
const DAYS_A_TURN: u32 = 7;

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
        let delete = |table: &str, column: &str, age: Duration| {
            let mut sql = Sql::new("DELETE FROM ");
            sql.push(table).push(" WHERE ").push(column).push(" < ").bind(now - age);
            sql
        };
        let statements = vec![
            delete("usage_days", "day", retention.usage_days),
            delete("activities", "started_at", retention.activities),
            delete("quota_alerts", "created_at", retention.alerts),
            delete("audit_log", "at", retention.audit),
            delete("sticky_sessions", "last_used", retention.sessions),
        ];
        let others = self.transaction(statements).await?.into_iter().sum();
        Ok(Pruned { usage, others })
    }

    /// Replaces the records of whole days (UTC) before `before` by their sums. Some days at a time: nothing is lost or
    /// counted twice if it ends in between.
    async fn sum_up_usage(&self, before: Timestamp) -> Result<u64> {
        let end = start_of_day(before);
        let mut removed = 0;
        loop {
            let oldest = self.fetch(Sql::new("SELECT MIN(at) AS oldest FROM usage_records")).await?;
            let oldest = oldest.first().map(|row| row.maybe_time("oldest")).transpose()?.flatten();
            let Some(from) = oldest.map(start_of_day).filter(|from| *from < end) else { return Ok(removed) };
            let until = (from + DAY * DAYS_A_TURN).min(end);
            // Two programs that do this at the same time would both count what both read.
            let mut statements = match self.0.database {
                Database::Sqlite(_) => Vec::new(),
                Database::Postgres(_) => vec![Sql::new("LOCK TABLE usage_days IN SHARE ROW EXCLUSIVE MODE")],
            };
            statements.extend([sum_up(until), forget(until)]);
            let changed = self.transaction(statements).await?;
            removed += changed.last().copied().unwrap_or_default();
        }
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
