//! Activities that run: while they do they are heard of, and what was not heard of for a while was ended by a kill.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, info};

use crate::runtime::clock;
use crate::store::{Result, Store};
use crate::units::Timestamp;

/// How often what runs is heard of.
pub(super) const BEAT: Duration = Duration::from_secs(15);

/// Whoever was not heard of for this long is gone. One that only could not write comes back with its next beat.
pub(super) const SILENCE: Duration = Duration::from_mins(2);

/// The ids of what runs in this process. A cheap handle.
#[derive(Clone, Default)]
pub(super) struct Running(Arc<Mutex<HashSet<uuid::Uuid>>>);

impl Running {
    /// It runs, or it is over.
    pub(super) fn note(&self, id: uuid::Uuid, is_over: bool) {
        let mut running = self.lock();
        if is_over {
            running.remove(&id);
        } else {
            running.insert(id);
        }
    }

    fn ids(&self) -> Vec<String> {
        let mut ids: Vec<_> = self.lock().iter().map(ToString::to_string).collect();
        // In one order everywhere, so that two programs on one database never wait for each other in a circle.
        ids.sort();
        ids
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<uuid::Uuid>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does so until it is dropped. `started` is when this process did.
    pub(super) async fn look_after(&self, store: &Store, started: Timestamp) {
        let mut ticks = interval(BEAT);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // A file is ours alone: what ran when we started was ended by somebody's kill. A database can have others.
        let is_alone = store.location().is_ours_alone();
        loop {
            ticks.tick().await;
            match self.beat(store, is_alone.then_some(started)).await {
                Ok(0) => {}
                Ok(interrupted) => info!(interrupted, "nobody knows what became of activities that ran"),
                // Whoever writes says so loudly.
                Err(error) => {
                    debug!(%error, "nobody hears which activities run");
                    continue;
                }
            }
            if is_alone {
                return;
            }
        }
    }

    async fn beat(&self, store: &Store, alone_since: Option<Timestamp>) -> Result<u64> {
        let now = clock::now();
        if let Some(started) = alone_since {
            return store.interrupt_activities(started, now).await;
        }
        store.touch_activities(&self.ids(), now).await?;
        store.interrupt_activities(now - SILENCE, now).await
    }
}
