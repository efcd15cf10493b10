//! What is kept over restarts: from requests, the pool and alerts into the store, and at the start back into the pool.
//!
//! The store is used from the background only. One that is slow or gone makes nobody wait: the start goes on without it
//! after a moment, what is to be kept waits in memory, and the operator is told.

mod keep;
mod open_alerts;
mod program_alerts;
mod restore;
mod running;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::json;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub use keep::Keeper;
use program_alerts::Raised;
use restore::Recalled;

use crate::alert::Alerts;
use crate::config::{Config, StorePlace};
use crate::gateway::{Clients, PartHealth, PooledGateway, SharedPool};
use crate::runtime::{clock, tasks::Tasks};
use crate::store::{Bounds, Health, Location, Pruned, Retention, Store, StoreError, Writer};

/// How long the start waits for what was known before.
const RESTORE_LIMIT: Duration = Duration::from_secs(3);

/// The pause after a store could not be opened.
const REOPEN_PAUSE: Duration = Duration::from_secs(1);

/// How often what the pool has learned is compared with what was kept. Limits and breakers do not wait for it.
const STATE_TICK: Duration = Duration::from_secs(1);

/// How often it is looked for who joined: so long they begin as if nothing had been before.
const NEWCOMERS_TICK: Duration = Duration::from_millis(100);

/// How often it is looked for what is too old.
const PRUNE_TICK: Duration = Duration::from_hours(1);

/// How long what is left may take to be written at the end.
const FLUSH_LIMIT: Duration = Duration::from_secs(3);

/// Sessions are kept for a day: the pool itself forgets them sooner.
const SESSION_RETENTION: Duration = Duration::from_hours(24);

/// Those to whom the store gives back what it knows.
#[derive(Clone)]
struct Past {
    pool: SharedPool,
    clients: Clients,
    alerts: Alerts,
}

impl Past {
    async fn give_back(&self, recording: &Recording) -> Result<(), StoreError> {
        let store = recording.writer.store();
        store.prepare().await?;
        recording.recalled.catch_up(&self.pool, &self.clients, &self.alerts, store).await
    }
}

/// The running store. A cheap handle.
#[derive(Clone)]
pub(super) struct Recording {
    writer: Writer,
    /// What was known before is known again.
    restored: CancellationToken,
    /// By whom.
    recalled: Recalled,
    /// Its own: it goes on when everything else has ended.
    tasks: Tasks,
}

impl Recording {
    /// In front of the store, if there is one. Nothing is written before [`Self::restore`].
    pub(super) fn new(store: Option<Store>) -> Option<Self> {
        let Some(store) = store else {
            info!("nothing is kept over a restart: there is no store");
            return None;
        };
        let writer = Writer::new(store, Bounds::default());
        Some(Self {
            writer,
            restored: CancellationToken::new(),
            recalled: Recalled::default(),
            tasks: Tasks::default(),
        })
    }

    /// Gives the pool and the clients' accounts back what the store knows, and says which alerts are open, waits for
    /// that a moment, and writes from then on. To be called when other replicas are heard already: what they tell from
    /// now on the store may not know yet.
    pub(super) async fn restore(
        &self,
        pool: &SharedPool,
        clients: &Clients,
        alerts: &Alerts,
        stop: &CancellationToken,
    ) {
        let past = Past { pool: pool.clone(), clients: clients.clone(), alerts: alerts.clone() };
        self.tasks.spawn("store", {
            let (recording, past, stop) = (self.clone(), past.clone(), stop.clone());
            async move { recording.run(&past, &stop).await }
        });
        self.tasks.spawn("newcomers", {
            let (recording, stop) = (self.clone(), stop.clone());
            async move {
                stop.run_until_cancelled(recording.follow(&past)).await;
            }
        });
        if timeout(RESTORE_LIMIT, self.restored.cancelled()).await.is_err() {
            let limit = RESTORE_LIMIT.as_secs();
            self.writer.fail(format!("it has not given back within {limit} s what was known before"));
        }
    }

    /// Connects the store with those who have something to keep.
    pub(super) fn connect(
        &self,
        gateway: &PooledGateway,
        alerts: &Alerts,
        pool: &SharedPool,
        config: &Config,
        stop: &CancellationToken,
    ) {
        let keeper = Keeper::new(self.writer.clone());
        self.tasks.spawn("running activities", {
            let (running, store, started) = (keeper.running(), self.writer.store().clone(), clock::now());
            let stop = stop.clone();
            async move {
                stop.run_until_cancelled(running.look_after(&store, started)).await;
            }
        });
        gateway.record_with(Arc::new(keeper));
        gateway.show_in_debug("store", {
            let writer = self.writer.clone();
            move || json!(writer.health())
        });
        gateway.show_in_health("db", {
            let writer = self.writer.clone();
            // Everybody may ask: neither where it is nor what it said is told here.
            move || {
                let Health { kind, ok, failing_since, lag_ms, buffered, written, .. } = writer.health();
                let details = json!({
                    "kind": kind, "failingSince": failing_since, "lagMs": lag_ms, "buffered": buffered, "written": written,
                });
                PartHealth::new(ok, &details)
            }
        });
        self.tasks.spawn("states", {
            let (recording, pool, stop) = (self.clone(), pool.clone(), stop.clone());
            async move {
                // Before, the pool knows nothing that would be worth keeping, and what is kept must not be overwritten.
                if stop.run_until_cancelled(recording.restored.cancelled()).await.is_some() {
                    keep::states(recording.writer, pool, recording.recalled, STATE_TICK, stop).await;
                }
            }
        });
        let raised = Raised::default();
        self.tasks.spawn("raised alerts", {
            let (raised, store, stop) = (raised.clone(), self.writer.store().clone(), stop.clone());
            async move {
                stop.run_until_cancelled(raised.look_after(&store)).await;
            }
        });
        self.tasks
            .spawn("kept alerts", keep::alerts(self.writer.clone(), pool.clone(), raised, alerts.told(), stop.clone()));
        self.tasks.spawn("store alert", keep::tell(self.writer.clone(), alerts.clone(), stop.clone()));
        let (recording, retention, stop) = (self.clone(), retention(config), stop.clone());
        self.tasks.spawn("prune", async move {
            stop.run_until_cancelled(recording.prune(retention)).await;
        });
    }

    /// Writes what is left. To be called when nobody has anything to keep any more.
    pub(super) async fn finish(self) {
        self.writer.finish();
        if timeout(FLUSH_LIMIT, self.tasks.finished()).await.is_err() {
            let lost = self.writer.health().buffered;
            warn!(lost, "the store did not take everything before the end");
        }
        self.writer.close().await;
    }

    async fn run(&self, past: &Past, stop: &CancellationToken) {
        loop {
            let outcome = match self.writer.connect().await {
                Ok(()) => past.give_back(self).await,
                failed => failed,
            };
            self.writer.report(&outcome);
            if outcome.is_ok() {
                self.restored.cancel();
                break;
            }
            if stop.run_until_cancelled(sleep(REOPEN_PAUSE)).await.is_none() {
                // Whatever waits is tried to be written once more.
                break;
            }
        }
        self.writer.run().await;
    }

    /// Accounts and keys that are registered may join when the pool runs already, and come back after they had left.
    async fn follow(&self, past: &Past) {
        self.restored.cancelled().await;
        let mut ticks = interval(NEWCOMERS_TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if let Err(error) = past.give_back(self).await {
                warn!(%error, "what was known before of those who joined is not known again yet");
                sleep(REOPEN_PAUSE).await;
            }
        }
    }

    async fn prune(&self, retention: Retention) {
        let mut ticks = interval(PRUNE_TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            match self.writer.store().prune(clock::now(), &retention).await {
                Ok(pruned) if pruned == Pruned::default() => {}
                Ok(pruned) => info!(usage = pruned.usage, others = pruned.others, "what was too old is summed up"),
                Err(error) => warn!(%error, "what is too old stays in the store for now"),
            }
        }
    }
}

/// Where the configuration says that the store is.
pub fn store_location(config: &Config) -> anyhow::Result<Option<Location>> {
    Ok(match &config.store.place {
        StorePlace::Nowhere => None,
        StorePlace::File(path) => Some(Location::file(path)),
        StorePlace::Postgres(url) => {
            Some(Location::from_url(url).context("the store's URL (store.url, DATABASE_URL)")?)
        }
    })
}

fn retention(config: &Config) -> Retention {
    let store = &config.store;
    Retention {
        usage: store.usage_retention,
        usage_days: store.usage_days_retention,
        activities: store.activity_retention,
        alerts: store.alert_retention,
        audit: store.audit_retention,
        sessions: SESSION_RETENTION,
    }
}
