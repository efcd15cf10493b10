//! Runs requests through the official `claude` CLI, one config dir a subscription.
//!
//! A process is started ahead of need for a profile and a model ([`spares`]), specialised when a request arrives
//! ([`script`], [`input`]), read line by line ([`output`]) and turned into events ([`turn`]). Then it stays with its
//! conversation ([`live`]), also while the client runs the tools that the model calls ([`tools`]). **One process serves
//! one conversation of one caller, and no other**: a conversation that it does not hold is replayed in another one.
//!
//! Invariants: client text is written to stdin only, inside user messages that are disarmed; nothing of a client ever
//! becomes an argument, an environment variable or a file name. No process outlives its [`process::Process`].

mod answer;
mod binary;
pub(super) mod classify;
mod courtesy;
mod features;
pub(super) mod input;
mod key;
mod kinds;
mod launch;
mod limit_text;
mod live;
mod login;
mod options;
pub(super) mod output;
mod places;
mod probe;
mod process;
#[cfg(test)]
pub(crate) mod replay;
mod script;
mod spares;
mod spawns;
mod start_error;
mod terminal;
mod tools;
mod traces;
mod turn;
mod upkeep;
mod usage;
mod workspace;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use binary::Binary;
pub use features::{Feature, Features, Support};
pub use launch::Profile;
pub use login::Login;
pub use places::MemoryUse;
pub use probe::CliFacts;
pub use spares::{ProcessCounts, SpareSettings};
pub use terminal::hand_over;
pub use traces::SCRATCH;
pub use turn::Timers;
pub use usage::{Polled, UsageProbe};

use arc_swap::ArcSwap;
use futures_util::future::{BoxFuture, FutureExt as _};
use futures_util::stream::{self, StreamExt as _};

use super::{Backend, Caller, EventStream, Failure, FailureKind};
use crate::conversation::{Model, Request};
use crate::runtime::instance;
use crate::runtime::tasks::Tasks;
use kinds::Kinds;
use launch::{Launch, Recipe};
use live::Live;
use spares::Spares;

/// What all CLI processes have in common.
#[derive(Clone)]
pub struct Settings {
    /// The CLI: a path, or a name that is looked up in `PATH`.
    pub command: PathBuf,
    /// An empty directory for processes to run in.
    pub cwd: PathBuf,
    /// This program's own environment, of which an allow-list is passed on.
    pub own_env: BTreeMap<String, String>,
    /// How long a request may take.
    pub timers: Timers,
}

impl fmt::Debug for Settings {
    /// Without the environment, which can hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { command, cwd, timers, .. } = self;
        f.debug_struct("Settings")
            .field("command", command)
            .field("cwd", cwd)
            .field("timers", timers)
            .finish_non_exhaustive()
    }
}

/// All CLI processes of the pool: makes the backend of each subscription. A cheap handle.
#[derive(Clone, Debug)]
pub struct ClaudeCli {
    spares: Spares,
    live: Live,
    features: Arc<ArcSwap<Features>>,
    tasks: Tasks,
}

impl ClaudeCli {
    /// Starts the maker of spares.
    pub fn new(settings: SpareSettings, tasks: &Tasks) -> Self {
        let live = Live::new(settings.idle_timeout, tasks);
        let spares = Spares::new(settings, &live, tasks);
        Self { spares, live, features: Arc::default(), tasks: tasks.clone() }
    }

    /// The backend of one subscription.
    pub fn backend(&self, mut profile: Profile, settings: Settings) -> ClaudeCliBackend {
        profile.mark_requests(instance::id());
        let Settings { command, cwd, own_env, timers } = settings;
        ClaudeCliBackend {
            spares: self.spares.clone(),
            live: self.live.clone(),
            features: Arc::clone(&self.features),
            recipe: Recipe::new(&command, &profile, &cwd, &own_env),
            timers,
            tasks: self.tasks.clone(),
        }
    }

    /// Lets go of spares and live processes that none of these backends would use, and keeps at most `max_spares` of the others: after a
    /// change of the configuration no process of a removed subscription stays, and what still runs leaves none behind.
    pub fn retain<'a>(&self, max_spares: usize, backends: impl IntoIterator<Item = &'a ClaudeCliBackend>) {
        let kinds = Kinds::only(backends.into_iter().map(|backend| backend.recipe.id()));
        self.spares.retain(max_spares, &kinds);
        self.live.retain(&kinds);
    }

    /// Changes how many processes may be started within a minute.
    pub fn set_max_spawns(&self, most: usize) {
        self.spares.set_max_spawns(most);
    }

    /// Changes how long a process is kept that nobody comes back to.
    pub fn set_idle_timeout(&self, idle_timeout: Duration) {
        self.live.set_idle_timeout(idle_timeout);
        self.spares.set_idle_timeout(idle_timeout);
    }

    /// What all processes take, as last measured.
    pub fn memory(&self) -> MemoryUse {
        self.spares.places().memory()
    }

    /// Changes how many bytes all processes together may take.
    pub fn set_max_memory(&self, bytes: u64) {
        self.spares.places().set_max_memory(bytes);
    }

    /// Replaces every spare by a new one: the CLI itself was replaced. Processes that serve are not touched.
    pub fn renew(&self) {
        self.live.trust_tools();
        self.spares.renew();
    }

    /// What the installed CLI can do, as far as it is known.
    pub fn features(&self) -> Arc<Features> {
        self.features.load_full()
    }

    /// Takes over what is known of the installed CLI: every request from now on is held against it.
    pub fn set_features(&self, features: Features) {
        if features.has(Feature::HybridTools) {
            self.live.trust_tools();
        } else {
            self.live.distrust_tools();
        }
        self.features.store(Arc::new(features));
    }

    /// How many processes there are.
    pub fn counts(&self) -> ProcessCounts {
        self.spares.counts()
    }

    /// Kills all spares and live processes and starts no more. Running answers are not touched.
    pub fn close(&self) {
        self.live.close();
        self.spares.close();
    }
}

/// Runs the requests of one subscription.
#[derive(Clone, Debug)]
pub struct ClaudeCliBackend {
    spares: Spares,
    live: Live,
    features: Arc<ArcSwap<Features>>,
    recipe: Arc<Recipe>,
    timers: Timers,
    tasks: Tasks,
}

impl ClaudeCliBackend {
    /// Asks for a process to be started ahead of the first request for `model`.
    pub fn prepare(&self, model: &Model) {
        self.spares.want(&self.launch(model));
    }

    /// Asks the CLI about itself; costs one short-lived process and no request to the provider.
    pub async fn probe(&self) -> anyhow::Result<CliFacts> {
        probe::probe(&self.spares, &self.recipe.launch("sonnet")).await
    }

    /// Asks the CLI whether this subscription is logged in; costs one short-lived process, and nobody else is asked.
    pub async fn login(&self) -> anyhow::Result<Login> {
        login::ask(&self.spares, &self.recipe).await
    }

    /// Asks idle processes of this subscription how full its windows are.
    pub fn usage_probe(&self) -> UsageProbe {
        UsageProbe::new(self.spares.clone(), self.recipe.id())
    }

    fn launch(&self, model: &Model) -> Arc<Launch> {
        Arc::new(self.recipe.launch(&model.id))
    }
}

impl Backend for ClaudeCliBackend {
    fn run(&self, request: &Request, caller: &Caller) -> EventStream {
        if let Err(failure) = self.features.load().admit(request) {
            return stream::iter([Err(failure)]).boxed();
        }
        let job = turn::Job::new(self.launch(&request.model), request, caller);
        let turn = turn::Turn::new(job, self.spares.clone(), self.live.clone(), self.timers);
        answer::run(turn, &self.tasks)
    }

    /// Asks the CLI, which looks at the profile only: whether the provider still takes the login is not known.
    fn check(&self) -> BoxFuture<'static, Result<String, Failure>> {
        let backend = self.clone();
        async move {
            let unanswered = |error: anyhow::Error| Failure::new(FailureKind::Protocol, format!("{error:#}"));
            let login = backend.login().await.map_err(unanswered)?;
            if !login.logged_in {
                return Err(Failure::new(FailureKind::Unauthenticated, "nobody is logged in at its profile"));
            }
            Ok(format!("logged in ({})", login.auth_method.as_deref().unwrap_or("unknown method")))
        }
        .boxed()
    }
}
