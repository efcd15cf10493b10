//! How the server is doing, for the operator.

use serde::Serialize;

use crate::units::Timestamp;

/// Whether the server answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It has not answered yet.
    Joining,
    /// It answers.
    Together,
    /// It is out of reach: each replica counts by itself.
    Apart,
}

/// What `GET /health/redis` tells. Holds no address.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Whether it answers,
    pub state: State,
    /// and since when that is so.
    pub since: Timestamp,
    /// Why it is out of reach.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// This replica.
    pub replica: String,
    /// Replicas that are alive, as last heard.
    pub replicas: u64,
    /// Requests of this replica that run.
    pub running: usize,
    /// How long the server last took to answer, in milliseconds.
    pub round_trip_ms: Option<f64>,
    /// Times that it went out of reach.
    pub times_apart: u64,
}
