//! Asks now and then how full the provider's windows are: other programs use the same subscriptions.
//!
//! Every answer to a request tells that too. The poll is for subscriptions that the pool has not used for a while, and for
//! builds of the CLI that only tell near a limit. It never hurts: who cannot be asked is asked the next time.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::parts::CliBackends;
use crate::backend::claude_cli::{Polled, UsageProbe};
use crate::config::{Config, Kind};
use crate::gateway::SharedPool;
use crate::runtime::tasks::Tasks;

/// How long a round waits for processes that are not ready or not idle, at most.
const PATIENCE: Duration = Duration::from_mins(1);

/// Time between two looks for such a process.
const PAUSE: Duration = Duration::from_millis(500);

/// Who is asked, and how often.
#[derive(Clone, Debug)]
struct Plan {
    /// `None` is never.
    interval: Option<Duration>,
    members: Arc<[(Arc<str>, UsageProbe)]>,
}

/// The poll; follows the configuration.
#[derive(Debug)]
pub(super) struct UsagePoll(watch::Sender<Plan>);

impl UsagePoll {
    /// Begins with a round at once: the pool knows nothing yet.
    pub(super) fn start(
        pool: &SharedPool,
        config: &Config,
        backends: &CliBackends,
        tasks: &Tasks,
        stop: &CancellationToken,
    ) -> Self {
        let (plan, changes) = watch::channel(Plan::of(config, backends));
        let (pool, stop) = (pool.clone(), stop.clone());
        tasks.spawn("usage-poll", async move {
            stop.run_until_cancelled(run(&pool, changes)).await;
        });
        Self(plan)
    }

    /// Takes over a changed configuration.
    pub(super) fn apply(&self, config: &Config, backends: &CliBackends) {
        self.0.send_replace(Plan::of(config, backends));
    }
}

impl Plan {
    fn of(config: &Config, backends: &CliBackends) -> Self {
        let asked: HashSet<&str> = config
            .subscriptions
            .iter()
            .filter(|member| member.enabled && member.kind != Kind::Api)
            .map(|member| member.id.as_str())
            .collect();
        let members = backends.iter().filter(|(id, _)| asked.contains(&**id));
        Self {
            interval: config.claude.usage_poll_interval,
            members: members.map(|(id, backend)| (Arc::clone(id), backend.usage_probe())).collect(),
        }
    }
}

/// Rounds for ever, each by the plan of its time.
async fn run(pool: &SharedPool, mut changes: watch::Receiver<Plan>) {
    let mut last: Option<Instant> = None;
    loop {
        let plan = changes.borrow_and_update().clone();
        let work = async {
            let Some(interval) = plan.interval else { return std::future::pending().await };
            // A configuration that changes often does not make rounds more frequent.
            if let Some(last) = last {
                sleep_until(last + interval).await;
            }
            last = Some(Instant::now());
            round(pool, &plan.members, PATIENCE.min(interval)).await;
        };
        tokio::select! {
            () = work => {}
            Ok(()) = changes.changed() => {}
        }
    }
}

/// Asks everybody once, as soon as a process of theirs is idle.
async fn round(pool: &SharedPool, members: &[(Arc<str>, UsageProbe)], patience: Duration) {
    let deadline = Instant::now() + patience;
    let mut left: Vec<_> = members.iter().collect();
    loop {
        let mut busy = Vec::new();
        for member in left {
            let (id, probe) = member;
            match probe.poll().await {
                Ok(Polled::Told(report)) => {
                    debug!(subscription = %id, windows = ?report.windows, "usage");
                    pool.observe(id, &report);
                }
                Ok(Polled::NothingKnown) => debug!(subscription = %id, "the CLI knows nothing of the usage"),
                Ok(Polled::NobodyToAsk) => busy.push(member),
                Err(error) => debug!(subscription = %id, %error, "the usage could not be asked for"),
            }
        }
        if busy.is_empty() || Instant::now() + PAUSE > deadline {
            debug!(answered = members.len() - busy.len(), of = members.len(), "usage polled");
            return;
        }
        left = busy;
        sleep(PAUSE).await;
    }
}
