//! A session: who it is assigned to and when it was last used. See [`super::session_table`].

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use crate::units::Timestamp;

use super::command::SessionKey;
use super::explain::SessionLabel;

/// A session's key, reduced to 128 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct SessionId([u64; 2]);

impl SessionId {
    pub(super) fn of(key: &SessionKey) -> Self {
        let half = |salt: u64| {
            let mut hasher = DefaultHasher::new();
            salt.hash(&mut hasher);
            key.hash(&mut hasher);
            hasher.finish()
        };
        Self([half(0), half(1)])
    }

    pub(super) const fn halves(self) -> [u64; 2] {
        self.0
    }

    pub(super) const fn from_halves(halves: [u64; 2]) -> Self {
        Self(halves)
    }

    /// Half of it, as good as random.
    pub(super) const fn digest(self) -> u64 {
        self.0[1]
    }

    pub(super) const fn label(self, kind: Kind) -> SessionLabel {
        SessionLabel::new(kind, self.0[0])
    }
}

/// The two ways a session binds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The client named it: it holds a client slot.
    Explicit,
    /// Recognised by its content: a preference.
    Fingerprint,
}

impl Kind {
    pub(super) const ALL: [Self; 2] = [Self::Explicit, Self::Fingerprint];

    pub(super) const fn of(key: &SessionKey) -> Self {
        match key {
            SessionKey::Explicit(_) => Self::Explicit,
            SessionKey::Fingerprint(_) => Self::Fingerprint,
        }
    }

    pub(super) const fn index(self) -> usize {
        self as usize
    }
}

/// No entry.
pub(super) const NONE: u32 = u32::MAX;

/// Neighbours in a list.
#[derive(Clone, Copy, Debug)]
pub(super) struct Links {
    pub(super) previous: u32,
    pub(super) next: u32,
}

pub(super) const UNLINKED: Links = Links { previous: NONE, next: NONE };

/// One session.
#[derive(Clone, Copy, Debug)]
pub(super) struct Session {
    pub(super) id: SessionId,
    /// When a request of it last began or ended.
    pub(super) last_used: Timestamp,
    /// When it was assigned to its subscription.
    pub(super) since: Timestamp,
    /// Its subscription.
    pub(super) subscription: u32,
    /// Its requests in flight, wherever they run.
    pub(super) in_flight: u32,
    /// Which session of its place this is.
    pub(super) generation: u32,
    /// Neighbours among all sessions of its kind.
    pub(super) of_kind: Links,
    /// Neighbours among those of its subscription.
    pub(super) at_home: Links,
    /// Which subscriptions its last request was allowed to use, see [`super::only::Lists`].
    pub(super) list: u16,
    /// How it binds.
    pub(super) kind: Kind,
    /// Whether it was ever answered: its conversation may be cached by the provider.
    pub(super) answered: bool,
}

impl Session {
    pub(super) fn label(&self) -> SessionLabel {
        self.id.label(self.kind)
    }
}

/// How long ago a session was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Age {
    /// In use, or lately used.
    Active,
    /// Not for some minutes: it may be moved, and may have to give way.
    Idle,
    /// So long ago that it is forgotten.
    Stale,
}

/// When sessions age.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ages {
    pub(super) idle_after: Duration,
    pub(super) stale_after: Duration,
}

impl Ages {
    pub(super) fn of(&self, session: &Session, now: Timestamp) -> Age {
        let unused = now.since(session.last_used);
        if session.in_flight > 0 || unused < self.idle_after.min(self.stale_after) {
            Age::Active
        } else if unused < self.stale_after {
            Age::Idle
        } else {
            Age::Stale
        }
    }
}
