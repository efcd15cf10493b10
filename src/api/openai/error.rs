//! Every error as OpenAI's clients expect it. The one place that knows their status codes, types and codes.
//!
//! An [`Error`] holds what the *client* reads. What only the operator may read (a process's last words, for example) is
//! logged here, where the one is made from the other.

use std::borrow::Cow;
use std::time::Duration;

use http::StatusCode;
use http::header::{self, HeaderName};
use serde_json::{Value, json};

use crate::api::{Denial, Invalid, InvalidKind, Reply};
use crate::conversation::LimitReport;
use crate::gateway::{Failure, FailureKind, GatewayError, RefusalReason, SessionError};
use crate::runtime::clock;

/// Read by OpenAI's own clients.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
/// The longest `Retry-After` that they respect.
const LONGEST_RETRY: Duration = Duration::from_mins(1);

/// An error for the client.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// What happened; decides status, type and code.
    pub cause: Cause,
    /// For people.
    pub message: Cow<'static, str>,
    /// The path of the request's field at fault.
    pub param: Option<String>,
    /// When to come again.
    pub retry_after: Option<Duration>,
    /// What the path takes, for [`Cause::MethodNotAllowed`].
    allow: Option<&'static str>,
}

/// What happened, as far as a client can tell causes apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is explained by its row in `Cause::row`")]
pub enum Cause {
    InvalidValue,
    MissingParameter,
    Unsupported,
    ContextLength,
    InvalidKey,
    NotAllowed,
    UnknownUrl,
    UnknownModel,
    MethodNotAllowed,
    SlowRequest,
    TooLarge,
    NotFound,
    Conflict,
    NoEncryptionKey,
    StoreFailed,
    UnsupportedMediaType,
    QuotaSpent,
    UpstreamLimited,
    Runaway,
    Loop,
    RateLimited,
    Busy,
    NoneHealthy,
    ShuttingDown,
    UpstreamOverloaded,
    UpstreamFailed,
    UpstreamTimeout,
    InvalidOutput,
    ConversationLost,
    Internal,
}

impl Cause {
    /// Every cause, for tests and documentation.
    pub const ALL: [Self; 30] = [
        Self::InvalidValue,
        Self::MissingParameter,
        Self::Unsupported,
        Self::ContextLength,
        Self::InvalidKey,
        Self::NotAllowed,
        Self::UnknownUrl,
        Self::UnknownModel,
        Self::MethodNotAllowed,
        Self::SlowRequest,
        Self::TooLarge,
        Self::NotFound,
        Self::Conflict,
        Self::NoEncryptionKey,
        Self::StoreFailed,
        Self::UnsupportedMediaType,
        Self::QuotaSpent,
        Self::UpstreamLimited,
        Self::Runaway,
        Self::Loop,
        Self::RateLimited,
        Self::Busy,
        Self::NoneHealthy,
        Self::ShuttingDown,
        Self::UpstreamOverloaded,
        Self::UpstreamFailed,
        Self::UpstreamTimeout,
        Self::InvalidOutput,
        Self::ConversationLost,
        Self::Internal,
    ];

    /// Status, `type` and `code`.
    pub const fn row(self) -> (StatusCode, &'static str, &'static str) {
        const REQUEST: &str = "invalid_request_error";
        const RATE: &str = "rate_limit_error";
        const SERVER: &str = "server_error";
        match self {
            Self::InvalidValue => (StatusCode::BAD_REQUEST, REQUEST, "invalid_value"),
            Self::MissingParameter => (StatusCode::BAD_REQUEST, REQUEST, "missing_required_parameter"),
            Self::Unsupported => (StatusCode::BAD_REQUEST, REQUEST, "unsupported_parameter"),
            Self::ContextLength => (StatusCode::BAD_REQUEST, REQUEST, "context_length_exceeded"),
            Self::InvalidKey => (StatusCode::UNAUTHORIZED, REQUEST, "invalid_api_key"),
            Self::NotAllowed => (StatusCode::FORBIDDEN, REQUEST, "insufficient_permissions"),
            Self::UnknownUrl => (StatusCode::NOT_FOUND, REQUEST, "unknown_url"),
            Self::UnknownModel => (StatusCode::NOT_FOUND, REQUEST, "model_not_found"),
            Self::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, REQUEST, "method_not_supported"),
            Self::SlowRequest => (StatusCode::REQUEST_TIMEOUT, REQUEST, "request_timeout"),
            Self::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, REQUEST, "request_too_large"),
            Self::NotFound => (StatusCode::NOT_FOUND, REQUEST, "not_found"),
            Self::Conflict => (StatusCode::CONFLICT, REQUEST, "conflict"),
            Self::NoEncryptionKey => (StatusCode::SERVICE_UNAVAILABLE, SERVER, "encryption_key_missing"),
            Self::StoreFailed => (StatusCode::SERVICE_UNAVAILABLE, SERVER, "store_unavailable"),
            Self::UnsupportedMediaType => (StatusCode::UNSUPPORTED_MEDIA_TYPE, REQUEST, "unsupported_encoding"),
            Self::QuotaSpent => (StatusCode::TOO_MANY_REQUESTS, "insufficient_quota", "insufficient_quota"),
            Self::UpstreamLimited => (StatusCode::TOO_MANY_REQUESTS, RATE, "upstream_rate_limited"),
            Self::RateLimited => (StatusCode::TOO_MANY_REQUESTS, RATE, "rate_limit_exceeded"),
            Self::Runaway => (StatusCode::TOO_MANY_REQUESTS, RATE, "runaway_guard"),
            Self::Loop => (StatusCode::LOOP_DETECTED, SERVER, "loop_detected"),
            Self::Busy => (StatusCode::SERVICE_UNAVAILABLE, SERVER, "capacity_exhausted"),
            Self::NoneHealthy => (StatusCode::SERVICE_UNAVAILABLE, SERVER, "no_healthy_subscription"),
            Self::ShuttingDown => (StatusCode::SERVICE_UNAVAILABLE, SERVER, "shutting_down"),
            Self::UpstreamOverloaded => (StatusCode::SERVICE_UNAVAILABLE, SERVER, "upstream_overloaded"),
            Self::UpstreamFailed => (StatusCode::BAD_GATEWAY, SERVER, "upstream_error"),
            Self::UpstreamTimeout => (StatusCode::GATEWAY_TIMEOUT, SERVER, "upstream_timeout"),
            Self::InvalidOutput => (StatusCode::BAD_GATEWAY, SERVER, "invalid_output"),
            Self::ConversationLost => (StatusCode::CONFLICT, REQUEST, "conversation_lost"),
            Self::Internal => (StatusCode::INTERNAL_SERVER_ERROR, SERVER, "internal_error"),
        }
    }
}

impl Error {
    /// An error without further details.
    pub fn new(cause: Cause, message: impl Into<Cow<'static, str>>) -> Self {
        Self { cause, message: message.into(), param: None, retry_after: None, allow: None }
    }

    /// Names the field at fault.
    #[must_use]
    pub fn with_param(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }

    fn with_retry_after(mut self, after: Option<Duration>) -> Self {
        self.retry_after = after;
        self
    }

    /// The body: `{"error": {...}}`. Also the last frame of a stream that fails after its first byte.
    pub fn body(&self) -> Value {
        let (_, kind, code) = self.cause.row();
        json!({ "error": { "message": self.message, "type": kind, "param": self.param, "code": code } })
    }

    /// Whole seconds for `Retry-After`: rounded up, since too early is useless, and at least 1.
    fn retry_seconds(&self) -> Option<u64> {
        self.retry_after.map(|after| (after.as_secs() + u64::from(after.subsec_nanos() > 0)).max(1))
    }
}

impl From<Error> for Reply {
    fn from(error: Error) -> Self {
        let (status, _, code) = error.cause.row();
        tracing::Span::current().record("code", code);
        tracing::debug!(status = status.as_u16(), code, message = %error.message, "refused");
        let mut reply = Self::json(status, &error.body());
        if let Some(seconds) = error.retry_seconds() {
            reply = reply.with_header(header::RETRY_AFTER, &seconds.to_string());
        }
        // OpenAI's clients come again within seconds where they are told to wait for longer than a minute, unless told not to.
        // An answer that has been asked for twice already is not asked for twice more in silence.
        if error.retry_after.is_some_and(|after| after > LONGEST_RETRY) || error.cause == Cause::InvalidOutput {
            reply = reply.with_header(SHOULD_RETRY, "false");
        }
        if let Some(allow) = error.allow {
            reply = reply.with_header(header::ALLOW, allow);
        }
        if error.cause == Cause::InvalidKey {
            reply = reply.with_header(header::WWW_AUTHENTICATE, "Bearer realm=\"auth-pool\"");
        }
        reply
    }
}

impl From<Invalid> for Error {
    fn from(invalid: Invalid) -> Self {
        let cause = match invalid.kind {
            InvalidKind::Json | InvalidKind::Value => Cause::InvalidValue,
            InvalidKind::Missing => Cause::MissingParameter,
            InvalidKind::Unsupported => Cause::Unsupported,
        };
        Self { param: invalid.param, ..Self::new(cause, sentence(invalid.message)) }
    }
}

impl From<GatewayError> for Error {
    fn from(error: GatewayError) -> Self {
        match error {
            GatewayError::Refused { reason, retry_after, message } => {
                let cause = match reason {
                    RefusalReason::Busy => Cause::Busy,
                    RefusalReason::ProviderLimited => Cause::UpstreamLimited,
                    RefusalReason::BudgetSpent => Cause::QuotaSpent,
                    RefusalReason::NoneHealthy => Cause::NoneHealthy,
                };
                Self::new(cause, message).with_retry_after(retry_after)
            }
            GatewayError::ClientBudget { retry_after, message } => {
                Self::new(Cause::RateLimited, message).with_retry_after(retry_after)
            }
            GatewayError::NotAllowed { message } => Self::new(Cause::NotAllowed, sentence(message)),
            GatewayError::Runaway { message, retry_after } => {
                Self::new(Cause::Runaway, message).with_retry_after(Some(retry_after))
            }
            GatewayError::Failed(failure) => failure.into(),
            GatewayError::InvalidOutput { wrong } => Self::new(
                Cause::InvalidOutput,
                format!("The model's answer does not have the form that 'response_format' asks for: {wrong}."),
            )
            .with_param("response_format"),
            GatewayError::Session(error) => {
                let cause = match error {
                    SessionError::Lost => Cause::ConversationLost,
                    SessionError::Misfit(_) => Cause::InvalidValue,
                };
                Self::new(cause, sentence(error.to_string())).with_param("messages")
            }
            GatewayError::ShuttingDown => {
                Self::new(Cause::ShuttingDown, "The server is shutting down. Try again in a moment.")
                    .with_retry_after(Some(Duration::from_secs(1)))
            }
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        let Failure { kind, detail } = failure;
        // The gateway has warned of it; here it is put into words for the client.
        tracing::debug!(?kind, detail, "the request failed");
        match kind {
            // The client's own mistakes: it must read what the provider said of them.
            FailureKind::InvalidRequest => Self::new(Cause::InvalidValue, sentence(detail)),
            FailureKind::PromptTooLong => Self::new(Cause::ContextLength, sentence(detail)).with_param("messages"),
            FailureKind::TooLarge => Self::new(Cause::TooLarge, sentence(detail)),
            FailureKind::ModelNotFound => Self::new(Cause::UnknownModel, sentence(detail)).with_param("model"),
            // The rest is between the operator and the provider: the details are in the log.
            FailureKind::Limited(report) => Self::new(
                Cause::UpstreamLimited,
                "The provider's limit is reached on every subscription that was tried.",
            )
            .with_retry_after(until_reset(&report)),
            FailureKind::Unavailable { status: Some(503 | 529) } => {
                Self::new(Cause::UpstreamOverloaded, "The provider is overloaded. Try again in a moment.")
                    .with_retry_after(Some(Duration::from_secs(2)))
            }
            FailureKind::Unavailable { .. } => {
                Self::new(Cause::UpstreamFailed, "The provider failed to answer. Try again in a moment.")
            }
            FailureKind::Unauthenticated | FailureKind::Billing => Self::new(
                Cause::NoneHealthy,
                "No subscription can answer: those that were tried are not logged in or have no credit left.",
            ),
            FailureKind::Lacking => Self::new(Cause::UpstreamFailed, sentence(detail)),
            FailureKind::Runaway => Self::new(Cause::Runaway, sentence(detail)).with_retry_after(Some(LONGEST_RETRY)),
            FailureKind::Spawn => Self::new(Cause::UpstreamFailed, "The Claude CLI could not be started."),
            FailureKind::NoProcess => {
                Self::new(Cause::Busy, "All processes of the pool are busy. Try again in a moment.")
                    .with_retry_after(Some(Duration::from_secs(2)))
            }
            FailureKind::Overflow => Self::new(Cause::SlowRequest, "The answer was not read in time."),
            FailureKind::Crashed => {
                Self::new(Cause::UpstreamFailed, "The Claude CLI ended before the answer was complete.")
            }
            FailureKind::Protocol => Self::new(
                Cause::UpstreamFailed,
                "The provider or the Claude CLI said something that is not understood.",
            ),
            FailureKind::TimedOut { timer } => {
                Self::new(Cause::UpstreamTimeout, format!("The answer did not come in time ({timer} timer)."))
            }
        }
    }
}

/// In whole seconds, rounded up, as `Retry-After` says it.
fn seconds(span: Duration) -> String {
    format!("{} s", span.as_millis().div_ceil(1000).max(1))
}

fn until_reset(report: &LimitReport) -> Option<Duration> {
    report.resets_at.map(|reset| reset.since(clock::now()))
}

impl From<Denial> for Error {
    fn from(denial: Denial) -> Self {
        match denial {
            Denial::KeysUnknown => Self::new(
                Cause::StoreFailed,
                "Who may use this server is not known, because its store cannot be read. Try again in a moment.",
            ),
            Denial::MissingKey => Self::new(
                Cause::InvalidKey,
                "You didn't provide an API key. Send a client key of this server in the Authorization header \
                 ('Authorization: Bearer KEY').",
            ),
            Denial::WrongKey => {
                Self::new(Cause::InvalidKey, "Incorrect API key provided: it is not a client key of this server.")
            }
            Denial::ExpiredKey => Self::new(Cause::InvalidKey, "The client key has expired."),
            Denial::Scope { needed } => {
                Self::new(Cause::NotAllowed, format!("The client key is not for this: it lacks the scope '{needed}'."))
            }
            Denial::RateLimited { per_minute, retry_after } => Self::new(
                Cause::RateLimited,
                format!("Rate limit reached: {per_minute} requests per minute. Try again in {}.", seconds(retry_after)),
            )
            .with_retry_after(Some(retry_after)),
            Denial::AdminOnly => Self::new(
                Cause::NotAllowed,
                "This is for the operator: use an admin key, or ask from the same machine.",
            ),
            Denial::CrossSite { origin } => {
                let origin = origin.map(|origin| format!(" ({origin})")).unwrap_or_default();
                Self::new(
                    Cause::NotAllowed,
                    format!(
                        "Requests of web pages from other origins{origin} are refused unless the origin is configured."
                    ),
                )
            }
            Denial::ForeignHost { host } => Self::new(
                Cause::NotAllowed,
                format!("Without client keys only requests to localhost are served, not to '{host}'."),
            ),
            Denial::UnknownRoute { method, path } => {
                Self::new(Cause::UnknownUrl, format!("Invalid URL ({method} {path})"))
            }
            Denial::WrongMethod { method, path, allow } => Self {
                allow: Some(allow),
                ..Self::new(Cause::MethodNotAllowed, format!("Not allowed to {method} on {path}; it takes {allow}."))
            },
            Denial::Encoding { encoding } => Self::new(
                Cause::UnsupportedMediaType,
                format!("Content-Encoding '{encoding}' is not supported: send the body uncompressed."),
            ),
            Denial::TooLarge { limit } => {
                Self::new(Cause::TooLarge, format!("The request body is larger than the {limit} bytes allowed."))
            }
            Denial::BodiesFull => Self::new(
                Cause::Busy,
                "The requests that run fill the memory that is set aside for them. Try again in a moment.",
            )
            .with_retry_after(Some(Duration::from_secs(1))),
            Denial::SlowBody { timeout } => Self::new(
                Cause::SlowRequest,
                format!("The request body did not arrive within {} s.", timeout.as_secs()),
            ),
            Denial::BrokenBody => Self::new(Cause::InvalidValue, "The request body ended before it was complete."),
            Denial::Loop => Self::new(
                Cause::Loop,
                "This request was caused by this very server: the address of the provider leads back to it.",
            ),
            Denial::Internal => Self::new(Cause::Internal, "The server made a mistake. It has been logged."),
        }
    }
}

/// `text` as a sentence: large first letter, full stop.
pub(crate) fn sentence(text: String) -> String {
    let mut chars = text.chars();
    let Some(first) = chars.next() else { return text };
    let mut sentence: String = first.to_uppercase().chain(chars).collect();
    if !sentence.ends_with(['.', '!', '?']) {
        sentence.push('.');
    }
    sentence
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Content;

    #[test]
    fn every_cause_has_its_own_code_and_a_status_that_fits_its_type() {
        let mut codes: Vec<_> = Cause::ALL.iter().map(|cause| cause.row().2).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), Cause::ALL.len());
        for cause in Cause::ALL {
            let (status, kind, _) = cause.row();
            assert_eq!(status.is_server_error(), kind == "server_error", "{cause:?}");
        }
    }

    #[test]
    fn retry_after_is_in_whole_seconds_rounded_up() {
        let check = |millis, expected: &str| {
            let reply = Reply::from(Error::from(GatewayError::Refused {
                reason: RefusalReason::Busy,
                retry_after: Some(Duration::from_millis(millis)),
                message: "busy".into(),
            }));
            assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
            assert_eq!(reply.headers[header::RETRY_AFTER], expected);
            assert_eq!(reply.headers.contains_key(SHOULD_RETRY), millis > 60_000);
        };
        check(0, "1");
        check(1000, "1");
        check(1001, "2");
        check(59_999, "60");
        check(7_200_000, "7200");
    }

    #[test]
    fn a_failure_of_the_backend_keeps_its_details_from_the_client() {
        let error = Error::from(Failure::new(FailureKind::Crashed, "exit 1: /home/owner/.claude-a is locked"));
        assert_eq!(error.cause, Cause::UpstreamFailed);
        assert!(!error.message.contains("owner"));
    }

    #[test]
    fn the_body_has_all_four_fields() {
        let reply = Reply::from(Error::from(Denial::MissingKey));
        assert_eq!(reply.headers[header::WWW_AUTHENTICATE], "Bearer realm=\"auth-pool\"");
        let Content::Json(body) = reply.content else { panic!("an error is JSON") };
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        assert_eq!(body["error"]["type"], "invalid_request_error");
        assert_eq!(body["error"]["code"], "invalid_api_key");
        assert!(body["error"]["param"].is_null());
        assert_eq!(body["error"].as_object().map(serde_json::Map::len), Some(4));
    }
}
