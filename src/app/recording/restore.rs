//! At the start: what was known before goes back into the pool.

use std::time::Duration;

use tracing::{info, warn};

use super::quiet_since;
use crate::gateway::{Clients, SharedPool};
use crate::pool::{Learned, PastSession, PastUse, Spent};
use crate::runtime::clock;
use crate::store::{Result, Store, UsageRecord};
use crate::units::Timestamp;

/// Budgets need this much.
const WEEK: Duration = Duration::from_hours(7 * 24);

/// Sessions are forgotten sooner than this.
const SESSIONS: Duration = Duration::from_hours(24);

/// Sessions that come back at most, the last used first.
const MOST_SESSIONS: u32 = 200_000;

/// Records that are read at once.
const PART: u32 = 20_000;

/// Reads everything before it changes anything: what fails half-way is tried again as a whole.
pub(super) async fn into(
    pool: &SharedPool,
    clients: &Clients,
    store: &Store,
    started: Timestamp,
    quiet_after: Duration,
) -> Result<()> {
    store.prepare().await?;
    // An SQLite file is ours alone: what ran when we started was ended by somebody's kill. A database can have others.
    let quiet = if store.location().kind() == "sqlite" { started } else { quiet_since(started, quiet_after) };
    let interrupted = store.interrupt_activities(quiet, started).await?;
    let states = store.subscription_states().await?;
    let usage = read_usage(store, started - WEEK).await?;
    let sessions = store.sessions(started - SESSIONS, MOST_SESSIONS).await?;

    let now = clock::now();
    // Other replicas with the same store may have told some of it already.
    let usage = pool.uncounted(usage, |record| &record.id);
    for record in &usage {
        clients.recall(now, &record.client, record.at, record.cost);
    }
    let usage = usage.into_iter().map(|record| PastUse {
        subscription: record.subscription.into(),
        at: record.at,
        spent: Spent { usage: record.usage, cost: record.cost },
    });
    let (states, usage, sessions) = pool.with(|pool, now| {
        let mut known = 0;
        for kept in states {
            match serde_json::from_value::<Learned>(kept.state) {
                Ok(learned) => known += usize::from(pool.recall_learned(now, &kept.subscription, &learned)),
                Err(error) => warn!(subscription = kept.subscription, %error, "what was learned cannot be read"),
            }
        }
        let usage = pool.recall_usage(now, usage);
        let past = sessions.into_iter().map(|kept| PastSession {
            id: kept.id,
            subscription: kept.subscription.into(),
            since: kept.since,
            last_used: kept.last_used,
        });
        ((known, usage, pool.recall_sessions(now, past)), Vec::new())
    });
    info!(store = %store.location(), usage, states, sessions, interrupted, "what was known before is known again");
    Ok(())
}

async fn read_usage(store: &Store, from: Timestamp) -> Result<Vec<UsageRecord>> {
    let (mut read, mut after) = (Vec::new(), None);
    loop {
        let part = store.usage_since(from, after.as_ref(), PART).await?;
        let is_last = part.len() < PART as usize;
        after = part.last().map(|last| (last.at, last.id.clone())).or(after);
        read.extend(part);
        if is_last {
            return Ok(read);
        }
    }
}
