//! Folders for temporary files, and those that a killed program has left behind.
//!
//! A program that ends in order removes its own. One that is killed cannot, so each folder's name says whose it is, and the
//! next program that starts removes those of programs that run no more.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process;

use tempfile::TempDir;

/// Makes a folder in `parent`, whose name begins with `kind`: some letters. It is for its owner alone, whatever the umask.
pub fn folder(kind: &str, parent: &Path) -> io::Result<TempDir> {
    let prefix = format!("{kind}-{}-{}-", process_ids(), process::id());
    tempfile::Builder::new().prefix(&prefix).permissions(Permissions::from_mode(0o700)).tempdir_in(parent)
}

/// Removes from `parent` the folders that programs which run no more have made with these kinds. What belongs to others, or
/// cannot be removed, stays.
pub fn sweep(kinds: &[&str], parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let owner = kinds.iter().find_map(|kind| name.to_str()?.strip_prefix(kind)?.strip_prefix('-'));
        if owner.is_some_and(is_gone) && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let removed = fs::remove_dir_all(entry.path());
            tracing::debug!(folder = %entry.path().display(), ?removed, "a killed program has left this");
        }
    }
}

/// Whether the program whose folder's name goes on like this runs no more.
fn is_gone(name: &str) -> bool {
    let mut parts = name.split('-');
    let (Some(ids), Some(id), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return false;
    };
    // In another container the same id is another process.
    ids == process_ids() && id.parse::<u32>().is_ok_and(|id| !Path::new("/proc").join(id.to_string()).exists())
}

/// Which numbering of processes ours is: containers have their own.
fn process_ids() -> String {
    let link = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    link.to_string_lossy().chars().filter(char::is_ascii_digit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_for_its_owner_alone() {
        let parent = tempfile::tempdir().unwrap();
        let own = folder("cli", parent.path()).unwrap();
        assert_eq!(fs::metadata(own.path()).unwrap().permissions().mode() & 0o7777, 0o700);
    }

    #[test]
    fn only_what_is_left_behind_is_removed() {
        let parent = tempfile::tempdir().unwrap();
        let at = |name: &str| parent.path().join(name);
        let own = folder("cli", parent.path()).unwrap();
        let ids = process_ids();
        // No system has so many processes.
        let (gone, other) = (format!("cli-{ids}-4194999-AbCdEf"), format!("cli-{ids}1-4194999-AbCdEf"));
        let kept = [other.as_str(), "cli-AbCdEf", "cli-1-2", "cli-x-y-z", "unrelated"];
        for name in kept.iter().chain([&gone.as_str()]) {
            fs::create_dir_all(at(name).join("sockets")).unwrap();
        }
        fs::write(at(&format!("cli-{ids}-4194999-file")), "").unwrap();
        sweep(&["workspace"], parent.path());
        assert!(at(&gone).exists());
        sweep(&["cli", "workspace"], parent.path());
        assert!(!at(&gone).exists());
        assert!(own.path().exists() && kept.iter().all(|name| at(name).exists()));
        assert!(at(&format!("cli-{ids}-4194999-file")).exists());
        sweep(&["cli"], Path::new("/nowhere"));
    }
}
