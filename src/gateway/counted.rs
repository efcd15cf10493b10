//! What was used counts once, whichever way it comes here.
//!
//! Replicas tell each other what their requests used, and may have a store in common in which the same use is kept. A
//! replica that starts hears of one part from the others and reads the other part in the store, and some of it comes
//! both ways. Every use has one id wherever it is told or kept, so whatever comes second is known.

use std::collections::{HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

use super::lease::SharedPool;

/// Ids that are remembered, the newest: what comes both ways comes within moments, or after an outage of the server
/// that replicas share, for which each keeps as many. Some 5 MB.
const MOST: usize = 100_000;

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Counted(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    known: HashSet<Uuid>,
    order: VecDeque<Uuid>,
}

impl Counted {
    /// Whether this was not known before. From now on it is.
    pub(super) fn note(&self, record: &str) -> bool {
        self.lock().note(record)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn knows(&self, record: &str) -> bool {
        Uuid::parse_str(record).is_ok_and(|id| self.known.contains(&id))
    }

    fn note(&mut self, record: &str) -> bool {
        // Every id of ours is one; what is none cannot come a second time.
        let Ok(id) = Uuid::parse_str(record) else { return true };
        if !self.known.insert(id) {
            return false;
        }
        self.order.push_back(id);
        if self.order.len() > MOST
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        true
    }
}

impl SharedPool {
    /// How many of the newest records have to be read one by one, because other replicas may tell them as well. The
    /// older ones may be read as sums.
    pub fn may_come_twice(&self) -> usize {
        if self.replicas().is_some() { MOST / 2 } else { 0 }
    }

    /// Of what a store has kept, the oldest first, what other replicas have not told already. From now on it is known.
    pub fn uncounted<T>(&self, mut kept: Vec<T>, id: impl Fn(&T) -> &str) -> Vec<T> {
        if self.replicas().is_some() {
            let mut counted = self.counted().lock();
            kept.retain(|one| !counted.knows(id(one)));
            // What was heard goes before what is older than anything that may still be told.
            for one in kept.iter().skip(kept.len().saturating_sub(MOST / 2)) {
                counted.note(id(one));
            }
        }
        kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_twice_counts_once_and_what_is_remembered_is_bounded() {
        let counted = Counted::default();
        let ids: Vec<String> = (0..MOST as u128 + 10).map(|number| Uuid::from_u128(number).to_string()).collect();
        assert!(ids.iter().all(|id| counted.note(id)));
        assert!(!counted.note(&ids[10]) && !counted.note(ids.last().unwrap()));
        assert!(counted.note(&ids[0]), "the oldest are forgotten");
        assert!(counted.note("no id") && counted.note("no id"));
        assert_eq!(counted.0.lock().unwrap().known.len(), MOST);
    }
}
