//! Sessions: which subscription a conversation belongs to, and for how long.
//!
//! An explicit session (an id the client sent) holds a slot of its subscription until it is released. A fingerprint is
//! only remembered as a preference; the table of those is bounded, and the least recently used goes first.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use crate::units::Timestamp;

use super::SessionKey;

/// Fingerprints that are remembered.
const MOST_FINGERPRINTS: usize = 50_000;

/// A session's place in the pool. Subscriptions are known by a number that is never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Session {
    pub subscription: u32,
    pub in_flight: u32,
    pub last_used: Timestamp,
}

impl Session {
    pub(super) fn is_idle(&self, now: Timestamp, idle_after: Duration) -> bool {
        self.in_flight == 0 && now >= self.last_used + idle_after
    }
}

/// All sessions of one kind, in the order of their last use.
#[derive(Clone, Debug, Default)]
pub(super) struct Sessions {
    by_key: HashMap<SessionKey, Session>,
    /// The same keys by last use: what ages first is found first. Keys with requests in flight are not in it.
    by_age: BTreeSet<(Timestamp, SessionKey)>,
}

impl Sessions {
    pub(super) fn get(&self, key: &SessionKey) -> Option<&Session> {
        self.by_key.get(key)
    }

    pub(super) fn len(&self) -> usize {
        self.by_key.len()
    }

    /// A request of the session begins on its subscription.
    pub(super) fn begin(&mut self, key: &SessionKey, subscription: u32, now: Timestamp) {
        let session = self.by_key.entry(key.clone()).or_insert(Session { subscription, in_flight: 0, last_used: now });
        if session.in_flight == 0 {
            self.by_age.remove(&(session.last_used, key.clone()));
        }
        session.subscription = subscription;
        session.in_flight += 1;
        session.last_used = session.last_used.max(now);
        if matches!(key, SessionKey::Fingerprint(_)) && self.by_age.len() >= MOST_FINGERPRINTS {
            self.remove_oldest();
        }
    }

    /// A request of the session has ended.
    pub(super) fn end(&mut self, key: &SessionKey, now: Timestamp) {
        let Some(session) = self.by_key.get_mut(key) else { return };
        session.in_flight = session.in_flight.saturating_sub(1);
        session.last_used = session.last_used.max(now);
        if session.in_flight == 0 {
            self.by_age.insert((session.last_used, key.clone()));
        }
    }

    /// Gives the session to another subscription.
    pub(super) fn assign(&mut self, key: &SessionKey, subscription: u32) {
        if let Some(session) = self.by_key.get_mut(key) {
            session.subscription = subscription;
        }
    }

    /// Forgets the session.
    pub(super) fn remove(&mut self, key: &SessionKey) -> Option<Session> {
        let session = self.by_key.remove(key)?;
        self.by_age.remove(&(session.last_used, key.clone()));
        Some(session)
    }

    fn remove_oldest(&mut self) {
        if let Some((_, key)) = self.by_age.pop_first() {
            self.by_key.remove(&key);
        }
    }

    /// Removes and returns a session that nobody has used since `before`, the oldest first.
    pub(super) fn pop_stale(&mut self, before: Timestamp) -> Option<(SessionKey, Session)> {
        if self.by_age.first()?.0 > before {
            return None;
        }
        let (_, key) = self.by_age.pop_first()?;
        let session = self.by_key.remove(&key)?;
        Some((key, session))
    }

    /// Sessions without a request in flight, the longest idle first.
    pub(super) fn resting(&self) -> impl Iterator<Item = (&SessionKey, &Session)> {
        self.by_age.iter().filter_map(|(_, key)| Some((key, self.by_key.get(key)?)))
    }

    /// All sessions, in no order that may matter.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&SessionKey, &Session)> {
        self.by_key.iter()
    }
}

/// A key as it may be shown: enough to recognise, never all of what a client sent.
pub(super) fn shown(key: &SessionKey) -> String {
    const SHOWN: usize = 24;
    match key {
        SessionKey::Explicit(id) => {
            let id: String = id.chars().map(|char| if char.is_control() { '?' } else { char }).collect();
            if id.chars().count() <= SHOWN {
                return id;
            }
            format!("{}…", id.chars().take(SHOWN).collect::<String>())
        }
        SessionKey::Fingerprint(hash) => format!("#{hash:016x}"),
    }
}
