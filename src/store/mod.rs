//! What outlives the process: SQLite by default, PostgreSQL for those who outgrow a machine.
//!
//! One contract, [`Store`], over both: every statement is written once ([`sql`]) and runs on either. Every call ends
//! within [`Store::CALL_LIMIT`], whatever the database does. Nothing here is called while a request waits: what requests
//! leave behind goes through a [`Writer`].

mod account;
mod activity;
mod alert;
mod audit;
mod buffer;
mod client_key;
mod error;
mod location;
mod migrations;
mod page;
mod remembered;
mod retention;
mod serving;
mod sql;
mod sums;
mod usage;
mod writer;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::FutureExt as _;
use sqlx::postgres::PgPoolOptions;
use sqlx::sqlite::SqlitePoolOptions;
use sqlx::{PgPool, SqlitePool};
use tokio::sync::{Mutex, Semaphore};
use tokio::time::timeout;

pub use account::Account;
pub use activity::{Activity, ActivityFilter, ActivityStatus};
pub use alert::{Alert, AlertFilter};
pub use audit::{AuditEntry, AuditFilter};
pub use buffer::{Bounds, Dropped};
pub use client_key::ClientKey;
pub use error::StoreError;
pub use location::{Location, LocationError};
pub use page::{Page, Paged, Scope};
pub use remembered::{StickySession, SubscriptionState};
pub use retention::{Pruned, Retention};
pub use serving::Serving;
pub use sums::{SumOf, UsageSum};
pub use usage::{UsageFilter, UsageGroup, UsageRecord, UsageTotals};
pub use writer::{Health, Watch, Writer};

use sql::{Row, Sql};

/// Connections to PostgreSQL, and readers of an SQLite file, at the same time.
const CONNECTIONS: u32 = 6;

/// Lists and sums that may be read at the same time, so that there is a connection for everything else.
const READERS: usize = 3;

/// How long a call waits for one of them.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// Every result of the store.
pub type Result<T> = std::result::Result<T, StoreError>;

/// A new id: unique everywhere, and later ones sort behind earlier ones.
pub fn new_id() -> String {
    uuid::Uuid::now_v7().to_string()
}

/// The durable store. A cheap handle: clones share connections.
#[derive(Clone)]
pub struct Store(Arc<Shared>);

struct Shared {
    database: Database,
    location: Location,
    /// Whether the tables are known to be there.
    is_ready: AtomicBool,
    /// Held by whoever makes the tables.
    preparing: Mutex<()>,
    /// Lists and sums that are read at the same time.
    readers: Semaphore,
}

enum Database {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

impl fmt::Debug for Store {
    /// Where it is, without a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Store").field(&self.0.location).finish()
    }
}

impl Store {
    /// The longest any call takes; then it fails with [`StoreError::TimedOut`].
    pub const CALL_LIMIT: Duration = Duration::from_secs(10);

    /// A store at `location`. Connects when it is first used: a database that is gone does not fail this.
    pub fn new(location: Location) -> Self {
        Self::with_connections(location, CONNECTIONS)
    }

    /// The same store, with a connection that nobody else uses.
    fn apart(&self) -> Self {
        Self::with_connections(self.0.location.clone(), 1)
    }

    fn with_connections(location: Location, connections: u32) -> Self {
        let database = match &location {
            Location::Sqlite { options, .. } => Database::Sqlite(
                SqlitePoolOptions::new()
                    .max_connections(connections)
                    .acquire_timeout(CONNECT_LIMIT)
                    .connect_lazy_with((**options).clone()),
            ),
            Location::Postgres { options } => Database::Postgres(
                PgPoolOptions::new()
                    .max_connections(connections)
                    .acquire_timeout(CONNECT_LIMIT)
                    .after_connect(|connection, _| {
                        // A call that nobody waits for any more ends at the server too.
                        let limit = format!("SET statement_timeout = {}", Self::CALL_LIMIT.as_millis());
                        async move { sqlx::raw_sql(sqlx::AssertSqlSafe(limit)).execute(connection).await.map(drop) }
                            .boxed()
                    })
                    .connect_lazy_with((**options).clone()),
            ),
        };
        let (is_ready, preparing, readers) = (AtomicBool::new(false), Mutex::new(()), Semaphore::new(READERS));
        Self(Arc::new(Shared { database, location, is_ready, preparing, readers }))
    }

    /// A store whose tables are there and up to date.
    pub async fn open(location: Location) -> Result<Self> {
        let store = Self::new(location);
        store.prepare().await?;
        Ok(store)
    }

    /// Makes the tables, or brings them up to date. Every other call does so first where it was not done yet.
    pub async fn prepare(&self) -> Result<()> {
        if self.0.is_ready.load(Ordering::Acquire) {
            return Ok(());
        }
        limited(async {
            let _alone = self.0.preparing.lock().await;
            if self.0.is_ready.load(Ordering::Acquire) {
                return Ok(());
            }
            self.0.location.prepare()?;
            match &self.0.database {
                Database::Sqlite(pool) => migrations::in_sqlite(pool).await?,
                Database::Postgres(pool) => migrations::in_postgres(pool).await?,
            }
            self.0.is_ready.store(true, Ordering::Release);
            Ok(())
        })
        .await
    }

    /// Where it is; shows no password.
    pub fn location(&self) -> &Location {
        &self.0.location
    }

    /// Whether the database answers, and has our tables.
    pub async fn ping(&self) -> Result<()> {
        self.fetch(Sql::new("SELECT id FROM claude_accounts LIMIT 1")).await.map(drop)
    }

    /// Ends every connection. An SQLite file is left tidy.
    pub async fn close(&self) {
        let close = async {
            match &self.0.database {
                Database::Sqlite(pool) => pool.close().await,
                Database::Postgres(pool) => pool.close().await,
            }
        };
        // Whoever does not answer now is left behind.
        let _ = timeout(Self::CALL_LIMIT / 2, close).await;
    }

    /// Runs one statement and returns its rows.
    async fn fetch(&self, sql: Sql) -> Result<Vec<Row>> {
        self.prepare().await?;
        limited(async {
            match &self.0.database {
                Database::Sqlite(pool) => sql.fetch_sqlite(pool).await,
                Database::Postgres(pool) => sql.fetch_postgres(pool).await,
            }
        })
        .await
    }

    /// The same for one that may take long: only some of them run at a time.
    async fn read_much(&self, sql: Sql) -> Result<Vec<Row>> {
        limited(async {
            // Nobody closes it.
            let _turn = self.0.readers.acquire().await.ok();
            self.fetch(sql).await
        })
        .await
    }

    /// Runs one statement and returns how many rows it changed.
    async fn execute(&self, sql: Sql) -> Result<u64> {
        self.prepare().await?;
        // A statement is a transaction by itself, and by itself it is one way to the database and back.
        limited(
            async {
                match &self.0.database {
                    Database::Sqlite(pool) => sql.execute_sqlite(&mut *pool.acquire().await?).await,
                    Database::Postgres(pool) => sql.execute_postgres(&mut *pool.acquire().await?).await,
                }
            }
            .boxed(),
        )
        .await
    }

    /// Runs statements, all or none of them, and returns how many rows each changed.
    async fn transaction(&self, mut statements: Vec<Sql>) -> Result<Vec<u64>> {
        match statements.len() {
            0 => return Ok(Vec::new()),
            1 => return Ok(vec![self.execute(statements.remove(0)).await?]),
            _ => {}
        }
        let mut rows = Vec::new();
        self.transaction_if(statements, |changed| {
            rows = changed.to_vec();
            true
        })
        .await?;
        Ok(rows)
    }

    /// Runs statements and keeps what they did if `keeps` says so of the rows that each changed. Returns what it said.
    async fn transaction_if(&self, statements: Vec<Sql>, keeps: impl FnOnce(&[u64]) -> bool + Send) -> Result<bool> {
        self.prepare().await?;
        // Boxed: the future is large, and few of them exist.
        limited(
            async {
                let mut changed = Vec::with_capacity(statements.len());
                match &self.0.database {
                    Database::Sqlite(pool) => {
                        // Writers wait for each other at the beginning, where nothing can be lost by it.
                        let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await?;
                        for sql in statements {
                            changed.push(sql.execute_sqlite(&mut transaction).await?);
                        }
                        // A transaction that is dropped is undone.
                        if !keeps(&changed) {
                            return Ok(false);
                        }
                        transaction.commit().await?;
                    }
                    Database::Postgres(pool) => {
                        let mut transaction = pool.begin().await?;
                        for sql in statements {
                            changed.push(sql.execute_postgres(&mut transaction).await?);
                        }
                        if !keeps(&changed) {
                            return Ok(false);
                        }
                        transaction.commit().await?;
                    }
                }
                Ok(true)
            }
            .boxed(),
        )
        .await
    }

    /// One page of what `sql` asks for, ordered by id, the newest first. `sql` ends within its conditions.
    async fn page<T>(&self, sql: Sql, page: &Page, read: impl Fn(&Row) -> Result<T>) -> Result<Paged<T>>
    where
        T: page::Item,
    {
        page::paged(&self.fetch(page::of(sql, page)).await?, page, read)
    }

    /// The same of a table that grows with every request.
    async fn long_page<T>(&self, sql: Sql, page: &Page, read: impl Fn(&Row) -> Result<T>) -> Result<Paged<T>>
    where
        T: page::Item,
    {
        page::paged(&self.read_much(page::of(sql, page)).await?, page, read)
    }
}

async fn limited<T>(call: impl Future<Output = Result<T>>) -> Result<T> {
    timeout(Store::CALL_LIMIT, call).await.unwrap_or(Err(StoreError::TimedOut))
}
