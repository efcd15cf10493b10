//! The leases that this replica has out, as the server should know them.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;

use crate::units::Timestamp;

/// One lease.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Lent {
    /// Unique within this replica.
    pub(super) id: u64,
    /// Estimated tokens.
    pub(super) tokens: u64,
    /// Estimated cost in micro-dollars.
    pub(super) cost: i64,
    /// Whether it holds a client slot of its own.
    pub(super) own_slot: bool,
    /// The session's key.
    pub(super) session: String,
    /// How long ago it began, in milliseconds, if the server has not counted that yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) started_age: Option<u64>,
    #[serde(skip)]
    pub(super) started: Timestamp,
    /// Whether the server has counted that it began.
    #[serde(skip)]
    pub(super) counted: bool,
}

/// All of them, by subscription. Subscriptions stay when their last lease ends: the server may hold one that is over.
#[derive(Debug, Default)]
pub(super) struct Registry(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    last: u64,
    out: HashMap<u64, (Arc<str>, Lent)>,
    used: HashSet<Arc<str>>,
}

impl Registry {
    /// An id that was never used before.
    pub(super) fn next_id(&self) -> u64 {
        let mut state = self.lock();
        state.last += 1;
        state.last
    }

    /// A lease begins.
    pub(super) fn lend(&self, subscription: &Arc<str>, lent: Lent) {
        let mut state = self.lock();
        state.used.insert(Arc::clone(subscription));
        state.out.insert(lent.id, (Arc::clone(subscription), lent));
    }

    /// The server has counted that they began.
    pub(super) fn note_counted(&self, ids: impl IntoIterator<Item = u64>) {
        let mut state = self.lock();
        for id in ids {
            if let Some((_, lent)) = state.out.get_mut(&id) {
                lent.counted = true;
            }
        }
    }

    /// A lease has ended. Returns what is known of it.
    pub(super) fn end(&self, id: u64) -> Option<Lent> {
        self.lock().out.remove(&id).map(|(_, lent)| lent)
    }

    /// What is out on each subscription that was ever used, for the server to take over. The caller tells with
    /// [`Self::note_counted`] when that has happened.
    pub(super) fn all(&self, now: Timestamp) -> Vec<(Arc<str>, Vec<Lent>)> {
        let state = self.lock();
        let mut all: HashMap<&Arc<str>, Vec<Lent>> = state.used.iter().map(|id| (id, Vec::new())).collect();
        for (subscription, lent) in state.out.values() {
            let age = now.since(lent.started).as_millis();
            let started_age = (!lent.counted).then(|| u64::try_from(age).unwrap_or(u64::MAX));
            all.entry(subscription).or_default().push(Lent { started_age, ..lent.clone() });
        }
        all.into_iter().map(|(subscription, lent)| (Arc::clone(subscription), lent)).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.lock().out.len()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
