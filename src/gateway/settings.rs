//! What the operator decides about how requests are served.

use crate::pool::RebalanceSettings;

/// The gateway's settings, checked by whoever builds them.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Subscriptions that one request may try; at least 1.
    pub max_attempts: u32,
    /// The rebalancer's rules, to explain what it did by.
    pub rebalancing: RebalanceSettings,
}
