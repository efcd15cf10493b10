//! From what the API says of a failed request to whose fault it was: the same verdicts as for the CLI.

use http::{HeaderMap, StatusCode};
use serde::Deserialize;

use super::limits;
use crate::backend::http::excerpt;
use crate::backend::messages::is_entitlement;
use crate::backend::{Failure, FailureKind};
use crate::conversation::{LimitReport, LimitStatus};
use crate::units::Timestamp;

/// The API's error object.
#[derive(Debug, Deserialize)]
struct ErrorBody {
    error: ApiError,
}

#[derive(Debug, Default, Deserialize)]
struct ApiError {
    #[serde(default, rename = "type")]
    kind: String,
    #[serde(default)]
    message: String,
}

/// The failure that an answer other than 200 reports.
pub(super) fn refused(status: StatusCode, headers: &HeaderMap, body: &[u8], now: Timestamp) -> Failure {
    let Ok(ErrorBody { error }) = serde_json::from_slice::<ErrorBody>(body) else {
        return not_the_api(status, headers, now);
    };
    let message = excerpt(&error.message);
    let text = error.message.to_lowercase();
    let kind = match status.as_u16() {
        429 if is_entitlement(&text) => FailureKind::InvalidRequest,
        429 => FailureKind::Limited(limits::rejection(headers, now)),
        402 => FailureKind::Billing,
        401 | 403 => FailureKind::Unauthenticated,
        404 => FailureKind::ModelNotFound,
        413 => FailureKind::TooLarge,
        400 | 422 => by_words(&text),
        other => FailureKind::Unavailable { status: Some(other) },
    };
    Failure::new(kind, message)
}

/// The failure that an `error` event in a stream reports.
pub(super) fn broken_off(data: &str) -> Failure {
    let Ok(ErrorBody { error }) = serde_json::from_str::<ErrorBody>(data) else {
        return Failure::new(FailureKind::Protocol, "the provider reported an error that cannot be read");
    };
    let kind = match error.kind.as_str() {
        "overloaded_error" => FailureKind::Unavailable { status: Some(529) },
        "rate_limit_error" => FailureKind::Limited(LimitReport {
            status: LimitStatus::Rejected,
            window: None,
            resets_at: None,
            windows: Vec::new(),
        }),
        "authentication_error" | "permission_error" => FailureKind::Unauthenticated,
        "billing_error" => FailureKind::Billing,
        "not_found_error" => FailureKind::ModelNotFound,
        "request_too_large" => FailureKind::TooLarge,
        "invalid_request_error" => by_words(&error.message.to_lowercase()),
        _ => FailureKind::Unavailable { status: None },
    };
    Failure::new(kind, excerpt(&error.message))
}

/// Some verdicts have no status of their own.
fn by_words(text: &str) -> FailureKind {
    if text.contains("prompt is too long") {
        FailureKind::PromptTooLong
    } else if text.contains("credit balance is too low") {
        FailureKind::Billing
    } else {
        FailureKind::InvalidRequest
    }
}

/// Something else answers at this address, or something in between.
fn not_the_api(status: StatusCode, headers: &HeaderMap, now: Timestamp) -> Failure {
    if status.is_redirection() {
        let detail = format!("the provider's address answers {status}, and redirects are not followed");
        return Failure::new(FailureKind::Protocol, detail);
    }
    let kind = match status.as_u16() {
        429 => FailureKind::Limited(limits::rejection(headers, now)),
        401 | 403 => FailureKind::Unauthenticated,
        413 => FailureKind::TooLarge,
        408 | 425 | 500..=599 => FailureKind::Unavailable { status: Some(status.as_u16()) },
        _ => FailureKind::Protocol,
    };
    Failure::new(kind, format!("the provider's address answers {status}, but not in the words of the Messages API"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn kind(status: u16, error_type: &str, message: &str) -> FailureKind {
        let body = json!({ "type": "error", "error": { "type": error_type, "message": message } }).to_string();
        let status = StatusCode::from_u16(status).expect("a status");
        let failure = refused(status, &HeaderMap::new(), body.as_bytes(), Timestamp::from_secs(0));
        assert_eq!(failure.detail, message);
        failure.kind
    }

    #[test]
    fn the_table_of_refusals() {
        let throttle = rejected(&HeaderMap::new());
        let unavailable = |status| FailureKind::Unavailable { status: Some(status) };
        for (status, word, message, expected) in [
            (400, "invalid_request_error", "messages.0: bad thing", FailureKind::InvalidRequest),
            (
                400,
                "invalid_request_error",
                "prompt is too long: 214000 tokens > 200000 maximum",
                FailureKind::PromptTooLong,
            ),
            (400, "invalid_request_error", "Your credit balance is too low to access the API.", FailureKind::Billing),
            (401, "authentication_error", "invalid x-api-key", FailureKind::Unauthenticated),
            (402, "billing_error", "a payment is due", FailureKind::Billing),
            (403, "permission_error", "Your account does not have access", FailureKind::Unauthenticated),
            (404, "not_found_error", "model: claude-9", FailureKind::ModelNotFound),
            (413, "request_too_large", "Request exceeds the maximum size", FailureKind::TooLarge),
            (429, "rate_limit_error", "Number of requests has exceeded your rate limit", throttle),
            (429, "rate_limit_error", "Extra usage is required for long context requests", FailureKind::InvalidRequest),
            (500, "api_error", "Internal server error", unavailable(500)),
            (529, "overloaded_error", "Overloaded", unavailable(529)),
        ] {
            assert_eq!(kind(status, word, message), expected, "{status} {message}");
        }
    }

    fn rejected(headers: &HeaderMap) -> FailureKind {
        FailureKind::Limited(limits::rejection(headers, Timestamp::from_secs(0)))
    }

    #[test]
    fn what_is_not_the_api_grounds_nobody_for_good() {
        let kind = |status| {
            let status = StatusCode::from_u16(status).expect("a status");
            refused(status, &HeaderMap::new(), b"<html>no</html>", Timestamp::from_secs(0)).kind
        };
        assert_eq!(kind(302), FailureKind::Protocol);
        assert_eq!(kind(404), FailureKind::Protocol, "a wrong address is not a wrong model");
        assert_eq!(kind(502), FailureKind::Unavailable { status: Some(502) });
        assert_eq!(kind(429), rejected(&HeaderMap::new()));
    }

    #[test]
    fn a_stream_can_end_in_an_error() {
        let of = |word: &str| broken_off(&json!({ "error": { "type": word, "message": "m" } }).to_string()).kind;
        assert_eq!(of("overloaded_error"), FailureKind::Unavailable { status: Some(529) });
        assert_eq!(of("api_error"), FailureKind::Unavailable { status: None });
        assert_eq!(of("rate_limit_error"), rejected(&HeaderMap::new()));
        assert_eq!(broken_off("{").kind, FailureKind::Protocol);
    }
}
