//! Follows the installed CLI: what its build can do, and that it is replaced while the pool runs.
//!
//! A build that is not known yet is tried out in the background, a while after the start, and what was seen is kept for the
//! next start. When the CLI's file changes, the spares of the old build give way to new ones, its aliases are asked for
//! again, open breakers of its subscriptions are closed, and the new build is tried out. Processes that hold a conversation
//! go on with the build they have.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::backend::claude_cli::{Binary, ClaudeCli, Features};
use crate::config::{Config, Env};
use crate::runtime::tasks::Tasks;
use crate::selftest::{self, Memory, Subject};

/// How often the file is looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);

/// For this long a file must stay as it is before it counts as whole: an upgrade writes it bit by bit.
const QUIET: Duration = Duration::from_secs(1);

/// A new pool starts its spares first, and a machine that was just booted much else.
const AFTER_START: Duration = Duration::from_secs(5);

/// What the configuration says of it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Plan {
    /// Whether a subscription is driven through it.
    needed: bool,
    command: PathBuf,
    self_test: bool,
}

/// The watch; follows the configuration.
#[derive(Debug)]
pub(super) struct CliWatch {
    plan: watch::Sender<Plan>,
    /// What the operator sees of it.
    view: Arc<Mutex<View>>,
}

/// The build in use, as far as it is known.
#[derive(Debug, Default)]
struct View {
    binary: Option<Binary>,
    error: Option<String>,
}

impl CliWatch {
    /// Begins to watch. Whoever reads the other end is told of each replacement of the CLI.
    pub(super) fn start(
        claude: &ClaudeCli,
        config: &Config,
        env: &Env,
        tasks: &Tasks,
        stop: &CancellationToken,
    ) -> (Self, mpsc::Receiver<()>) {
        let (plan, plans) = watch::channel(Plan::of(config));
        let (replaced, replacements) = mpsc::channel(1);
        let view = Arc::<Mutex<View>>::default();
        let follower = Follower {
            claude: claude.clone(),
            env: env.clone(),
            memory: env.state_dir().map(|dir| selftest::memory(&dir)),
            view: Arc::clone(&view),
            replaced,
            tasks: tasks.clone(),
        };
        let stop = stop.clone();
        tasks.spawn("cli-watch", async move {
            stop.run_until_cancelled(follower.run(plans)).await;
        });
        (Self { plan, view }, replacements)
    }

    /// Takes over a changed configuration.
    pub(super) fn apply(&self, config: &Config) {
        let plan = Plan::of(config);
        self.plan.send_if_modified(|current| {
            let is_changed = *current != plan;
            *current = plan;
            is_changed
        });
    }

    /// What the operator's view says: the build, and what it can do.
    pub(super) fn view(&self, claude: &ClaudeCli) -> impl Fn() -> Value + Send + Sync + 'static {
        let (view, claude) = (Arc::clone(&self.view), claude.clone());
        move || {
            let view = view.lock().unwrap_or_else(PoisonError::into_inner);
            json!({ "binary": view.binary, "problem": view.error, "features": *claude.features() })
        }
    }
}

impl Plan {
    fn of(config: &Config) -> Self {
        Self {
            needed: config.subscriptions.iter().any(|member| member.config_dir.is_some()),
            command: config.claude.command.clone(),
            self_test: config.claude.self_test,
        }
    }
}

struct Follower {
    claude: ClaudeCli,
    env: Env,
    memory: Option<Memory>,
    view: Arc<Mutex<View>>,
    replaced: mpsc::Sender<()>,
    tasks: Tasks,
}

impl Follower {
    async fn run(&self, mut plans: watch::Receiver<Plan>) {
        let mut known: Option<(PathBuf, Binary)> = None;
        loop {
            let plan = plans.borrow_and_update().clone();
            if !plan.needed {
                self.view().error = None;
                if plans.changed().await.is_err() {
                    return;
                }
                continue;
            }
            // When it is not there it may come back; requests fail by themselves until then.
            if let Some(binary) = self.settled(&plan).await
                && known.as_ref().is_none_or(|(_, known)| *known != binary)
            {
                self.view().binary = Some(binary.clone());
                let before = known.replace((plan.command.clone(), binary.clone()));
                let is_first = before.is_none();
                // The same words mean another file: an upgrade writes the file anew, or lets a link point elsewhere.
                if before.is_some_and(|(command, _)| command == plan.command) {
                    info!(path = %binary.path.display(), "the CLI was replaced: spares are made anew");
                    self.claude.renew();
                    // Somebody who has not yet dealt with the last one deals with both.
                    let _ = self.replaced.try_send(());
                }
                self.learn(&plan, &binary, is_first).await;
            }
            let _ = timeout(LOOK_INTERVAL, plans.changed()).await;
        }
    }

    /// The CLI's file, when it does not change right now.
    async fn settled(&self, plan: &Plan) -> Option<Binary> {
        let find = || Binary::find(&plan.command, self.env.var("PATH"));
        let first = find();
        self.note_problem(plan, first.as_ref().err());
        let first = first.ok()?;
        if self.view().binary.as_ref() == Some(&first) {
            return Some(first);
        }
        sleep(QUIET).await;
        find().ok().filter(|second| *second == first)
    }

    /// Says once what is wrong with the CLI.
    fn note_problem(&self, plan: &Plan, error: Option<&io::Error>) {
        let problem = error.map(ToString::to_string);
        let mut view = self.view();
        if view.error != problem
            && let Some(problem) = &problem
        {
            warn!(command = %plan.command.display(), problem, "the CLI is not there");
        }
        view.error = problem;
    }

    fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over what is known of this build, and finds it out where nothing is.
    async fn learn(&self, plan: &Plan, binary: &Binary, is_first: bool) {
        // Of the new build nothing is known: what the old one lacked is no reason to refuse anybody.
        self.claude.set_features(Features::default());
        if let Some(features) = self.memory.as_ref().and_then(|memory| memory.recall(binary)) {
            return self.take_over(features);
        }
        if !plan.self_test {
            return;
        }
        if is_first {
            sleep(AFTER_START).await;
        }
        info!(path = %binary.path.display(), "the CLI is new: it is tried out against the stand-in");
        let subject = Subject { command: plan.command.clone(), own_env: self.env.vars().clone() };
        let features = selftest::run(&subject, &self.tasks).await;
        if let Some(memory) = self.memory.as_ref().filter(|_| features.is_complete())
            && let Err(error) = memory.remember(binary, &features)
        {
            warn!(
                error = format!("{error:#}"),
                "what was seen of the CLI is not kept: it is tried again at the next start"
            );
        }
        self.take_over(features);
    }

    fn take_over(&self, features: Features) {
        for (feature, seen) in features.missing() {
            warn!(%feature, seen, effect = feature.without(), "the installed CLI lacks a feature");
        }
        if let Some(why) = features.unknown() {
            warn!(why, "what the installed CLI can do is not known");
        } else {
            info!(missing = features.missing().count(), "the installed CLI is known");
        }
        self.claude.set_features(features);
    }
}
