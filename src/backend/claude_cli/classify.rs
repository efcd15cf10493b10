//! From what the CLI says of a failed turn to whose fault it was.
//!
//! Decided by the structured fields; words only where a build gives nothing else.

use jiff::tz::TimeZone;

use super::limit_text;
use super::output::TurnResult;
use crate::backend::{Failure, FailureKind, messages};
use crate::conversation::{LimitReport, LimitStatus};
use crate::runtime::clock;
use crate::units::Timestamp;

/// What is known when a turn has failed.
#[derive(Debug, Default)]
pub(super) struct Evidence {
    /// The CLI's word in the synthetic `assistant` line.
    pub assistant_error: Option<String>,
    /// The rejection that came before, if any.
    pub limits: Option<LimitReport>,
}

/// The failure that `result` reports.
pub(super) fn classify(evidence: &Evidence, result: &TurnResult) -> Failure {
    classify_at(evidence, result, clock::now(), &TimeZone::system())
}

/// The same at `now`; times in words that name no zone are in `zone`.
pub(super) fn classify_at(evidence: &Evidence, result: &TurnResult, now: Timestamp, zone: &TimeZone) -> Failure {
    Failure::new(kind(evidence, result, now, zone), result.text.clone())
}

fn kind(evidence: &Evidence, result: &TurnResult, now: Timestamp, zone: &TimeZone) -> FailureKind {
    let text = result.text.as_str();
    let word = evidence.assistant_error.as_deref().unwrap_or_default();
    let terminal = result.terminal_reason.as_deref().unwrap_or_default();

    if terminal == "prompt_too_long" || text.starts_with("Prompt is too long") {
        return FailureKind::PromptTooLong;
    }
    if word == "billing_error" {
        return FailureKind::Billing;
    }
    if word == "authentication_failed" || matches!(result.status, Some(401 | 403)) || text.starts_with("Not logged in")
    {
        return FailureKind::Unauthenticated;
    }
    // This very program has recognised its own request.
    if result.status == Some(508) {
        return FailureKind::Runaway;
    }
    let is_limit = result.status == Some(429) || matches!(word, "rate_limit" | "usage_limit_reached");
    // Some builds report a spent limit in words only.
    if is_limit || (result.status.is_none() && limit_text::is_limit(text)) {
        return limited(evidence, limit_text::read(text, now, zone), text);
    }
    match result.status {
        Some(404) => FailureKind::ModelNotFound,
        Some(413) => FailureKind::TooLarge,
        Some(400..=499) => FailureKind::InvalidRequest,
        status => match word {
            "model_not_found" => FailureKind::ModelNotFound,
            "invalid_request" => FailureKind::InvalidRequest,
            _ => FailureKind::Unavailable { status },
        },
    }
}

/// A limit or a throttle: by the rejection that came before, and where that is silent, by the words.
fn limited(evidence: &Evidence, told: limit_text::Told, text: &str) -> FailureKind {
    // An entitlement ("extra usage is required for long context") is not a spent limit: it must not ground the
    // subscription for requests that fit.
    if evidence.limits.as_ref().is_none_or(|limits| limits.window.is_none()) && messages::is_entitlement(text) {
        return FailureKind::InvalidRequest;
    }
    let none = LimitReport { status: LimitStatus::Rejected, window: None, resets_at: None, windows: Vec::new() };
    let mut report = evidence.limits.clone().unwrap_or(none);
    report.window = report.window.or(told.window);
    report.resets_at = report.resets_at.or(told.resets_at);
    // Money does not come back by waiting: without a reset this is for the owner.
    if report.resets_at.is_none() && limit_text::is_out_of_credit(text) {
        return FailureKind::Billing;
    }
    FailureKind::Limited(report)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::messages::RawUsage;

    fn check(word: &str, status: Option<u16>, text: &str, expect: &FailureKind) {
        let evidence = Evidence { assistant_error: Some(word.to_owned()), limits: None };
        let result = TurnResult {
            turns: 1,
            is_error: true,
            status,
            terminal_reason: None,
            text: text.to_owned(),
            total_cost: None,
            usage: RawUsage::default(),
        };
        assert_eq!(&classify(&evidence, &result).kind, expect, "{word} {status:?} {text}");
    }

    #[test]
    fn the_table_of_observed_failures() {
        let throttle = FailureKind::Limited(LimitReport {
            status: LimitStatus::Rejected,
            window: None,
            resets_at: None,
            windows: Vec::new(),
        });
        check("rate_limit", Some(429), "Server is temporarily limiting requests", &throttle);
        check(
            "rate_limit",
            Some(429),
            "Extra usage is required for long context requests",
            &FailureKind::InvalidRequest,
        );
        check(
            "authentication_failed",
            Some(401),
            "Failed to authenticate. API Error: 401",
            &FailureKind::Unauthenticated,
        );
        check("authentication_failed", Some(403), "Your account does not have access", &FailureKind::Unauthenticated);
        check("", None, "Not logged in · Please run /login", &FailureKind::Unauthenticated);
        check("billing_error", Some(400), "Credit balance is too low", &FailureKind::Billing);
        check("invalid_request", Some(400), "Prompt is too long · 214000 tokens", &FailureKind::PromptTooLong);
        check("unknown", Some(400), "API Error: 400 messages.0: bad thing", &FailureKind::InvalidRequest);
        check("model_not_found", Some(404), "There's an issue with the selected model", &FailureKind::ModelNotFound);
        check("invalid_request", Some(413), "Request too large (max 32MB)", &FailureKind::TooLarge);
        check("server_error", Some(500), "API Error: 500", &FailureKind::Unavailable { status: Some(500) });
        check("server_error", Some(508), "API Error: 508", &FailureKind::Runaway);
        check("server_error", Some(529), "Overloaded", &FailureKind::Unavailable { status: Some(529) });
        check(
            "server_error",
            None,
            "Unable to connect to API (ECONNRESET)",
            &FailureKind::Unavailable { status: None },
        );
        check("unknown", None, "API Error: Overloaded", &FailureKind::Unavailable { status: None });
    }
}
