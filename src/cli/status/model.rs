//! What `status` reads of `/debug/auth-pool`.

use serde::Deserialize;
use serde_json::Value;

use crate::units::Timestamp;

/// The pool.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Pool {
    pub at: Timestamp,
    pub version: String,
    pub totals: Totals,
    #[serde(rename = "status")]
    pub members: Vec<Member>,
    #[serde(default)]
    pub processes: Processes,
    #[serde(default)]
    pub queue: Queue,
    /// What is wrong with the configuration file, if it is.
    #[serde(default)]
    pub config_problems: Option<Value>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Totals {
    pub subscriptions: usize,
    pub eligible: usize,
    pub in_flight: usize,
    pub sessions: usize,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Processes {
    pub running: usize,
    pub spare: usize,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Queue {
    pub waiting: usize,
}

/// A subscription.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Member {
    pub id: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub weekly_used: f64,
    pub weekly_budget: f64,
    pub weekly_percent: f64,
    pub current_block_cost: f64,
    pub block_percent: f64,
    pub projected_block_cost: f64,
    pub block_ends_at: Option<Timestamp>,
    pub assigned_clients: u32,
    pub max_clients: u32,
    pub health_score: f64,
    pub status: String,
    pub status_cause: StatusCause,
    pub excluded: Option<Exclusion>,
    pub burn_rate: f64,
    pub tokens_per_minute: f64,
    pub exhaustion_at: Option<Timestamp>,
    pub in_flight: u32,
    pub max_concurrent: u32,
    pub limits: Vec<Limit>,
    pub family_limits: Vec<FamilyLimit>,
    pub session_counts: std::collections::BTreeMap<String, u32>,
}

#[derive(Debug, Deserialize)]
pub(super) struct StatusCause {
    pub cause: String,
    pub source: String,
    pub until: Option<Timestamp>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Exclusion {
    pub cause: String,
    pub source: String,
    #[serde(default)]
    pub until: Option<Timestamp>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Limit {
    pub window: String,
    pub resets_at: Option<Timestamp>,
}

#[derive(Debug, Deserialize)]
pub(super) struct FamilyLimit {
    pub cause: String,
    pub until: Timestamp,
}

impl Pool {
    pub(super) fn read(value: Value) -> Result<Self, serde_json::Error> {
        serde_json::from_value(value)
    }
}

impl Member {
    /// When the provider says that a window resets.
    pub(super) fn reset_of(&self, window: &str) -> Option<Timestamp> {
        self.limits.iter().find(|limit| limit.window == window)?.resets_at
    }

    pub(super) fn sessions(&self) -> u32 {
        self.session_counts.values().sum()
    }
}
