//! A recorded usage log as a trace.
//!
//! One JSON object a line, in any order of time:
//!
//! ```json
//! {"at": "2026-01-05T09:00:00Z", "session": "a", "cost": 0.31, "tokens": {"input": 4, "cacheRead": 91000, "output": 700}}
//! {"at": 1767604000000, "session": "a", "cost": 0.02, "tokens": 92000, "durationMs": 8100, "model": "claude-opus-4-8"}
//! ```
//!
//! `at` is when the request began, as RFC 3339 or in milliseconds since 1970. `session` is any text; without it the line is
//! a session of its own. `cost` is in dollars and taken as what the request costs on a warm cache. `tokens` is either
//! split (`input`, `cacheCreation`, `cacheRead`, `output`; what is missing is 0), and then the tokens read from the cache are
//! what a move to another subscription writes anew; or one number, all of which counts as read. `model` decides the price of
//! that (Sonnet's if missing); `durationMs` is how long the answer took (12 s if missing). Other fields are ignored.

use std::collections::HashMap;
use std::time::Duration;

use serde::Deserialize;

use crate::conversation::{Family, Usage};
use crate::units::{MicroUsd, Timestamp};

use super::trace::Request;
use super::workload::{price, rewrite};

/// Of answers whose length the log does not tell.
const USUAL_DURATION_MS: u64 = 12_000;
const HOUR_MS: i64 = 3_600_000;

/// A log that was read.
#[derive(Clone, Debug)]
pub struct Recorded {
    requests: Vec<Request>,
}

/// What is wrong with a log.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// A line that cannot be read.
    #[error("line {line}: {problem}")]
    Line {
        /// Which one, the first being 1.
        line: usize,
        /// Why not.
        problem: String,
    },
    /// There is nothing in it.
    #[error("the log has no lines")]
    Empty,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    #[serde(borrow)]
    at: At<'a>,
    session: Option<String>,
    cost: f64,
    #[serde(default)]
    tokens: Tokens,
    model: Option<String>,
    duration_ms: Option<u64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum At<'a> {
    Millis(i64),
    #[serde(borrow)]
    Text(std::borrow::Cow<'a, str>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Tokens {
    All(u64),
    Split(Split),
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Split {
    input: u64,
    cache_creation: u64,
    cache_read: u64,
    output: u64,
}

impl Default for Tokens {
    fn default() -> Self {
        Self::All(0)
    }
}

impl Recorded {
    /// Reads a log.
    pub fn parse(text: &str) -> Result<Self, LogError> {
        let mut sessions: HashMap<String, u64> = HashMap::new();
        let mut nameless = 0;
        let mut requests = Vec::new();
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let wrong = |problem: String| LogError::Line { line: number + 1, problem };
            let line: Line<'_> = serde_json::from_str(line).map_err(|error| wrong(error.to_string()))?;
            let at = line.at.instant().map_err(wrong)?;
            if !line.cost.is_finite() || line.cost < 0.0 {
                return Err(wrong(format!("`cost` must not be negative, but is {}", line.cost)));
            }
            let named = line.session.is_some();
            // Named and nameless sessions are counted apart, so that their numbers never meet.
            let session = if let Some(name) = line.session {
                let next = 2 * sessions.len() as u64;
                *sessions.entry(name).or_insert(next)
            } else {
                nameless += 1;
                2 * nameless - 1
            };
            requests.push(line.tokens.request(at, session, named, line.cost, line.model.as_deref(), line.duration_ms));
        }
        if requests.is_empty() {
            return Err(LogError::Empty);
        }
        requests.sort_by_key(|request| request.at);
        number_turns(&mut requests);
        Ok(Self { requests })
    }

    pub(super) fn requests(&self) -> &[Request] {
        &self.requests
    }

    /// The full hour in which the first request began.
    pub(super) fn start(&self) -> Timestamp {
        let first = self.requests.first().map_or(0, |request| request.at.as_millis());
        Timestamp::from_millis(first - first.rem_euclid(HOUR_MS))
    }

    /// The full hour after the last request began.
    pub(super) fn end(&self) -> Timestamp {
        let last = self.requests.last().map_or(0, |request| request.at.as_millis());
        Timestamp::from_millis(last - last.rem_euclid(HOUR_MS) + HOUR_MS)
    }

    /// Sessions in it.
    pub fn sessions(&self) -> u64 {
        self.requests.iter().filter(|request| request.turn == 1).count() as u64
    }

    /// What everything in it costs.
    pub fn cost(&self) -> MicroUsd {
        self.requests.iter().map(|request| request.cost).sum()
    }
}

impl At<'_> {
    fn instant(&self) -> Result<Timestamp, String> {
        match self {
            Self::Millis(millis) => Ok(Timestamp::from_millis(*millis)),
            Self::Text(text) => match text.parse::<jiff::Timestamp>() {
                Ok(instant) => Ok(Timestamp::from_millis(instant.as_millisecond())),
                Err(error) => Err(format!("`at` is no instant: {error}")),
            },
        }
    }
}

impl Tokens {
    fn request(
        self,
        at: Timestamp,
        session: u64,
        named: bool,
        cost: f64,
        model: Option<&str>,
        duration_ms: Option<u64>,
    ) -> Request {
        let usage = match self {
            Self::All(cache_read) => Usage { cache_read, ..Usage::default() },
            Self::Split(Split { input, cache_creation, cache_read, output }) => {
                Usage { input, cache_creation, cache_read, output, ..Usage::default() }
            }
        };
        let family = model.map_or(Family::Sonnet, Family::of);
        Request {
            at,
            session,
            turn: 0,
            named,
            last: false,
            family,
            cost: MicroUsd::from_usd(cost),
            rewrite: rewrite(&price(family), usage.cache_read),
            usage,
            duration: Duration::from_millis(duration_ms.unwrap_or(USUAL_DURATION_MS)),
        }
    }
}

/// Numbers each session's turns and marks its last one. The first one is cold or warm everywhere alike.
fn number_turns(requests: &mut [Request]) {
    let mut seen: HashMap<u64, usize> = HashMap::new();
    for index in 0..requests.len() {
        let turn = if let Some(before) = seen.insert(requests[index].session, index) {
            requests[before].last = false;
            requests[before].turn + 1
        } else {
            // Wherever it was cached before the log begins, it is not known.
            requests[index].rewrite = MicroUsd::ZERO;
            1
        };
        requests[index].turn = turn;
        requests[index].last = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_form_of_a_line() {
        let log = Recorded::parse(concat!(
            r#"{"at": 1767604000000, "session": "a", "cost": 0.02, "tokens": 92000, "durationMs": 8100, "more": 1}"#,
            "\n\n",
            r#"{"at": "2026-01-05T09:00:00Z", "session": "a", "cost": 0.31, "tokens": {"cacheRead": 100000, "output": 7},"#,
            r#" "model": "claude-opus-4-8"}"#,
            "\n",
            r#"{"at": 1767603900000, "cost": 1}"#,
        ))
        .unwrap();
        let [first, second, third] = log.requests() else { panic!("{log:?}") };
        assert_eq!((first.session, first.turn, first.last, first.named), (0, 1, false, true));
        assert_eq!((second.session, second.turn, second.last, second.named), (1, 1, true, false));
        assert_eq!((third.session, third.turn, third.last), (0, 2, true));
        assert_eq!(first.at, Timestamp::from_secs(1_767_603_600));
        assert_eq!(first.rewrite, MicroUsd::ZERO);
        // 92,000 tokens at 6 instead of 0.3 dollars a million.
        assert_eq!(third.rewrite, MicroUsd::from_usd(0.5244));
        assert_eq!(third.duration, Duration::from_millis(8100));
        assert_eq!(log.start(), Timestamp::from_secs(1_767_603_600));
        assert_eq!(log.end(), Timestamp::from_secs(1_767_607_200));
        assert_eq!((log.sessions(), log.cost()), (2, MicroUsd::from_usd(1.33)));
    }

    #[test]
    fn says_which_line_is_wrong() {
        let wrong = |text: &str| Recorded::parse(text).unwrap_err().to_string();
        let good = r#"{"at": 0, "cost": 1}"#;
        assert!(wrong(&format!("{good}\n{{")).starts_with("line 2: "));
        assert!(wrong(r#"{"at": "noon", "cost": 1}"#).starts_with("line 1: `at` is no instant"));
        assert!(wrong(r#"{"at": 0, "cost": -1}"#).contains("must not be negative"));
        assert_eq!(wrong("\n"), "the log has no lines");
    }
}
