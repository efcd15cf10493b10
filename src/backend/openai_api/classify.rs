//! From what an endpoint says of a failed request to whose fault it was.

use std::time::Duration;

use http::header::RETRY_AFTER;
use http::{HeaderMap, StatusCode};
use serde_json::Value;

use crate::backend::http::excerpt;
use crate::backend::{Failure, FailureKind};
use crate::conversation::{LimitReport, LimitStatus};
use crate::units::Timestamp;

/// The failure that an answer other than 200 reports.
pub(super) fn refused(status: StatusCode, headers: &HeaderMap, body: &[u8], now: Timestamp) -> Failure {
    if status.is_redirection() {
        let detail = format!("the backend's address answers {status}, and redirects are not followed");
        return Failure::new(FailureKind::Protocol, detail);
    }
    let body = serde_json::from_slice::<Value>(body).unwrap_or_default();
    // One provider puts its error into a list.
    let error = body.get(0).unwrap_or(&body)["error"].clone();
    let (message, code) = words(&error);
    let detail = if message.is_empty() { format!("the backend answers {status}") } else { excerpt(&message) };
    let is_known = !error.is_null();
    let kind = match status.as_u16() {
        401 | 403 => FailureKind::Unauthenticated,
        402 => FailureKind::Billing,
        404 if is_known => FailureKind::ModelNotFound,
        413 => FailureKind::TooLarge,
        429 if code == "insufficient_quota" => FailureKind::Billing,
        429 => FailureKind::Limited(limit(headers, now)),
        400 | 422 if is_too_long(&message, &code) => FailureKind::PromptTooLong,
        400 | 422 if is_known => FailureKind::InvalidRequest,
        408 | 425 | 500..=599 => FailureKind::Unavailable { status: Some(status.as_u16()) },
        _ => FailureKind::Protocol,
    };
    Failure::new(kind, detail)
}

/// The failure that an error in the middle of a stream reports.
pub(super) fn broken_off(error: &Value) -> Failure {
    let (message, _) = words(error);
    let status = error["code"].as_u64().and_then(|code| u16::try_from(code).ok());
    let detail = if message.is_empty() { "the backend's answer broke off".to_owned() } else { excerpt(&message) };
    Failure::new(FailureKind::Unavailable { status }, detail)
}

fn words(error: &Value) -> (String, String) {
    let word = |field: &str| error[field].as_str().unwrap_or_default().to_owned();
    let message = if let Value::String(text) = error { text.clone() } else { word("message") };
    (message, word("code"))
}

fn is_too_long(message: &str, code: &str) -> bool {
    let message = message.to_lowercase();
    code == "context_length_exceeded"
        || message.contains("maximum context length")
        || message.contains("context window")
        || message.contains("prompt is too long")
}

fn limit(headers: &HeaderMap, now: Timestamp) -> LimitReport {
    let seconds: Option<u64> = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
    LimitReport {
        status: LimitStatus::Rejected,
        window: None,
        resets_at: seconds.map(|seconds| now + Duration::from_secs(seconds)),
        windows: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn kind(status: u16, body: &Value) -> FailureKind {
        let status = StatusCode::from_u16(status).expect("a status");
        refused(status, &HeaderMap::new(), body.to_string().as_bytes(), Timestamp::from_secs(0)).kind
    }

    #[test]
    fn the_table_of_refusals() {
        let error = |code: &str, message: &str| json!({ "error": { "message": message, "type": "x", "code": code } });
        let limited = FailureKind::Limited(limit(&HeaderMap::new(), Timestamp::from_secs(0)));
        for (status, body, expected) in [
            (400, error("invalid_value", "bad"), FailureKind::InvalidRequest),
            (400, error("context_length_exceeded", "long"), FailureKind::PromptTooLong),
            (400, json!([{ "error": { "code": 400, "message": "Unknown name" } }]), FailureKind::InvalidRequest),
            (401, error("invalid_api_key", "no"), FailureKind::Unauthenticated),
            (402, error("", "no credits"), FailureKind::Billing),
            (404, error("model_not_found", "no"), FailureKind::ModelNotFound),
            (404, json!("<html>"), FailureKind::Protocol),
            (429, error("insufficient_quota", "pay"), FailureKind::Billing),
            (429, error("rate_limit_exceeded", "slow"), limited),
            (503, json!(null), FailureKind::Unavailable { status: Some(503) }),
            (307, json!(null), FailureKind::Protocol),
        ] {
            assert_eq!(kind(status, &body), expected, "{status} {body}");
        }
    }
}
