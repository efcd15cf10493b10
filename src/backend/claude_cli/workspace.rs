//! The folder that processes run in: empty, and nobody's but ours.
//!
//! It lies among the temporary files, where everybody may make a folder. Systems clear away there what was not used for
//! some days, and whoever then makes one of the same name decides what a CLI finds around itself. So before each start the
//! folder is looked at, and made again if it is gone.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;

/// For its owner alone.
const MODE: u32 = 0o700;

/// What lets others than the owner put files into a folder.
const OTHERS_MAY_WRITE: u32 = 0o022;

/// Makes the folder if it is gone, and refuses one that others have a say in.
pub(super) fn ensure(path: &Path) -> io::Result<()> {
    ensure_owned_by(path, rustix::process::geteuid().as_raw())
}

/// The same for the user `me`.
fn ensure_owned_by(path: &Path, me: u32) -> io::Result<()> {
    match DirBuilder::new().mode(MODE).create(path) {
        // The umask may have taken rights away that the CLI needs to run there.
        Ok(()) => fs::set_permissions(path, Permissions::from_mode(MODE))?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => {
            return Err(io::Error::new(
                error.kind(),
                format!("its folder `{}` cannot be made: {error}", path.display()),
            ));
        }
    }
    // Of the name itself: where a link leads can change between this look and the start. The rights of root do not make a
    // folder root's.
    let found = fs::symlink_metadata(path)?;
    let wrong = if found.is_symlink() {
        "is a link".to_owned()
    } else if !found.is_dir() {
        "is no folder".to_owned()
    } else if found.uid() != me {
        format!("belongs to the user {}, and this program runs as the user {me}", found.uid())
    } else if found.mode() & OTHERS_MAY_WRITE != 0 {
        format!("may be written by others than its owner (mode {:o})", found.mode() & 0o7777)
    } else {
        return Ok(());
    };
    let advice = "remove it, or start this program with TMPDIR set to a folder that only its user may write";
    let message = format!("`{}`, the folder that CLI processes run in, {wrong}: {advice}", path.display());
    Err(io::Error::new(io::ErrorKind::PermissionDenied, message))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn a_folder_that_is_gone_is_made_for_us_alone_and_kept() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("workspace");
        for _ in 0..2 {
            ensure(&path).unwrap();
            assert_eq!(mode(&path), MODE);
        }
        // Others may look: that changes nothing of what a CLI finds.
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        ensure(&path).unwrap();
        let nowhere = ensure(&home.path().join("nowhere/workspace")).unwrap_err();
        assert_eq!(nowhere.kind(), io::ErrorKind::NotFound);
        assert!(nowhere.to_string().contains("nowhere/workspace"), "{nowhere}");
    }

    #[test]
    fn a_folder_that_others_have_a_say_in_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let at = |name: &str| home.path().join(name);
        let me = rustix::process::geteuid().as_raw();
        let refused = |path: &Path, me: u32, why: &str| {
            let error = ensure_owned_by(path, me).unwrap_err();
            let message = error.to_string();
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{message}");
            for part in [path.to_str().unwrap(), why, "TMPDIR"] {
                assert!(message.contains(part), "{part}: {message}");
            }
        };
        ensure(&at("own")).unwrap();
        refused(&at("own"), me + 1, &format!("belongs to the user {me}"));
        symlink(at("own"), at("link")).unwrap();
        refused(&at("link"), me, "is a link");
        symlink(at("nothing"), at("dangling")).unwrap();
        refused(&at("dangling"), me, "is a link");
        fs::write(at("file"), "").unwrap();
        refused(&at("file"), me, "is no folder");
        for (name, mode) in [("group", 0o770), ("everybody", 0o1777)] {
            fs::create_dir(at(name)).unwrap();
            fs::set_permissions(at(name), Permissions::from_mode(mode)).unwrap();
            refused(&at(name), me, &format!("(mode {mode:o})"));
        }
    }
}
