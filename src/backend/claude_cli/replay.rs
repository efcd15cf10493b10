//! Recorded output of the CLI, read as a turn reads it: for tests over a corpus of such output.

use jiff::tz::TimeZone;
use serde_json::Value;

use super::classify::{Evidence, classify_at};
use super::output::{self, Line};
use super::usage;
use crate::backend::Failure;
use crate::conversation::{LimitReport, LimitStatus};
use crate::units::Timestamp;

/// What the lines of a turn tell beside its answer: reports that came with it, and how it failed.
pub(crate) fn turn(lines: &[Value], now: Timestamp, zone: &TimeZone) -> (Vec<LimitReport>, Option<Failure>) {
    let mut evidence = Evidence::default();
    let mut reports = Vec::new();
    for line in lines {
        match output::parse(line.to_string().as_bytes()) {
            Ok(Line::Limits(report)) if report.status == LimitStatus::Rejected => evidence.limits = Some(report),
            Ok(Line::Limits(report)) => reports.push(report),
            Ok(Line::Assistant { error: Some(error) }) => evidence.assistant_error = Some(error),
            Ok(Line::Result(result)) => {
                return (reports, result.is_error.then(|| classify_at(&evidence, &result, now, zone)));
            }
            Ok(_) => {}
            Err(error) => panic!("{line}: {error}"),
        }
    }
    (reports, None)
}

/// What an answer to `get_usage` tells.
pub(crate) fn poll(usage: &Value) -> Option<LimitReport> {
    let line = serde_json::json!({
        "type": "control_response",
        "response": { "subtype": "success", "request_id": "usage", "response": usage },
    });
    usage::read(line.to_string().as_bytes())
}
