//! What the installed CLI can do: tried out against the stand-in, with the very code that serves requests.
//!
//! Nothing here needs an account or the network: the CLI gets a made-up login, an empty profile and the stand-in's
//! address. Each feature is a case of its own ([`cases`]); what was seen is remembered for each build ([`memory`]).
//!
//! A CLI that never asks the stand-in proves nothing (its owner may have wrapped it in something that asks elsewhere):
//! then every feature stays unknown, and unknown counts as there.

mod cases;
mod memory;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use crate::backend::claude_cli::{
    Binary, ClaudeCli, ClaudeCliBackend, Feature, Features, Profile, Settings, SpareSettings, Support, Timers,
};
use crate::conversation::Model;
use crate::runtime::tasks::Tasks;
use crate::standin::{Options, Recorded, Standin};

pub use memory::Memory;

/// The model that is asked for; any that the CLI sends as it is named.
const MODEL: &str = "claude-sonnet-4-5";

/// How long anything may take. Generous: the machine may be busy, and nobody waits.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often something that shall happen is looked for.
const PAUSE: Duration = Duration::from_millis(20);

/// What is tried: a CLI as the pool would run it.
#[derive(Clone)]
pub struct Subject {
    /// The CLI: a path, or a name that is looked up in `PATH`.
    pub command: PathBuf,
    /// This program's own environment, of which an allow-list is passed on.
    pub own_env: BTreeMap<String, String>,
}

/// The CLI, the stand-in and a profile that nobody else uses.
struct Bench {
    standin: Standin,
    claude: ClaudeCli,
    backend: ClaudeCliBackend,
    _home: TempDir,
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.claude.close();
    }
}

/// Tries every feature. `tasks` must outlive the call; processes that were started are gone soon after it.
pub async fn run(subject: &Subject, tasks: &Tasks) -> Features {
    let mut features = Features::default();
    let bench = match Bench::start(subject, tasks).await {
        Ok(bench) => bench,
        Err(error) => return unknown(&format!("the test could not be set up: {error:#}")),
    };
    for feature in Feature::ALL {
        let seen = cases::run(feature, &bench).await;
        if let Err(why) = &seen
            && bench.asked().is_empty()
        {
            return unknown(&format!("the CLI did not ask the stand-in: {why}"));
        }
        features.set(feature, seen.map_or_else(Support::Lacks, |()| Support::Has));
    }
    features
}

fn unknown(why: &str) -> Features {
    let mut features = Features::default();
    for feature in Feature::ALL {
        features.set(feature, Support::Unknown(why.to_owned()));
    }
    features
}

impl Bench {
    async fn start(subject: &Subject, tasks: &Tasks) -> anyhow::Result<Self> {
        Binary::find(&subject.command, subject.own_env.get("PATH").map(String::as_str)).context("no CLI")?;
        let standin = Standin::start(tasks, Options::default()).await?;
        let home = tempfile::Builder::new().prefix("auth-pool-selftest-").tempdir()?;
        let (profile, cwd) = (home.path().join(".claude-selftest"), home.path().join("workspace"));
        for dir in [&profile, &cwd] {
            fs::create_dir(dir)?;
            fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
        }
        let limits = SpareSettings {
            max_processes: 2,
            max_memory: u64::MAX,
            max_spares: 1,
            spares_per_kind: 1,
            idle_timeout: PATIENCE,
            max_line_bytes: 1024 * 1024,
        };
        let claude = ClaudeCli::new(limits, tasks);
        let base_url = standin.base_url();
        let env = [
            ("ANTHROPIC_BASE_URL", base_url.as_str()),
            ("CLAUDE_CODE_OAUTH_TOKEN", "sk-ant-oat01-fake-selftest"),
            ("HOME", &home.path().to_string_lossy()),
            // A proxy that leads out of this machine does not lead to the stand-in.
            ("NO_PROXY", "127.0.0.1"),
            ("no_proxy", "127.0.0.1"),
        ];
        let profile = Profile {
            subscription: "selftest".to_owned(),
            config_dir: Some(profile),
            env: env.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            oauth_token: None,
        };
        let settings = Settings {
            command: subject.command.clone(),
            cwd,
            own_env: subject.own_env.clone(),
            timers: Timers { first_event: PATIENCE, idle: PATIENCE, total: PATIENCE * 2 },
        };
        let backend = claude.backend(profile, settings);
        backend.prepare(&Model::named(MODEL));
        Ok(Self { standin, claude, backend, _home: home })
    }

    /// The questions that reached the stand-in.
    fn asked(&self) -> Vec<Recorded> {
        let mut requests = self.standin.requests();
        requests.retain(|request| request.method == "POST" && request.path.starts_with("/v1/messages?"));
        requests
    }

    /// Those whose body holds `mark`.
    fn asked_with(&self, mark: &str) -> Vec<Recorded> {
        let mut requests = self.asked();
        requests.retain(|request| request.body.to_string().contains(mark));
        requests
    }

    /// Waits until `condition` holds; says whether it ever did.
    async fn until(condition: impl Fn() -> bool) -> bool {
        let deadline = Instant::now() + PATIENCE;
        while !condition() {
            if Instant::now() > deadline {
                return false;
            }
            sleep(PAUSE).await;
        }
        true
    }
}

/// Where what was seen is remembered, in the folder that belongs to this program.
pub fn memory(state_dir: &Path) -> Memory {
    Memory::at(state_dir.join("cli-features.json"))
}
