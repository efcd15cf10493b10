//! What is compared: the pool's strategies, and what it would be like without sessions that stay.

use serde::Serialize;

use crate::pool::Strategy;

/// One way to run the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Contender {
    /// Its name.
    pub name: &'static str,
    /// How a subscription is chosen for a new session.
    pub strategy: Strategy,
    /// Whether sessions stay where they are; else every request is a session of its own.
    pub sticky: bool,
}

impl Contender {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::sticky("pace", Strategy::Pace),
        Self::sticky("health", Strategy::Health),
        Self::sticky("least_loaded", Strategy::LeastLoaded),
        Self::sticky("round_robin", Strategy::RoundRobin),
        Self::sticky("random", Strategy::Random),
        Self::sticky("priority", Strategy::Priority),
        Self { name: "not_sticky", strategy: Strategy::RoundRobin, sticky: false },
    ];

    const fn sticky(name: &'static str, strategy: Strategy) -> Self {
        Self { name, strategy, sticky: true }
    }

    /// The one with this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|contender| contender.name == name)
    }
}
