//! A request comes in: who serves it.

use std::sync::Arc;
use std::time::Duration;

use crate::units::{MicroUsd, Timestamp};

use super::command::{Ask, Effect, Grant, LeaseId, Priority, Refusal, Strategy};
use super::elsewhere::{Placement, Standing};
use super::explain::{CAUSES, Candidate, Cause, Decision, ExcludedCount, Exclusion, Reason, Source};
use super::lease::Lease;
use super::only::ruled_out;
use super::select::{Need, Place};
use super::session::{Age, Ages, Kind, Session, SessionId};
use super::session_table::SessionRef;
use super::subscription::STICKY_SHARE;
use super::{Pool, Settings};

/// Candidates that a decision of a large pool shows.
const CANDIDATES_SHOWN: usize = 8;
/// In a pool up to this size a decision shows every member.
pub(super) const SMALL_POOL: usize = 16;
/// Sessions that are forgotten on the way of one request. More than one, so that they cannot pile up.
const FORGOTTEN_A_REQUEST: usize = 4;

/// A subscription for a new session.
struct Pick {
    at: u32,
    /// Whether an idle session has to give up its slot there.
    gives_way: bool,
}

impl Pool {
    /// Finds a subscription for a request and reserves what it is estimated to cost.
    pub fn acquire(&mut self, now: Timestamp, ask: &Ask<'_>) -> Result<Grant, Refusal> {
        self.advance(now);
        self.forget_stale(now, FORGOTTEN_A_REQUEST);
        let id = SessionId::of(&ask.session);
        let kind = Kind::of(&ask.session);
        match self.live_session(id, now) {
            Some((at, session)) => self.continue_session(now, ask, at, session),
            None => self.begin_session(now, ask, id, kind),
        }
    }

    /// Why nobody could serve `ask` now, remembered like any refusal; `None` if somebody could. Takes nothing.
    pub fn refusal_of(&mut self, now: Timestamp, ask: &Ask<'_>) -> Option<Refusal> {
        self.advance(now);
        let stays = self.live_session(SessionId::of(&ask.session), now).is_some_and(|(_, session)| {
            self.obstacle(now, ask, session.subscription, session.kind == Kind::Fingerprint).is_none()
        });
        (!stays && self.pick(now, ask).is_none()).then(|| self.refuse(now, ask))
    }

    /// The session with this id, unless it is stale: then it is forgotten here, ahead of its turn.
    pub(super) fn live_session(&mut self, id: SessionId, now: Timestamp) -> Option<(SessionRef, Session)> {
        let at = self.sessions.find(id)?;
        let session = *self.sessions.get(at)?;
        if self.settings.ages().of(&session, now) == Age::Stale {
            self.forget(at, now);
            return None;
        }
        Some((at, session))
    }

    fn begin_session(&mut self, now: Timestamp, ask: &Ask<'_>, id: SessionId, kind: Kind) -> Result<Grant, Refusal> {
        let Some(pick) = self.pick(now, ask) else { return Err(self.refuse(now, ask)) };
        let reason = if pick.gives_way { Reason::GaveWay } else { Reason::Best };
        let decision = self.decide(now, ask, pick.at, reason);
        self.make_room(now, &pick);
        let session = self.sessions.insert(id, kind, pick.at, now);
        self.limit(session, ask);
        self.note_choice(pick.at);
        let lease = self.grant(now, ask, pick.at, session, kind == Kind::Fingerprint);
        if let Some(surplus) = self.sessions.surplus_fingerprint() {
            self.sessions.remove(surplus);
        }
        let placement = Placement { home: self.member(pick.at).id(), standing: Standing::New };
        Ok(self.granted(lease, pick.at, decision, placement))
    }

    fn continue_session(
        &mut self,
        now: Timestamp,
        ask: &Ask<'_>,
        at: SessionRef,
        session: Session,
    ) -> Result<Grant, Refusal> {
        let home = session.subscription;
        let soft = session.kind == Kind::Fingerprint;
        self.limit(at, ask);
        self.catch_up(home, now);
        let Some(obstacle) = self.obstacle(now, ask, home, soft) else {
            let decision = self.decide(now, ask, home, Reason::Sticky);
            let lease = self.grant(now, ask, home, at, soft);
            let placement = Placement { home: self.member(home).id(), standing: Standing::Since(session.since) };
            return Ok(self.granted(lease, home, decision, placement));
        };
        let Some(pick) = self.pick(now, ask) else { return Err(self.refuse(now, ask)) };
        let stays = obstacle.cause.is_busy() || obstacle.cause == Cause::AlreadyTried;
        let reason = if pick.at == home {
            Reason::GaveWay
        } else if stays {
            Reason::Overflow(obstacle.cause)
        } else {
            Reason::Moved(obstacle.cause)
        };
        let decision = self.decide(now, ask, pick.at, reason);
        self.make_room(now, &pick);
        let mut placement = Placement { home: self.member(home).id(), standing: Standing::Since(session.since) };
        if let Reason::Moved(cause) = reason {
            self.sessions.assign(at, pick.at, now);
            let left = std::mem::replace(&mut placement.home, self.member(pick.at).id());
            placement.standing = Standing::MovedFrom(left);
            self.pending.push(Effect::Rotation {
                session: session.label().to_string(),
                from: self.member(home).id(),
                to: self.member(pick.at).id(),
                cause: cause.to_string(),
            });
        }
        // An explicit session holds a slot where it is assigned; anywhere else its request needs one of its own.
        let own_slot = soft || stays;
        self.note_choice(pick.at);
        let lease = self.grant(now, ask, pick.at, at, own_slot);
        if !stays {
            self.refresh(home, now);
        }
        Ok(self.granted(lease, pick.at, decision, placement))
    }

    /// Notes where the session's requests may go, for whoever moves it when none is there to tell.
    fn limit(&mut self, session: SessionRef, ask: &Ask<'_>) {
        let list = self.lists.number_of(ask.only.as_ref());
        self.sessions.limit_to(session, list);
    }

    /// What keeps a session's request away from the subscription that the session is assigned to.
    fn obstacle(&self, now: Timestamp, ask: &Ask<'_>, home: u32, soft: bool) -> Option<Exclusion> {
        let member = self.member(home);
        let figures = member.usage.figures(now);
        member
            .outage(now)
            .or_else(|| member.family_exclusion(now, ask.family))
            .or_else(|| {
                let spent = member.budget_spent(now, &figures, STICKY_SHARE);
                spent.then(|| member.budget_exclusion(now, &figures, STICKY_SHARE)).flatten()
            })
            .or_else(|| ruled_out(member, ask))
            .or_else(|| member.reserve_exclusion(now, &figures, STICKY_SHARE))
            .or_else(|| member.congestion(now, &figures, self.explicit_sessions(home), soft))
    }

    /// The best subscription for a request that is not bound to one.
    fn pick(&mut self, now: Timestamp, ask: &Ask<'_>) -> Option<Pick> {
        loop {
            let pick = self.pick_known(now, ask);
            if pick.is_some() || !self.is_due(now) {
                return pick;
            }
            // Somebody who is free by now may not have been looked at yet.
            self.advance(now);
        }
    }

    /// The best of those that are known to be free.
    fn pick_known(&mut self, now: Timestamp, ask: &Ask<'_>) -> Option<Pick> {
        if let Some(members) = self.named_members(ask) {
            let (at, gives_way) = self.best_of(now, ask, &members)?;
            return Some(Pick { at, gives_way });
        }
        let need = Need::from(ask);
        // Lots lie on a ring: beginning anywhere on it gives everybody the same chance.
        let from = (self.strategies[0] == Strategy::Random).then(|| self.lots.draw());
        let untried = |at: u32| ruled_out(self.member(at), ask).is_none();
        if let Some(at) = self.index.best(need, from, untried) {
            return Some(Pick { at, gives_way: false });
        }
        let at = self.index.longest_idle(need, self.idle_since(now), untried)?;
        Some(Pick { at, gives_way: true })
    }

    fn note_choice(&mut self, at: u32) {
        let lot = self.lots.draw();
        let granted = self.leases.granted() + 1;
        let member = self.member_mut(at);
        member.lot = lot;
        member.last_chosen = granted;
    }

    fn make_room(&mut self, now: Timestamp, pick: &Pick) {
        if pick.gives_way
            && let Some((idle, _)) = self.sessions.longest_unused(pick.at, Kind::Explicit)
        {
            self.forget(idle, now);
        }
    }

    fn grant(&mut self, now: Timestamp, ask: &Ask<'_>, at: u32, session: SessionRef, own_slot: bool) -> LeaseId {
        let reserved = ask.estimated_cost.max(MicroUsd::ZERO);
        let reserved_tokens = ask.estimated_tokens;
        let (probe, epoch) = self.member_mut(at).start(now, reserved, reserved_tokens, own_slot);

        let lease =
            Lease { subscription: at, session, granted_at: now, reserved, reserved_tokens, own_slot, probe, epoch };
        let lease = self.leases.grant(lease);
        self.sessions.start(session, now);
        self.member_mut(at).last_granted = self.leases.granted();
        self.refresh(at, now);
        lease
    }

    fn granted(&mut self, lease: LeaseId, at: u32, decision: Arc<Decision>, placement: Placement) -> Grant {
        self.remember(&decision);
        Grant { lease, subscription: self.member(at).id(), decision, placement, effects: self.take_effects() }
    }

    /// Why a subscription did not take this very request. That it was tried says more than that it is busy; how one fares
    /// that the request may not use is none of its business.
    pub(super) fn refusal_cause(&self, now: Timestamp, ask: &Ask<'_>, at: u32) -> Option<Exclusion> {
        let ruled_out = ruled_out(self.member(at), ask);
        if ruled_out.is_some_and(|exclusion| exclusion.cause == Cause::NotAllowed) {
            return ruled_out;
        }
        let exclusion = self.exclusion(now, ask, at);
        match exclusion.filter(|exclusion| !exclusion.cause.is_busy()) {
            Some(lasting) => Some(lasting),
            None => ruled_out.or(exclusion),
        }
    }

    /// Why a subscription cannot take a request that is not bound to it.
    fn exclusion(&self, now: Timestamp, ask: &Ask<'_>, at: u32) -> Option<Exclusion> {
        let member = self.member(at);
        member
            .outage(now)
            .or_else(|| member.family_exclusion(now, ask.family))
            .or_else(|| self.shortage(now, at, ask.priority))
    }

    /// Why a subscription cannot take a new session, apart from outages.
    pub(super) fn shortage(&self, now: Timestamp, at: u32, priority: Priority) -> Option<Exclusion> {
        let member = self.member(at);
        let figures = member.usage.figures(now);
        let share = member.new_session_share(self.settings.weekly_budget_threshold, priority);
        member
            .budget_exclusion(now, &figures, share)
            .or_else(|| member.reserve_exclusion(now, &figures, share))
            .or_else(|| {
                let mut exclusion = member.congestion(now, &figures, self.explicit_sessions(at), true)?;
                if exclusion.cause == Cause::SlotsFull && exclusion.source != Source::Replicas {
                    exclusion.until = self.slot_free_at(at);
                }
                Some(exclusion)
            })
    }

    /// When a session will be idle long enough to give up its slot, unless a running request can free one earlier.
    fn slot_free_at(&self, at: u32) -> Option<Timestamp> {
        if self.member(at).own_slots > 0 {
            return None;
        }
        let (_, session) = self.sessions.longest_unused(at, Kind::Explicit)?;
        Some(session.last_used + self.settings.ages().idle_after)
    }

    fn decide(&self, now: Timestamp, ask: &Ask<'_>, chosen: u32, reason: Reason) -> Arc<Decision> {
        let sticky = reason == Reason::Sticky;
        let candidates = if sticky {
            vec![self.candidate(chosen, None)]
        } else if self.order.len() <= SMALL_POOL {
            self.all_candidates(now, ask)
        } else {
            let mut first = self.named_members(ask).unwrap_or_else(|| self.index.first(ask.into(), CANDIDATES_SHOWN));
            first.truncate(CANDIDATES_SHOWN);
            first.into_iter().map(|at| self.candidate(at, ruled_out(self.member(at), ask))).collect()
        };
        Arc::new(Decision {
            at: now,
            request: ask.request.clone(),
            session: (&ask.session).into(),
            chosen: Some(self.member(chosen).id()),
            reason,
            candidates,
            excluded: if sticky { Vec::new() } else { excluded_counts(&self.excluded) },
            subscriptions: self.order.len(),
        })
    }

    /// Every member, those that can serve first and best first, then the others in the order of the configuration.
    fn all_candidates(&self, now: Timestamp, ask: &Ask<'_>) -> Vec<Candidate> {
        let mut members: Vec<_> = self
            .order
            .iter()
            .map(|&at| match self.member(at).place {
                Some(place @ Place::Ready(_, rank)) if place.is_ready_for(ask.into()) => {
                    (Some(rank), at, ruled_out(self.member(at), ask))
                }
                _ => (None, at, self.refusal_cause(now, ask, at)),
            })
            .collect();
        members.sort_by_key(|(rank, _, excluded)| (excluded.is_some(), *rank));
        members.into_iter().map(|(_, at, excluded)| self.candidate(at, excluded)).collect()
    }

    pub(super) fn candidate(&self, at: u32, excluded: Option<Exclusion>) -> Candidate {
        let member = self.member(at);
        Candidate { subscription: member.id(), score: member.health.score, breakdown: member.health, excluded }
    }

    /// Sessions last used at or before this instant are idle.
    pub(super) fn idle_since(&self, now: Timestamp) -> Timestamp {
        now - self.settings.ages().idle_after
    }

    pub(super) fn explicit_sessions(&self, at: u32) -> u32 {
        self.sessions.count_at(at, Kind::Explicit)
    }
}

impl Settings {
    pub(super) fn ages(&self) -> Ages {
        let idle_after = self.session_idle_after.min(self.session_stale_after);
        Ages { idle_after: idle_after.max(Duration::from_millis(1)), stale_after: self.session_stale_after }
    }
}

pub(super) fn excluded_counts(counts: &[u32; CAUSES]) -> Vec<ExcludedCount> {
    let counts = Cause::ALL.into_iter().zip(counts.iter().copied());
    counts.filter(|(_, count)| *count > 0).map(|(cause, count)| ExcludedCount { cause, count }).collect()
}
