//! What each attempt used, and sums of it.

use std::time::Duration;

use serde::Serialize;

use super::page::Item;
use super::sql::{Row, Sql};
use super::{Page, Paged, Result, Scope, Store};
use crate::conversation::Usage;
use crate::units::{MicroUsd, Timestamp};

const COLUMNS: &str = "id, organization_id, subscription, client, session, model, activity_id, at, cost, input_tokens, \
                       output_tokens, reasoning_tokens, cache_creation_tokens, cache_read_tokens, duration_ms, \
                       outcome";

/// Records that one statement writes; both databases limit the number of values.
pub(super) const BATCH: usize = 500;

/// What one attempt used.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UsageRecord {
    /// From [`super::new_id`], given once: the same record may be written any number of times and counts once.
    pub id: String,
    /// Whose it is, where there are organisations.
    pub organization_id: Option<String>,
    /// The subscription's name.
    pub subscription: String,
    /// The name of the client's key.
    pub client: String,
    /// The session, as shown in `/debug/auth-pool`.
    pub session: String,
    /// The model's id.
    pub model: String,
    /// The activity it belongs to.
    pub activity_id: Option<String>,
    /// When the attempt ended.
    pub at: Timestamp,
    /// What it cost, in micro-dollars.
    pub cost: MicroUsd,
    /// Tokens.
    pub usage: Usage,
    /// How long it took, in milliseconds.
    pub duration_ms: u64,
    /// How it ended: `completed`, `abandoned`, ...
    pub outcome: String,
}

impl Item for UsageRecord {
    fn id(&self) -> &str {
        &self.id
    }
}

/// Which records are meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UsageFilter {
    /// Whose.
    pub scope: Scope,
    /// Of this subscription.
    pub subscription: Option<String>,
    /// Of the client key with this name.
    pub client: Option<String>,
    /// Of this model.
    pub model: Option<String>,
    /// From then on.
    pub from: Option<Timestamp>,
    /// Before then.
    pub until: Option<Timestamp>,
}

/// What sums are made by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UsageGroup {
    /// One sum.
    All,
    /// One for each subscription.
    Subscription,
    /// One for each client key.
    Client,
    /// One for each model.
    Model,
    /// One for each day (UTC); [`UsageTotals::key`] is its first millisecond.
    Day,
}

/// A sum of records.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UsageTotals {
    /// What it is the sum for; empty for [`UsageGroup::All`].
    pub key: String,
    /// Attempts that used anything.
    pub requests: u64,
    /// Micro-dollars.
    pub cost: MicroUsd,
    /// Tokens.
    pub usage: Usage,
    /// Milliseconds that they took together.
    pub duration_ms: u64,
}

impl Store {
    /// Writes records; those that are there already are left as they are.
    pub async fn add_usage(&self, records: &[UsageRecord]) -> Result<()> {
        self.transaction(insert(records)).await.map(drop)
    }

    /// Records, the newest first.
    pub async fn usage(&self, filter: &UsageFilter, page: &Page) -> Result<Paged<UsageRecord>> {
        let mut sql = Sql::new("SELECT ");
        sql.push(COLUMNS).push(" FROM usage_records WHERE TRUE");
        conditions(&mut sql, filter, "at");
        self.long_page(sql, page, read).await
    }

    /// Sums, the dearest first. Days that are kept as sums only belong to a range if they begin in it.
    pub async fn usage_totals(&self, filter: &UsageFilter, group: UsageGroup) -> Result<Vec<UsageTotals>> {
        let (of_record, of_day) = match group {
            UsageGroup::All => ("''", "''"),
            UsageGroup::Subscription => ("subscription", "subscription"),
            UsageGroup::Client => ("client", "client"),
            UsageGroup::Model => ("model", "model"),
            UsageGroup::Day => ("CAST(at - at % 86400000 AS TEXT)", "CAST(day AS TEXT)"),
        };
        let mut sql = Sql::new("SELECT bucket");
        for sum in [
            "requests",
            "cost",
            "input_tokens",
            "output_tokens",
            "reasoning_tokens",
            "cache_creation_tokens",
            "cache_read_tokens",
            "duration_ms",
        ] {
            // PostgreSQL makes a decimal number of a sum.
            sql.push(", CAST(SUM(").push(sum).push(") AS BIGINT) AS ").push(sum);
        }
        let counted = "cost, input_tokens, output_tokens, reasoning_tokens, cache_creation_tokens, \
                       cache_read_tokens, duration_ms";
        sql.push(" FROM (SELECT ").push(of_record).push(" AS bucket, 1 AS requests, ").push(counted);
        sql.push(" FROM usage_records WHERE TRUE");
        conditions(&mut sql, filter, "at");
        sql.push(" UNION ALL SELECT ").push(of_day).push(" AS bucket, requests, ").push(counted);
        sql.push(" FROM usage_days WHERE TRUE");
        conditions(&mut sql, filter, "day");
        sql.push(") AS everything GROUP BY bucket ORDER BY cost DESC, bucket");
        self.read_much(sql).await?.iter().map(read_totals).collect()
    }

    /// What subscriptions used since `from`, the oldest first: what budgets are reckoned from. `after` names the last
    /// one that was read, by time and id.
    pub async fn usage_since(
        &self,
        from: Timestamp,
        after: Option<&(Timestamp, String)>,
        limit: u32,
    ) -> Result<Vec<UsageRecord>> {
        let mut sql = Sql::new("SELECT ");
        sql.push(COLUMNS).push(" FROM usage_records WHERE at >= ").bind(after.map_or(from, |(at, _)| *at));
        if let Some((at, id)) = after {
            sql.push(" AND (at > ").bind(*at).push(" OR id > ").bind(id).push(")");
        }
        sql.push(" ORDER BY at, id LIMIT ").bind(i64::from(limit));
        self.fetch(sql).await?.iter().map(read).collect()
    }
}

/// The statements that write `records`.
pub(super) fn insert(records: &[UsageRecord]) -> Vec<Sql> {
    let statement = |records: &[UsageRecord]| {
        let mut sql = Sql::new("INSERT INTO usage_records (");
        sql.push(COLUMNS).push(") VALUES ");
        for (index, record) in records.iter().enumerate() {
            sql.tuple(
                if index == 0 { "" } else { ", " },
                [
                    (&record.id).into(),
                    (&record.organization_id).into(),
                    (&record.subscription).into(),
                    (&record.client).into(),
                    (&record.session).into(),
                    (&record.model).into(),
                    (&record.activity_id).into(),
                    record.at.into(),
                    record.cost.into(),
                    record.usage.input.into(),
                    record.usage.output.into(),
                    record.usage.reasoning.into(),
                    record.usage.cache_creation.into(),
                    record.usage.cache_read.into(),
                    record.duration_ms.into(),
                    record.outcome.as_str().into(),
                ],
            );
        }
        sql.push(" ON CONFLICT (id) DO NOTHING");
        sql
    };
    records.chunks(BATCH).map(statement).collect()
}

fn conditions(sql: &mut Sql, filter: &UsageFilter, time: &str) {
    sql.filter("organization_id =", filter.scope.organization());
    sql.filter("subscription =", filter.subscription.as_deref());
    sql.filter("client =", filter.client.as_deref());
    sql.filter("model =", filter.model.as_deref());
    sql.filter(&format!("{time} >="), filter.from);
    sql.filter(&format!("{time} <"), filter.until);
}

pub(super) fn tokens(row: &Row) -> Result<Usage> {
    Ok(Usage {
        input: row.count("input_tokens")?,
        output: row.count("output_tokens")?,
        reasoning: row.count("reasoning_tokens")?,
        cache_creation: row.count("cache_creation_tokens")?,
        cache_read: row.count("cache_read_tokens")?,
    })
}

fn read(row: &Row) -> Result<UsageRecord> {
    Ok(UsageRecord {
        id: row.text("id")?,
        organization_id: row.maybe_text("organization_id")?,
        subscription: row.text("subscription")?,
        client: row.text("client")?,
        session: row.text("session")?,
        model: row.text("model")?,
        activity_id: row.maybe_text("activity_id")?,
        at: row.time("at")?,
        cost: row.money("cost")?,
        usage: tokens(row)?,
        duration_ms: row.count("duration_ms")?,
        outcome: row.text("outcome")?,
    })
}

fn read_totals(row: &Row) -> Result<UsageTotals> {
    Ok(UsageTotals {
        key: row.text("bucket")?,
        requests: row.count("requests")?,
        cost: row.money("cost")?,
        usage: tokens(row)?,
        duration_ms: row.count("duration_ms")?,
    })
}

/// A day, as sums are kept.
pub(super) const DAY: Duration = Duration::from_hours(24);
