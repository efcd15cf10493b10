//! What a subscription's answers say of its limits: the `anthropic-ratelimit-unified-*` headers.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use serde::Deserialize;

use super::record::Bearer;
use crate::units::Timestamp;

const FIVE_HOURS: i64 = 5 * 3600;
const SEVEN_DAYS: i64 = 7 * 24 * 3600;
/// From here on an answer warns.
const WARNING: f64 = 0.9;

/// How full a subscription's windows are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// The 5-hour window.
    #[serde(default)]
    pub five_hour: WindowLevel,
    /// The 7-day window.
    #[serde(default)]
    pub seven_day: WindowLevel,
}

/// How full one window is, and until when.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WindowLevel {
    /// 0.0 (empty) to 1.0 (spent).
    #[serde(default)]
    pub utilization: f64,
    /// When it resets, in seconds since the epoch; a whole window from now if not given.
    pub resets_at: Option<i64>,
}

/// A limit that refuses a request.
pub(super) struct Spent<'a> {
    pub(super) window: &'a str,
    pub(super) resets_at: i64,
    pub(super) utilization: f64,
}

/// The limits of every bearer that a test has set.
#[derive(Debug, Default)]
pub(super) struct Board(Mutex<BTreeMap<String, Limits>>);

impl Board {
    pub(super) fn set(&self, bearer: &str, limits: Limits) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(bearer.to_owned(), limits);
    }

    pub(super) fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn of(&self, bearer: &Bearer) -> Option<Limits> {
        let limits = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        limits.iter().find(|(name, _)| bearer.is(name)).map(|(_, limits)| *limits)
    }

    /// The headers of a good answer; none where nothing was set, and none for an API key.
    pub(super) fn allowed(&self, bearer: &Bearer, now: Timestamp) -> Vec<(String, String)> {
        if bearer.api_key {
            return Vec::new();
        }
        self.of(bearer).map_or_else(Vec::new, |limits| headers(&limits, None, now))
    }

    /// The headers of a refusal.
    pub(super) fn rejected(&self, bearer: &Bearer, spent: &Spent<'_>, now: Timestamp) -> Vec<(String, String)> {
        let mut limits = self.of(bearer).unwrap_or_default();
        let level = WindowLevel { utilization: spent.utilization, resets_at: Some(spent.resets_at) };
        match spent.window {
            "five_hour" => limits.five_hour = level,
            "seven_day" => limits.seven_day = level,
            // A family's window has no level of its own in the headers.
            _ => {}
        }
        headers(&limits, Some(spent), now)
    }
}

fn headers(limits: &Limits, spent: Option<&Spent<'_>>, now: Timestamp) -> Vec<(String, String)> {
    let resets = |level: WindowLevel, length| level.resets_at.unwrap_or(now.as_secs() + length);
    let five_hour = (limits.five_hour.utilization, resets(limits.five_hour, FIVE_HOURS));
    let seven_day = (limits.seven_day.utilization, resets(limits.seven_day, SEVEN_DAYS));
    // The window that speaks for all is the fullest one.
    let (claim, (fullest, reset)) = match spent {
        Some(spent) => (spent.window, (spent.utilization, spent.resets_at)),
        None if seven_day.0 > five_hour.0 => ("seven_day", seven_day),
        None => ("five_hour", five_hour),
    };
    let warns = spent.is_none() && fullest >= WARNING;
    let status = match spent {
        Some(_) => "rejected",
        None if warns => "allowed_warning",
        None => "allowed",
    };
    let window_status = |window| match spent {
        Some(spent) if spent.window == window => "rejected",
        None if warns && claim == window => "allowed_warning",
        _ => "allowed",
    };
    let mut list: Vec<(&str, String)> = vec![
        ("status", status.into()),
        ("reset", reset.to_string()),
        ("representative-claim", claim.into()),
        ("5h-status", window_status("five_hour").into()),
        ("5h-utilization", five_hour.0.to_string()),
        ("5h-reset", five_hour.1.to_string()),
        ("7d-status", window_status("seven_day").into()),
        ("7d-utilization", seven_day.0.to_string()),
        ("7d-reset", seven_day.1.to_string()),
        ("overage-status", "rejected".into()),
        ("overage-disabled-reason", "org_level_disabled".into()),
    ];
    if warns {
        let name = if claim == "five_hour" { "5h-surpassed-threshold" } else { "7d-surpassed-threshold" };
        list.push((name, WARNING.to_string()));
    }
    list.into_iter().map(|(name, value)| (format!("anthropic-ratelimit-unified-{name}"), value)).collect()
}
