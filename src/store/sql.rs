//! A statement that runs on either database, and the rows it returns.
//!
//! Placeholders are `$1`, `$2`, ...: both databases know them. Values keep their type even when there is none, because
//! PostgreSQL wants to know.

use std::fmt::Write as _;

use serde_json::Value;
use sqlx::postgres::{PgArguments, PgConnection, PgRow};
use sqlx::query::Query;
use sqlx::sqlite::{SqliteArguments, SqliteConnection, SqliteRow};
use sqlx::{AssertSqlSafe, PgPool, Postgres, Row as _, Sqlite, SqlitePool};

use super::{Result, StoreError};
use crate::units::{MicroUsd, Timestamp};

/// A value of a statement.
#[derive(Clone, Debug)]
pub(super) enum Bind {
    Text(Option<String>),
    Int(Option<i64>),
    Real(Option<f64>),
    Flag(bool),
}

/// A statement and its values.
#[derive(Clone, Debug)]
pub(super) struct Sql {
    text: String,
    binds: Vec<Bind>,
}

impl Sql {
    pub(super) fn new(text: &str) -> Self {
        Self { text: text.to_owned(), binds: Vec::new() }
    }

    /// Adds text. Never a value: those are bound.
    pub(super) fn push(&mut self, text: &str) -> &mut Self {
        self.text.push_str(text);
        self
    }

    /// Adds a value.
    pub(super) fn bind(&mut self, value: impl Into<Bind>) -> &mut Self {
        self.binds.push(value.into());
        // Writing to a string does not fail.
        let _ = write!(self.text, "${}", self.binds.len());
        self
    }

    /// Adds values in parentheses, with `separator` before them.
    pub(super) fn tuple<const N: usize>(&mut self, separator: &str, values: [Bind; N]) -> &mut Self {
        self.push(separator).push("(");
        for (index, value) in values.into_iter().enumerate() {
            if index > 0 {
                self.push(", ");
            }
            self.bind(value);
        }
        self.push(")")
    }

    /// Adds ` AND <condition> <value>` if there is a value.
    pub(super) fn filter(&mut self, condition: &str, value: Option<impl Into<Bind>>) -> &mut Self {
        if let Some(value) = value {
            self.push(" AND ").push(condition).push(" ").bind(value);
        }
        self
    }

    /// Adds ` AND <column> IN (...)`. There must be values, and not too many: each is bound.
    pub(super) fn one_of(&mut self, column: &str, values: &[String]) -> &mut Self {
        self.push(" AND ").push(column).push(" IN (");
        for (index, value) in values.iter().enumerate() {
            self.push(if index == 0 { "" } else { ", " }).bind(value);
        }
        self.push(")")
    }

    pub(super) async fn fetch_sqlite(self, pool: &SqlitePool) -> Result<Vec<Row>> {
        let rows = self.sqlite().fetch_all(pool).await?;
        Ok(rows.into_iter().map(Row::Sqlite).collect())
    }

    pub(super) async fn fetch_postgres(self, pool: &PgPool) -> Result<Vec<Row>> {
        let rows = self.postgres().fetch_all(pool).await?;
        Ok(rows.into_iter().map(Row::Postgres).collect())
    }

    pub(super) async fn execute_sqlite(self, connection: &mut SqliteConnection) -> Result<u64> {
        Ok(self.sqlite().execute(connection).await?.rows_affected())
    }

    pub(super) async fn execute_postgres(self, connection: &mut PgConnection) -> Result<u64> {
        Ok(self.postgres().execute(connection).await?.rows_affected())
    }

    fn sqlite(self) -> Query<'static, Sqlite, SqliteArguments> {
        let persistent = self.is_worth_keeping();
        let query = sqlx::query(AssertSqlSafe(self.text)).persistent(persistent);
        self.binds.into_iter().fold(query, |query, bind| match bind {
            Bind::Text(value) => query.bind(value),
            Bind::Int(value) => query.bind(value),
            Bind::Real(value) => query.bind(value),
            Bind::Flag(value) => query.bind(value),
        })
    }

    fn postgres(self) -> Query<'static, Postgres, PgArguments> {
        let persistent = self.is_worth_keeping();
        let query = sqlx::query(AssertSqlSafe(self.text)).persistent(persistent);
        self.binds.into_iter().fold(query, |query, bind| match bind {
            // PostgreSQL has no such character in its texts.
            Bind::Text(value) => query.bind(value.map(|text| text.replace('\0', "\u{fffd}"))),
            Bind::Int(value) => query.bind(value),
            Bind::Real(value) => query.bind(value),
            Bind::Flag(value) => query.bind(value),
        })
    }

    /// Batches differ in length, so that the same text hardly comes again.
    fn is_worth_keeping(&self) -> bool {
        self.binds.len() <= 32
    }
}

/// What both databases return, by the names of columns.
pub(super) enum Row {
    Sqlite(SqliteRow),
    Postgres(PgRow),
}

/// Reads a column of either kind of row.
macro_rules! column {
    ($row:expr, $name:expr) => {
        match $row {
            Row::Sqlite(row) => row.try_get($name),
            Row::Postgres(row) => row.try_get($name),
        }
        .map_err(StoreError::Database)
    };
}

impl Row {
    pub(super) fn text(&self, name: &str) -> Result<String> {
        column!(self, name)
    }

    pub(super) fn maybe_text(&self, name: &str) -> Result<Option<String>> {
        column!(self, name)
    }

    pub(super) fn int(&self, name: &str) -> Result<i64> {
        column!(self, name)
    }

    pub(super) fn maybe_int(&self, name: &str) -> Result<Option<i64>> {
        column!(self, name)
    }

    pub(super) fn maybe_real(&self, name: &str) -> Result<Option<f64>> {
        column!(self, name)
    }

    pub(super) fn flag(&self, name: &str) -> Result<bool> {
        column!(self, name)
    }

    /// A count; never negative.
    pub(super) fn count(&self, name: &str) -> Result<u64> {
        Ok(u64::try_from(self.int(name)?).unwrap_or_default())
    }

    pub(super) fn maybe_count(&self, name: &str) -> Result<Option<u64>> {
        Ok(self.maybe_int(name)?.map(|count| u64::try_from(count).unwrap_or_default()))
    }

    pub(super) fn time(&self, name: &str) -> Result<Timestamp> {
        Ok(Timestamp::from_millis(self.int(name)?))
    }

    pub(super) fn maybe_time(&self, name: &str) -> Result<Option<Timestamp>> {
        Ok(self.maybe_int(name)?.map(Timestamp::from_millis))
    }

    pub(super) fn money(&self, name: &str) -> Result<MicroUsd> {
        Ok(MicroUsd::from_micros(self.int(name)?))
    }

    pub(super) fn json(&self, name: &'static str) -> Result<Value> {
        serde_json::from_str(&self.text(name)?).map_err(|_| StoreError::Unreadable(name))
    }

    pub(super) fn names(&self, name: &'static str) -> Result<Option<Vec<String>>> {
        let text = self.maybe_text(name)?;
        text.map(|text| serde_json::from_str(&text).map_err(|_| StoreError::Unreadable(name))).transpose()
    }
}

impl From<&str> for Bind {
    fn from(value: &str) -> Self {
        Self::Text(Some(value.to_owned()))
    }
}

impl From<&String> for Bind {
    fn from(value: &String) -> Self {
        Self::Text(Some(value.clone()))
    }
}

impl From<&Option<String>> for Bind {
    fn from(value: &Option<String>) -> Self {
        Self::Text(value.clone())
    }
}

impl From<Option<&str>> for Bind {
    fn from(value: Option<&str>) -> Self {
        Self::Text(value.map(str::to_owned))
    }
}

/// A list of names, as JSON.
impl From<&Option<Vec<String>>> for Bind {
    fn from(value: &Option<Vec<String>>) -> Self {
        Self::Text(value.as_ref().map(|names| Value::from(names.as_slice()).to_string()))
    }
}

impl From<&Value> for Bind {
    fn from(value: &Value) -> Self {
        Self::Text(Some(value.to_string()))
    }
}

impl From<i64> for Bind {
    fn from(value: i64) -> Self {
        Self::Int(Some(value))
    }
}

/// A count; one that is beyond the database's range is stored as its end.
impl From<u64> for Bind {
    fn from(value: u64) -> Self {
        Self::Int(Some(i64::try_from(value).unwrap_or(i64::MAX)))
    }
}

impl From<Option<u64>> for Bind {
    fn from(value: Option<u64>) -> Self {
        Self::Int(value.map(|value| i64::try_from(value).unwrap_or(i64::MAX)))
    }
}

impl From<Option<i64>> for Bind {
    fn from(value: Option<i64>) -> Self {
        Self::Int(value)
    }
}

impl From<Option<f64>> for Bind {
    fn from(value: Option<f64>) -> Self {
        Self::Real(value)
    }
}

impl From<bool> for Bind {
    fn from(value: bool) -> Self {
        Self::Flag(value)
    }
}

impl From<Timestamp> for Bind {
    fn from(value: Timestamp) -> Self {
        Self::Int(Some(value.as_millis()))
    }
}

impl From<Option<Timestamp>> for Bind {
    fn from(value: Option<Timestamp>) -> Self {
        Self::Int(value.map(Timestamp::as_millis))
    }
}

impl From<MicroUsd> for Bind {
    fn from(value: MicroUsd) -> Self {
        Self::Int(Some(value.as_micros()))
    }
}

impl From<Option<MicroUsd>> for Bind {
    fn from(value: Option<MicroUsd>) -> Self {
        Self::Int(value.map(MicroUsd::as_micros))
    }
}
