//! Keeping up: with the time, with the configuration, and with what the operator says.

use std::cmp::Reverse;

use crate::units::Timestamp;

use super::Pool;
use super::command::{Effect, SessionKey, Settings, SubscriptionSettings};
use super::select::{Openness, Place, Rank, highest_first};
use super::session::{Kind, SessionId, SessionRef};
use super::subscription::Subscription;

/// Sessions that one tick forgets at most, so that no tick holds the pool for long.
const FORGOTTEN_A_TICK: usize = 4096;

impl Pool {
    /// Announces what time alone has changed and forgets stale sessions. Decisions do not depend on it.
    pub fn tick(&mut self, now: Timestamp) -> Vec<Effect> {
        self.advance(now);
        self.forget_stale(now, FORGOTTEN_A_TICK);
        self.vacate_drained();
        self.take_effects()
    }

    /// Takes new rules and members into use. Members are known by their ids: who stays keeps use, sessions and limits;
    /// who is gone serves out its leases; quarantines end, because the operator has just looked.
    pub fn apply(&mut self, now: Timestamp, mut settings: Settings) -> Vec<Effect> {
        self.advance(now);
        let members = std::mem::take(&mut settings.subscriptions);
        self.settings = settings;
        let mut order = Vec::with_capacity(members.len());
        let mut listed = vec![false; self.subscriptions.len() + members.len()];
        for member in members {
            let at = self.take_in(now, member);
            // Of two with the same id the later one's settings count.
            if !std::mem::replace(&mut listed[at as usize], true) {
                order.push(at);
            }
        }
        for at in std::mem::take(&mut self.order) {
            if !listed[at as usize] {
                self.member_mut(at).removed.get_or_insert(now);
                order.push(at);
            }
        }
        self.order = order;
        for index in 0..self.order.len() {
            self.refresh(self.order[index], now);
        }
        self.take_effects()
    }

    /// Adds a member, or changes the one with the same id.
    fn take_in(&mut self, now: Timestamp, settings: SubscriptionSettings) -> u32 {
        let max_clients = settings.max_clients.unwrap_or(self.settings.max_clients);
        if let Some(&at) = self.by_id.get(&settings.id) {
            let member = &mut self.subscriptions[at as usize];
            if member.settings.enabled != settings.enabled || member.removed.take().is_some() {
                member.switched_at = now;
            }
            member.settings = settings;
            member.max_clients = max_clients;
            member.end_quarantine(&mut self.pending);
            return at;
        }
        let id = settings.id.clone();
        let member = Subscription::new(settings, max_clients, now);
        let at = if let Some(at) = self.vacant.pop() {
            *self.member_mut(at) = member;
            at
        } else {
            self.subscriptions.push(member);
            u32::try_from(self.subscriptions.len() - 1).unwrap_or(u32::MAX)
        };
        self.by_id.insert(id, at);
        at
    }

    /// Gives up the places of members that were removed and have nothing left: no lease, no session, no use that
    /// would count if they came back.
    fn vacate_drained(&mut self) {
        let Self { subscriptions, sessions, by_id, vacant, excluded, .. } = self;
        self.order.retain(|&at| {
            let member = &mut subscriptions[at as usize];
            let sessions = sessions.count_at(at, Kind::Explicit) + sessions.count_at(at, Kind::Fingerprint);
            let drained = member.removed.is_some() && member.in_flight == 0 && sessions == 0 && member.usage.is_empty();
            if drained {
                by_id.remove(&member.settings.id);
                member.scheduled = None;
                if let Some(cause) = member.counted.take() {
                    excluded[cause.index()] -= 1;
                }
                vacant.push(at);
            }
            !drained
        });
    }

    /// The operator says that a subscription is well: its quarantine, locks and failures are forgotten. Returns whether
    /// there is such a subscription.
    pub fn restore(&mut self, now: Timestamp, subscription: &str) -> (bool, Vec<Effect>) {
        self.advance(now);
        let at = self.by_id.get(subscription).copied();
        if let Some(at) = at {
            self.subscriptions[at as usize].restore(now, &mut self.pending);
            self.refresh(at, now);
        }
        (at.is_some(), self.take_effects())
    }

    /// Forgets a session at once, and frees its slot. Its leases run on. Returns whether there was one.
    pub fn release(&mut self, now: Timestamp, session: &SessionKey) -> bool {
        let found = self.sessions.find(SessionId::of(session));
        if let Some(at) = found {
            self.forget(at, now);
        }
        found.is_some()
    }

    /// Looks at every member that time alone has changed by `now`.
    pub(super) fn advance(&mut self, now: Timestamp) {
        while let Some(&Reverse((due, at))) = self.timers.peek()
            && due <= now
        {
            self.timers.pop();
            let member = self.member_mut(at);
            // An earlier look may have made this one void.
            if member.scheduled == Some(due) {
                member.scheduled = None;
                self.refresh(at, now);
            }
        }
    }

    /// Forgets up to `limit` sessions that have become stale.
    pub(super) fn forget_stale(&mut self, now: Timestamp, limit: usize) {
        let ages = self.settings.ages();
        for kind in [Kind::Explicit, Kind::Fingerprint] {
            for _ in 0..limit {
                let Some(at) = self.sessions.next_stale(kind, &ages, now) else { break };
                self.forget(at, now);
            }
        }
    }

    pub(super) fn forget(&mut self, at: SessionRef, now: Timestamp) {
        let Some(&session) = self.sessions.get(at) else { return };
        self.sessions.remove(at);
        if session.kind == Kind::Explicit {
            self.refresh(session.subscription, now);
        }
    }

    /// Brings everything that is derived from a member up to date: score, level, place in the index, next look.
    pub(super) fn refresh(&mut self, at: u32, now: Timestamp) {
        let sessions = self.explicit_sessions(at);
        let member = &mut self.subscriptions[at as usize];
        member.advance(now, &mut self.pending);
        let figures = member.usage.figures(now);
        member.announce_level(now, &figures, &mut self.pending);
        member.health = member.health_at(now, &figures, member.clients(sessions));
        let (place, cause) = self.placing(at, now);
        let next = self.member(at).next_change(now, &figures);

        let member = &mut self.subscriptions[at as usize];
        self.index.relocate(member.place, place);
        member.place = place;
        if member.counted != cause {
            if let Some(cause) = member.counted {
                self.excluded[cause.index()] -= 1;
            }
            if let Some(cause) = cause {
                self.excluded[cause.index()] += 1;
            }
            member.counted = cause;
        }
        if let Some(next) = next
            && member.scheduled.is_none_or(|scheduled| next < scheduled)
        {
            member.scheduled = Some(next);
            self.timers.push(Reverse((next, at)));
        }
    }

    /// Where a member belongs in the index, and why it cannot take a new session now.
    fn placing(&self, at: u32, now: Timestamp) -> (Option<Place>, Option<super::Cause>) {
        let member = self.member(at);
        if let Some(outage) = member.outage(now) {
            return (None, Some(outage.cause));
        }
        let figures = member.usage.figures(now);
        let share = member.new_session_share(self.settings.weekly_budget_threshold);
        if member.budget_spent(now, &figures, share) {
            return (None, Some(super::Cause::BudgetSpent));
        }
        if let Some(reserved) = member.reserve_exclusion(now, &figures, share) {
            return (None, Some(reserved.cause));
        }
        let openness = Openness { closed_families: member.limits.locked_families(now) };
        match member.congestion(now, self.explicit_sessions(at), true).map(|exclusion| exclusion.cause) {
            None => {
                let rank = Rank {
                    preference: highest_first(member.health.unclamped()),
                    in_flight: member.in_flight,
                    last_granted: member.last_granted,
                    subscription: at,
                };
                (Some(Place::Ready(openness, rank)), None)
            }
            Some(cause @ super::Cause::SlotsFull) => {
                let longest_unused = self.sessions.longest_unused(at, Kind::Explicit);
                (longest_unused.map(|(_, session)| Place::Full(openness, session.last_used, at)), Some(cause))
            }
            Some(cause) => (None, Some(cause)),
        }
    }
}
