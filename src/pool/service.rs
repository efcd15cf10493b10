//! Whether a pool is of any use just now.

use crate::units::Timestamp;

use super::Pool;
use super::snapshot::PART;

impl Pool {
    /// Whether one of some members serves new sessions, now or when it is less busy, from position `from` on, and the
    /// position to go on from. Who is limited, has spent its budget, or waits for its operator does not.
    pub fn serves_in_part(&self, now: Timestamp, from: usize) -> (bool, Option<usize>) {
        let end = from.saturating_add(PART).min(self.order.len());
        let part = self.order.get(from..end).unwrap_or_default();
        let serves = |&at: &u32| match self.unavailability(at, now) {
            None => true,
            Some(exclusion) => exclusion.cause.is_busy() || exclusion.until.is_some_and(|until| until <= now),
        };
        (part.iter().any(serves), (end < self.order.len()).then_some(end))
    }
}
