//! The wall clock; the only place that reads it.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::units::Timestamp;

/// The current instant.
#[expect(clippy::disallowed_methods, reason = "this is the clock's one home")]
pub fn now() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_millis(i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX))
}
