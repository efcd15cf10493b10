//! What was used, in sums that are small enough to be read at a start: budgets are reckoned from them.

use std::time::Duration;

use super::sql::{Row, Sql};
use super::usage::{UsageRecord, tokens};
use super::{Result, Store};
use crate::conversation::Usage;
use crate::units::{MicroUsd, Timestamp};

/// Names that one statement asks for; of more, everybody's sums are read.
const NAMES: usize = 100;

/// Whose use is summed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SumOf {
    /// Each subscription's.
    Subscription,
    /// Each client key's.
    Client,
}

/// What somebody used within a step of time. Sums are exact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageSum {
    /// The subscription's or the client's name.
    pub name: String,
    /// When the last record in it was made.
    pub at: Timestamp,
    /// Micro-dollars.
    pub cost: MicroUsd,
    /// Tokens.
    pub usage: Usage,
}

impl From<&UsageRecord> for UsageSum {
    /// A sum of one.
    fn from(record: &UsageRecord) -> Self {
        let UsageRecord { subscription, at, cost, usage, .. } = record;
        Self { name: subscription.clone(), at: *at, cost: *cost, usage: *usage }
    }
}

impl Store {
    /// Sums from `from` until before `until`, one for each name and `step` (counted from 1970), the oldest first. Of
    /// `names` only; of everybody if there are none or very many. Reads no more than a few hours well within
    /// [`Store::CALL_LIMIT`] if much was used in them.
    pub async fn usage_sums(
        &self,
        of: SumOf,
        names: &[String],
        from: Timestamp,
        until: Timestamp,
        step: Duration,
    ) -> Result<Vec<UsageSum>> {
        let name = match of {
            SumOf::Subscription => "subscription",
            SumOf::Client => "client",
        };
        let step = i64::try_from(step.as_millis()).unwrap_or(i64::MAX).max(1);
        let mut sql = Sql::new("SELECT ");
        sql.push(name).push(" AS name, at / ").bind(step).push(" AS step, MAX(at) AS latest");
        for sum in
            ["cost", "input_tokens", "output_tokens", "reasoning_tokens", "cache_creation_tokens", "cache_read_tokens"]
        {
            sql.push(", CAST(SUM(").push(sum).push(") AS BIGINT) AS ").push(sum);
        }
        sql.push(" FROM usage_records WHERE at >= ").bind(from).push(" AND at < ").bind(until);
        if !names.is_empty() && names.len() <= NAMES {
            sql.one_of(name, names);
        }
        sql.push(" GROUP BY 1, 2 ORDER BY 3");
        let read = |row: &Row| {
            let (name, at) = (row.text("name")?, row.time("latest")?);
            Ok(UsageSum { name, at, cost: row.money("cost")?, usage: tokens(row)? })
        };
        self.fetch(sql).await?.iter().map(read).collect()
    }

    /// From when on there are the newest `count` records; `None` if there are not so many.
    pub async fn newest_usage(&self, count: usize) -> Result<Option<Timestamp>> {
        let mut sql = Sql::new("SELECT at FROM usage_records ORDER BY at DESC LIMIT 1 OFFSET ");
        sql.bind(i64::try_from(count.saturating_sub(1)).unwrap_or(i64::MAX));
        self.fetch(sql).await?.first().map(|row| row.time("at")).transpose()
    }
}
