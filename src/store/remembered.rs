//! What the pool has to know again after a restart: what it learned of subscriptions, and where sessions belong.

use serde_json::Value;

use super::sql::{Row, Sql};
use super::{Result, Store};
use crate::units::Timestamp;

/// Sessions that one statement writes.
const BATCH: usize = 500;

/// What the pool has learned of one subscription.
#[derive(Clone, Debug, PartialEq)]
pub struct SubscriptionState {
    /// Its name.
    pub subscription: String,
    /// In the pool's own words.
    pub state: Value,
    /// When that was so.
    pub updated_at: Timestamp,
}

/// Where a session belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StickySession {
    /// The session's id in the pool.
    pub id: String,
    /// Its subscription.
    pub subscription: String,
    /// When it was assigned to it.
    pub since: Timestamp,
    /// When it was last used.
    pub last_used: Timestamp,
}

impl Store {
    /// Writes what was learned; what is there and newer stays.
    pub async fn put_subscription_states(&self, states: &[SubscriptionState]) -> Result<()> {
        self.transaction(states.iter().map(put_state).collect()).await.map(drop)
    }

    /// What was learned of every subscription.
    pub async fn subscription_states(&self) -> Result<Vec<SubscriptionState>> {
        let sql = Sql::new("SELECT subscription, state, updated_at FROM subscription_states ORDER BY subscription");
        let read = |row: &Row| {
            Ok(SubscriptionState {
                subscription: row.text("subscription")?,
                state: row.json("state")?,
                updated_at: row.time("updated_at")?,
            })
        };
        self.fetch(sql).await?.iter().map(read).collect()
    }

    /// Writes where sessions belong. No id may come twice.
    pub async fn put_sessions(&self, sessions: &[StickySession]) -> Result<()> {
        self.transaction(put_sessions(sessions)).await.map(drop)
    }

    /// Where sessions belong that were used since `from`, the last used first, at most `limit`.
    pub async fn sessions(&self, from: Timestamp, limit: u32) -> Result<Vec<StickySession>> {
        let mut sql = Sql::new("SELECT id, subscription, since, last_used FROM sticky_sessions WHERE last_used >= ");
        sql.bind(from).push(" ORDER BY last_used DESC, id LIMIT ").bind(i64::from(limit));
        let read = |row: &Row| {
            Ok(StickySession {
                id: row.text("id")?,
                subscription: row.text("subscription")?,
                since: row.time("since")?,
                last_used: row.time("last_used")?,
            })
        };
        self.fetch(sql).await?.iter().map(read).collect()
    }
}

pub(super) fn put_state(state: &SubscriptionState) -> Sql {
    let mut sql = Sql::new("INSERT INTO subscription_states (subscription, state, updated_at) VALUES ");
    sql.tuple("", [(&state.subscription).into(), (&state.state).into(), state.updated_at.into()]);
    sql.push(
        " ON CONFLICT (subscription) DO UPDATE SET state = excluded.state, updated_at = excluded.updated_at \
         WHERE excluded.updated_at >= subscription_states.updated_at",
    );
    sql
}

pub(super) fn put_sessions(sessions: &[StickySession]) -> Vec<Sql> {
    let statement = |sessions: &[StickySession]| {
        let mut sql = Sql::new("INSERT INTO sticky_sessions (id, subscription, since, last_used) VALUES ");
        for (index, session) in sessions.iter().enumerate() {
            let values =
                [(&session.id).into(), (&session.subscription).into(), session.since.into(), session.last_used.into()];
            sql.tuple(if index == 0 { "" } else { ", " }, values);
        }
        // A move is newer than the last use before it, and neither undoes the other.
        sql.push(
            " ON CONFLICT (id) DO UPDATE SET subscription = excluded.subscription, since = excluded.since, \
             last_used = CASE WHEN excluded.last_used > sticky_sessions.last_used THEN excluded.last_used \
             ELSE sticky_sessions.last_used END WHERE excluded.since >= sticky_sessions.since",
        );
        sql
    };
    sessions.chunks(BATCH).map(statement).collect()
}
