//! Where the store is: an SQLite file or a PostgreSQL database.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::str::FromStr as _;
use std::time::Duration;

use sqlx::ConnectOptions as _;
use sqlx::postgres::PgConnectOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};

use super::StoreError;

/// How long one writer of an SQLite file waits for another.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// See the module's description.
#[derive(Clone)]
pub enum Location {
    /// An SQLite file.
    Sqlite {
        /// The file.
        path: PathBuf,
        /// How it is opened.
        options: Box<SqliteConnectOptions>,
    },
    /// A PostgreSQL database.
    Postgres {
        /// How it is reached. Can hold a password.
        options: Box<PgConnectOptions>,
    },
}

/// A URL that names no store. Does not quote it: it can hold a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LocationError {
    /// Another kind of URL.
    #[error("must begin with `sqlite:`, `postgres://` or `postgresql://`")]
    UnknownScheme,
    /// `sqlite:` with nothing behind it, or with parameters.
    #[error("must name a file: `sqlite:/path/to/file`")]
    NoFile,
    /// PostgreSQL's client does not understand it.
    #[error("must look like `postgres://user:password@host:5432/database`")]
    NotPostgres,
}

impl Location {
    /// An SQLite file.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let options = SqliteConnectOptions::new()
            .filename(&path)
            .create_if_missing(true)
            // A killed process loses nothing that was committed: the log is in the system's memory by then. A power cut
            // may lose the last commits, but never breaks the file.
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Normal)
            .busy_timeout(BUSY_TIMEOUT)
            .foreign_keys(true)
            // A batch is 50 kB of text, and the writer itself says when one takes long.
            .disable_statement_logging();
        Self::Sqlite { path, options: Box::new(options) }
    }

    /// What a URL names: `sqlite:PATH`, `postgres://...` or `postgresql://...`.
    pub fn from_url(url: &str) -> Result<Self, LocationError> {
        if let Some(rest) = url.strip_prefix("sqlite:") {
            let path = rest.strip_prefix("//").unwrap_or(rest);
            if path.is_empty() || path.contains(['?', '#']) || path == ":memory:" {
                return Err(LocationError::NoFile);
            }
            return Ok(Self::file(path));
        }
        if url.starts_with("postgres://") || url.starts_with("postgresql://") {
            let options = PgConnectOptions::from_str(url).map_err(|_| LocationError::NotPostgres)?;
            let options = options.application_name("auth-pool").disable_statement_logging();
            return Ok(Self::Postgres { options: Box::new(options) });
        }
        Err(LocationError::UnknownScheme)
    }

    /// `sqlite` or `postgres`.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Sqlite { .. } => "sqlite",
            Self::Postgres { .. } => "postgres",
        }
    }

    /// Whether one program at a time serves from it.
    pub const fn is_ours_alone(&self) -> bool {
        matches!(self, Self::Sqlite { .. })
    }

    /// Makes what has to be there before the database can be opened: nobody else may read the file.
    pub(super) fn prepare(&self) -> Result<(), StoreError> {
        let Self::Sqlite { path, .. } = self else { return Ok(()) };
        create(path).map_err(|error| StoreError::Directory { path: path.display().to_string(), error })
    }
}

/// Makes the file where there is none. One that is there is not touched: closing it would drop the locks that SQLite has
/// on it in this process, and the next program to close it would take the log of what was written for its own, and
/// delete it.
pub(super) fn create(path: &Path) -> io::Result<()> {
    if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    match fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Location {
    /// As a URL, without a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite { path, .. } => write!(f, "sqlite:{}", path.display()),
            Self::Postgres { options } => {
                let database = options.get_database().unwrap_or_else(|| options.get_username());
                write!(
                    f,
                    "postgres://{}@{}:{}/{database}",
                    options.get_username(),
                    options.get_host(),
                    options.get_port()
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_name_a_file_or_a_database_and_show_no_password() {
        let shown = |url: &str| Location::from_url(url).map(|location| location.to_string());
        assert_eq!(shown("sqlite:state/pool.db"), Ok("sqlite:state/pool.db".into()));
        assert_eq!(shown("sqlite:///var/lib/pool.db"), Ok("sqlite:/var/lib/pool.db".into()));
        let postgres = Location::from_url("postgres://me:s3cret@db.internal:6543/pool?sslmode=require").unwrap();
        assert_eq!(postgres.to_string(), "postgres://me@db.internal:6543/pool");
        assert!(!format!("{postgres:?}").contains("s3cret"));
        assert_eq!(shown("postgresql://me@localhost/pool"), Ok("postgres://me@localhost:5432/pool".into()));
    }

    #[test]
    fn what_names_no_store_is_refused() {
        let refused = |url: &str| Location::from_url(url).map(drop);
        assert_eq!(refused("mysql://me@host/db"), Err(LocationError::UnknownScheme));
        assert_eq!(refused("/var/lib/pool.db"), Err(LocationError::UnknownScheme));
        for url in ["sqlite:", "sqlite://", "sqlite::memory:", "sqlite:file?mode=memory"] {
            assert_eq!(refused(url), Err(LocationError::NoFile), "{url}");
        }
        assert_eq!(refused("postgres://me@host:port/db"), Err(LocationError::NotPostgres));
    }
}
