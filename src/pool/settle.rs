//! A request has ended, or the provider has said something: what the pool learns from it.

use crate::conversation::LimitReport;
use crate::units::Timestamp;

use super::Pool;
use super::command::{Effect, LeaseId, Outcome, Spent};
use super::session_table::SessionRef;

impl Pool {
    /// Ends a lease. What it used is recorded whatever the outcome. An id that is unknown or already finished changes
    /// nothing.
    pub fn finish(&mut self, now: Timestamp, lease: LeaseId, outcome: Outcome, spent: Spent) -> Vec<Effect> {
        self.advance(now);
        let Some(lease) = self.leases.end(lease) else { return self.take_effects() };
        let answered = matches!(outcome, Outcome::Completed);
        let at = lease.subscription;
        self.catch_up(at, now);
        // Indexed, not through `member_mut`, so that the effects can be borrowed beside it.
        let member = &mut self.subscriptions[at as usize];
        member.release(now, &lease, answered, &spent);
        member.learn(now, &lease, outcome, &self.settings.breaker, &mut self.pending);
        self.end_turn(now, lease.session, answered);
        self.refresh(at, now);
        self.take_effects()
    }

    /// The session's side of an ended request. One that was never answered has nothing to come back for, so it does
    /// not keep a slot.
    fn end_turn(&mut self, now: Timestamp, at: SessionRef, answered: bool) {
        let Some(session) = self.sessions.finish(at, now, answered) else { return };
        if session.in_flight == 0 && !session.answered {
            self.forget(at, now);
        } else {
            self.refresh(session.subscription, now);
        }
    }

    /// Takes in what the provider said of a subscription's limits beside an answer, or when it was polled. A rejection
    /// locks; anything better updates the figures but unlocks nothing.
    pub fn observe(&mut self, now: Timestamp, subscription: &str, report: &LimitReport) -> Vec<Effect> {
        self.advance(now);
        if let Some(&at) = self.by_id.get(subscription) {
            self.catch_up(at, now);
            self.subscriptions[at as usize].observe(now, report, &mut self.pending);
            self.refresh(at, now);
        }
        self.take_effects()
    }
}
