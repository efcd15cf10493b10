//! Nobody can serve a request: what to tell its client, and when that will change.
//!
//! The exact answer takes a look at everybody. In a large pool that is too long for a lock, so the look ends with the
//! first subscription that can be free at any moment, because nothing later can change the answer; and one that found
//! only ends in time is remembered until anything changes or the first of them has come.

use std::sync::Arc;

use crate::conversation::Family;
use crate::units::Timestamp;

use super::Pool;
use super::allocate::{SMALL_POOL, excluded_counts};
use super::command::{Ask, Priority, Refusal, RefusalReason};
use super::explain::{CAUSES, Candidate, Cause, Decision, ExcludedCount, Exclusion, Reason};

/// Up to this many members everybody is looked at.
const LARGE_POOL: usize = 64;

/// A refusal that holds until anything changes, or until its time.
#[derive(Clone, Debug)]
pub(super) struct KnownRefusal {
    family: Family,
    priority: Priority,
    reason: RefusalReason,
    retry_at: Option<Timestamp>,
    candidates: Vec<Candidate>,
    excluded: Vec<ExcludedCount>,
}

impl Pool {
    /// Tells why nobody can serve `ask`, and remembers it as a decision.
    pub(super) fn refuse(&mut self, now: Timestamp, ask: &Ask<'_>) -> Refusal {
        let is_shared = ask.exclude.is_empty() && ask.only.is_none();
        let known = self.known_refusal.take().filter(|known| {
            is_shared
                && (known.family, known.priority) == (ask.family, ask.priority)
                && known.retry_at.is_none_or(|retry_at| retry_at > now)
        });
        let refusal = known.unwrap_or_else(|| self.look_at_everybody(now, ask));
        let decision = Arc::new(Decision {
            at: now,
            request: ask.request.clone(),
            session: (&ask.session).into(),
            chosen: None,
            reason: Reason::Refused,
            candidates: refusal.candidates.clone(),
            excluded: refusal.excluded.clone(),
            subscriptions: self.order.len(),
        });
        self.remember(&decision);
        let (reason, retry_at) = (refusal.reason, refusal.retry_at);
        // Slots get free as their sessions become idle; what may happen at any moment is looked at anew.
        let is_lasting = reason != RefusalReason::Busy || retry_at.is_some();
        self.known_refusal = (is_shared && is_lasting && self.order.len() > LARGE_POOL).then_some(refusal);
        Refusal { reason, retry_at, decision }
    }

    fn look_at_everybody(&self, now: Timestamp, ask: &Ask<'_>) -> KnownRefusal {
        let may_stop = self.order.len() > LARGE_POOL && ask.only.is_none();
        let mut exclusions: Vec<(u32, Exclusion)> = Vec::new();
        let mut stopped = false;
        for &at in &self.order {
            let Some(exclusion) = self.refusal_cause(now, ask, at) else { continue };
            exclusions.push((at, exclusion));
            stopped = may_stop && exclusion.cause.is_busy() && exclusion.until.is_none();
            if stopped {
                break;
            }
        }
        let mut counts = [0_u32; CAUSES];
        for (_, exclusion) in &exclusions {
            counts[exclusion.cause.index()] += 1;
        }
        // The pool's own counts are those of an ordinary request.
        let counts = if stopped { &self.excluded } else { &counts };
        let shown = exclusions.iter().take(SMALL_POOL);
        let (reason, retry_at) = verdict(exclusions.iter().map(|(_, exclusion)| exclusion));
        KnownRefusal {
            family: ask.family,
            priority: ask.priority,
            reason,
            retry_at,
            candidates: shown.map(|(at, exclusion)| self.candidate(*at, Some(*exclusion))).collect(),
            excluded: excluded_counts(counts),
        }
    }
}

/// What to tell the client when everybody is out for these causes, and when that first changes.
fn verdict<'a>(exclusions: impl Iterator<Item = &'a Exclusion>) -> (RefusalReason, Option<Timestamp>) {
    let mut reason = (RefusalReason::NoneHealthy, None);
    let mut earliest: Option<Timestamp> = None;
    let mut at_any_moment = false;
    for exclusion in exclusions {
        if let Some(until) = exclusion.until {
            earliest = Some(earliest.map_or(until, |earliest| earliest.min(until)));
        }
        let told = match exclusion.cause {
            cause if cause.is_busy() => {
                at_any_moment |= exclusion.until.is_none();
                RefusalReason::Busy
            }
            Cause::ProviderLimit | Cause::FamilyLimit | Cause::Throttled => RefusalReason::ProviderLimited,
            Cause::BudgetSpent => RefusalReason::BudgetSpent,
            _ => continue,
        };
        reason = more_telling(reason, (told, exclusion.until));
    }
    // A request can end at any moment: nothing later is the earliest change.
    (reason.0, earliest.filter(|_| !at_any_moment))
}

type Told = (RefusalReason, Option<Timestamp>);

/// Busy before all; of limits and budgets the one that ends first.
fn more_telling(one: Told, other: Told) -> Told {
    let order = |told: &Told| {
        let soonest = told.1.map_or(i64::MAX, Timestamp::as_millis);
        match told.0 {
            RefusalReason::Busy => (0, 0),
            RefusalReason::ProviderLimited | RefusalReason::BudgetSpent => (1, soonest),
            RefusalReason::NoneHealthy => (2, 0),
        }
    };
    if order(&other) < order(&one) { other } else { one }
}
