//! What waits to be written: bounded, and with one entry for what changes again and again.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::Hash;
use std::time::Instant;

use serde::Serialize;

use super::sql::Sql;
use super::{Activity, Alert, StickySession, SubscriptionState, UsageRecord, activity, alert, remembered, usage};
use crate::units::Timestamp;

/// The most that waits.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Usage records; some 400 bytes each.
    pub usage: usize,
    /// Activities, sessions and alerts, each.
    pub others: usize,
}

impl Default for Bounds {
    /// An hour of 25 requests a second, in about 40 MB.
    fn default() -> Self {
        Self { usage: 100_000, others: 20_000 }
    }
}

/// What found no place, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Dropped {
    /// Usage records: budgets will be short of them after a restart.
    pub usage: u64,
    /// Changes of activities.
    pub activities: u64,
    /// Uses of sessions.
    pub sessions: u64,
    /// Alerts and their ends.
    pub alerts: u64,
}

/// An alert is raised, or one is over.
#[derive(Clone, Debug)]
pub(super) enum AlertChange {
    Raised(Alert),
    /// Of a subscription, by what they told of it.
    Resolved {
        account: String,
        kind: String,
        threshold: Option<f64>,
        at: Timestamp,
    },
    /// One, by its id.
    Closed {
        id: String,
        at: Timestamp,
    },
}

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    bounds: Bounds,
    usage: VecDeque<UsageRecord>,
    activities: HashMap<String, Activity>,
    sessions: HashMap<String, StickySession>,
    states: BTreeMap<String, SubscriptionState>,
    alerts: VecDeque<AlertChange>,
    /// Since when something waits.
    since: Option<Instant>,
    pub(super) dropped: Dropped,
}

impl Buffer {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self { bounds, ..Self::default() }
    }

    pub(super) fn add_usage(&mut self, record: UsageRecord) {
        if self.usage.len() >= self.bounds.usage {
            self.dropped.usage += 1;
            return;
        }
        self.usage.push_back(record);
        self.note();
    }

    pub(super) fn put_activity(&mut self, activity: Activity) {
        let older = self.activities.get(&activity.id).map(|known| known.revision);
        if older.is_some_and(|revision| revision >= activity.revision) {
            return;
        }
        let id = activity.id.clone();
        if !put(&mut self.activities, self.bounds.others, id, activity) {
            self.dropped.activities += 1;
        }
        self.note();
    }

    pub(super) fn put_session(&mut self, session: StickySession) {
        if !put(&mut self.sessions, self.bounds.others, session.id.clone(), session) {
            self.dropped.sessions += 1;
        }
        self.note();
    }

    /// There are as many as the pool has members, so they need no bound.
    pub(super) fn put_state(&mut self, state: SubscriptionState) {
        self.states.insert(state.subscription.clone(), state);
        self.note();
    }

    pub(super) fn add_alert(&mut self, change: AlertChange) {
        if self.alerts.len() >= self.bounds.others {
            self.dropped.alerts += 1;
            return;
        }
        self.alerts.push_back(change);
        self.note();
    }

    /// Entries that wait.
    pub(super) fn len(&self) -> usize {
        self.usage.len() + self.activities.len() + self.sessions.len() + self.states.len() + self.alerts.len()
    }

    pub(super) fn since(&self) -> Option<Instant> {
        self.since
    }

    /// Takes out what is written next: at most `limit` usage records, and as many of the others.
    pub(super) fn take(&mut self, limit: usize) -> Batch {
        let batch = Batch {
            usage: self.usage.drain(..self.usage.len().min(limit)).collect(),
            activities: take(&mut self.activities, limit),
            sessions: take(&mut self.sessions, limit),
            states: std::mem::take(&mut self.states).into_values().collect(),
            alerts: self.alerts.drain(..self.alerts.len().min(limit)).collect(),
            since: self.since,
        };
        if self.len() == 0 {
            self.since = None;
        }
        batch
    }

    fn note(&mut self) {
        self.since.get_or_insert_with(Instant::now);
    }
}

/// Puts a value in the place of an older one, or in one of its own if there are not too many. Returns whether it could.
fn put<K: Hash + Eq, V>(map: &mut HashMap<K, V>, bound: usize, key: K, value: V) -> bool {
    let fits = map.len() < bound || map.contains_key(&key);
    if fits {
        map.insert(key, value);
    }
    fits
}

fn take<V>(map: &mut HashMap<String, V>, limit: usize) -> Vec<V> {
    if map.len() <= limit {
        return std::mem::take(map).into_values().collect();
    }
    let keys: Vec<String> = map.keys().take(limit).cloned().collect();
    keys.iter().filter_map(|key| map.remove(key)).collect()
}

/// What is written together: usage in one transaction, the others in another. Writing it twice does the same as writing
/// it once.
#[derive(Debug, Default)]
pub(super) struct Batch {
    usage: Vec<UsageRecord>,
    activities: Vec<Activity>,
    sessions: Vec<StickySession>,
    states: Vec<SubscriptionState>,
    alerts: Vec<AlertChange>,
    pub(super) since: Option<Instant>,
}

impl Batch {
    pub(super) fn len(&self) -> usize {
        self.usage.len() + self.activities.len() + self.sessions.len() + self.states.len() + self.alerts.len()
    }

    /// Writes the usage records.
    pub(super) fn usage(&self) -> Vec<Sql> {
        usage::insert(&self.usage)
    }

    /// Writes everything else.
    pub(super) fn others(&self) -> Vec<Sql> {
        // In one order everywhere, so that two programs on one database never wait for each other in a circle.
        let mut sessions = self.sessions.clone();
        sessions.sort_by(|one, other| one.id.cmp(&other.id));
        let mut activities = self.activities.clone();
        activities.sort_by(|one, other| one.id.cmp(&other.id));
        let mut statements = activity::upsert(&activities);
        statements.extend(remembered::put_sessions(&sessions));
        statements.extend(self.states.iter().map(remembered::put_state));
        statements.extend(self.alerts.iter().map(|change| match change {
            AlertChange::Raised(raised) => alert::insert(raised),
            AlertChange::Resolved { account, kind, threshold, at } => alert::resolve(account, kind, *threshold, *at),
            AlertChange::Closed { id, at } => alert::close(std::slice::from_ref(id), *at),
        }));
        statements
    }
}
