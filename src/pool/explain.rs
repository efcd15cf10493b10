//! Why a request went where it went.

use std::sync::Arc;

use serde::Serialize;

use super::health::Health;
use super::subscription::Cause;
use crate::units::Timestamp;

/// Candidates that a decision names; the rest are only counted.
pub(super) const MOST_CANDIDATES: usize = 32;

/// One allocation, explained.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Decision {
    /// When.
    pub at: Timestamp,
    /// For whom, as it may be shown.
    pub session: String,
    /// Who serves; `None` if nobody could.
    pub chosen: Option<Arc<str>>,
    /// Why, in words.
    pub reason: String,
    /// Everybody who was looked at. A session that stays where it is looks at its own place only.
    pub candidates: Vec<Candidate>,
    /// Candidates beyond those that are named.
    pub more: usize,
}

impl Decision {
    /// Why, in words.
    pub fn reason(&self) -> &str {
        &self.reason
    }
}

/// See [`Decision::candidates`].
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Candidate {
    /// Who.
    pub subscription: Arc<str>,
    /// How good a place it is, for those who could serve.
    pub health: Option<Health>,
    /// Why it cannot serve, for those who cannot.
    pub excluded: Option<Cause>,
}
