//! Choosing: a session stays where it is served; otherwise the healthiest subscription takes it.

use std::cmp::Ordering;
use std::sync::Arc;
use std::time::Duration;

use super::explain::{Candidate, Decision, MOST_CANDIDATES};
use super::health::Health;
use super::session::shown;
use super::subscription::{Cause, Exclusion, Kind, Purpose, Rules};
use super::{Ask, Effect, Grant, Lease, LeaseId, Pool, Refusal, RefusalReason, SessionKey};
use crate::units::Timestamp;

/// When all are busy, an answer may end at any time.
const BUSY_RETRY: Duration = Duration::from_secs(1);

/// How a request came to its subscription.
enum Way {
    /// Its session is there.
    Stays,
    /// A session, or a one-off request, that had no place.
    New,
    /// Its session cannot stay where it was.
    Moves { from: u32, cause: String },
    /// Its own place cannot take this request; the session stays there all the same.
    Spills { cause: String },
}

impl Pool {
    /// Finds a subscription for a request, or says why there is none.
    pub fn acquire(&mut self, now: Timestamp, ask: &Ask<'_>) -> Result<Grant, Refusal> {
        self.release_stale(now);
        let explicit = matches!(ask.session, SessionKey::Explicit(_));
        let own = self.sessions(&ask.session).get(&ask.session).map(|session| session.subscription);
        let mut candidates = Vec::new();

        let way = match own {
            None => Way::New,
            Some(number) => {
                let purpose = if explicit { Purpose::OwnSession } else { Purpose::Returning };
                match self.look_at(number, now, ask, purpose) {
                    Ok(health) => {
                        candidates.push(self.candidate(number, Some(health), None));
                        return Ok(self.grant(now, ask, number, &Way::Stays, candidates, 0));
                    }
                    Err(exclusion) => match exclusion.kind {
                        Kind::Tried | Kind::Busy | Kind::Slots => Way::Spills { cause: exclusion.cause.cause },
                        Kind::Provider | Kind::Budget | Kind::Unhealthy => {
                            Way::Moves { from: number, cause: exclusion.cause.cause }
                        }
                    },
                }
            }
        };

        // A session that keeps its slot elsewhere needs one here only while the request runs.
        let purpose =
            if explicit && !matches!(way, Way::Spills { .. }) { Purpose::NewSession } else { Purpose::OneOff };
        let mut best: Option<(u32, Health)> = None;
        let mut out: Vec<(u32, Exclusion)> = Vec::new();
        let mut more = 0;
        let numbers: Vec<u32> = self.members.keys().copied().collect();
        for number in numbers {
            let (health, excluded) = match self.look_at(number, now, ask, purpose) {
                Ok(health) => (Some(health), None),
                Err(exclusion) => {
                    let cause = exclusion.cause.clone();
                    out.push((number, exclusion));
                    (None, Some(cause))
                }
            };
            if let Some(health) = health
                && best.is_none_or(|(rival, rivals)| self.is_better((number, health), (rival, rivals)))
            {
                best = Some((number, health));
            }
            if candidates.len() < MOST_CANDIDATES {
                candidates.push(self.candidate(number, health, excluded));
            } else {
                more += 1;
            }
        }
        let chosen = best.map(|(number, _)| number).or_else(|| self.make_room(now, &out));
        match chosen {
            Some(number) => Ok(self.grant(now, ask, number, &way, candidates, more)),
            None => Err(self.refuse(now, ask, &out, candidates, more)),
        }
    }

    fn look_at(&mut self, number: u32, now: Timestamp, ask: &Ask<'_>, purpose: Purpose) -> Result<Health, Exclusion> {
        let rules = Rules {
            family: ask.family,
            breaker: &self.settings.breaker,
            weekly_budget_threshold: self.settings.weekly_budget_threshold,
            max_clients: self.settings.max_clients,
        };
        let gone = || Exclusion {
            kind: Kind::Unhealthy,
            cause: Cause { cause: "it is gone".to_owned(), source: "configuration", since: None, until: None },
        };
        let member = self.members.get_mut(&number).ok_or_else(gone)?;
        if let Some(exclusion) = member.exclusion(now, &rules, purpose) {
            return Err(exclusion);
        }
        if ask.exclude.contains(member.id()) {
            let cause = "this request has been there".to_owned();
            let cause = Cause { cause, source: "this request", since: None, until: None };
            return Err(Exclusion { kind: Kind::Tried, cause });
        }
        Ok(member.health(now))
    }

    /// The better health; among equals fewer requests in flight, then who was used least recently.
    fn is_better(&self, (left, left_health): (u32, Health), (right, right_health): (u32, Health)) -> bool {
        let (Some(one), Some(other)) = (self.members.get(&left), self.members.get(&right)) else { return false };
        let order = left_health
            .score
            .total_cmp(&right_health.score)
            .then_with(|| other.in_flight.cmp(&one.in_flight))
            .then_with(|| other.last_allocated.cmp(&one.last_allocated));
        order == Ordering::Greater
    }

    /// When nothing but idle sessions' slots stands in the way, the longest idle gives way.
    fn make_room(&mut self, now: Timestamp, out: &[(u32, Exclusion)]) -> Option<u32> {
        let full = |number: u32| out.iter().any(|(known, exclusion)| *known == number && exclusion.kind == Kind::Slots);
        let idle_after = self.settings.session_idle_after;
        let (key, number) = self
            .explicit
            .resting()
            .take_while(|(_, session)| session.is_idle(now, idle_after))
            .find(|(_, session)| full(session.subscription))
            .map(|(key, session)| (key.clone(), session.subscription))?;
        self.explicit.remove(&key);
        self.members.get_mut(&number)?.slots -= 1;
        Some(number)
    }

    fn grant(
        &mut self,
        now: Timestamp,
        ask: &Ask<'_>,
        number: u32,
        way: &Way,
        candidates: Vec<Candidate>,
        more: usize,
    ) -> Grant {
        let explicit = matches!(ask.session, SessionKey::Explicit(_));
        let mut effects = Vec::new();
        let holds_slot = explicit && !matches!(way, Way::Spills { .. });
        if holds_slot && !matches!(way, Way::Stays) {
            if let Way::Moves { from, .. } = way
                && let Some(member) = self.members.get_mut(from)
            {
                member.slots -= 1;
            }
            if let Some(member) = self.members.get_mut(&number) {
                member.slots += 1;
            }
        }
        if let Way::Moves { from, cause } = way {
            effects.push(Effect::Rotation {
                session: shown(&ask.session),
                from: self.name(*from),
                to: self.name(number),
                cause: cause.clone(),
            });
        }
        // A session that spills over stays where it is.
        let home = match way {
            Way::Spills { .. } => {
                self.sessions(&ask.session).get(&ask.session).map_or(number, |known| known.subscription)
            }
            _ => number,
        };
        self.sessions(&ask.session).begin(&ask.session, home, now);
        let lease = LeaseId(self.next_lease);
        self.next_lease += 1;
        let last_allocated = self.next_lease;
        let one_off = !holds_slot;
        if let Some(member) = self.members.get_mut(&number) {
            member.in_flight += 1;
            member.one_offs += u32::from(one_off);
            member.reserved += ask.estimated_cost;
            member.last_allocated = last_allocated;
        }
        let session = ask.session.clone();
        self.leases.insert(lease, Lease { member: number, session, estimated_cost: ask.estimated_cost, one_off });
        let subscription = self.name(number);
        let reason = self.reason(number, way, &candidates);
        let decision = self.keep(Decision {
            at: now,
            session: shown(&ask.session),
            chosen: Some(Arc::clone(&subscription)),
            reason,
            candidates,
            more,
        });
        Grant { lease, subscription, decision, effects }
    }

    fn reason(&self, number: u32, way: &Way, candidates: &[Candidate]) -> String {
        let name = self.name(number);
        let health = candidates.iter().find(|known| known.subscription == name).and_then(|known| known.health);
        let able = candidates.iter().filter(|known| known.health.is_some()).count();
        let best = match health {
            Some(health) => format!("health {:.1}, the best of {able} that can serve", health.score),
            None => "an idle session gave way".to_owned(),
        };
        match way {
            Way::Stays => "its session is here".to_owned(),
            Way::New => best,
            Way::Moves { from, cause } => format!("moved from {} ({cause}): {best}", self.name(*from)),
            Way::Spills { cause } => format!("its own subscription cannot take it now ({cause}): {best}"),
        }
    }

    fn refuse(
        &mut self,
        now: Timestamp,
        ask: &Ask<'_>,
        out: &[(u32, Exclusion)],
        candidates: Vec<Candidate>,
        more: usize,
    ) -> Refusal {
        let is_out = |wanted: &[Kind]| out.iter().any(|(_, exclusion)| wanted.contains(&exclusion.kind));
        let reason = if is_out(&[Kind::Busy, Kind::Slots]) {
            RefusalReason::Busy
        } else if is_out(&[Kind::Provider]) {
            RefusalReason::ProviderLimited
        } else if is_out(&[Kind::Budget]) {
            RefusalReason::BudgetSpent
        } else if is_out(&[Kind::Tried]) {
            RefusalReason::Busy
        } else {
            RefusalReason::NoneHealthy
        };
        let ends = out.iter().filter_map(|(_, exclusion)| exclusion.cause.until);
        let busy = (reason == RefusalReason::Busy).then(|| now + BUSY_RETRY);
        let retry_at = ends.chain(busy).filter(|instant| *instant > now).min();
        let words = match reason {
            RefusalReason::Busy => "all that could serve are busy",
            RefusalReason::ProviderLimited => "all that could serve are limited by the provider",
            RefusalReason::BudgetSpent => "all that could serve have spent their weekly budget",
            RefusalReason::NoneHealthy => "nobody can serve",
        };
        let decision = self.keep(Decision {
            at: now,
            session: shown(&ask.session),
            chosen: None,
            reason: words.to_owned(),
            candidates,
            more,
        });
        Refusal { reason, retry_at, decision }
    }

    fn candidate(&self, number: u32, health: Option<Health>, excluded: Option<Cause>) -> Candidate {
        Candidate { subscription: self.name(number), health, excluded }
    }

    pub(super) fn name(&self, number: u32) -> Arc<str> {
        self.members.get(&number).map_or_else(|| Arc::from(""), |member| Arc::clone(member.id()))
    }
}
