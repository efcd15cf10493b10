//! Who gets a new session: an index of the subscriptions that can take one, always in order.
//!
//! The index is kept up to date with every change, so that choosing costs the same among ten and among ten thousand.
//! Subscriptions are grouped by what they are open to; a choice looks at the best of each open group.

use std::collections::{BTreeMap, BTreeSet};

use crate::conversation::Family;
use crate::units::Timestamp;

use super::limits::FamilyMask;

/// What a subscription is open to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Openness {
    /// Families that it cannot serve.
    pub(super) closed_families: FamilyMask,
}

/// A subscription's place in the order of preference; the least is the best.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    /// What the strategy says.
    pub(super) preference: i64,
    /// Then fewest requests in flight,
    pub(super) in_flight: u32,
    /// then least recently used,
    pub(super) last_granted: u64,
    /// then the order of the configuration.
    pub(super) subscription: u32,
}

/// The preference that puts the highest score first.
pub(super) fn highest_first(score: f64) -> i64 {
    // Whole billionths order scores as well as the floats do and compare faster.
    #[expect(clippy::cast_possible_truncation, reason = "scores are small; a cast saturates")]
    let billionths = (score * 1e9) as i64;
    -billionths
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
    /// Whether a new session of this kind of request can go there at once.
    pub(super) fn is_ready_for(&self, family: Family) -> bool {
        matches!(self, Self::Ready(openness, _) if openness.admits(family))
    }
}

impl Openness {
    fn admits(self, family: Family) -> bool {
        !self.closed_families.contains(family)
    }
}

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

    /// The best subscription for a new session that `accepts` does not refuse.
    pub(super) fn best(&self, family: Family, accepts: impl Fn(u32) -> bool) -> Option<u32> {
        self.open_ready(family)
            .filter_map(|ranks| ranks.iter().find(|rank| accepts(rank.subscription)))
            .min()
            .map(|rank| rank.subscription)
    }

    /// The first `limit` subscriptions in the order of preference.
    pub(super) fn first(&self, family: Family, limit: usize) -> Vec<u32> {
        let mut ranks: Vec<Rank> =
            self.open_ready(family).flat_map(|ranks| ranks.iter().take(limit)).copied().collect();
        ranks.sort_unstable();
        ranks.truncate(limit);
        ranks.into_iter().map(|rank| rank.subscription).collect()
    }

    /// The subscription whose longest unused session has been so for longest, and since before `idle_since`.
    pub(super) fn longest_idle(
        &self,
        family: Family,
        idle_since: Timestamp,
        accepts: impl Fn(u32) -> bool,
    ) -> Option<u32> {
        self.full
            .iter()
            .filter(|(openness, _)| openness.admits(family))
            .filter_map(|(_, waiting)| {
                let mut idle = waiting.iter().take_while(|(unused_since, _)| *unused_since <= idle_since);
                idle.find(|(_, subscription)| accepts(*subscription))
            })
            .min()
            .map(|(_, subscription)| *subscription)
    }

    fn open_ready(&self, family: Family) -> impl Iterator<Item = &BTreeSet<Rank>> {
        self.ready.iter().filter(move |(openness, _)| openness.admits(family)).map(|(_, ranks)| ranks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rank(score: f64, in_flight: u32, last_granted: u64, subscription: u32) -> Rank {
        Rank { preference: highest_first(score), in_flight, last_granted, subscription }
    }

    fn ready(rank: Rank) -> Place {
        Place::Ready(Openness { closed_families: FamilyMask::default() }, rank)
    }

    #[test]
    fn score_then_fewest_in_flight_then_least_recently_used() {
        let mut index = Index::default();
        for rank in [rank(50.0, 0, 0, 0), rank(90.0, 2, 1, 1), rank(90.0, 1, 9, 2), rank(90.0, 1, 3, 3)] {
            index.relocate(None, Some(ready(rank)));
        }
        assert_eq!(index.first(Family::Opus, 9), [3, 2, 1, 0]);
        assert_eq!(index.best(Family::Opus, |_| true), Some(3));
        assert_eq!(index.best(Family::Opus, |subscription| subscription < 2), Some(1));
        index.relocate(Some(ready(rank(90.0, 1, 3, 3))), None);
        assert_eq!(index.best(Family::Opus, |_| true), Some(2));
    }

    #[test]
    fn full_ones_give_way_by_the_longest_idle_session() {
        let mut index = Index::default();
        let open = Openness { closed_families: FamilyMask::default() };
        index.relocate(None, Some(Place::Full(open, Timestamp::from_secs(20), 0)));
        index.relocate(None, Some(Place::Full(open, Timestamp::from_secs(10), 1)));
        assert_eq!(index.longest_idle(Family::Opus, Timestamp::from_secs(9), |_| true), None);
        assert_eq!(index.longest_idle(Family::Opus, Timestamp::from_secs(30), |_| true), Some(1));
        assert_eq!(index.longest_idle(Family::Opus, Timestamp::from_secs(30), |at| at != 1), Some(0));
    }
}
