//! Write-behind: requests leave their records in a buffer, and one task writes them in batches.
//!
//! Nothing in here makes a request wait. The oldest record in the buffer is written 10 ms after it came, or with the batch
//! that follows the one that is being written then: a process that is killed loses what came in the last 10 ms and in the
//! time that the database takes for two batches. Usage is written first, in a transaction of its own. While the database is slow or gone the buffer fills, up to its bounds; what finds no
//! place is counted. The batch whose fate is unknown is written again first, as it was: every entry has an id, so that
//! nothing counts twice.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::buffer::{AlertChange, Batch, Bounds, Buffer, Dropped};
use super::{Activity, Alert, Result, StickySession, Store, SubscriptionState, UsageRecord};
use crate::runtime::clock;
use crate::units::Timestamp;

/// How long the first entry waits for others before it is written: a hundred transactions a second at most.
const GATHER: Duration = Duration::from_millis(10);

/// Entries of a kind that one transaction writes.
const BATCH: usize = 2000;

/// The pause after the first failure; each further one is twice as long,
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(3);

/// A store that takes longer than this for a batch is slow.
const SLOW: Duration = Duration::from_secs(2);

/// How often a store that has nothing to do is asked whether it is there.
const IDLE_CHECK: Duration = Duration::from_secs(3);

/// How the store is doing. Shows no password.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    /// `sqlite` or `postgres`.
    pub kind: &'static str,
    /// Where it is.
    pub location: String,
    /// Whether the last batch was written, and in time, and the store has answered since.
    pub ok: bool,
    /// Since when it has not been so.
    pub failing_since: Option<Timestamp>,
    /// What it said last.
    pub error: Option<String>,
    /// How old the oldest entry is that is not written, in milliseconds.
    pub lag_ms: u64,
    /// Entries that wait.
    pub buffered: usize,
    /// Entries written so far.
    pub written: u64,
    /// What found no place to wait.
    pub dropped: Dropped,
}

/// The buffer in front of a store. A cheap handle.
#[derive(Clone)]
pub struct Writer(Arc<Shared>);

struct Shared {
    store: Store,
    /// Its own connection: whoever reads much cannot keep it from writing.
    own: Store,
    buffer: Mutex<Buffer>,
    /// Something waits.
    wake: Notify,
    state: watch::Sender<State>,
    /// No more will come: write what is there, and end.
    end: CancellationToken,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct State {
    failing: Option<(Timestamp, String)>,
    /// Entries of the batch that is being written, and since when they wait.
    pending: usize,
    since: Option<Instant>,
    written: u64,
}

impl Writer {
    /// A buffer in front of `store`. Nothing is written before [`Writer::run`].
    pub fn new(store: Store, bounds: Bounds) -> Self {
        let own = store.apart();
        Self(Arc::new(Shared {
            store,
            own,
            buffer: Mutex::new(Buffer::new(bounds)),
            wake: Notify::new(),
            state: watch::Sender::default(),
            end: CancellationToken::new(),
        }))
    }

    /// The store behind it, for whoever reads.
    pub fn store(&self) -> &Store {
        &self.0.store
    }

    /// Keeps what an attempt used.
    pub fn add_usage(&self, record: UsageRecord) {
        self.put(|buffer| buffer.add_usage(record));
    }

    /// Keeps the state of an activity; a later one replaces it.
    pub fn put_activity(&self, activity: Activity) {
        self.put(|buffer| buffer.put_activity(activity));
    }

    /// Keeps where a session belongs.
    pub fn put_session(&self, session: StickySession) {
        self.put(|buffer| buffer.put_session(session));
    }

    /// Keeps what was learned of a subscription.
    pub fn put_state(&self, state: SubscriptionState) {
        self.put(|buffer| buffer.put_state(state));
    }

    /// Keeps an alert.
    pub fn add_alert(&self, alert: Alert) {
        self.put(|buffer| buffer.add_alert(AlertChange::Raised(alert)));
    }

    /// Keeps that what alerts of a kind told of a subscription is over; where a threshold is named, only of that one.
    pub fn resolve_alerts(&self, account: String, kind: String, threshold: Option<f64>, at: Timestamp) {
        self.put(|buffer| buffer.add_alert(AlertChange::Resolved { account, kind, threshold, at }));
    }

    /// Keeps that what one alert told of is over.
    pub fn close_alert(&self, id: String, at: Timestamp) {
        self.put(|buffer| buffer.add_alert(AlertChange::Closed { id, at }));
    }

    fn put(&self, change: impl FnOnce(&mut Buffer)) {
        change(&mut self.buffer());
        self.0.wake.notify_one();
    }

    /// How the store is doing.
    pub fn health(&self) -> Health {
        let (buffered, since, dropped) = {
            let buffer = self.buffer();
            (buffer.len(), buffer.since(), buffer.dropped)
        };
        let state = self.0.state.borrow().clone();
        let oldest = state.since.into_iter().chain(since).min();
        let lag = oldest.map(|since| since.elapsed()).unwrap_or_default();
        let location = self.0.store.location();
        Health {
            kind: location.kind(),
            location: location.to_string(),
            ok: state.failing.is_none(),
            failing_since: state.failing.as_ref().map(|(since, _)| *since),
            error: state.failing.map(|(_, error)| error),
            lag_ms: u64::try_from(lag.as_millis()).unwrap_or(u64::MAX),
            buffered: buffered + state.pending,
            written: state.written,
            dropped,
        }
    }

    /// Follows whether the store fails.
    pub fn watch(&self) -> Watch {
        Watch { state: self.0.state.subscribe(), was_failing: false }
    }

    /// Opens the connection, which takes longer than a batch.
    ///
    /// # Errors
    ///
    /// The database does not answer.
    pub async fn connect(&self) -> Result<()> {
        self.0.own.ping().await
    }

    /// Writes what comes, until [`Writer::finish`] has been called and everything is written.
    pub async fn run(&self) {
        let mut pending = Batch::default();
        let mut pause = FIRST_PAUSE;
        loop {
            if pending.len() == 0 {
                if self.buffer().len() == 0 && self.0.end.run_until_cancelled(self.idle()).await.is_none() {
                    return;
                }
                // What came while the last batch was written has waited for long enough.
                let waited = self.buffer().since().map(|since| since.elapsed()).unwrap_or_default();
                if !self.0.end.is_cancelled() && waited < GATHER {
                    sleep(GATHER.saturating_sub(waited)).await;
                }
                pending = self.buffer().take(BATCH);
                if pending.len() == 0 {
                    continue;
                }
                self.0.state.send_modify(|state| (state.pending, state.since) = (pending.len(), pending.since));
            }
            if self.write(&pending).await {
                pending = Batch::default();
                pause = FIRST_PAUSE;
            } else {
                sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }

    /// Waits until something comes. Meanwhile the store is asked now and then whether it is there: nobody else would
    /// notice, and what says that it is well is believed.
    async fn idle(&self) {
        let asking = async {
            loop {
                sleep(IDLE_CHECK).await;
                match timeout(SLOW, self.0.own.ping()).await {
                    Ok(outcome) => self.report(&outcome),
                    Err(_) => self.fail(format!("it has not answered within {} s", SLOW.as_secs())),
                }
            }
        };
        tokio::select! {
            () = self.0.wake.notified() => {}
            () = asking => {}
        }
    }

    /// Ends every connection. To be called when [`Writer::run`] has ended, or nobody waits for it any more.
    pub async fn close(&self) {
        tokio::join!(self.0.own.close(), self.0.store.close());
    }

    /// Returns whether it is written.
    async fn write(&self, batch: &Batch) -> bool {
        let begun = Instant::now();
        let mut write = std::pin::pin!(async {
            // What budgets follow from does not wait for the rest. Either part may be written again.
            self.0.own.transaction(batch.usage()).await?;
            self.0.own.transaction(batch.others()).await
        });
        let outcome: Result<_> = tokio::select! {
            outcome = &mut write => outcome,
            // It may still succeed, but whoever watches shall know before it has failed.
            () = sleep(SLOW) => {
                self.fail(format!("a batch has taken longer than {} s", SLOW.as_secs()));
                write.await
            }
        };
        match outcome {
            Ok(_) => {
                self.0.state.send_modify(|state| {
                    state.written += batch.len() as u64;
                    (state.pending, state.since) = (0, None);
                });
                if begun.elapsed() < SLOW {
                    self.recover();
                }
                true
            }
            Err(error) => {
                self.fail(error.to_string());
                false
            }
        }
    }

    /// Says of the store that it cannot be used for now, and why.
    pub fn fail(&self, error: String) {
        self.0.state.send_modify(|state| {
            let since = state.failing.take().map(|(since, _)| since);
            if since.is_none() {
                warn!(error, "the store does not take what is to be kept: it waits in memory");
            }
            state.failing = Some((since.unwrap_or_else(clock::now), error));
        });
    }

    fn recover(&self) {
        self.0.state.send_if_modified(|state| {
            let Some((since, _)) = state.failing.take() else { return false };
            info!(failing_for = ?clock::now().since(since), "the store is well again");
            true
        });
    }

    /// Tells why the store could not be used before anything was written.
    pub fn report(&self, outcome: &Result<()>) {
        match outcome {
            Ok(()) => self.recover(),
            Err(error) => self.fail(error.to_string()),
        }
    }

    /// Ends [`Writer::run`] when everything is written.
    pub fn finish(&self) {
        self.0.end.cancel();
    }

    fn buffer(&self) -> MutexGuard<'_, Buffer> {
        self.0.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Follows whether a store fails.
pub struct Watch {
    state: watch::Receiver<State>,
    was_failing: bool,
}

impl Watch {
    /// Waits until the store begins to fail, and tells what it said, or until it is well again (`None`).
    pub async fn changed(&mut self) -> Option<String> {
        loop {
            let failing = self.state.borrow_and_update().failing.clone();
            if failing.is_some() != self.was_failing {
                self.was_failing = failing.is_some();
                return failing.map(|(_, error)| error);
            }
            if self.state.changed().await.is_err() {
                // Nobody writes any more, so nothing changes.
                std::future::pending::<()>().await;
            }
        }
    }
}
