//! Amounts of memory as people write them.

use std::borrow::Cow;
use std::ops::RangeInclusive;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::problem::{FieldPath, Findings};

/// A number of bytes, or text such as `4GiB`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum Size {
    Bytes(u64),
    Text(String),
}

/// Units and what they are worth; without one bytes are meant.
const UNITS: [(&str, u64); 10] = [
    ("", 1),
    ("b", 1),
    ("k", 1 << 10),
    ("kib", 1 << 10),
    ("kb", 1_000),
    ("mib", 1 << 20),
    ("mb", 1_000_000),
    ("gib", 1 << 30),
    ("gb", 1_000_000_000),
    ("tib", 1 << 40),
];

impl JsonSchema for Size {
    fn schema_name() -> Cow<'static, str> {
        "Size".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "An amount of memory: a number of bytes, or text such as `512MiB` or `4GiB`.",
            "type": ["integer", "string"],
            "minimum": 0,
        })
    }
}

impl Size {
    /// The bytes meant; reported when they are none, or out of `range`.
    pub(super) fn resolve(&self, at: &FieldPath, range: RangeInclusive<u64>, findings: &mut Findings) -> u64 {
        let bytes = match self {
            Self::Bytes(bytes) => Some(*bytes),
            Self::Text(text) => parse(text),
        };
        match bytes {
            Some(bytes) if range.contains(&bytes) => return bytes,
            Some(_) => {
                findings.problem(at, format!("must be between {} and {} bytes", range.start(), range.end()));
            }
            None => {
                findings.problem(at, "expected an amount of memory: a number of bytes, or text such as `4GiB`");
            }
        }
        *range.start()
    }
}

fn parse(text: &str) -> Option<u64> {
    let text = text.trim();
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len()));
    let unit = unit.trim().to_ascii_lowercase();
    let (_, worth) = UNITS.iter().find(|(name, _)| *name == unit)?;
    if !number.contains('.') {
        return number.parse::<u64>().ok()?.checked_mul(*worth);
    }
    let number: f64 = number.parse().ok()?;
    #[expect(clippy::cast_precision_loss, reason = "a fraction of a unit is rough by nature")]
    let bytes = number * *worth as f64;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positive; the cast saturates")]
    bytes.is_finite().then_some(bytes as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_read_and_nonsense_is_not() {
        for (text, bytes) in [
            ("1024", 1024),
            ("4GiB", 4 << 30),
            ("4 gib", 4 << 30),
            ("1.5GiB", 3 << 29),
            ("500MB", 500_000_000),
            ("64k", 64 << 10),
        ] {
            assert_eq!(parse(text), Some(bytes), "{text}");
        }
        for text in ["", "GiB", "4 apples", "-1", "1e9", "4GiB!", "99999999999999999999", "20000000TiB"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
