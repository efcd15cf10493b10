//! The brain of the pool: who serves which session, and why.
//!
//! Pure: every operation takes the time and returns what happened. It does no I/O, reads no clock and starts no task, so
//! the same commands at the same times always give the same result. State is right without ticks: whatever time alone
//! changes is looked at when it matters; [`Pool::tick`] only announces it and frees memory.

mod breaker;
mod command;
mod explain;
mod health;
mod limits;
mod rebalance;
mod select;
mod session;
mod snapshot;
mod subscription;
#[cfg(test)]
mod tests;
mod usage;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

pub use command::*;
pub use explain::{Candidate, Decision};
pub use health::Health;
pub use snapshot::{SessionView, Snapshot, SubscriptionView, Totals, WindowView};
pub use subscription::Cause;

use crate::conversation::{LimitReport, Window};
use crate::units::{MicroUsd, Timestamp};
use session::Sessions;
use subscription::Subscription;

/// Decisions that are kept for the operator.
const KEPT_DECISIONS: usize = 256;

/// The pool.
#[derive(Clone, Debug)]
pub struct Pool {
    settings: Settings,
    /// Members by a number that is never used again; in the order in which they first appeared.
    members: BTreeMap<u32, Subscription>,
    /// Sessions that the clients named.
    explicit: Sessions,
    /// Conversations that were recognised.
    fingerprints: Sessions,
    leases: HashMap<LeaseId, Lease>,
    next_lease: u64,
    next_member: u32,
    decisions: VecDeque<Arc<Decision>>,
}

#[derive(Clone, Debug)]
struct Lease {
    member: u32,
    session: SessionKey,
    estimated_cost: MicroUsd,
    /// Whether it takes a slot while it runs, because its session has none there.
    one_off: bool,
}

impl Pool {
    /// A pool in which nothing has happened yet.
    pub fn new(settings: Settings, now: Timestamp) -> Self {
        let mut pool = Self {
            settings: settings.clone(),
            members: BTreeMap::new(),
            explicit: Sessions::default(),
            fingerprints: Sessions::default(),
            leases: HashMap::new(),
            next_lease: 0,
            next_member: 0,
            decisions: VecDeque::new(),
        };
        // What a first configuration changes is no news.
        pool.apply(now, settings);
        pool
    }

    /// Takes over new rules. Members keep their history by id; removed ones only finish what they are doing; those that
    /// could not log in get another chance.
    pub fn apply(&mut self, now: Timestamp, settings: Settings) -> Vec<Effect> {
        for member in self.members.values_mut() {
            member.removed = settings.subscriptions.iter().all(|kept| kept.id != member.settings.id);
        }
        for new in &settings.subscriptions {
            if let Some(member) = self.members.values_mut().find(|member| member.settings.id == new.id) {
                member.settings = new.clone();
                member.unauthenticated = None;
            } else {
                self.members.insert(self.next_member, Subscription::new(new.clone()));
                self.next_member += 1;
            }
        }
        self.settings = settings;
        self.announce_all(now)
    }

    /// Ends a lease. A lease that has ended already, or never was, changes nothing.
    pub fn finish(&mut self, now: Timestamp, lease: LeaseId, outcome: Outcome, spent: Spent) -> Vec<Effect> {
        let Some(lease) = self.leases.remove(&lease) else { return Vec::new() };
        match &lease.session {
            key @ SessionKey::Explicit(_) => self.explicit.end(key, now),
            key @ SessionKey::Fingerprint(_) => self.fingerprints.end(key, now),
        }
        let Some(member) = self.members.get_mut(&lease.member) else { return Vec::new() };
        member.in_flight -= 1;
        member.reserved -= lease.estimated_cost;
        member.one_offs -= u32::from(lease.one_off);
        if spent.cost > MicroUsd::ZERO || spent.usage.total() > 0 {
            member.account.record(now, spent.cost, spent.usage.total());
        }
        let mut effects = Vec::new();
        match outcome {
            Outcome::Completed => member.succeeded(&self.settings.breaker),
            Outcome::Abandoned | Outcome::ClientError => {}
            Outcome::Unavailable | Outcome::BackendFailed => member.breaker.failure(now, &self.settings.breaker),
            Outcome::Limited(report) => {
                let lock = member.limits.reject(now, &report);
                // When it returns, it is tried out by one request before all come back.
                if lock.family.is_none() {
                    member.ramp = Some(1);
                }
                note_windows(member, now, &report);
                effects.push(Effect::LimitReached {
                    subscription: Arc::clone(member.id()),
                    cause: lock.cause,
                    until: lock.until,
                });
            }
            Outcome::Unauthenticated { detail } => {
                if member.unauthenticated.is_none() {
                    effects.push(Effect::AuthFailed { subscription: Arc::clone(member.id()), cause: detail.clone() });
                }
                member.unauthenticated.get_or_insert((detail, now));
                member.ramp = Some(1);
            }
        }
        effects.extend(announce(member, now));
        effects
    }

    /// Takes note of what the provider says of a subscription's limits beside an answer.
    pub fn observe(&mut self, now: Timestamp, subscription: &str, report: &LimitReport) -> Vec<Effect> {
        let Some(member) = self.members.values_mut().find(|member| &**member.id() == subscription) else {
            return Vec::new();
        };
        member.limits.note(now, report);
        note_windows(member, now, report);
        announce(member, now).into_iter().collect()
    }

    /// Lets a subscription that could not log in be tried again.
    pub fn restore(&mut self, now: Timestamp, subscription: &str) -> Vec<Effect> {
        let Some(member) = self.members.values_mut().find(|member| &**member.id() == subscription) else {
            return Vec::new();
        };
        member.unauthenticated = None;
        announce(member, now).into_iter().collect()
    }

    /// Releases stale sessions and tells what time alone has changed.
    pub fn tick(&mut self, now: Timestamp) -> Vec<Effect> {
        self.release_stale(now);
        self.announce_all(now)
    }

    /// Requests that run.
    pub fn in_flight(&self) -> usize {
        self.leases.len()
    }

    /// The last decisions, the newest last.
    pub fn decisions(&self) -> impl DoubleEndedIterator<Item = &Arc<Decision>> {
        self.decisions.iter()
    }

    fn keep(&mut self, decision: Decision) -> Arc<Decision> {
        let decision = Arc::new(decision);
        if self.decisions.len() == KEPT_DECISIONS {
            self.decisions.pop_front();
        }
        self.decisions.push_back(Arc::clone(&decision));
        decision
    }

    fn sessions(&mut self, key: &SessionKey) -> &mut Sessions {
        match key {
            SessionKey::Explicit(_) => &mut self.explicit,
            SessionKey::Fingerprint(_) => &mut self.fingerprints,
        }
    }

    fn release_stale(&mut self, now: Timestamp) {
        let before = now - self.settings.session_stale_after;
        while let Some((_, session)) = self.explicit.pop_stale(before) {
            if let Some(member) = self.members.get_mut(&session.subscription) {
                member.slots -= 1;
            }
        }
        while self.fingerprints.pop_stale(before).is_some() {}
    }

    fn announce_all(&mut self, now: Timestamp) -> Vec<Effect> {
        self.members.values_mut().filter_map(|member| announce(member, now)).collect()
    }
}

/// The provider's windows become our account's windows.
fn note_windows(member: &mut Subscription, now: Timestamp, report: &LimitReport) {
    let own = report.window.zip(report.resets_at);
    let all = report.windows.iter().filter_map(|known| Some((known.window, known.resets_at?)));
    for (window, resets_at) in all.chain(own) {
        match window {
            Window::FiveHour => member.account.anchor_block(now, resets_at),
            Window::SevenDay => member.account.anchor_week(now, resets_at),
            Window::SevenDayFamily(_) => {}
        }
    }
}

/// The effect of a status that is not what was last told.
fn announce(member: &mut Subscription, now: Timestamp) -> Option<Effect> {
    let (to, cause) = member.status(now);
    let from = std::mem::replace(&mut member.announced, to);
    if from == to {
        return None;
    }
    let subscription = Arc::clone(member.id());
    match (from, to) {
        // Told by the event that caused it.
        (_, Status::Cooldown | Status::Unauthenticated) => None,
        (Status::Cooldown | Status::Unauthenticated | Status::Limited, Status::Available | Status::Approaching) => {
            let was = match from {
                Status::Limited => "its weekly budget was spent",
                Status::Cooldown => "the provider limited it",
                _ => "it could not log in",
            };
            Some(Effect::Recovered { subscription, cause: was.to_owned() })
        }
        _ => Some(Effect::StatusChanged { subscription, from, to, cause: cause.cause }),
    }
}
