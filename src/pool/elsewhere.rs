//! What other pools do with the same subscriptions, where several replicas share them.
//!
//! This pool stays what it is: it decides by what it knows. Whoever talks to the others tells it here what they have
//! learned, and asks what they need to know of its own decisions.

use std::sync::Arc;

use crate::conversation::{LimitReport, LimitStatus};
use crate::units::Timestamp;

use super::Pool;
use super::breaker::Breaker;
use super::capacity::CapacityLimits;
use super::command::{Ask, Effect, Grant, LeaseId, Outcome, Refusal, SessionKey, Spent};
use super::explain::{Cause, Exclusion, Source};
use super::session::SessionId;
use super::subscription::Subscription;

/// Where a session is after a decision, for those who share it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The subscription that it is assigned to: the granted one, unless only this request runs elsewhere.
    pub home: Arc<str>,
    /// What is known of its being there.
    pub standing: Standing,
}

/// What a pool knows of a session's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It had never seen the session.
    New,
    /// The session has been there since then.
    Since(Timestamp),
    /// It has just moved the session away from there, because that subscription cannot serve it any more.
    MovedFrom(Arc<str>),
}

/// What a subscription may take, all replicas together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Requests at the same time.
    pub concurrent: u32,
    /// Client slots.
    pub clients: u32,
    /// Rolling windows.
    pub capacity: CapacityLimits,
}

/// Which of the bounds all replicas together have used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shortage {
    /// Requests at the same time.
    Requests,
    /// A window of requests, tokens or money.
    Capacity,
    /// Client slots.
    Slots,
}

/// Other replicas use all that there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Held {
    shortage: Shortage,
    since: Timestamp,
    until: Timestamp,
}

impl Pool {
    /// What a subscription may take.
    pub fn bounds(&self, subscription: &str) -> Option<Bounds> {
        let member = self.member(*self.by_id.get(subscription)?);
        Some(Bounds {
            concurrent: member.settings.max_concurrent,
            clients: member.max_clients,
            capacity: member.settings.capacity,
        })
    }

    /// Whether this pool has seen a session and remembers it.
    pub fn knows(&self, session: &SessionKey) -> bool {
        self.sessions.find(SessionId::of(session)).is_some()
    }

    /// Like [`Pool::acquire`], for a session that another replica has bound to `home`. Where there is no such
    /// subscription here, the session is treated like any other.
    pub fn acquire_at(&mut self, now: Timestamp, ask: &Ask<'_>, home: &str) -> Result<Grant, Refusal> {
        self.advance(now);
        let id = SessionId::of(&ask.session);
        let Some(&home) = self.by_id.get(home) else { return self.acquire(now, ask) };
        let known = self.live_session(id, now);
        let at = if let Some((at, session)) = known {
            if session.subscription != home {
                self.sessions.assign(at, home, now);
                self.refresh(session.subscription, now);
            }
            at
        } else {
            self.sessions.insert(id, super::session::Kind::of(&ask.session), home, now)
        };
        self.refresh(home, now);
        let verdict = self.acquire(now, ask);
        if verdict.is_err() && known.is_none() {
            self.forget(at, now);
        }
        verdict
    }

    /// Takes a grant back as if it had never been: nothing has run.
    pub fn cancel(&mut self, now: Timestamp, lease: LeaseId) -> Vec<Effect> {
        if let Some(lease) = self.leases.get(lease).copied() {
            self.member_mut(lease.subscription).starts.undo(lease.granted_at);
        }
        self.finish(now, lease, Outcome::Abandoned, Spent::default())
    }

    /// All replicas together have used what a subscription may take, until then.
    pub fn hold(&mut self, now: Timestamp, subscription: &str, shortage: Shortage, until: Timestamp) -> Vec<Effect> {
        self.advance(now);
        if let Some(&at) = self.by_id.get(subscription) {
            self.catch_up(at, now);
            let member = self.member_mut(at);
            let since = member.held.filter(|held| held.until > now).map_or(now, |held| held.since);
            member.held = (until > now).then_some(Held { shortage, since, until });
            self.refresh(at, now);
        }
        self.take_effects()
    }

    /// A request of another replica has ended: what it used counts here too, and the place that it held may be free.
    pub fn count_elsewhere(&mut self, now: Timestamp, subscription: &str, spent: &Spent) -> Vec<Effect> {
        self.advance(now);
        if let Some(&at) = self.by_id.get(subscription) {
            self.catch_up(at, now);
            let member = self.member_mut(at);
            member.count(now, spent);
            member.lift_hold();
            self.refresh(at, now);
        }
        self.take_effects()
    }

    /// Another replica has heard this from the provider. It counts like what was heard here; but who heard it first
    /// has announced it.
    pub fn observe_elsewhere(&mut self, now: Timestamp, subscription: &str, report: &LimitReport) -> Vec<Effect> {
        self.advance(now);
        if let Some(&at) = self.by_id.get(subscription) {
            self.catch_up(at, now);
            self.member_mut(at).observe_elsewhere(now, report);
            self.refresh(at, now);
        }
        self.take_effects()
    }

    /// Another replica's breaker has opened until then, or (`None`) has closed after its probes. One that is open here
    /// for longer stays so.
    pub fn breaker_elsewhere(&mut self, now: Timestamp, subscription: &str, until: Option<Timestamp>) -> Vec<Effect> {
        self.advance(now);
        if let Some(&at) = self.by_id.get(subscription) {
            self.catch_up(at, now);
            let member = self.member_mut(at);
            match (until, member.breaker) {
                (Some(until), Breaker::Open { until: own, .. }) if own >= until => {}
                (Some(until), _) if until > now => member.breaker = Breaker::Open { since: now, until },
                (None, Breaker::Open { .. } | Breaker::HalfOpen { .. }) => {
                    member.breaker = Breaker::default();
                    member.begin_ramp(1);
                }
                _ => {}
            }
            self.refresh(at, now);
        }
        self.take_effects()
    }
}

impl Subscription {
    /// What keeps a request away because other replicas use it. Their slots matter only to one that needs a slot.
    pub(super) fn held_at(&self, now: Timestamp, needs_slot: bool) -> Option<Exclusion> {
        let held = self.held.filter(|held| held.until > now && (needs_slot || held.shortage != Shortage::Slots))?;
        let cause = match held.shortage {
            Shortage::Requests => Cause::RequestsFull,
            Shortage::Capacity => Cause::CapacityFull,
            Shortage::Slots => Cause::SlotsFull,
        };
        Some(Exclusion::new(cause, Some(held.since), Some(held.until)).told_by(Source::Replicas))
    }

    /// A request has ended, here or elsewhere: what it held may be free for all.
    pub(super) fn lift_hold(&mut self) {
        self.held = self.held.filter(|held| held.shortage == Shortage::Capacity);
    }

    fn observe_elsewhere(&mut self, now: Timestamp, report: &LimitReport) {
        self.hear(now, report);
        if report.status == LimitStatus::Rejected
            && let Some(lock) = self.limits.reject(now, now, report)
        {
            self.limits.note_heard(now, lock);
            self.seen_lock = self.limits.lock_at(now);
        }
    }
}
