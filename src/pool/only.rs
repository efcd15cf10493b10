//! Which subscriptions a request may use, by the rights of who sent it; and choosing among the few it may.
//!
//! A request without restrictions, or of the house, is served from the pool's index. One that may use few subscriptions
//! looks at just those: their number counts then, not the pool's.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use crate::units::Timestamp;

use super::Pool;
use super::command::{Ask, SelectionSettings, Strategy, SubscriptionSettings};
use super::explain::{Cause, Exclusion};
use super::select::{Need, Place, Rank};
use super::strategy::{STRATEGIES, preference};
use super::subscription::Subscription;

/// Rules that are remembered by their addresses.
const MOST_SEEN: usize = 1_000;

/// Which subscriptions a request may use. The default is all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Only {
    /// By id; `None` is all.
    pub subscriptions: Option<BTreeSet<Arc<str>>>,
    /// By whose they are.
    pub realm: Realm,
}

/// Whose subscriptions a request may use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Realm {
    /// Everybody's: there is nobody to keep apart.
    #[default]
    Every,
    /// Those that belong to no organisation.
    House,
    /// Those of this organisation.
    Organization(Arc<str>),
}

impl Only {
    /// Whether a request may use this subscription.
    pub fn admits(&self, subscription: &SubscriptionSettings) -> bool {
        let listed = self.subscriptions.as_ref().is_none_or(|listed| listed.contains(&subscription.id));
        listed
            && match &self.realm {
                Realm::Every => true,
                Realm::House => subscription.organization.is_none(),
                Realm::Organization(own) => subscription.organization.as_ref() == Some(own),
            }
    }
}

/// The lists of subscriptions that sessions are limited to, each once, by the numbers that sessions keep. There are as
/// many as client keys with lists that differ. A session that was known before a restart has none until its next request.
#[derive(Clone, Debug, Default)]
pub(super) struct Lists {
    numbers: HashMap<BTreeSet<Arc<str>>, u16>,
    /// Rules that were seen, by their addresses: every request of a key comes with the same, and comparing long lists takes
    /// long. Each is held, so that no other can be given its address.
    seen: HashMap<usize, (Arc<Only>, u16)>,
    /// By their numbers, from 1 on.
    by_number: Vec<BTreeSet<Arc<str>>>,
}

impl Lists {
    /// The number of what `only` lists; 0 is everybody.
    pub(super) fn number_of(&mut self, only: Option<&Arc<Only>>) -> u16 {
        let Some((only, listed)) = only.and_then(|only| Some((only, only.subscriptions.as_ref()?))) else { return 0 };
        let address = Arc::as_ptr(only).addr();
        if let Some((_, number)) = self.seen.get(&address) {
            return *number;
        }
        let number = self.numbers.get(listed).copied().unwrap_or_else(|| self.add(listed));
        // Rules that nobody has any more: they come anew with each change.
        if self.seen.len() >= MOST_SEEN {
            self.seen.clear();
        }
        self.seen.insert(address, (Arc::clone(only), number));
        number
    }

    fn add(&mut self, listed: &BTreeSet<Arc<str>>) -> u16 {
        // Beyond what a number can tell nobody is limited here: the next request of the session sees to it.
        let Ok(number) = u16::try_from(self.by_number.len() + 1) else { return 0 };
        self.numbers.insert(listed.clone(), number);
        self.by_number.push(listed.clone());
        number
    }

    /// Whether a session with this number may be given to `subscription`.
    pub(super) fn admit(&self, number: u16, subscription: &str) -> bool {
        let listed = usize::from(number).checked_sub(1).and_then(|index| self.by_number.get(index));
        listed.is_none_or(|listed| listed.contains(subscription))
    }
}

/// Why a subscription is out of the question for this very request.
pub(super) fn ruled_out(member: &Subscription, ask: &Ask<'_>) -> Option<Exclusion> {
    let may = ask.only.as_ref().is_none_or(|only| only.admits(&member.settings));
    let cause = if !may {
        Cause::NotAllowed
    } else if ask.exclude.contains(&member.settings.id) {
        Cause::AlreadyTried
    } else {
        return None;
    };
    Some(Exclusion::new(cause, None, None))
}

/// The strategies of a selection, the first one first. One that is named twice sees no difference the second time.
pub(super) fn strategies(selection: &SelectionSettings) -> [Strategy; STRATEGIES] {
    let [second, third] = selection.fallbacks;
    let second = second.unwrap_or(selection.strategy);
    [selection.strategy, second, third.unwrap_or(second)]
}

impl Pool {
    /// The places of the members that a request may use, where these are few enough to be looked at one by one.
    pub(super) fn named_members(&self, ask: &Ask<'_>) -> Option<Vec<u32>> {
        let only = ask.only.as_deref()?;
        if let Some(listed) = &only.subscriptions {
            return Some(listed.iter().filter_map(|id| self.by_id.get(id).copied()).collect());
        }
        match &only.realm {
            Realm::Organization(own) => Some(self.by_organization.get(own).cloned().unwrap_or_default()),
            Realm::Every | Realm::House => None,
        }
    }

    /// The best of `members` for a request that is not bound to one, by its organisation's own strategy if it has one;
    /// and whether a session has to give way there.
    pub(super) fn best_of(&mut self, now: Timestamp, ask: &Ask<'_>, members: &[u32]) -> Option<(u32, bool)> {
        let need = Need::from(ask);
        let strategies = self.strategies_of(ask);
        // Lots lie on a ring, see `Pool::pick`.
        let from = if strategies[0] == Strategy::Random { self.lots.draw() } else { i64::MIN };
        let open = members.iter().copied().filter(|&at| ruled_out(self.member(at), ask).is_none());
        let ready = open.clone().filter_map(|at| {
            let place = self.member(at).place.filter(|place| place.is_ready_for(need))?;
            let Place::Ready(_, rank) = place else { return None };
            let rank = if strategies == self.strategies {
                rank
            } else {
                let figures = self.member(at).usage.figures(now);
                Rank { preference: preference(strategies, &self.qualities(at, now, &figures), now), ..rank }
            };
            Some((rank.preference[0] < from, rank))
        });
        if let Some((_, rank)) = ready.min() {
            return Some((rank.subscription, false));
        }
        let idle_since = self.idle_since(now);
        let full = open.filter_map(|at| self.member(at).place?.idle_for(need, idle_since));
        full.min().map(|(_, at)| (at, true))
    }

    fn strategies_of(&self, ask: &Ask<'_>) -> [Strategy; STRATEGIES] {
        let own = match ask.only.as_ref().map(|only| &only.realm) {
            Some(Realm::Organization(own)) => self.settings.organizations.get(own),
            _ => None,
        };
        own.map_or(self.strategies, strategies)
    }
}
