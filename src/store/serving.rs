//! One program serves from an SQLite file: two would each write over what the other has learned, and each would take
//! the other's requests for interrupted ones.
//!
//! Commands that only register or look something up work on the file beside the program that serves.

use std::ffi::OsString;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use tracing::warn;

use super::{Location, StoreError};

/// How often it is looked again whether the file is free, and how long in between: a program that is just ending may have
/// left a child that has not dropped its descriptors yet.
const LOOKS: u32 = 20;
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Held by whoever serves from an SQLite file. A process that ends lets go of it, however it ends.
#[derive(Debug)]
pub struct Serving(#[expect(dead_code, reason = "the lock lasts as long as the file is open")] File);

impl Location {
    /// Keeps other programs from serving from the same SQLite file; nothing to be kept (`None`) of a database. A folder
    /// that cannot be written, or a file system without locks, is no failure. Blocks for a second where another program
    /// serves.
    ///
    /// # Errors
    ///
    /// [`StoreError::InUse`] if another program serves from it.
    pub fn serve(&self) -> Result<Option<Serving>, StoreError> {
        let Self::Sqlite { path, .. } = self else { return Ok(None) };
        match lock(path) {
            Ok(lock) => Ok(Some(Serving(lock))),
            Err(TryLockError::WouldBlock) => Err(StoreError::InUse(path.display().to_string())),
            Err(TryLockError::Error(error)) => {
                warn!(file = %path.display(), %error, "nothing keeps another program from serving from the same file");
                Ok(None)
            }
        }
    }
}

fn lock(path: &Path) -> Result<File, TryLockError> {
    let open = || -> io::Result<File> {
        super::location::create(path)?;
        OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(beside(path))
    };
    let lock = open().map_err(TryLockError::Error)?;
    for _ in 0..LOOKS {
        match lock.try_lock() {
            Err(TryLockError::WouldBlock) => sleep(LOOK_AGAIN),
            outcome => return outcome.map(|()| lock),
        }
    }
    lock.try_lock().map(|()| lock)
}

/// `pool.db` -> `pool.db.lock`. The database file itself has locks of its own, which closing another handle would drop.
fn beside(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".lock");
    name.into()
}
