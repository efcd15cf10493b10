//! What the operator decides about how requests are served.

use std::time::Duration;

use super::QueueSettings;
use crate::pool::RebalanceSettings;

/// The gateway's settings, checked by whoever builds them.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Subscriptions that one request may try; at least 1.
    pub max_attempts: u32,
    /// The longest a request may take over all its attempts; the wait in the queue has a bound of its own.
    pub deadline: Duration,
    /// The most often that a client may send the very same prompt within a minute; `None` is without a bound.
    pub max_repeats: Option<u32>,
    /// The rebalancer's rules, to explain what it did by.
    pub rebalancing: RebalanceSettings,
    /// How many requests may wait, and how long, when all are busy.
    pub queue: QueueSettings,
}
