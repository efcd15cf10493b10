//! Runs the rebalancer, as often as the configuration says now.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::upkeep::keep_up;
use crate::config::Config;
use crate::gateway::SharedPool;
use crate::runtime::tasks::Tasks;

/// The running rebalancer.
pub(super) struct Rebalancer(watch::Sender<Option<Duration>>);

impl Rebalancer {
    pub(super) fn start(pool: &SharedPool, config: &Config, tasks: &Tasks, stop: &CancellationToken) -> Self {
        let (interval, changes) = watch::channel(interval(config));
        let (pool, stop) = (pool.clone(), stop.clone());
        let cycle = async move || {
            // Blocks that have ended are no reason to move.
            keep_up(&pool).await;
            pool.with(|pool, now| ((), pool.rebalance(now)));
        };
        tasks.spawn("rebalancer", async move {
            stop.run_until_cancelled(run(changes, cycle)).await;
        });
        Self(interval)
    }

    /// Takes over a changed interval: it counts from the last cycle.
    pub(super) fn apply(&self, config: &Config) {
        self.0.send_replace(interval(config));
    }
}

/// `None` while it is switched off.
fn interval(config: &Config) -> Option<Duration> {
    config.rebalancing.enabled.then_some(config.rebalancing.interval)
}

/// Ends when nobody can change the interval any more.
async fn run(mut interval: watch::Receiver<Option<Duration>>, cycle: impl AsyncFn()) {
    let mut last = Instant::now();
    loop {
        let every = *interval.borrow_and_update();
        let due = async {
            match every {
                Some(every) => sleep_until(last + every).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = due => {
                cycle().await;
                last = Instant::now();
            }
            change = interval.changed() => if change.is_err() {
                return;
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::task::yield_now;
    use tokio::time::{sleep, timeout};

    use super::*;

    const OFTEN: Duration = Duration::from_millis(1);

    #[tokio::test]
    async fn it_is_switched_and_paced_while_it_runs() {
        let (interval, changes) = watch::channel(None);
        let cycles = Arc::<AtomicUsize>::default();
        let count = || cycles.load(Ordering::Relaxed);
        let counted = Arc::clone(&cycles);
        let _tasks = {
            let tasks = Tasks::default();
            let cycle = async move || {
                counted.fetch_add(1, Ordering::Relaxed);
            };
            tasks.spawn("rebalancer", run(changes, cycle));
            tasks
        };
        let some_more = async || {
            let before = count();
            let more = async {
                while count() < before + 3 {
                    sleep(OFTEN).await;
                }
            };
            timeout(Duration::from_secs(30), more).await.expect("it runs");
        };
        // The task sees a change when it runs next, and it runs while this waits.
        let rests = async || {
            for _ in 0..10 {
                yield_now().await;
            }
            let before = count();
            sleep(OFTEN * 20).await;
            assert_eq!(count(), before);
        };
        rests().await;
        interval.send_replace(Some(Duration::from_hours(1)));
        rests().await;
        assert_eq!(count(), 0);
        interval.send_replace(Some(OFTEN));
        some_more().await;
        interval.send_replace(None);
        rests().await;
        interval.send_replace(Some(OFTEN));
        some_more().await;
        interval.send_replace(Some(Duration::from_hours(1)));
        rests().await;
    }
}
