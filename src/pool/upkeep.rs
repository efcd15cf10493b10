//! Keeping up: with the time, with the configuration, and with what the operator says.

use std::cmp::Reverse;
use std::time::Duration;

use crate::units::{MicroUsd, Timestamp};

use super::Pool;
use super::command::{Effect, Priority, SessionKey, Settings, Strategy, SubscriptionSettings};
use super::explain::{Cause, Source};
use super::only::strategies;
use super::select::{Openness, Place, Rank};
use super::session::{Kind, SessionId};
use super::session_table::SessionRef;
use super::strategy::{Lots, Qualities, preference};
use super::subscription::Subscription;
use super::usage::Figures;

/// Sessions that one tick forgets at most, so that no tick holds the pool for long.
const FORGOTTEN_A_TICK: usize = 32;
/// Members that one call looks at because of the time: of 10,000 whose blocks end in one moment, each call that follows
/// takes a few along.
pub(super) const DUE_A_CALL: usize = 16;
/// How often a rolling week's place in the pace is looked at again, because it alone drifts with the time.
const PACE_REVIEW: Duration = Duration::from_hours(1);

impl Pool {
    /// Announces what time alone has changed and forgets stale sessions, as much of it as a call may take long; see
    /// [`Pool::is_behind`]. Decisions do not depend on it.
    pub fn tick(&mut self, now: Timestamp) -> Vec<Effect> {
        self.advance(now);
        self.forget_stale(now, FORGOTTEN_A_TICK);
        self.vacate_drained();
        self.take_effects()
    }

    /// Whether another [`Pool::tick`] at this time has something left to do.
    pub fn is_behind(&mut self, now: Timestamp) -> bool {
        let ages = self.settings.ages();
        self.is_due(now) || Kind::ALL.into_iter().any(|kind| self.sessions.next_stale(kind, &ages, now).is_some())
    }

    /// Takes new rules and members into use. Members are known by their ids: who stays keeps use, sessions and limits;
    /// who is gone serves out its leases; a lost login is tried again by the next request, because the operator may have
    /// seen to it.
    pub fn apply(&mut self, now: Timestamp, mut settings: Settings) -> Vec<Effect> {
        self.advance(now);
        let members = std::mem::take(&mut settings.subscriptions);
        self.settings = settings;
        self.choose_strategies();
        let mut order = Vec::with_capacity(members.len());
        let mut listed = vec![false; self.subscriptions.len() + members.len()];
        for member in members {
            let at = self.take_in(now, member);
            // Of two with the same id the later one's settings count.
            if !std::mem::replace(&mut listed[at as usize], true) {
                self.member_mut(at).position = u32::try_from(order.len()).unwrap_or(u32::MAX);
                order.push(at);
            }
        }
        for at in std::mem::take(&mut self.order) {
            if !listed[at as usize] {
                self.member_mut(at).removed.get_or_insert(now);
                self.draining = true;
                order.push(at);
            }
        }
        self.gone.retain(|&at| !listed[at as usize]);
        self.order = order;
        self.sort_by_organization();
        for index in 0..self.order.len() {
            self.refresh(self.order[index], now);
        }
        self.take_effects()
    }

    fn sort_by_organization(&mut self) {
        self.by_organization.clear();
        for &at in &self.order {
            if let Some(organization) = &self.subscriptions[at as usize].settings.organization {
                self.by_organization.entry(organization.clone()).or_default().push(at);
            }
        }
    }

    fn choose_strategies(&mut self) {
        self.strategies = strategies(&self.settings.selection);
        self.lots = Lots::new(self.settings.selection.seed);
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
            member.look_at_login(now);
            return at;
        }
        let id = settings.id.clone();
        let mut member = Subscription::new(settings, max_clients, now);
        member.lot = self.lots.draw();
        let at = if let Some(at) = self.vacant.pop() {
            *self.member_mut(at) = member;
            at
        } else {
            self.subscriptions.push(member);
            u32::try_from(self.subscriptions.len() - 1).unwrap_or(u32::MAX)
        };
        self.by_id.insert(id, at);
        self.blocks.insert((MicroUsd::ZERO, at));
        at
    }

    /// Takes members that were removed out of sight once their last request has ended, and gives up their places once
    /// nothing of them is left: no session, no use that would count if they came back.
    fn vacate_drained(&mut self) {
        if !self.draining && self.gone.is_empty() {
            return;
        }
        let Self { subscriptions, sessions, by_id, by_organization, vacant, blocks, gone, draining, .. } = self;
        *draining = false;
        self.order.retain(|&at| {
            let member = &subscriptions[at as usize];
            if !member.is_gone() {
                *draining |= member.removed.is_some();
                return true;
            }
            if let Some(organization) = &member.settings.organization
                && let Some(members) = by_organization.get_mut(organization)
            {
                members.retain(|other| *other != at);
            }
            gone.push(at);
            false
        });
        gone.retain(|&at| {
            let member = &mut subscriptions[at as usize];
            let sessions = sessions.count_at(at, Kind::Explicit) + sessions.count_at(at, Kind::Fingerprint);
            let is_forgotten = sessions == 0 && member.usage.is_empty();
            if is_forgotten {
                by_id.remove(&member.settings.id);
                blocks.remove(&(member.block_cost, at));
                member.scheduled = None;
                vacant.push(at);
            }
            !is_forgotten
        });
    }

    /// The operator says that a subscription is well: its quarantine, locks and failures are forgotten. Returns whether
    /// there is such a subscription.
    pub fn restore(&mut self, now: Timestamp, subscription: &str) -> (bool, Vec<Effect>) {
        self.advance(now);
        let at = self.by_id.get(subscription).copied();
        if let Some(at) = at {
            self.catch_up(at, now);
            self.subscriptions[at as usize].restore(now, &mut self.pending);
            self.refresh(at, now);
        }
        (at.is_some(), self.take_effects())
    }

    /// What serves these subscriptions was replaced: their failures are forgotten, and breakers that are open or tried out
    /// are closed. Limits and lost logins are not its doing and stay. Returns whose breakers were closed.
    pub fn forget_failures<'a>(
        &mut self,
        now: Timestamp,
        subscriptions: impl IntoIterator<Item = &'a str>,
    ) -> (Vec<&'a str>, Vec<Effect>) {
        self.advance(now);
        let mut closed = Vec::new();
        for subscription in subscriptions {
            let Some(&at) = self.by_id.get(subscription) else { continue };
            self.catch_up(at, now);
            if self.subscriptions[at as usize].forget_failures(now, &mut self.pending) {
                closed.push(subscription);
            }
            self.refresh(at, now);
        }
        (closed, self.take_effects())
    }

    /// Forgets a session at once, and frees its slot. Its leases run on. Returns whether there was one.
    pub fn release(&mut self, now: Timestamp, session: &SessionKey) -> bool {
        let found = self.sessions.find(SessionId::of(session));
        if let Some(at) = found {
            self.forget(at, now);
        }
        found.is_some()
    }

    /// Looks at members that time alone has changed by `now`, at [`DUE_A_CALL`] of them at most. Time alone only ever frees a
    /// member, so that one that was not looked at yet is at worst left out for a few calls; who is about to be refused
    /// waits for all of them. What concerns one member looks at that one first: see [`Pool::catch_up`].
    pub(super) fn advance(&mut self, now: Timestamp) {
        for _ in 0..DUE_A_CALL {
            if !self.is_due(now) {
                return;
            }
            let Some(Reverse((due, at))) = self.timers.pop() else { return };
            let member = self.member_mut(at);
            // An earlier look may have made this one void.
            if member.scheduled == Some(due) {
                member.scheduled = None;
                self.refresh(at, now);
            }
        }
    }

    /// Whether time alone has changed members that were not looked at since.
    pub(super) fn is_due(&self, now: Timestamp) -> bool {
        self.timers.peek().is_some_and(|Reverse((due, _))| *due <= now)
    }

    /// Looks at a member if time alone has changed it by `now`.
    pub(super) fn catch_up(&mut self, at: u32, now: Timestamp) {
        let member = self.member_mut(at);
        if member.scheduled.is_some_and(|due| due <= now) {
            member.scheduled = None;
            self.refresh(at, now);
        }
    }

    /// Forgets up to `limit` sessions that have become stale.
    pub(super) fn forget_stale(&mut self, now: Timestamp, limit: usize) {
        let ages = self.settings.ages();
        for kind in Kind::ALL {
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
        self.known_refusal = None;
        let sessions = self.explicit_sessions(at);
        let member = &mut self.subscriptions[at as usize];
        member.advance(now, &mut self.pending);
        let figures = member.usage.figures(now);
        member.announce_level(now, &figures, &mut self.pending);
        member.health = member.health_at(now, &figures, member.clients(sessions));
        let block_cost = figures.block_tally.cost;
        if member.block_cost != block_cost {
            self.blocks.remove(&(member.block_cost, at));
            self.blocks.insert((block_cost, at));
            member.block_cost = block_cost;
        }
        let (place, cause) = self.placing(at, now, &figures);
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
        let drifts = self.strategies.contains(&Strategy::Pace) && member.usage.week_reset_after(now).is_none();
        let next = next.into_iter().chain(drifts.then(|| now + PACE_REVIEW)).min();
        if let Some(next) = next
            && member.scheduled.is_none_or(|scheduled| next < scheduled)
        {
            member.scheduled = Some(next);
            self.timers.push(Reverse((next, at)));
        }
    }

    /// Where a member belongs in the index, and why it cannot take an ordinary new session now.
    fn placing(&self, at: u32, now: Timestamp, figures: &Figures) -> (Option<Place>, Option<Cause>) {
        let member = self.member(at);
        if let Some(outage) = member.outage(now) {
            return (None, (!member.is_gone()).then_some(outage.cause));
        }
        let threshold = self.settings.weekly_budget_threshold;
        let spent = |share| member.budget_spent(now, figures, share);
        let reserved = |share| spent(share) || member.reserve_exclusion(now, figures, share).is_some();
        let Some(least_priority) = member.least_priority(threshold, reserved) else {
            let everything = spent(member.new_session_share(threshold, Priority::Normal));
            return (None, Some(if everything { Cause::BudgetSpent } else { Cause::BudgetReserved }));
        };
        let closed_families = member.limits.locked_families(now);
        let openness = Openness { least_priority, closed_families };
        let sessions = self.explicit_sessions(at);
        let congestion = member.congestion(now, figures, sessions, true);
        let elsewhere = congestion.is_some_and(|exclusion| exclusion.source == Source::Replicas);
        let congestion = congestion.map(|exclusion| exclusion.cause);
        let place = match congestion {
            // No session of ours can make room for what others hold.
            Some(_) if elsewhere => None,
            None => Some(Place::Ready(openness, self.rank(at, now, figures))),
            Some(Cause::SlotsFull) => {
                let longest_unused = self.sessions.longest_unused(at, Kind::Explicit);
                longest_unused.map(|(_, session)| Place::Full(openness, session.last_used, at))
            }
            Some(_) => None,
        };
        let reserve = (least_priority > Priority::Normal).then_some(Cause::BudgetSpent);
        (place, congestion.or(reserve))
    }

    /// What strategies look at.
    pub(super) fn qualities(&self, at: u32, now: Timestamp, figures: &Figures) -> Qualities {
        let member = self.member(at);
        Qualities {
            health: member.health.unclamped(),
            clients: (member.clients(self.explicit_sessions(at)), member.max_clients),
            in_flight: (member.in_flight, member.settings.max_concurrent),
            last_chosen: member.last_chosen,
            lot: member.lot,
            priority: member.settings.priority,
            position: member.position,
            week_share: member.week_use(now, figures).share(),
            week_reset: member.usage.week_reset_after(now),
            block_share: member.block_share(now, figures),
        }
    }

    fn rank(&self, at: u32, now: Timestamp, figures: &Figures) -> Rank {
        let member = self.member(at);
        Rank {
            preference: preference(self.strategies, &self.qualities(at, now, figures), now),
            in_flight: member.in_flight,
            last_granted: member.last_granted,
            position: member.position,
            subscription: at,
        }
    }
}
