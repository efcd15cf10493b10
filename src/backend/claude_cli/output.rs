//! What the CLI writes: one JSON object a line, of many types that vary by version.
//!
//! Lines are read by what they *mean* to a request; everything else is [`Line::Other`]. Key order and additional
//! fields vary between builds, so nothing here depends on either.

use serde::Deserialize;
use serde_json::Value;

use super::tools::ServerMessage;
use crate::backend::messages::{RawEvent, RawUsage, StreamEvent};
use crate::conversation::{Family, LimitReport, LimitStatus, Overage, Window, WindowUse};
use crate::units::{MicroUsd, Timestamp};

/// One line of output.
#[derive(Debug, PartialEq)]
pub(super) enum Line {
    /// The provider's stream, passed through.
    Stream(StreamEvent),
    /// A whole message of the model, or of the CLI in its place when something failed.
    Assistant {
        /// The CLI's word for what failed.
        error: Option<String>,
    },
    /// The end of a turn, or the acknowledgement of a history line.
    Result(TurnResult),
    /// News about the provider's limits, and about use beyond them.
    Limits(LimitReport, Option<Overage>),
    /// The answer to a control request.
    Control {
        /// The id of the request.
        id: String,
        /// What was wrong with it.
        error: Option<String>,
    },
    /// A message to our server of tools.
    Server(ServerMessage),
    /// The results of these calls are taken in.
    Results(Vec<String>),
    /// Any line a request need not know of.
    Other,
}

/// A `result` line.
#[derive(Debug, PartialEq)]
pub(super) struct TurnResult {
    /// 0 for the acknowledgement of a history line.
    pub turns: u64,
    /// Whether the turn failed. The line's own `subtype` says "success" even then.
    pub is_error: bool,
    /// The provider's HTTP status, if the failure had one.
    pub status: Option<u16>,
    /// For example `prompt_too_long`.
    pub terminal_reason: Option<String>,
    /// The answer, or what went wrong, in words.
    pub text: String,
    /// What the process has cost since it started.
    pub total_cost: Option<MicroUsd>,
    /// What the turn used.
    pub usage: RawUsage,
}

/// A line that is not the CLI's protocol.
#[derive(Debug, thiserror::Error)]
#[error("the CLI wrote something that is not its protocol: {0}")]
pub(super) struct ProtocolError(#[from] serde_json::Error);

/// Reads one line.
pub(super) fn parse(line: &[u8]) -> Result<Line, ProtocolError> {
    let head: Head<'_> = serde_json::from_slice(line)?;
    Ok(match head.kind.as_ref() {
        "stream_event" => Line::Stream(serde_json::from_slice::<StreamLine>(line)?.event.into()),
        "assistant" => Line::Assistant { error: serde_json::from_slice::<AssistantLine>(line)?.error_word() },
        "result" => Line::Result(serde_json::from_slice::<ResultLine>(line)?.into()),
        "rate_limit_event" => {
            let limits = serde_json::from_slice::<LimitLine>(line)?.rate_limit_info;
            let overage = limits.overage();
            Line::Limits(limits.into(), overage)
        }
        "control_response" => {
            let response = serde_json::from_slice::<ControlLine>(line)?.response;
            Line::Control { id: response.request_id, error: response.error }
        }
        "control_request" => serde_json::from_slice::<ControlRequestLine>(line)?.into(),
        // It can hold anything that a user line holds: what is none of ours is passed over.
        "user" => serde_json::from_slice::<UserLine>(line).map_or(Line::Other, Line::from),
        _ => Line::Other,
    })
}

#[derive(Deserialize)]
struct Head<'a> {
    #[serde(rename = "type", borrow)]
    kind: std::borrow::Cow<'a, str>,
}

#[derive(Deserialize)]
struct StreamLine {
    event: RawEvent,
}

#[derive(Deserialize)]
struct AssistantLine {
    #[serde(default)]
    error: Option<Value>,
}

impl AssistantLine {
    fn error_word(self) -> Option<String> {
        match self.error? {
            Value::String(word) => Some(word),
            Value::Null => None,
            other => Some(other.to_string()),
        }
    }
}

#[derive(Deserialize)]
struct ResultLine {
    #[serde(default)]
    num_turns: u64,
    #[serde(default)]
    is_error: bool,
    #[serde(default)]
    api_error_status: Option<u16>,
    #[serde(default)]
    terminal_reason: Option<String>,
    #[serde(default)]
    result: Option<String>,
    #[serde(default)]
    errors: Vec<Value>,
    #[serde(default)]
    total_cost_usd: Option<f64>,
    #[serde(default)]
    usage: Option<RawUsage>,
}

impl From<ResultLine> for TurnResult {
    fn from(line: ResultLine) -> Self {
        let errors = line.errors.iter().map(|error| error.as_str().map_or_else(|| error.to_string(), str::to_owned));
        Self {
            turns: line.num_turns,
            is_error: line.is_error,
            status: line.api_error_status,
            terminal_reason: line.terminal_reason,
            text: line.result.into_iter().chain(errors).collect::<Vec<_>>().join("; "),
            total_cost: line.total_cost_usd.map(MicroUsd::from_usd),
            usage: line.usage.unwrap_or_default(),
        }
    }
}

#[derive(Deserialize)]
struct LimitLine {
    rate_limit_info: RawLimits,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawLimits {
    status: String,
    #[serde(default)]
    resets_at: Option<f64>,
    #[serde(default)]
    rate_limit_type: Option<String>,
    #[serde(default)]
    utilization: Option<f64>,
    /// The limit is passed, and the owner pays for what goes beyond it.
    #[serde(default)]
    is_using_overage: Option<bool>,
    #[serde(default)]
    overage_status: Option<String>,
    #[serde(default)]
    overage_resets_at: Option<f64>,
    #[serde(default)]
    unified_windows: Option<std::collections::BTreeMap<String, RawWindow>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawWindow {
    utilization: Option<f64>,
    #[serde(default)]
    resets_at: Option<f64>,
}

impl RawLimits {
    /// `None` where nothing is said of it.
    fn overage(&self) -> Option<Overage> {
        let is_used = self.is_using_overage == Some(true);
        (is_used || self.overage_status.is_some()).then(|| Overage {
            is_used,
            status: self.overage_status.clone(),
            resets_at: self.overage_resets_at.map(from_epoch_secs),
            window_resets_at: self.resets_at.map(from_epoch_secs),
        })
    }
}

impl From<RawLimits> for LimitReport {
    fn from(raw: RawLimits) -> Self {
        let is_beyond = raw.is_using_overage == Some(true);
        let window = raw.rate_limit_type.as_deref().and_then(window);
        let resets_at = raw.resets_at.map(from_epoch_secs);
        let mut windows: Vec<WindowUse> = raw
            .unified_windows
            .into_iter()
            .flatten()
            .filter_map(|(name, raw)| {
                let resets_at = raw.resets_at.map(from_epoch_secs);
                Some(WindowUse { window: self::window(&name)?, utilization: raw.utilization?, resets_at })
            })
            .collect();
        // Older builds name only the deciding window, and its use only in a warning.
        if let (Some(window), Some(utilization)) = (window, raw.utilization)
            && windows.iter().all(|known| known.window != window)
        {
            windows.push(WindowUse { window, utilization, resets_at });
        }
        let status = match raw.status.as_str() {
            "rejected" => LimitStatus::Rejected,
            "allowed" => LimitStatus::Allowed,
            _ => LimitStatus::Warning,
        };
        let mut report = Self { status, window, resets_at, windows };
        if is_beyond {
            report.fill_window();
        }
        report
    }
}

fn from_epoch_secs(secs: f64) -> Timestamp {
    #[expect(clippy::cast_possible_truncation, reason = "float-to-int casts saturate, which is what is wanted")]
    Timestamp::from_millis((secs * 1000.0) as i64)
}

/// The window a limit's name means. A weekly limit of something unknown is taken for the whole week: too careful is
/// better than hammering a limit.
fn window(name: &str) -> Option<Window> {
    match name {
        "five_hour" => Some(Window::FiveHour),
        "seven_day" => Some(Window::SevenDay),
        _ => {
            let family = Family::of(name.strip_prefix("seven_day_")?);
            Some(if family == Family::Other { Window::SevenDay } else { Window::SevenDayFamily(family) })
        }
    }
}

#[derive(Deserialize)]
struct ControlLine {
    response: RawControl,
}

#[derive(Deserialize)]
struct RawControl {
    #[serde(default)]
    request_id: String,
    #[serde(default)]
    error: Option<String>,
}

#[derive(Deserialize)]
struct ControlRequestLine {
    #[serde(default)]
    request_id: String,
    request: Value,
}

impl From<ControlRequestLine> for Line {
    fn from(line: ControlRequestLine) -> Self {
        if line.request["subtype"] != "mcp_message" {
            return Self::Other;
        }
        let message = serde_json::from_value::<ServerMessage>(line.request);
        message.map_or(Self::Other, |message| Self::Server(message.carried_by(line.request_id)))
    }
}

#[derive(Deserialize)]
struct UserLine {
    message: UserMessage,
}

#[derive(Deserialize)]
struct UserMessage {
    content: Vec<UserBlock>,
}

#[derive(Deserialize)]
struct UserBlock {
    #[serde(default)]
    tool_use_id: Option<String>,
}

impl From<UserLine> for Line {
    fn from(line: UserLine) -> Self {
        let calls: Vec<String> = line.message.content.into_iter().filter_map(|block| block.tool_use_id).collect();
        if calls.is_empty() { Self::Other } else { Self::Results(calls) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str, expect: &Line) {
        assert_eq!(&parse(line.as_bytes()).expect("a line of the protocol"), expect, "{line}");
    }

    #[test]
    fn key_order_does_not_matter() {
        let text = Line::Stream(StreamEvent::Text("hi".to_owned()));
        check(
            r#"{"type":"stream_event","event":{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"hi"}}}"#,
            &text,
        );
        check(
            r#"{"event":{"delta":{"text":"hi","type":"text_delta"},"index":0,"type":"content_block_delta"},"type":"stream_event"}"#,
            &text,
        );
    }

    #[test]
    fn a_limit_names_its_window_and_reset() {
        check(
            r#"{"type":"rate_limit_event","rate_limit_info":{"status":"rejected","resetsAt":1795230143,"rateLimitType":"seven_day_opus","isUsingOverage":false}}"#,
            &Line::Limits(
                LimitReport {
                    status: LimitStatus::Rejected,
                    window: Some(Window::SevenDayFamily(Family::Opus)),
                    resets_at: Some(Timestamp::from_secs(1_795_230_143)),
                    windows: Vec::new(),
                },
                None,
            ),
        );
        check(
            r#"{"type":"rate_limit_event","rate_limit_info":{"status":"rejected","isUsingOverage":false}}"#,
            &Line::Limits(
                LimitReport { status: LimitStatus::Rejected, window: None, resets_at: None, windows: Vec::new() },
                None,
            ),
        );
    }

    #[test]
    fn unified_windows_and_warnings_carry_utilisation() {
        let Line::Limits(report, None) = parse(
            br#"{"type":"rate_limit_event","rate_limit_info":{"status":"allowed_warning","resetsAt":10,"rateLimitType":"five_hour","utilization":0.92,"unifiedWindows":{"five_hour":{"utilization":0.92,"resetsAt":10,"status":"allowed"},"seven_day":{"utilization":0.61,"resetsAt":20,"status":"allowed"}}}}"#,
        )
        .expect("a line of the protocol") else {
            panic!("not a limit report")
        };
        assert_eq!(report.status, LimitStatus::Warning);
        assert_eq!(report.windows.len(), 2);
        assert!((report.windows[1].utilization - 0.61).abs() < 1e-9);
    }

    #[test]
    fn unknown_types_are_passed_over_and_garbage_is_not() {
        check(r#"{"type":"system","subtype":"init"}"#, &Line::Other);
        check(r#"{"type":"stream_event","event":{"type":"ping"}}"#, &Line::Stream(StreamEvent::Other));
        assert!(parse(b"Error parsing streaming input line").is_err());
        assert!(parse(br#"{"type":"result","is_error":"#).is_err());
    }
}
