//! What a CLI process leaves on disk when it is killed, as every process of ours is in the end.
//!
//! Builds put what they need while they run (sockets, probes of the file system) into the folder for temporary files,
//! and register each process in the profile. They tidy up when they end by themselves only. Without this, some files
//! for each request would pile up for ever.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;
use tokio::fs;
use tokio::time::sleep;
use tracing::debug;

use crate::runtime::scratch;

/// How the names of the folders for temporary files begin.
pub const SCRATCH: &str = "cli";

/// How often traces are tried to be removed, and the first pause between two attempts; each is twice as long as the one
/// before, three seconds in all.
const ATTEMPTS: u32 = 6;
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// Where one process leaves its traces. Dropping it removes the temporary files.
#[derive(Debug)]
pub(super) struct Traces {
    /// The process's own folder for temporary files.
    scratch: TempDir,
    /// The profile's register of processes: `<pid>.json` and `<pid>.<key>.key`.
    register: Option<PathBuf>,
}

impl Traces {
    /// Makes the folder for the temporary files of a process that will get this environment.
    pub(super) fn prepare(env: &[(OsString, OsString)]) -> io::Result<Self> {
        let var = |name: &str| env.iter().find(|(known, _)| known == name).map(|(_, value)| Path::new(value));
        // A short name: the CLI puts sockets there, whose paths may have some hundred characters at most.
        let scratch = scratch::folder(SCRATCH, var("TMPDIR").unwrap_or(Path::new("/tmp")))?;
        let profile = var("CLAUDE_CONFIG_DIR").map(Path::to_owned).or_else(|| Some(var("HOME")?.join(".claude")));
        Ok(Self { scratch, register: profile.map(|profile| profile.join("sessions")) })
    }

    /// What the process has to be told of it.
    pub(super) fn env(&self) -> [(&'static str, &OsStr); 1] {
        [("TMPDIR", self.scratch.path().as_os_str())]
    }

    /// Says that the process did not even start: its folder is empty, and goes without the descriptor that the removal of a
    /// full one takes. For want of those the process may have failed to start.
    pub(super) fn never_left(self) {
        // What remains is tried as usual when this is dropped.
        let _ = std::fs::remove_dir(self.scratch.path());
    }

    /// Removes what the process `pid` has left, which has just gone. To be called at once: its id is free now, and
    /// sooner or later another process gets it.
    ///
    /// Tries again for a while: others of its group may still be about to go, or there are no descriptors left to look
    /// with.
    pub(super) async fn remove(self, pid: i32) {
        let mut pause = FIRST_PAUSE;
        for attempt in 1..=ATTEMPTS {
            // Later the id may be that of another process, whose files these are then.
            let register = self.register.as_ref().filter(|_| attempt == 1 || !is_there(pid));
            let removed = [
                match register {
                    Some(register) => remove_beginning_with(register, &format!("{pid}.")).await,
                    None => Ok(()),
                },
                fs::remove_dir_all(self.scratch.path()).await,
            ];
            let failed =
                removed.into_iter().filter_map(Result::err).find(|error| error.kind() != io::ErrorKind::NotFound);
            let Some(error) = failed else { return };
            debug!(pid, attempt, %error, "a trace of a process remains");
            if attempt < ATTEMPTS {
                sleep(pause).await;
                pause *= 2;
            }
        }
    }
}

fn is_there(pid: i32) -> bool {
    Path::new("/proc").join(pid.to_string()).exists()
}

async fn remove_beginning_with(folder: &Path, beginning: &str) -> io::Result<()> {
    let mut entries = fs::read_dir(folder).await?;
    while let Some(entry) = entries.next_entry().await? {
        if entry.file_name().to_str().is_some_and(|name| name.starts_with(beginning)) {
            fs::remove_file(entry.path()).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_traces_of_that_process_are_removed_and_no_others() -> anyhow::Result<()> {
        let home = tempfile::tempdir()?;
        let at = |name: &str| home.path().join(name);
        std::fs::create_dir_all(at("profile/sessions"))?;
        let (gone, kept) = (
            ["profile/sessions/12.json", "profile/sessions/12.ab.key"],
            ["profile/sessions/123.json", "profile/sessions/1.ab.key", "profile/12.json", "other"],
        );
        for name in gone.iter().chain(&kept) {
            std::fs::write(at(name), "")?;
        }
        let env = [("CLAUDE_CONFIG_DIR", at("profile")), ("TMPDIR", at(""))];
        let env: Vec<(OsString, OsString)> = env.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        let traces = Traces::prepare(&env)?;
        let scratch = traces.scratch.path().to_owned();
        assert_eq!(traces.env(), [("TMPDIR", scratch.as_os_str())]);
        std::fs::create_dir(scratch.join("sockets"))?;
        traces.remove(12).await;
        assert!(!scratch.exists() && gone.iter().all(|name| !at(name).exists()));
        assert!(kept.iter().all(|name| at(name).exists()));
        // With nothing to remove nothing goes wrong.
        Traces::prepare(&env)?.remove(12).await;

        // Something of the group is still at work, so that the first attempts fail.
        let traces = Traces::prepare(&env)?;
        let scratch = traces.scratch.path().to_owned();
        std::fs::write(scratch.join("busy"), "")?;
        std::fs::rename(&scratch, at("away"))?;
        std::fs::write(&scratch, "no folder")?;
        let mends = async {
            sleep(FIRST_PAUSE / 2).await;
            std::fs::remove_file(&scratch)?;
            std::fs::rename(at("away"), &scratch)
        };
        let (mended, ()) = tokio::join!(mends, traces.remove(12));
        mended?;
        assert!(!scratch.exists(), "it was tried again");
        Ok(())
    }
}
