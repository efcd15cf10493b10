//! Asks an idle process how full its subscription's windows are.
//!
//! That costs no tokens: the CLI asks the provider's own view of the account, or, when it cannot be reached, tells what
//! the last answer to this very process said. Only a login by the credentials file may know; a token tells nothing.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::time::timeout;

use super::input;
use super::launch::KindId;
use super::output::{self, Line};
use super::spares::Spares;
use crate::conversation::{Family, LimitReport, LimitStatus, Window, WindowUse};
use crate::units::Timestamp;

/// How long a process may take to answer.
const LIMIT: Duration = Duration::from_secs(5);

/// Asks the idle processes of one subscription. A cheap handle.
#[derive(Clone, Debug)]
pub struct UsageProbe {
    spares: Spares,
    /// Any process of the subscription, whatever its model.
    kind: KindId,
}

/// What came of asking.
#[derive(Clone, Debug, PartialEq)]
pub enum Polled {
    /// The windows that the provider told of.
    Told(LimitReport),
    /// The login is of a kind that may not know, or nothing is known yet.
    NothingKnown,
    /// No process of the subscription is idle.
    NobodyToAsk,
}

impl UsageProbe {
    pub(super) fn new(spares: Spares, kind: KindId) -> Self {
        Self { spares, kind }
    }

    /// Asks an idle process, if there is one. One that does not answer as it should is killed.
    pub async fn poll(&self) -> anyhow::Result<Polled> {
        let Some(mut lent) = self.spares.lend(self.kind) else { return Ok(Polled::NobodyToAsk) };
        let Some(process) = lent.process() else { return Ok(Polled::NobodyToAsk) };
        let ask = async {
            process.write(&input::usage()).await?;
            loop {
                let line = process.read_line().await?;
                // Whatever else a process may say by itself is not for us.
                if let Line::Control { id, error } = output::parse(line)?
                    && id == input::USAGE
                {
                    return anyhow::Ok(match error {
                        Some(error) => Err(error),
                        None => Ok(read(line)),
                    });
                }
            }
        };
        let answer = match timeout(LIMIT, ask).await {
            Ok(answer) => answer?,
            Err(_) => anyhow::bail!("no answer within {}", humantime::format_duration(LIMIT)),
        };
        // It has answered, even if it does not know the question: a request can have it.
        lent.is_clean();
        match answer {
            Ok(Some(report)) => Ok(Polled::Told(report)),
            Ok(None) => Ok(Polled::NothingKnown),
            Err(error) => anyhow::bail!("the CLI refused: {error}"),
        }
    }
}

#[derive(Deserialize)]
struct Answer {
    response: AnswerResponse,
}

#[derive(Deserialize)]
struct AnswerResponse {
    response: Usage,
}

#[derive(Deserialize)]
struct Usage {
    #[serde(default)]
    rate_limits: Option<Map<String, Value>>,
}

/// The windows in an answer; `None` if it tells of none.
pub(super) fn read(line: &[u8]) -> Option<LimitReport> {
    let windows = serde_json::from_slice::<Answer>(line).ok()?.response.response.rate_limits?;
    let window_use = |(name, told): (&String, &Value)| {
        let utilization = told["utilization"].as_f64().filter(|percent| percent.is_finite())? / 100.0;
        let resets_at = told["resets_at"].as_str().and_then(Timestamp::parse_rfc3339);
        Some(WindowUse { window: window(name)?, utilization, resets_at })
    };
    let windows: Vec<WindowUse> = windows.iter().filter_map(window_use).collect();
    // Not a verdict on a request, and so nothing that could unlock what a request has found locked.
    let report = LimitReport { status: LimitStatus::Allowed, window: None, resets_at: None, windows };
    (!report.windows.is_empty()).then_some(report)
}

/// A window by its name. Unlike in a rejection one that is not known is passed over: it locks nothing.
fn window(name: &str) -> Option<Window> {
    match name {
        "five_hour" => Some(Window::FiveHour),
        "seven_day" => Some(Window::SevenDay),
        _ => match Family::of(name.strip_prefix("seven_day_")?) {
            Family::Other => None,
            family => Some(Window::SevenDayFamily(family)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(usage: &str) -> Option<LimitReport> {
        let line = format!(
            r#"{{"type":"control_response","response":{{"subtype":"success","request_id":"usage","response":{usage}}}}}"#
        );
        read(line.as_bytes())
    }

    fn used(window: Window, utilization: f64, resets_at: Option<&str>) -> WindowUse {
        WindowUse { window, utilization, resets_at: resets_at.and_then(Timestamp::parse_rfc3339) }
    }

    #[test]
    fn the_answers_of_both_builds_are_read() {
        // 2.1.197 counts in floating point and adds statistics of its own.
        let report = answer(
            r#"{"subscription_type":"max","rate_limits_available":true,"rate_limits":{"five_hour":{"utilization":55.00000000000001,"resets_at":"2026-11-21T05:22:54.000Z"},"seven_day":{"utilization":70,"resets_at":"2026-11-24T00:00:00.000Z"}},"behaviors":{"sessions":3}}"#,
        )
        .unwrap();
        assert_eq!(report.status, LimitStatus::Allowed);
        assert_eq!((report.window, report.resets_at), (None, None));
        let [five_hour, seven_day] = report.windows[..] else { panic!("{report:?}") };
        assert!((five_hour.utilization - 0.55).abs() < 1e-9);
        assert_eq!(five_hour.resets_at.map(Timestamp::as_millis), Some(1_795_238_574_000));
        assert_eq!(seven_day, used(Window::SevenDay, 0.7, Some("2026-11-24T00:00:00Z")));

        // 2.1.329 leaves them out when asked to, and names more windows, some of them empty.
        let report = answer(
            r#"{"rate_limits":{"five_hour":{"utilization":42,"resets_at":"2026-11-21T04:04:42.000Z"},"seven_day":null,"seven_day_opus":{"utilization":93.5,"resets_at":null},"seven_day_oauth_apps":{"utilization":99},"extra_usage":{"is_enabled":false,"utilization":null}},"rate_limits_available":true,"subscription_type":"max"}"#,
        )
        .unwrap();
        assert_eq!(
            report.windows,
            [
                used(Window::FiveHour, 0.42, Some("2026-11-21T04:04:42Z")),
                used(Window::SevenDayFamily(Family::Opus), 0.935, None)
            ]
        );
    }

    #[test]
    fn what_tells_nothing_is_nothing() {
        for usage in [
            r#"{"subscription_type":null,"rate_limits_available":false,"rate_limits":null}"#,
            r#"{"subscription_type":"max","rate_limits_available":true,"rate_limits":null}"#,
            r#"{"rate_limits_available":true,"rate_limits":{}}"#,
            r#"{"rate_limits_available":true,"rate_limits":{"five_hour":{"resets_at":"2026-11-21T04:04:42.000Z"}}}"#,
            r#"{"rate_limits_available":true,"rate_limits":{"five_hour":"full"}}"#,
            "{}",
            "null",
        ] {
            assert_eq!(answer(usage), None, "{usage}");
        }
        assert_eq!(read(br#"{"type":"control_response","response":{"subtype":"success","request_id":"usage"}}"#), None);
    }
}
