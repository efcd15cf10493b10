//! Lengths of time as people write them.

use std::borrow::Cow;
use std::ops::RangeInclusive;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::problem::{FieldPath, Findings};

/// A number, whose unit the field decides, or text such as `5m`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum Span {
    Number(f64),
    Text(String),
}

impl JsonSchema for Span {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A length of time: a number, or text such as `30s`, `5m` or `1h 30m`.",
            "type": ["number", "string"],
            "minimum": 0,
        })
    }
}

/// What a bare number counts.
#[derive(Clone, Copy, Debug)]
pub(super) enum Unit {
    Seconds,
    Milliseconds,
}

pub(super) const SECOND: Duration = Duration::from_secs(1);
pub(super) const HOUR: Duration = Duration::from_hours(1);
pub(super) const DAY: Duration = Duration::from_hours(24);

impl Span {
    pub(super) fn text(text: &str) -> Self {
        Self::Text(text.to_owned())
    }

    /// The length meant; reported when it is none, or out of `range`.
    pub(super) fn resolve(
        &self,
        at: &FieldPath,
        unit: Unit,
        range: RangeInclusive<Duration>,
        findings: &mut Findings,
    ) -> Duration {
        let parsed = match self {
            Self::Number(number) => {
                let seconds = match unit {
                    Unit::Seconds => *number,
                    Unit::Milliseconds => number / 1000.0,
                };
                Duration::try_from_secs_f64(seconds).ok()
            }
            Self::Text(text) => humantime::parse_duration(text).ok(),
        };
        match parsed {
            Some(duration) if range.contains(&duration) => return duration,
            Some(_) => {
                let (least, most) = (show(*range.start()), show(*range.end()));
                findings.problem(at, format!("must be between {least} and {most}"));
            }
            None => {
                findings.problem(at, "expected a length of time: a number, or text such as `30s`, `5m` or `1h 30m`");
            }
        }
        *range.start()
    }
}

fn show(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}
