//! The sessions the pool knows, made for a million of them.
//!
//! An entry is 64 bytes and is found by a hash of the client's id, so that ids of any length cost the same and none is
//! kept. Entries live in chunks and the index in shards, so that growth never copies everything at once. Two lists run
//! through the entries: all of a kind from the longest unused on, and the same for each subscription.

use std::collections::HashMap;

use crate::units::Timestamp;

use super::session::{Ages, Kind, Links, NONE, Session, SessionId, UNLINKED};

/// Names an entry as long as it exists; later entries in the same place have another generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SessionRef {
    index: u32,
    generation: u32,
}

/// A list through the entries, the longest unused first.
#[derive(Clone, Copy, Debug)]
struct List {
    first: u32,
    last: u32,
    len: u32,
}

const EMPTY: List = List { first: NONE, last: NONE, len: 0 };

/// Which pair of links a list uses.
#[derive(Clone, Copy)]
enum Chain {
    OfKind,
    AtHome,
}

const CHUNK: usize = 1024;
const SHARDS: usize = 1024;
/// Fingerprints remembered at most; beyond it the longest unused is forgotten.
pub(super) const MAX_FINGERPRINTS: u32 = 65_536;

/// All sessions.
#[derive(Clone, Debug)]
pub(super) struct Sessions {
    chunks: Vec<Vec<Session>>,
    vacant: Vec<u32>,
    shards: Vec<HashMap<SessionId, u32>>,
    kinds: [List; 2],
    homes: Vec<[List; 2]>,
}

impl Default for Sessions {
    fn default() -> Self {
        Self {
            chunks: Vec::new(),
            vacant: Vec::new(),
            shards: vec![HashMap::new(); SHARDS],
            kinds: [EMPTY; 2],
            homes: Vec::new(),
        }
    }
}

impl Sessions {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.kinds.iter().map(|list| list.len as usize).sum()
    }

    /// Looks a session up.
    pub(super) fn find(&self, id: SessionId) -> Option<SessionRef> {
        let index = *self.shards[shard(id)].get(&id)?;
        Some(SessionRef { index, generation: self.entry(index).generation })
    }

    /// The session behind `at`, if it still exists.
    pub(super) fn get(&self, at: SessionRef) -> Option<&Session> {
        let entry = self.chunks.get(at.index as usize / CHUNK)?.get(at.index as usize % CHUNK)?;
        (entry.generation == at.generation).then_some(entry)
    }

    /// Adds a session that is used at `now`. There must be none with this id.
    pub(super) fn insert(&mut self, id: SessionId, kind: Kind, subscription: u32, now: Timestamp) -> SessionRef {
        let mut session = Session {
            id,
            last_used: now,
            since: now,
            subscription,
            in_flight: 0,
            generation: 0,
            of_kind: UNLINKED,
            at_home: UNLINKED,
            list: 0,
            kind,
            answered: false,
        };
        let index = if let Some(index) = self.vacant.pop() {
            session.generation = self.entry(index).generation;
            *self.entry_mut(index) = session;
            index
        } else {
            self.append(session)
        };
        self.shards[shard(id)].insert(id, index);
        self.push(Chain::OfKind, index);
        self.push(Chain::AtHome, index);
        SessionRef { index, generation: session.generation }
    }

    /// Adds a session that was used and answered before, for the last time at `last_used`. There must be none with this
    /// id.
    pub(super) fn recall(&mut self, id: SessionId, kind: Kind, home: u32, since: Timestamp, last_used: Timestamp) {
        let at = self.insert(id, kind, home, last_used);
        let entry = self.entry_mut(at.index);
        entry.since = since;
        entry.answered = true;
    }

    /// Notes which subscriptions the session's requests may use.
    pub(super) fn limit_to(&mut self, at: SessionRef, list: u16) {
        if self.get(at).is_some() {
            self.entry_mut(at.index).list = list;
        }
    }

    fn append(&mut self, session: Session) -> u32 {
        if self.chunks.last().is_none_or(|chunk| chunk.len() == CHUNK) {
            self.chunks.push(Vec::with_capacity(CHUNK));
        }
        let full = (self.chunks.len() - 1) * CHUNK;
        let Some(chunk) = self.chunks.last_mut() else { return NONE };
        chunk.push(session);
        u32::try_from(full + chunk.len() - 1).unwrap_or(NONE)
    }

    /// Forgets a session; its leases then belong to none.
    pub(super) fn remove(&mut self, at: SessionRef) {
        let Some(&Session { id, .. }) = self.get(at) else { return };
        self.unlink(Chain::OfKind, at.index);
        self.unlink(Chain::AtHome, at.index);
        self.shards[shard(id)].remove(&id);
        let entry = self.entry_mut(at.index);
        entry.generation = entry.generation.wrapping_add(1);
        self.vacant.push(at.index);
    }

    /// A request of the session begins.
    pub(super) fn start(&mut self, at: SessionRef, now: Timestamp) {
        if self.get(at).is_some() {
            self.entry_mut(at.index).in_flight += 1;
            self.touch(at.index, now);
        }
    }

    /// A request of the session has ended. Returns the session as it is now.
    pub(super) fn finish(&mut self, at: SessionRef, now: Timestamp, answered: bool) -> Option<Session> {
        self.get(at)?;
        let entry = self.entry_mut(at.index);
        entry.in_flight = entry.in_flight.saturating_sub(1);
        entry.answered |= answered;
        self.touch(at.index, now);
        Some(*self.entry(at.index))
    }

    /// Assigns the session to another subscription. That is no use of it: its age stays, and as one that has been
    /// unused for long it goes to the front.
    pub(super) fn assign(&mut self, at: SessionRef, subscription: u32, now: Timestamp) {
        if self.get(at).is_none() {
            return;
        }
        self.unlink(Chain::AtHome, at.index);
        let entry = self.entry_mut(at.index);
        entry.subscription = subscription;
        entry.since = now;
        self.push_front(Chain::AtHome, at.index);
    }

    /// Sessions assigned to `subscription`.
    pub(super) fn count_at(&self, subscription: u32, kind: Kind) -> u32 {
        self.homes.get(subscription as usize).map_or(0, |lists| lists[kind.index()].len)
    }

    /// The sessions of a subscription, roughly from the longest unused on.
    pub(super) fn at_home(&self, subscription: u32, kind: Kind) -> impl Iterator<Item = (SessionRef, &Session)> {
        let first = self.homes.get(subscription as usize).map_or(NONE, |lists| lists[kind.index()].first);
        let mut next = first;
        std::iter::from_fn(move || {
            let index = next;
            if index == NONE {
                return None;
            }
            let session = self.entry(index);
            next = session.at_home.next;
            Some((SessionRef { index, generation: session.generation }, session))
        })
    }

    /// The session of a subscription that has been unused longest, if any is not in use.
    pub(super) fn longest_unused(&self, subscription: u32, kind: Kind) -> Option<(SessionRef, &Session)> {
        self.at_home(subscription, kind).find(|(_, session)| session.in_flight == 0)
    }

    /// The first session of a kind that has become stale.
    pub(super) fn next_stale(&mut self, kind: Kind, ages: &Ages, now: Timestamp) -> Option<SessionRef> {
        loop {
            let index = self.kinds[kind.index()].first;
            if index == NONE {
                return None;
            }
            let session = *self.entry(index);
            if now.since(session.last_used) < ages.stale_after {
                return None;
            }
            if session.in_flight == 0 {
                return Some(SessionRef { index, generation: session.generation });
            }
            // A request that has run for as long as this is use.
            self.touch(index, now);
        }
    }

    /// The fingerprint to forget because there are too many.
    pub(super) fn surplus_fingerprint(&self) -> Option<SessionRef> {
        let list = self.kinds[Kind::Fingerprint.index()];
        if list.len <= MAX_FINGERPRINTS {
            return None;
        }
        let mut index = list.first;
        while index != NONE {
            let session = self.entry(index);
            if session.in_flight == 0 {
                return Some(SessionRef { index, generation: session.generation });
            }
            index = session.of_kind.next;
        }
        None
    }

    fn touch(&mut self, index: u32, now: Timestamp) {
        let entry = self.entry_mut(index);
        entry.last_used = entry.last_used.max(now);
        for chain in [Chain::OfKind, Chain::AtHome] {
            self.unlink(chain, index);
            self.push(chain, index);
        }
    }

    fn entry(&self, index: u32) -> &Session {
        &self.chunks[index as usize / CHUNK][index as usize % CHUNK]
    }

    fn entry_mut(&mut self, index: u32) -> &mut Session {
        &mut self.chunks[index as usize / CHUNK][index as usize % CHUNK]
    }

    fn links_mut(&mut self, chain: Chain, index: u32) -> &mut Links {
        let entry = self.entry_mut(index);
        match chain {
            Chain::OfKind => &mut entry.of_kind,
            Chain::AtHome => &mut entry.at_home,
        }
    }

    fn list_mut(&mut self, chain: Chain, session: &Session) -> &mut List {
        match chain {
            Chain::OfKind => &mut self.kinds[session.kind.index()],
            Chain::AtHome => {
                let home = session.subscription as usize;
                if self.homes.len() <= home {
                    self.homes.resize(home + 1, [EMPTY; 2]);
                }
                &mut self.homes[home][session.kind.index()]
            }
        }
    }

    fn push(&mut self, chain: Chain, index: u32) {
        let session = *self.entry(index);
        let list = self.list_mut(chain, &session);
        let previous = list.last;
        list.last = index;
        list.len += 1;
        if previous == NONE {
            list.first = index;
        } else {
            self.links_mut(chain, previous).next = index;
        }
        *self.links_mut(chain, index) = Links { previous, next: NONE };
    }

    fn push_front(&mut self, chain: Chain, index: u32) {
        let session = *self.entry(index);
        let list = self.list_mut(chain, &session);
        let next = list.first;
        list.first = index;
        list.len += 1;
        if next == NONE {
            list.last = index;
        } else {
            self.links_mut(chain, next).previous = index;
        }
        *self.links_mut(chain, index) = Links { previous: NONE, next };
    }

    fn unlink(&mut self, chain: Chain, index: u32) {
        let Links { previous, next } = *self.links_mut(chain, index);
        let session = *self.entry(index);
        let list = self.list_mut(chain, &session);
        list.len -= 1;
        if previous == NONE {
            list.first = next;
        }
        if next == NONE {
            list.last = previous;
        }
        if previous != NONE {
            self.links_mut(chain, previous).next = next;
        }
        if next != NONE {
            self.links_mut(chain, next).previous = previous;
        }
    }
}

fn shard(id: SessionId) -> usize {
    usize::try_from(id.digest() % SHARDS as u64).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::pool::command::SessionKey;
    use crate::pool::session::Age;

    const AGES: Ages = Ages { idle_after: Duration::from_mins(5), stale_after: Duration::from_hours(1) };

    fn second(second: i64) -> Timestamp {
        Timestamp::from_secs(second)
    }

    fn id(number: u64) -> SessionId {
        SessionId::of(&SessionKey::Fingerprint(number))
    }

    #[test]
    fn a_session_takes_at_most_128_bytes() {
        assert!(size_of::<Session>() <= 64, "{}", size_of::<Session>());
        // The index: an entry and its control byte, in a table that is at least 7/16 full.
        let index = (size_of::<(SessionId, u32)>() + 1) * 16 / 7;
        assert!(size_of::<Session>() + index <= 128, "{index}");
    }

    #[test]
    fn a_session_goes_idle_after_5_minutes_and_stale_after_60() {
        let mut sessions = Sessions::default();
        let at = sessions.insert(id(1), Kind::Explicit, 0, second(0));
        let age = |sessions: &Sessions, seconds| sessions.get(at).map(|session| AGES.of(session, second(seconds)));
        assert_eq!(age(&sessions, 299), Some(Age::Active));
        assert_eq!(age(&sessions, 300), Some(Age::Idle));
        assert_eq!(age(&sessions, 3599), Some(Age::Idle));
        assert_eq!(age(&sessions, 3600), Some(Age::Stale));
        sessions.start(at, second(10));
        assert_eq!(age(&sessions, 9999), Some(Age::Active));
        assert_eq!(sessions.next_stale(Kind::Explicit, &AGES, second(9999)), None);
        sessions.finish(at, second(9999), true);
        assert_eq!(sessions.next_stale(Kind::Explicit, &AGES, second(9999 + 3599)), None);
        assert_eq!(sessions.next_stale(Kind::Explicit, &AGES, second(9999 + 3600)), Some(at));
    }

    #[test]
    fn lists_hold_together_while_sessions_come_go_and_move() {
        let mut sessions = Sessions::default();
        let all: Vec<_> = (0..3000_u32)
            .map(|number| sessions.insert(id(u64::from(number)), Kind::Explicit, number % 3, second(number.into())))
            .collect();
        for at in all.iter().step_by(2) {
            sessions.assign(*at, 0, second(4000));
        }
        for at in all.iter().skip(1).step_by(4) {
            sessions.remove(*at);
        }
        assert_eq!(sessions.len(), 2250);
        let total: usize = (0..3).map(|home| sessions.at_home(home, Kind::Explicit).count()).sum();
        let counted: u32 = (0..3).map(|home| sessions.count_at(home, Kind::Explicit)).sum();
        assert_eq!((total, counted), (2250, 2250));
        assert!(sessions.get(all[1]).is_none());
        assert!(sessions.find(id(1)).is_none());
        assert_eq!(sessions.find(id(2)), Some(all[2]));
        // A vacant place is used again under another generation.
        let reused = sessions.insert(id(9999), Kind::Explicit, 1, second(5000));
        assert_ne!(Some(reused), Some(all[1]));
        assert!(sessions.get(all[1]).is_none());
    }

    #[test]
    fn the_longest_unused_is_found_behind_those_in_use() {
        let mut sessions = Sessions::default();
        let busy = sessions.insert(id(1), Kind::Explicit, 0, second(0));
        sessions.start(busy, second(0));
        let unused = sessions.insert(id(2), Kind::Explicit, 0, second(1));
        assert_eq!(sessions.longest_unused(0, Kind::Explicit).map(|(at, _)| at), Some(unused));
        assert!(sessions.longest_unused(0, Kind::Fingerprint).is_none());
        assert!(sessions.longest_unused(7, Kind::Explicit).is_none());
    }
}
