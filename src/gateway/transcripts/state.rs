//! What is known of all sessions together, what of it is forgotten, and whose it was.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use tokio::sync::Semaphore;

use super::{Name, Transcript};

/// Names of forgotten sessions that are remembered, so that their clients get an error and no answer out of nowhere.
const MOST_LOST: usize = 100_000;

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) known: HashMap<Name, Known>,
    /// Names of those that may be forgotten, the one used longest ago first: all but those that are visited.
    pub(super) by_use: BTreeMap<u64, Name>,
    uses: u64,
    /// Of those that are known.
    pub(super) bytes: usize,
    /// Of those that may be forgotten.
    pub(super) idle: usize,
    /// Of copies whose answers are on their way.
    pub(super) copied: usize,
    /// What is there twice: a session that is known, and a copy of it that goes on from there.
    twice: HashMap<Name, Twice>,
    /// Of what is there twice.
    twice_bytes: usize,
    /// How many requests are in a session, or wait for it.
    pub(super) visits: HashMap<Name, usize>,
    lost: HashSet<Name>,
    /// The same, the longest lost first.
    lost_order: VecDeque<Name>,
    /// One turn at a time.
    pub(super) locks: HashMap<Name, Arc<Semaphore>>,
}

#[derive(Debug)]
pub(super) struct Known {
    transcript: Arc<Transcript>,
    pub(super) bytes: usize,
    /// Its place among those that may be forgotten.
    used: Option<u64>,
}

#[derive(Debug)]
struct Twice {
    copy: u64,
    bytes: usize,
}

impl State {
    /// A request comes to its session, which is not forgotten until it leaves.
    pub(super) fn arrive(&mut self, name: &Name) {
        *self.visits.entry(name.clone()).or_default() += 1;
        self.unlist(name);
    }

    /// Ends what [`State::arrive`] began. The last one that leaves has used the session.
    pub(super) fn leave(&mut self, name: &Name) {
        let Some(visits) = self.visits.get_mut(name) else { return };
        *visits -= 1;
        if *visits == 0 {
            self.visits.remove(name);
            self.list(name);
        }
    }

    pub(super) fn get(&self, name: &Name) -> Option<Arc<Transcript>> {
        self.known.get(name).map(|known| Arc::clone(&known.transcript))
    }

    pub(super) fn is_lost(&self, name: &Name) -> bool {
        self.lost.contains(name)
    }

    /// Counts a copy of so many bytes, for the time when it is answered, and names it; `None` if there would be no room for it
    /// among `all` bytes even without everything that may be forgotten. What is known of its session counts no second time.
    pub(super) fn copy(&mut self, name: &Name, bytes: usize, all: usize) -> Option<u64> {
        let is_first = !self.twice.contains_key(name);
        let known = self.known.get(name).filter(|_| is_first).map_or(0, |known| known.bytes.min(bytes));
        if self.held() - self.idle + bytes - known > all {
            return None;
        }
        self.uses += 1;
        let copy = self.uses;
        self.copied += bytes;
        if known > 0 {
            self.twice.insert(name.clone(), Twice { copy, bytes: known });
            self.twice_bytes += known;
        }
        self.shrink_to(all);
        Some(copy)
    }

    /// The copy of so many bytes is no more, or is what is known from now on.
    pub(super) fn end_copy(&mut self, name: &Name, copy: u64, bytes: usize) {
        self.copied -= bytes;
        if self.twice.get(name).is_some_and(|twice| twice.copy == copy) {
            self.count_apart(name);
        }
    }

    /// How many bytes count.
    pub(super) fn held(&self) -> usize {
        self.bytes + self.copied - self.twice_bytes
    }

    /// The session is known from now on, as it is now.
    pub(super) fn remember(&mut self, name: &Name, transcript: Transcript, bytes: usize) {
        self.forget(name);
        if self.lost.remove(name) {
            self.lost_order.retain(|lost| lost != name);
        }
        self.bytes += bytes;
        self.known.insert(name.clone(), Known { transcript: Arc::new(transcript), bytes, used: None });
        self.list(name);
    }

    /// Forgets a session, and keeps in mind that its client has to be told.
    pub(super) fn lose(&mut self, name: &Name) {
        self.forget(name);
        if self.lost.insert(name.clone()) {
            self.lost_order.push_back(name.clone());
        }
        if self.lost_order.len() > MOST_LOST
            && let Some(oldest) = self.lost_order.pop_front()
        {
            self.lost.remove(&oldest);
        }
    }

    /// Forgets those used longest ago while all together are more than `most` bytes.
    pub(super) fn shrink_to(&mut self, most: usize) {
        while self.held() > most
            && let Some((_, oldest)) = self.by_use.first_key_value()
        {
            let oldest = oldest.clone();
            self.lose(&oldest);
        }
    }

    fn forget(&mut self, name: &Name) {
        self.unlist(name);
        self.count_apart(name);
        if let Some(known) = self.known.remove(name) {
            self.bytes -= known.bytes;
        }
    }

    /// What is known and its copy have nothing in common any more.
    fn count_apart(&mut self, name: &Name) {
        if let Some(twice) = self.twice.remove(name) {
            self.twice_bytes -= twice.bytes;
        }
    }

    /// Lets it be forgotten after all others, once nobody is in it.
    fn list(&mut self, name: &Name) {
        if !self.visits.contains_key(name)
            && let Some(known) = self.known.get_mut(name)
        {
            self.uses += 1;
            known.used = Some(self.uses);
            self.by_use.insert(self.uses, name.clone());
            self.idle += known.bytes;
        }
    }

    /// Keeps it from being forgotten.
    fn unlist(&mut self, name: &Name) {
        if let Some(known) = self.known.get_mut(name)
            && let Some(used) = known.used.take()
        {
            self.by_use.remove(&used);
            self.idle -= known.bytes;
        }
    }
}
