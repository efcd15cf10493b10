//! Looks at every member of the pool, in parts: a large pool is never held for long, so that no request waits for an
//! operator's view. What changes between two parts may be seen before or after the change.

use super::lease::SharedPool;
use crate::pool::{PoolHealth, Snapshot};
use crate::units::Timestamp;

impl SharedPool {
    /// Everything, for the operator.
    pub fn snapshot(&self) -> Snapshot {
        let totals = self.health();
        let mut subscriptions = Vec::with_capacity(totals.subscriptions);
        let at = self.peek(|_, now| now);
        let mut next = Some(0);
        while let Some(from) = next {
            let (views, rest) = self.peek(|pool, _| pool.views(at, from));
            subscriptions.extend(views);
            next = rest;
        }
        Snapshot { at, totals, subscriptions }
    }

    /// The pool in four figures.
    pub fn health(&self) -> PoolHealth {
        let (mut totals, mut next) = self.peek(|pool, now| pool.totals_in_part(now, 0));
        while let Some(from) = next {
            let (part, rest) = self.peek(|pool, now| pool.totals_in_part(now, from));
            totals = PoolHealth {
                subscriptions: totals.subscriptions + part.subscriptions,
                eligible: totals.eligible + part.eligible,
                ..part
            };
            next = rest;
        }
        totals
    }

    /// Whether somebody serves new sessions, now or when it is less busy.
    pub(super) fn serves(&self) -> bool {
        let (mut serves, mut next) = (false, Some(0));
        while let Some(from) = next.filter(|_| !serves) {
            (serves, next) = self.peek(|pool, now| pool.serves_in_part(now, from));
        }
        serves
    }

    /// The earliest instant at which time alone makes a subscription usable that now is not, as far as is known.
    pub(super) fn recovery_at(&self) -> Option<Timestamp> {
        let (mut earliest, mut next) = self.peek(|pool, now| pool.recovery_in_part(now, 0));
        while let Some(from) = next {
            let (part, rest) = self.peek(|pool, now| pool.recovery_in_part(now, from));
            earliest = earliest.into_iter().chain(part).min();
            next = rest;
        }
        earliest
    }
}
