//! Why the store could not do what it was asked.

use std::io;

/// See the module's description. Shows no password: the database's own messages carry none.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Something with this name exists already.
    #[error("there is already something with this {0}")]
    Conflict(&'static str),
    /// The database did not answer in time.
    #[error("the database did not answer within {} s", super::Store::CALL_LIMIT.as_secs())]
    TimedOut,
    /// The directory of the file could not be made.
    #[error("cannot use {path}: {error}")]
    Directory {
        /// Where.
        path: String,
        /// What the system said.
        error: io::Error,
    },
    /// Another program serves from the same SQLite file.
    #[error("another program serves from {0} already: stop it, or give this one a file of its own")]
    InUse(String),
    /// The tables could not be brought up to date.
    #[error("the tables cannot be brought up to date: {0}")]
    Migration(#[from] sqlx::migrate::MigrateError),
    /// A value in the database is none that this program writes.
    #[error("the database holds a {0} that makes no sense")]
    Unreadable(&'static str),
    /// Anything else that the database or the connection to it said.
    #[error("{0}")]
    Database(sqlx::Error),
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::Database(cause) if cause.is_unique_violation() => {
                // SQLite names the column in its message, PostgreSQL the constraint.
                let said = format!("{} {}", cause.message(), cause.constraint().unwrap_or_default());
                let field = ["name", "digest"].into_iter().find(|field| said.contains(field));
                Self::Conflict(field.unwrap_or("id"))
            }
            _ => Self::Database(error),
        }
    }
}

impl StoreError {
    /// Whether trying the same again later can help.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::TimedOut | Self::Directory { .. } | Self::InUse(_) | Self::Migration(_) => true,
            Self::Database(error) => !matches!(
                error,
                sqlx::Error::ColumnDecode { .. } | sqlx::Error::ColumnNotFound(_) | sqlx::Error::Encode(_)
            ),
            Self::Conflict(_) | Self::Unreadable(_) => false,
        }
    }
}
