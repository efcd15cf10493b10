//! The machine: disk, clock, descriptors, memory.

use std::fs;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use rustix::fs::statvfs;
use rustix::process::{Resource, getrlimit};

use super::{Finding, nearest_existing};
use crate::config::{Config, Env};
use crate::runtime::{clock, memory};
use crate::units::Timestamp;

const MIB: u64 = 1024 * 1024;

/// With less than this much room a database or a CLI process fails soon.
const LEAST_DISK: u64 = 100 * MIB;

/// With less than this it is time to make room.
const SCARCE_DISK: u64 = 1024 * MIB;

/// The newest files of a machine are never this much younger than its clock, unless the clock is slow.
const CLOCK_TOLERANCE: Duration = Duration::from_mins(5);

/// No machine that runs this program has an earlier date: 2025-01-01.
const EARLIEST: Timestamp = Timestamp::from_secs(1_735_689_600);

/// Descriptors for logs, listeners, the event loop, databases and the like.
const OTHER_DESCRIPTORS: u64 = 128;

/// Descriptors of a CLI process: three pipes, and one by which its end is noticed.
const DESCRIPTORS_A_PROCESS: u64 = 4;

/// What one CLI process takes, in bytes of proportional memory: the upper end of what was measured for one that answers.
const PROCESS_MEMORY: u64 = 200 * MIB;

pub(super) fn check(config: Option<&Config>, env: &Env, state_dir: Option<&Path>) -> Vec<Finding> {
    let mut findings = Vec::new();
    match state_dir {
        Some(dir) => findings.push(disk("disk, state directory", dir)),
        None => findings.push(Finding::warning(
            "disk, state directory",
            "there is none: what was learned is forgotten at every stop",
            "set HOME or AUTH_POOL_STATE_DIR",
        )),
    }
    findings.push(disk("disk, temporary files", Path::new(env.var("TMPDIR").unwrap_or("/tmp"))));
    findings.push(clock_sanity(state_dir));
    if let Some(config) = config {
        findings.push(descriptors(config, getrlimit(Resource::Nofile).current));
        findings.push(memory_for_processes(config));
    }
    findings
}

fn disk(check: &str, dir: &Path) -> Finding {
    let shown = dir.display();
    let advice = "name another directory, or let this user write there";
    let looked = nearest_existing(dir).and_then(|existing| {
        let room = statvfs(existing)?;
        tempfile::Builder::new().prefix(".auth-pool-doctor-").tempfile_in(existing)?;
        Ok((room.f_bavail.saturating_mul(room.f_frsize), room.f_files > 0 && room.f_favail == 0))
    });
    match looked {
        Err(error) => Finding::failed(check, format!("{shown} cannot be written: {error}"), advice),
        Ok((_, true)) => Finding::failed(check, format!("{shown}: no inode is free"), "remove files there"),
        Ok((free, false)) => {
            let seen = format!("{shown}: {} free", size(free));
            match free {
                ..LEAST_DISK => Finding::failed(check, seen, "make room"),
                LEAST_DISK..SCARCE_DISK => Finding::warning(check, seen, "make room before it is full"),
                SCARCE_DISK.. => Finding::ok(check, seen),
            }
        }
    }
}

/// Budgets, limits and logins have dates: a clock that is wrong by hours grounds or frees subscriptions at the wrong time.
fn clock_sanity(state_dir: Option<&Path>) -> Finding {
    let written = |path: &Path| {
        let modified = fs::metadata(path).and_then(|metadata| metadata.modified()).ok()?;
        let since_epoch = modified.duration_since(UNIX_EPOCH).ok()?;
        Some(Timestamp::from_millis(i64::try_from(since_epoch.as_millis()).ok()?))
    };
    // Directories that are written to all the time: their date tells when the clock was right at the latest.
    let dirs = [Some(Path::new("/tmp")), Some(Path::new("/run")), state_dir];
    let latest = dirs.into_iter().flatten().filter_map(written).max();
    clock_against(clock::now(), latest)
}

fn clock_against(now: Timestamp, latest: Option<Timestamp>) -> Finding {
    const CHECK: &str = "clock";
    let advice = "set it, for example with systemd-timesyncd or chrony";
    if now < EARLIEST {
        return Finding::failed(CHECK, format!("it says {now}"), advice);
    }
    match latest {
        Some(latest) if latest > now + CLOCK_TOLERANCE => {
            Finding::failed(CHECK, format!("it says {now}, but files were written at {latest}"), advice)
        }
        _ => Finding::ok(CHECK, format!("{now}")),
    }
}

fn descriptors(config: &Config, limit: Option<u64>) -> Finding {
    const CHECK: &str = "file descriptors";
    let connections = u64::from(config.server.max_connections);
    let needed = connections + u64::from(config.claude.max_processes) * DESCRIPTORS_A_PROCESS + OTHER_DESCRIPTORS;
    match limit {
        Some(limit) if limit < needed => Finding::warning(
            CHECK,
            format!("{limit} allowed, up to {needed} needed"),
            "raise the limit (`ulimit -n`, LimitNOFILE), or lower `server.maxConnections`",
        ),
        Some(limit) => Finding::ok(CHECK, format!("{limit} allowed, up to {needed} needed")),
        None => Finding::ok(CHECK, format!("no limit, up to {needed} needed")),
    }
}

fn memory_for_processes(config: &Config) -> Finding {
    const CHECK: &str = "memory";
    let Some(limit) = memory::limit() else {
        return Finding::warning(CHECK, "/proc/meminfo cannot be read", "let this user read /proc");
    };
    let budget = config.claude.max_memory.unwrap_or(limit / 2);
    let most = u64::from(config.claude.max_processes);
    let fit = (budget / PROCESS_MEMORY).max(1);
    let seen = format!(
        "{} of {} for up to {most} CLI processes of about {} each",
        size(budget),
        size(limit),
        size(PROCESS_MEMORY)
    );
    if budget > limit {
        return Finding::warning(CHECK, seen, "lower `claude.maxMemory`: the machine has less");
    }
    if fit < most {
        let advice =
            format!("about {fit} fit, others give way: raise `claude.maxMemory`, or lower `claude.maxProcesses`");
        return Finding::warning(CHECK, seen, advice);
    }
    Finding::ok(CHECK, seen)
}

/// A number of bytes for people.
#[expect(clippy::cast_precision_loss, reason = "shown with one digit")]
fn size(bytes: u64) -> String {
    let mib = bytes as f64 / MIB as f64;
    if mib < 1024.0 { format!("{mib:.0} MiB") } else { format!("{:.1} GiB", mib / 1024.0) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn a_clock_that_is_behind_its_files_is_found() {
        let now = Timestamp::from_secs(1_795_230_143);
        let check = |now, latest| clock_against(now, latest).verdict;
        assert_eq!(check(now, Some(now)), Verdict::Ok);
        assert_eq!(check(now, None), Verdict::Ok);
        assert_eq!(check(now, Some(now + Duration::from_hours(1))), Verdict::Failed);
        assert_eq!(check(Timestamp::from_secs(60), None), Verdict::Failed);
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_found() {
        let home = tempfile::tempdir().unwrap();
        assert_ne!(disk("disk", &home.path().join("not/yet/there")).verdict, Verdict::Failed);
        // Not even root can write there.
        let finding = disk("disk", Path::new("/proc/self"));
        assert_eq!(finding.verdict, Verdict::Failed);
        assert!(finding.seen.contains("/proc/self cannot be written"), "{finding:?}");
    }

    #[test]
    fn sizes_are_for_people() {
        assert_eq!(size(200 * MIB), "200 MiB");
        assert_eq!(size(1536 * MIB), "1.5 GiB");
    }
}
