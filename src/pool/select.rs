//! Who gets a new session: an index of the subscriptions that can take one, always in order.
//!
//! The index is kept up to date with every change, so that choosing costs the same among ten and among ten thousand.
//! Subscriptions are grouped by what they are open to; a choice looks at the best of each open group.

use std::collections::{BTreeMap, BTreeSet};

use crate::conversation::Family;
use crate::units::Timestamp;

use super::command::{Ask, Priority};
use super::limits::FamilyMask;
use super::strategy::{Preference, STRATEGIES};

/// What a subscription is open to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Openness {
    /// Less important requests are not taken any more: the rest is reserved.
    pub(super) least_priority: Priority,
    /// Families that it cannot serve.
    pub(super) closed_families: FamilyMask,
}

impl Openness {
    fn admits(self, need: Need) -> bool {
        need.priority >= self.least_priority && !self.closed_families.contains(need.family)
    }
}

/// What a request needs a subscription to be open to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Need {
    pub(super) family: Family,
    pub(super) priority: Priority,
}

impl From<&Ask<'_>> for Need {
    fn from(ask: &Ask<'_>) -> Self {
        Self { family: ask.family, priority: ask.priority }
    }
}

/// A subscription's place in the order of preference; the least is the best.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    /// What the strategies say.
    pub(super) preference: Preference,
    /// Then fewest requests in flight,
    pub(super) in_flight: u32,
    /// then least recently used,
    pub(super) last_granted: u64,
    /// then the order of the configuration.
    pub(super) position: u32,
    pub(super) subscription: u32,
}

/// Where a subscription is in the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// It can take a new session.
    Ready(Openness, Rank),
    /// It could, if one of its sessions gave way; the instant is when the longest unused of them was last used.
    Full(Openness, Timestamp, u32),
}

impl Place {
    /// Since when its longest unused session has been so, if that session is idle and can give way to such a request.
    pub(super) fn idle_for(&self, need: Need, idle_since: Timestamp) -> Option<(Timestamp, u32)> {
        match *self {
            Self::Full(openness, unused_since, at) if openness.admits(need) && unused_since <= idle_since => {
                Some((unused_since, at))
            }
            Self::Full(..) | Self::Ready(..) => None,
        }
    }

    /// Whether a new session of this kind of request can go there at once.
    pub(super) fn is_ready_for(&self, need: Need) -> bool {
        matches!(self, Self::Ready(openness, _) if openness.admits(need))
    }
}

/// Before every other rank.
const FIRST: Rank =
    Rank { preference: [i64::MIN; STRATEGIES], in_flight: 0, last_granted: 0, position: 0, subscription: 0 };

/// The subscriptions that can take a new session, and those that can once an idle one gives way.
#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    ready: BTreeMap<Openness, BTreeSet<Rank>>,
    full: BTreeMap<Openness, BTreeSet<(Timestamp, u32)>>,
}

impl Index {
    /// Puts a subscription where it now belongs.
    pub(super) fn relocate(&mut self, from: Option<Place>, to: Option<Place>) {
        if from == to {
            return;
        }
        match from {
            Some(Place::Ready(openness, rank)) => {
                self.ready.get_mut(&openness).map(|ranks| ranks.remove(&rank));
            }
            Some(Place::Full(openness, unused_since, subscription)) => {
                self.full.get_mut(&openness).map(|waiting| waiting.remove(&(unused_since, subscription)));
            }
            None => {}
        }
        match to {
            Some(Place::Ready(openness, rank)) => {
                self.ready.entry(openness).or_default().insert(rank);
            }
            Some(Place::Full(openness, unused_since, subscription)) => {
                self.full.entry(openness).or_default().insert((unused_since, subscription));
            }
            None => {}
        }
    }

    /// The best subscription for a new session that `accepts` does not refuse. With `from`, the search begins at this
    /// value of the first preference and goes round.
    pub(super) fn best(&self, need: Need, from: Option<i64>, accepts: impl Fn(u32) -> bool) -> Option<u32> {
        let accepted = |rank: &&Rank| accepts(rank.subscription);
        let after = from.and_then(|from| {
            let start = Rank { preference: [from, i64::MIN, i64::MIN], ..FIRST };
            self.open_ready(need).filter_map(|ranks| ranks.range(start..).find(accepted)).min()
        });
        after
            .or_else(|| self.open_ready(need).filter_map(|ranks| ranks.iter().find(accepted)).min())
            .map(|rank| rank.subscription)
    }

    /// The first `limit` subscriptions in the order of preference.
    pub(super) fn first(&self, need: Need, limit: usize) -> Vec<u32> {
        let mut ranks: Vec<&Rank> = self.open_ready(need).flat_map(|ranks| ranks.iter().take(limit)).collect();
        ranks.sort_unstable();
        ranks.truncate(limit);
        ranks.into_iter().map(|rank| rank.subscription).collect()
    }

    /// The subscription whose longest unused session has been so for longest, and since before `idle_since`.
    pub(super) fn longest_idle(&self, need: Need, idle_since: Timestamp, accepts: impl Fn(u32) -> bool) -> Option<u32> {
        self.full
            .iter()
            .filter(|(openness, _)| openness.admits(need))
            .filter_map(|(_, waiting)| {
                let mut idle = waiting.iter().take_while(|(unused_since, _)| *unused_since <= idle_since);
                idle.find(|(_, subscription)| accepts(*subscription))
            })
            .min()
            .map(|(_, subscription)| *subscription)
    }

    fn open_ready(&self, need: Need) -> impl Iterator<Item = &BTreeSet<Rank>> {
        self.ready.iter().filter(move |(openness, _)| openness.admits(need)).map(|(_, ranks)| ranks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPEN: Openness = Openness { least_priority: Priority::Low, closed_families: FamilyMask::NONE };
    const NEED: Need = Need { family: Family::Opus, priority: Priority::Normal };

    fn rank(preference: i64, in_flight: u32, last_granted: u64, subscription: u32) -> Rank {
        Rank { preference: [preference, 0, 0], in_flight, last_granted, position: 0, subscription }
    }

    fn index(ranks: &[Rank]) -> Index {
        let mut index = Index::default();
        for rank in ranks {
            index.relocate(None, Some(Place::Ready(OPEN, *rank)));
        }
        index
    }

    #[test]
    fn preference_then_fewest_in_flight_then_least_recently_used() {
        let mut index = index(&[rank(50, 0, 0, 0), rank(10, 2, 1, 1), rank(10, 1, 9, 2), rank(10, 1, 3, 3)]);
        assert_eq!(index.first(NEED, 9), [3, 2, 1, 0]);
        assert_eq!(index.best(NEED, None, |_| true), Some(3));
        assert_eq!(index.best(NEED, None, |subscription| subscription < 2), Some(1));
        index.relocate(Some(Place::Ready(OPEN, rank(10, 1, 3, 3))), None);
        assert_eq!(index.best(NEED, None, |_| true), Some(2));
    }

    #[test]
    fn a_search_from_the_middle_goes_round() {
        let index = index(&[rank(10, 0, 0, 0), rank(20, 0, 0, 1), rank(30, 0, 0, 2)]);
        assert_eq!(index.best(NEED, Some(15), |_| true), Some(1));
        assert_eq!(index.best(NEED, Some(20), |_| true), Some(1));
        assert_eq!(index.best(NEED, Some(21), |_| true), Some(2));
        assert_eq!(index.best(NEED, Some(31), |_| true), Some(0));
        assert_eq!(index.best(NEED, Some(15), |subscription| subscription == 0), Some(0));
    }

    #[test]
    fn what_is_reserved_is_open_to_the_important_only() {
        let mut index = index(&[rank(20, 0, 0, 0)]);
        let reserved = Openness { least_priority: Priority::High, ..OPEN };
        index.relocate(None, Some(Place::Ready(reserved, rank(10, 0, 0, 1))));
        assert_eq!(index.best(NEED, None, |_| true), Some(0));
        assert_eq!(index.best(Need { priority: Priority::High, ..NEED }, None, |_| true), Some(1));
    }

    #[test]
    fn full_ones_give_way_by_the_longest_idle_session() {
        let mut index = Index::default();
        index.relocate(None, Some(Place::Full(OPEN, Timestamp::from_secs(20), 0)));
        index.relocate(None, Some(Place::Full(OPEN, Timestamp::from_secs(10), 1)));
        assert_eq!(index.longest_idle(NEED, Timestamp::from_secs(9), |_| true), None);
        assert_eq!(index.longest_idle(NEED, Timestamp::from_secs(30), |_| true), Some(1));
        assert_eq!(index.longest_idle(NEED, Timestamp::from_secs(30), |at| at != 1), Some(0));
    }
}
