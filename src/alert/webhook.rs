//! Delivers JSON messages to an address of the operator's without holding anybody up.
//!
//! Messages wait in a bounded queue; a full one drops the newest message. Delivery is tried with growing, jittered pauses
//! and then given up. All of that is counted, and shown by `/debug/auth-pool`. A new address takes effect for what waits,
//! too, and at once.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::post::{Post, Target, Trouble};
use crate::runtime::tasks::Tasks;

/// How hard delivery is tried.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Messages that may wait.
    pub queue: usize,
    /// Attempts at one message.
    pub attempts: u32,
    /// The pause before the second attempt; it doubles after that.
    pub first_pause: Duration,
    /// The longest pause, also of those that the receiver asks for.
    pub longest_pause: Duration,
    /// How long one attempt may take.
    pub attempt_limit: Duration,
    /// How long what waits may still be sent once the program is told to stop.
    pub flush_limit: Duration,
}

impl Default for Pace {
    /// An endpoint may be away for ten minutes.
    fn default() -> Self {
        Self {
            queue: 256,
            attempts: 12,
            first_pause: Duration::from_secs(1),
            longest_pause: Duration::from_secs(120),
            attempt_limit: Duration::from_secs(10),
            flush_limit: Duration::from_secs(2),
        }
    }
}

/// How a message fared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It arrived.
    Delivered {
        /// Attempts it took.
        attempts: u32,
    },
    /// It did not, and will not.
    GivenUp {
        /// What went wrong with the last attempt.
        cause: String,
    },
    /// The queue was full.
    Dropped,
}

/// What has become of all messages so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    /// Queued or being delivered.
    pub waiting: u64,
    /// Arrived.
    pub delivered: u64,
    /// Attempts beyond the first.
    pub retried: u64,
    /// Not delivered after all attempts, or because none made sense.
    pub given_up: u64,
    /// Not queued, because the queue was full.
    pub dropped: u64,
    /// What went wrong with the last attempt, if it failed.
    pub last_failure: Option<String>,
}

/// The queue in front of one target. A cheap handle.
#[derive(Clone)]
pub struct Sender(Arc<Shared>);

struct Shared {
    name: &'static str,
    pace: Pace,
    queue: mpsc::Sender<Job>,
    post: watch::Sender<Result<Post, String>>,
    tally: Arc<Tally>,
}

struct Job {
    message: Value,
    done: Option<oneshot::Sender<Outcome>>,
}

#[derive(Default)]
struct Tally {
    waiting: AtomicU64,
    delivered: AtomicU64,
    retried: AtomicU64,
    given_up: AtomicU64,
    dropped: AtomicU64,
    last_failure: Mutex<Option<String>>,
}

impl Tally {
    fn failure(&self, cause: Option<String>) {
        *self.last_failure.lock().unwrap_or_else(PoisonError::into_inner) = cause;
    }
}

impl Sender {
    /// Starts the task that delivers. Without a target every message is given up. `name` is the channel's, for the log.
    pub fn start(
        name: &'static str,
        target: Option<Target>,
        pace: Pace,
        tasks: &Tasks,
        stop: &CancellationToken,
    ) -> Self {
        let (queue, jobs) = mpsc::channel(pace.queue);
        let (post, targets) = watch::channel(Post::new(target, pace.attempt_limit));
        let tally = Arc::<Tally>::default();
        let courier = Courier { name, pace, post: targets, tally: Arc::clone(&tally), stop: stop.clone() };
        tasks.spawn(name, courier.run(jobs));
        Self(Arc::new(Shared { name, pace, queue, post, tally }))
    }

    /// Delivers to `target` from now on, also what waits.
    pub fn retarget(&self, target: Option<Target>) {
        let is_known = self.0.post.borrow().as_ref().ok().map(Post::target) == target.as_ref();
        // Without a target there may have been one that could not be used.
        if !is_known || target.is_none() {
            let _ = self.0.post.send_replace(Post::new(target, self.0.pace.attempt_limit));
        }
    }

    /// Queues a message. Never waits.
    pub fn send(&self, message: Value) {
        self.queue(Job { message, done: None });
    }

    /// Queues a message, and tells what becomes of it. An error means that the program stopped first.
    pub fn send_noted(&self, message: Value) -> oneshot::Receiver<Outcome> {
        let (done, outcome) = oneshot::channel();
        self.queue(Job { message, done: Some(done) });
        outcome
    }

    fn queue(&self, job: Job) {
        let Shared { name, pace, queue, tally, .. } = &*self.0;
        tally.waiting.fetch_add(1, Ordering::Relaxed);
        if let Err(refused) = queue.try_send(job) {
            tally.waiting.fetch_sub(1, Ordering::Relaxed);
            tally.dropped.fetch_add(1, Ordering::Relaxed);
            warn!(channel = name, queue = pace.queue, "an alert was dropped: too many wait for this channel");
            if let Some(done) = refused.into_inner().done {
                let _ = done.send(Outcome::Dropped);
            }
        }
    }

    /// What has become of all messages so far.
    pub fn counts(&self) -> Counts {
        let Tally { waiting, delivered, retried, given_up, dropped, last_failure } = &*self.0.tally;
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Counts {
            waiting: read(waiting),
            delivered: read(delivered),
            retried: read(retried),
            given_up: read(given_up),
            dropped: read(dropped),
            last_failure: last_failure.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}

/// Delivers one message after the other: while an endpoint is away, one attempt at a time is enough.
struct Courier {
    name: &'static str,
    pace: Pace,
    post: watch::Receiver<Result<Post, String>>,
    tally: Arc<Tally>,
    stop: CancellationToken,
}

impl Courier {
    async fn run(mut self, mut jobs: mpsc::Receiver<Job>) {
        let (stop, flush_limit) = (self.stop.clone(), self.pace.flush_limit);
        let end = async {
            stop.cancelled().await;
            tokio::time::sleep(flush_limit).await;
        };
        tokio::select! {
            () = self.deliver_all(&mut jobs) => {}
            () = end => {}
        }
        let lost = self.tally.waiting.swap(0, Ordering::Relaxed);
        if lost > 0 {
            self.tally.given_up.fetch_add(lost, Ordering::Relaxed);
            warn!(channel = self.name, alerts = lost, "stopping: alerts were given up");
        }
    }

    /// Ends when the program stops and nothing waits, or nobody can send any more.
    async fn deliver_all(&mut self, jobs: &mut mpsc::Receiver<Job>) {
        loop {
            let job = if let Some(job) = self.stop.run_until_cancelled(jobs.recv()).await {
                job
            } else {
                jobs.close();
                jobs.recv().await
            };
            let Some(Job { message, done }) = job else { return };
            let outcome = self.deliver(&message.to_string()).await;
            let count = match &outcome {
                Outcome::Delivered { .. } => &self.tally.delivered,
                _ => &self.tally.given_up,
            };
            count.fetch_add(1, Ordering::Relaxed);
            self.tally.waiting.fetch_sub(1, Ordering::Relaxed);
            if let Some(done) = done {
                let _ = done.send(outcome);
            }
        }
    }

    async fn deliver(&mut self, body: &str) -> Outcome {
        let Pace { attempts, first_pause, longest_pause, .. } = self.pace;
        let mut pause = first_pause;
        let mut attempt = 1;
        loop {
            let post = self.post.borrow_and_update().clone();
            let result = match &post {
                Ok(post) => tokio::select! {
                    result = post.attempt(body) => result,
                    // Nobody waits for an address that is not the operator's any more.
                    Ok(()) = self.post.changed() => continue,
                },
                Err(cause) => Err(Trouble::last(cause.as_str())),
            };
            let Err(trouble) = result else {
                debug!(channel = self.name, attempt, "an alert was delivered");
                self.tally.failure(None);
                return Outcome::Delivered { attempts: attempt };
            };
            let cause = trouble.cause;
            warn!(channel = self.name, attempt, of = attempts, cause, "an alert was not delivered");
            self.tally.failure(Some(cause.clone()));
            let asked = trouble.pause.unwrap_or_default();
            let retries = trouble.again && attempt < attempts;
            if !retries || !self.rest(jittered(pause).max(asked).min(longest_pause)).await {
                warn!(channel = self.name, attempts = attempt, cause, "an alert was given up");
                return Outcome::GivenUp { cause };
            }
            attempt += 1;
            self.tally.retried.fetch_add(1, Ordering::Relaxed);
            pause = pause.saturating_mul(2).min(longest_pause);
        }
    }

    /// Waits for the next attempt: `pause` long, or until there is a new address. `false` when the program stops.
    async fn rest(&mut self, pause: Duration) -> bool {
        tokio::select! {
            () = self.stop.cancelled() => false,
            () = tokio::time::sleep(pause) => true,
            Ok(()) = self.post.changed() => true,
        }
    }
}

/// Between half of `pause` and all of it, so that many senders do not come back together.
fn jittered(pause: Duration) -> Duration {
    let random = uuid::Uuid::new_v4().as_u128() % 1000;
    pause.mul_f64(0.5 + f64::from(u32::try_from(random).unwrap_or(0)) / 2000.0)
}
