//! Recorded output of the CLI, read as a turn reads it: for tests over a corpus of such output.

use jiff::tz::TimeZone;
use serde_json::Value;

use super::classify::{Evidence, classify_at};
use super::output::{self, Line};
use super::usage;
use crate::backend::Failure;
use crate::conversation::{LimitReport, LimitStatus, Overage};
use crate::units::Timestamp;

/// What the lines of a turn tell beside its answer.
#[derive(Default)]
pub(crate) struct Told {
    /// Reports that came with the answer.
    pub(crate) reports: Vec<LimitReport>,
    /// What was said last of use beyond the limits.
    pub(crate) overage: Option<Overage>,
    /// How it failed.
    pub(crate) failure: Option<Failure>,
}

/// See [`Told`].
pub(crate) fn turn(lines: &[Value], now: Timestamp, zone: &TimeZone) -> Told {
    let mut evidence = Evidence::default();
    let mut told = Told::default();
    for line in lines {
        match output::parse(line.to_string().as_bytes()) {
            Ok(Line::Limits(report, overage)) => {
                told.overage = overage.or(told.overage);
                if report.status == LimitStatus::Rejected {
                    evidence.limits = Some(report);
                } else {
                    told.reports.push(report);
                }
            }
            Ok(Line::Assistant { error: Some(error) }) => evidence.assistant_error = Some(error),
            Ok(Line::Result(result)) => {
                told.failure = result.is_error.then(|| classify_at(&evidence, &result, now, zone));
                if told.failure.is_none() {
                    told.reports.extend(evidence.limits.map(LimitReport::answered));
                }
                return told;
            }
            Ok(_) => {}
            Err(error) => panic!("{line}: {error}"),
        }
    }
    told
}

/// What an answer to `get_usage` tells.
pub(crate) fn poll(usage: &Value) -> Option<LimitReport> {
    let line = serde_json::json!({
        "type": "control_response",
        "response": { "subtype": "success", "request_id": "usage", "response": usage },
    });
    usage::read(line.to_string().as_bytes())
}
