//! Which file the CLI is, and whether it is still the same: it can be upgraded while this program runs.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The CLI's file. Two that are equal are the same build.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Binary {
    /// Where it really is, behind all links.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// When it was last written, in nanoseconds since the epoch.
    pub modified: i128,
}

impl Binary {
    /// Finds the file that starting `command` would run. `path` is the value of `PATH`.
    pub fn find(command: &Path, path: Option<&str>) -> io::Result<Self> {
        let found = if command.components().count() > 1 {
            command.to_owned()
        } else {
            std::env::split_paths(path.unwrap_or_default())
                .map(|dir| dir.join(command))
                .find(|file| is_executable(file))
                .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "it is in no directory of PATH"))?
        };
        let path = fs::canonicalize(found)?;
        let metadata = fs::metadata(&path)?;
        if !is_executable(&path) {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "it is not an executable file"));
        }
        let modified = i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
        Ok(Self { path, bytes: metadata.len(), modified })
    }
}

fn is_executable(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn executable(path: &Path, text: &str) {
        fs::write(path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn a_name_is_found_in_path_and_a_link_is_followed() {
        let home = tempfile::tempdir().unwrap();
        let at = |name: &str| home.path().join(name);
        fs::create_dir(at("a")).unwrap();
        fs::create_dir(at("b")).unwrap();
        fs::write(at("a/claude"), "not executable").unwrap();
        executable(&at("build"), "one");
        symlink(at("build"), at("b/claude")).unwrap();
        let path = format!("{}:{}", at("a").display(), at("b").display());
        let found = Binary::find(Path::new("claude"), Some(&path)).unwrap();
        assert_eq!(found.path, fs::canonicalize(at("build")).unwrap());
        assert_eq!(found, Binary::find(&at("b/claude"), None).unwrap());

        executable(&at("build"), "another");
        assert_ne!(found, Binary::find(&at("b/claude"), None).unwrap(), "an upgrade is seen behind the link");
        let missing = Binary::find(Path::new("claude"), Some("/nowhere")).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        assert_eq!(Binary::find(&at("a/claude"), None).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    }
}
