//! The tables' history, part of the program. A step that was released is never changed; a new one is added.

use std::time::Duration;

use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::{PgPool, SqlStr, SqlitePool};
use tokio::time::sleep;

const STEPS: [(i64, &str, &str); 4] = [
    (1, "tables", include_str!("migrations/0001_tables.sql")),
    (2, "alert threshold", include_str!("migrations/0002_alert_threshold.sql")),
    (3, "key names", include_str!("migrations/0003_key_names.sql")),
    (4, "alert heard", include_str!("migrations/0004_alert_heard.sql")),
];

/// How often the steps are tried in an SQLite file, and the pause between two tries.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(50);

/// Takes the steps that a database has not taken. Programs that start at the same moment wait for the first one.
pub(super) async fn in_postgres(pool: &PgPool) -> Result<(), MigrateError> {
    of(&STEPS).run(pool).await
}

/// The same in a file. There is nothing to wait at: whoever finds a step taken that was not a moment ago looks again. A
/// step is taken whole or not at all.
pub(super) async fn in_sqlite(pool: &SqlitePool) -> Result<(), MigrateError> {
    let mut tries = 0;
    loop {
        tries += 1;
        match of(&STEPS).run(pool).await {
            Err(MigrateError::Execute(_) | MigrateError::ExecuteMigration(..)) if tries < TRIES => sleep(PAUSE).await,
            outcome => return outcome,
        }
    }
}

fn of(steps: &[(i64, &'static str, &'static str)]) -> Migrator {
    let steps = steps.iter().map(|&(version, name, sql)| {
        Migration::new(version, name.into(), MigrationType::Simple, SqlStr::from_static(sql), false)
    });
    Migrator::with_migrations(steps.collect())
}

#[cfg(test)]
mod tests {
    use super::super::{Location, Store, StoreError};
    use super::*;

    #[tokio::test]
    async fn what_an_earlier_version_wrote_is_there_after_every_step() {
        let folder = tempfile::tempdir().unwrap();
        let location = Location::file(folder.path().join("pool.db"));
        let store = Store::new(location.clone());
        store.0.location.prepare().unwrap();
        let super::super::Database::Sqlite(pool) = &store.0.database else { panic!("a file") };
        of(&STEPS[..2]).run(pool).await.unwrap();
        let key =
            "INSERT INTO client_keys (id, name, digest, hint, scopes, priority, created_at, revoked_at, weekly_budget)
            VALUES ('k', 'app', 'd', 'ap-1', '[\"chat\"]', 'low', 5, 7, 9)";
        sqlx::raw_sql(key).execute(pool).await.unwrap();
        store.close().await;

        let store = Store::open(location).await.unwrap();
        let key = store.client_key(&crate::store::Scope::Everything, "k").await.unwrap().unwrap();
        assert_eq!((key.name.as_str(), key.digest.as_str(), key.hint.as_str()), ("app", "d", "ap-1"));
        assert_eq!((key.scopes.as_slice(), key.priority.as_str()), (["chat".to_owned()].as_slice(), "low"));
        assert_eq!(key.revoked_at, Some(crate::units::Timestamp::from_millis(7)));
        assert_eq!(key.weekly_budget, Some(crate::units::MicroUsd::from_micros(9)));
    }

    #[tokio::test]
    async fn a_later_version_takes_its_own_steps_only_and_an_earlier_one_refuses_what_it_does_not_know() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pool.db");
        let first = Store::open(Location::file(&path)).await.unwrap();
        let entry = crate::store::StickySession {
            id: "a".to_owned(),
            subscription: "sub1".to_owned(),
            since: crate::units::Timestamp::from_secs(1),
            last_used: crate::units::Timestamp::from_secs(1),
        };
        first.put_sessions(std::slice::from_ref(&entry)).await.unwrap();

        let unknown = (5, "later", "ALTER TABLE sticky_sessions ADD COLUMN note TEXT NOT NULL DEFAULT 'none'");
        let later: Vec<_> = STEPS.into_iter().chain([unknown]).collect();
        let super::super::Database::Sqlite(pool) = &first.0.database else { panic!("a file") };
        // Twice: what is done is left alone.
        for _ in 0..2 {
            of(&later).run(pool).await.unwrap();
        }
        let notes: Vec<String> = sqlx::query_scalar("SELECT note FROM sticky_sessions").fetch_all(pool).await.unwrap();
        assert_eq!(notes, ["none"]);
        // Who is running goes on, for as long as the columns that it knows are there.
        assert_eq!(first.sessions(entry.since, 10).await.unwrap(), [entry]);

        let refused = Store::open(Location::file(&path)).await.map(drop).unwrap_err();
        assert!(matches!(refused, StoreError::Migration(_)), "{refused}");
        assert!(refused.to_string().contains('5'), "{refused}");
    }
}
