//! The brain of the pool: who serves which session, and why.
//!
//! Pure. Every operation takes the time and returns what happened; there is no clock, no I/O and no task in here, so
//! that every rule can be tested to the millisecond and a simulator runs the very same code. The caller holds the
//! [`Pool`] behind one short lock, carries out the [`Effect`]s and ends each lease exactly once.
//!
//! What depends on time is reckoned when it is asked for: a subscription recovers without traffic and without
//! [`Pool::tick`], which only announces it sooner and forgets old sessions.

mod allocate;
mod breaker;
mod capacity;
mod command;
mod elsewhere;
mod explain;
mod health;
mod learn;
mod lease;
mod limits;
mod only;
mod overage;
mod ramp;
mod rebalance;
mod refusal;
mod restore;
mod select;
mod service;
mod session;
mod session_table;
mod settle;
mod snapshot;
mod strategy;
mod subscription;
mod upkeep;
mod usage;
mod window;

#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap, VecDeque};
use std::sync::Arc;

use crate::units::{MicroUsd, Timestamp};

pub use capacity::CapacityLimits;
pub use command::*;
pub use elsewhere::{Bounds, Placement, Shortage, Standing};
pub use explain::{Candidate, Cause, Decision, ExcludedCount, Exclusion, Reason, SessionLabel, Source};
pub use health::HealthBreakdown;
pub use only::{Only, Realm};
pub use overage::OverageView;
pub use restore::{Learned, LearnedBreaker, LearnedLock, LearnedWindow, PastSession, PastUse};
pub use snapshot::{
    BreakerView, FamilyLimitView, PoolHealth, SessionView, Snapshot, StatusCause, SubscriptionView, Totals, UsageView,
    WindowView,
};

use explain::CAUSES;
use lease::Leases;
use refusal::KnownRefusal;
use select::Index;
use session_table::Sessions;
use strategy::{Lots, STRATEGIES};
use subscription::Subscription;

/// Decisions that are kept for the operator.
const DECISIONS_KEPT: usize = 256;

/// The pool. See the module's description.
#[derive(Clone, Debug)]
pub struct Pool {
    /// The rules; the members are in `subscriptions`.
    settings: Settings,
    /// Places of members; a place is used again when its member has gone for good.
    subscriptions: Vec<Subscription>,
    vacant: Vec<u32>,
    /// The places in the order of the configuration, then those that are being drained.
    order: Vec<u32>,
    /// Places of members that were removed and have nothing more to do, but whose use would count if they came back.
    gone: Vec<u32>,
    /// Whether any of those in `order` is being drained.
    draining: bool,
    by_id: HashMap<Arc<str>, u32>,
    /// The places of each organisation's members, in the order of the configuration.
    by_organization: HashMap<Arc<str>, Vec<u32>>,
    sessions: Sessions,
    lists: only::Lists,
    leases: Leases,
    strategies: [Strategy; STRATEGIES],
    lots: Lots,
    index: Index,
    /// The members by what their blocks have cost.
    blocks: BTreeSet<(MicroUsd, u32)>,
    /// How many members can take no new session, by cause.
    excluded: [u32; CAUSES],
    /// When to look at a member again because time alone will have changed it.
    timers: BinaryHeap<Reverse<(Timestamp, u32)>>,
    /// What happened in calls that could not return it.
    pending: Vec<Effect>,
    decisions: VecDeque<Arc<Decision>>,
    /// How many of them are refusals.
    refusals_kept: usize,
    /// The last refusal that took a look at everybody, as long as it holds.
    known_refusal: Option<KnownRefusal>,
}

impl Pool {
    /// A pool with these members, none of which has been used yet.
    pub fn new(settings: Settings, now: Timestamp) -> Self {
        let mut pool = Self {
            settings: Settings { subscriptions: Vec::new(), ..settings.clone() },
            subscriptions: Vec::new(),
            vacant: Vec::new(),
            order: Vec::new(),
            gone: Vec::new(),
            draining: false,
            by_id: HashMap::new(),
            by_organization: HashMap::new(),
            sessions: Sessions::default(),
            lists: only::Lists::default(),
            leases: Leases::default(),
            strategies: [Strategy::Health; STRATEGIES],
            lots: Lots::new(0),
            index: Index::default(),
            blocks: BTreeSet::new(),
            excluded: [0; CAUSES],
            timers: BinaryHeap::new(),
            pending: Vec::new(),
            decisions: VecDeque::with_capacity(DECISIONS_KEPT),
            refusals_kept: 0,
            known_refusal: None,
        };
        pool.apply(now, settings);
        pool
    }

    /// The organisation that a subscription belongs to.
    pub fn organization_of(&self, subscription: &str) -> Option<Arc<str>> {
        let &at = self.by_id.get(subscription)?;
        self.member(at).settings.organization.clone()
    }

    /// Leases that are out.
    pub fn in_flight(&self) -> usize {
        self.leases.len()
    }

    /// The last decisions, the newest first.
    pub fn decisions(&self) -> impl Iterator<Item = &Arc<Decision>> {
        self.decisions.iter().rev()
    }

    fn remember(&mut self, decision: &Arc<Decision>) {
        // A request that waits is refused again and again: only what came of it in the end is of interest.
        if self.refusals_kept > 0 && decision.request.is_some() {
            let outlived = |known: &Decision| known.chosen.is_none() && known.request == decision.request;
            if let Some(index) = self.decisions.iter().rposition(|known| outlived(known)) {
                self.decisions.remove(index);
                self.refusals_kept -= 1;
            }
        }
        if self.decisions.len() == DECISIONS_KEPT
            && let Some(oldest) = self.decisions.pop_front()
        {
            self.refusals_kept -= usize::from(oldest.chosen.is_none());
        }
        self.refusals_kept += usize::from(decision.chosen.is_none());
        self.decisions.push_back(Arc::clone(decision));
    }

    fn member(&self, at: u32) -> &Subscription {
        &self.subscriptions[at as usize]
    }

    fn member_mut(&mut self, at: u32) -> &mut Subscription {
        &mut self.subscriptions[at as usize]
    }

    fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.pending)
    }
}
