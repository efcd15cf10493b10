//! Use beyond a subscription's limits, as the provider told of it last.
//!
//! It decides nothing by itself: the window that is passed counts as full, which makes others preferred. The operator
//! sees it, because it costs extra.

use serde::Serialize;

use crate::conversation::Overage;
use crate::units::Timestamp;

use super::Pool;

/// What was heard, and when.
#[derive(Clone, Debug)]
pub(super) struct HeardOverage {
    overage: Overage,
    at: Timestamp,
}

/// Use beyond a subscription's limits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OverageView {
    /// Whether requests are served that way now.
    pub is_used: bool,
    /// Whether they may be, in the provider's word.
    pub status: Option<String>,
    /// When the bound that the owner has set for it resets.
    pub resets_at: Option<Timestamp>,
    /// When the provider said so.
    pub reported_at: Timestamp,
}

impl HeardOverage {
    /// As it is at `now`: it ends with the window beyond which it was.
    pub(super) fn view(&self, now: Timestamp) -> OverageView {
        let Overage { is_used, status, resets_at, window_resets_at } = &self.overage;
        OverageView {
            is_used: *is_used && window_resets_at.is_none_or(|end| end > now),
            status: status.clone(),
            resets_at: *resets_at,
            reported_at: self.at,
        }
    }
}

impl Pool {
    /// Takes in what the provider said of use beyond a subscription's limits.
    pub fn note_overage(&mut self, now: Timestamp, subscription: &str, overage: &Overage) {
        if let Some(&at) = self.by_id.get(subscription) {
            self.member_mut(at).overage = Some(HeardOverage { overage: overage.clone(), at: now });
        }
    }
}
