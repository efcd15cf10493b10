//! How much memory there is, and how much of it processes take.

use std::fs;
use std::path::{Path, PathBuf};

/// The memory that this program and its children may use, in bytes: the machine's, or less where a control group sets a
/// limit. `None` where the machine does not tell.
pub fn limit() -> Option<u64> {
    let machine = field(&fs::read_to_string("/proc/meminfo").ok()?, "MemTotal:")?;
    Some(
        group_limit(Path::new("/sys/fs/cgroup"), &fs::read_to_string("/proc/self/cgroup").unwrap_or_default())
            .map_or(machine, |group| group.min(machine)),
    )
}

/// The proportional memory (PSS) of a process, in bytes: shared pages count for each by their share. `None` when it is
/// gone, or belongs to somebody else.
pub fn proportional(pid: i32) -> Option<u64> {
    field(&fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?, "Pss:")
}

/// What of a process is in memory, in bytes, pages that it shares in full. Cheap to read.
pub fn resident(pid: i32) -> Option<u64> {
    field(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?, "VmRSS:")
}

/// A line like `Pss:   101 kB`, in bytes.
fn field(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.trim().trim_end_matches("kB").trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The least limit on the way from our control group to the root, of either version. `membership` is the text of
/// `/proc/self/cgroup`.
fn group_limit(root: &Path, membership: &str) -> Option<u64> {
    let mut limits = Vec::new();
    for line in membership.lines() {
        let mut parts = line.splitn(3, ':');
        let (_, Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else { continue };
        let (base, file): (PathBuf, &str) = match controllers {
            "" => (root.to_owned(), "memory.max"),
            list if list.split(',').any(|name| name == "memory") => (root.join("memory"), "memory.limit_in_bytes"),
            _ => continue,
        };
        // In a container the path may be the host's, which is not there: then the root of what we see is our group.
        let group = base.join(path.trim_start_matches('/'));
        let groups = group.ancestors().take_while(|dir| dir.starts_with(&base));
        limits.extend(groups.filter_map(|dir| fs::read_to_string(dir.join(file)).ok()?.trim().parse::<u64>().ok()));
    }
    limits.into_iter().min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_tells() {
        let limit = limit().expect("a Linux machine");
        let own = proportional(i32::try_from(std::process::id()).unwrap()).expect("our own process");
        assert!(own > 0 && own < limit, "{own} of {limit}");
        assert!(resident(i32::try_from(std::process::id()).unwrap()).is_some_and(|all| all > 0 && all < limit));
        assert_eq!(proportional(i32::MAX), None);
    }

    #[test]
    fn the_least_limit_on_the_way_up_holds() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        fs::create_dir_all(at("a/b")).unwrap();
        fs::create_dir_all(at("memory/c")).unwrap();
        let limit = |membership: &str| group_limit(root.path(), membership);
        assert_eq!(limit("0::/a/b\n"), None);
        fs::write(at("a/memory.max"), "1000\n").unwrap();
        fs::write(at("a/b/memory.max"), "max\n").unwrap();
        assert_eq!(limit("0::/a/b\n"), Some(1000));
        fs::write(at("memory/c/memory.limit_in_bytes"), "500\n").unwrap();
        assert_eq!(limit("4:cpu,memory:/c\n0::/a/b\n"), Some(500));
        assert_eq!(limit("4:cpu:/c\n"), None);
        fs::write(at("memory.max"), "700\n").unwrap();
        assert_eq!(limit("0::/somewhere/on/the/host\n"), Some(700));
    }
}
