//! The durable store. One contract over SQLite and over a real PostgreSQL, whose URL is in `AUTH_POOL_TEST_POSTGRES`
//! (`scripts/services.sh` starts one; `scripts/test` always does).

mod books;
mod contract;
mod crowd;
mod kill;
mod kill_program;
mod migrations;
mod writer;

use auth_pool::config::Env;
use auth_pool::runtime::clock;
use auth_pool::store::{AuditEntry, Location, Store, new_id};
use tempfile::TempDir;

/// A store of its own for one test.
pub(super) struct Bench {
    pub(super) store: Store,
    location: Location,
    url: String,
    _folder: Option<TempDir>,
}

impl Bench {
    pub(super) async fn sqlite() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("state/pool.db");
        let (location, url) = (Location::file(&path), format!("sqlite:{}", path.display()));
        let store = Store::open(location.clone()).await.expect("a file");
        Self { store, location, url, _folder: Some(folder) }
    }

    /// A new database in the server of the test run; `None` where there is none and none is asked for.
    pub(super) async fn postgres() -> Option<Self> {
        let env = Env::from_process();
        let Some(server) = env.var("AUTH_POOL_TEST_POSTGRES") else {
            assert!(env.var("AUTH_POOL_TEST_SERVICES").is_none(), "AUTH_POOL_TEST_POSTGRES is not set");
            return not_run();
        };
        let url = new_database(server).await;
        let location = Location::from_url(&url).expect("a URL");
        let store = Store::open(location.clone()).await.expect("a database");
        Some(Self { store, location, url, _folder: None })
    }

    /// Its URL, password and all.
    pub(super) fn url(&self) -> String {
        self.url.clone()
    }

    /// Another one of the same kind, with nothing in it.
    pub(super) async fn empty(&self) -> Location {
        match &self.location {
            Location::Sqlite { path, .. } => Location::file(path.with_file_name("empty.db")),
            Location::Postgres { .. } => Location::from_url(&new_database(&self.url).await).expect("a URL"),
        }
    }

    /// The same database again, as another process would open it.
    pub(super) async fn reopen(&self) -> Store {
        Store::open(self.location.clone()).await.expect("the same database")
    }
}

/// Makes a database in a server, and tells its URL.
async fn new_database(server: &str) -> String {
    let name = format!("test_{}", new_id().replace('-', ""));
    let admin = sqlx::PgPool::connect(server).await.expect("the server");
    let create = sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"));
    sqlx::raw_sql(create).execute(&admin).await.expect("a database");
    admin.close().await;
    let (server, _) = server.rsplit_once('/').expect("a URL");
    format!("{server}/{name}")
}

#[expect(clippy::print_stderr, reason = "who runs the tests shall know")]
fn not_run<T>() -> Option<T> {
    eprintln!("NOT RUN: there is no AUTH_POOL_TEST_POSTGRES");
    None
}

/// An entry of the audit log, for a change whose entry is not what matters.
pub(super) fn noted() -> AuditEntry {
    AuditEntry {
        id: new_id(),
        organization_id: None,
        at: clock::now(),
        actor: "local".to_owned(),
        action: "test".to_owned(),
        target: "something".to_owned(),
        detail: serde_json::json!({}),
    }
}

/// Runs each of these on both databases.
macro_rules! on_both {
    ($($name:ident),+ $(,)?) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(crate::store::Bench::sqlite().await).await;
            })+
        }
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                if let Some(bench) = crate::store::Bench::postgres().await {
                    super::$name(bench).await;
                }
            })+
        }
    };
}
pub(super) use on_both;
