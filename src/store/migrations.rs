//! The tables' history, part of the program. A step that was released is never changed; a new one is added.

use sqlx::SqlStr;
use sqlx::migrate::{Migration, MigrationType, Migrator};

const STEPS: [(i64, &str, &str); 1] = [(1, "tables", include_str!("migrations/0001_tables.sql"))];

/// Knows which steps a database has taken, and takes the others. Several programs may start at once: the first one works.
pub(super) fn migrator() -> Migrator {
    let steps = STEPS.into_iter().map(|(version, name, sql)| {
        Migration::new(version, name.into(), MigrationType::Simple, SqlStr::from_static(sql), false)
    });
    Migrator::with_migrations(steps.collect())
}
