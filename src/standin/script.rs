//! What a test tells the stand-in to do.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::ask::Ask;
use super::record::Bearer;
use crate::units::Timestamp;

/// One instruction: which requests, how often, and what happens to them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "RawRule", into = "RawRule")]
pub struct Rule {
    /// The requests it is for; by default all.
    pub matches: Match,
    /// How many requests it is for; `None` is all of them.
    pub times: Option<u32>,
    /// The speed of a streamed answer; in JSON the two fields stand inside `action`.
    pub pace: Pace,
    /// What happens.
    pub action: Action,
}

impl Rule {
    /// A rule for every request.
    pub fn always(action: Action) -> Self {
        Self { matches: Match::default(), times: None, pace: Pace::default(), action }
    }

    /// A rule for the next request only.
    pub fn once(action: Action) -> Self {
        Self { times: Some(1), ..Self::always(action) }
    }

    /// The same rule for one bearer's requests: its label, its fingerprint or the token itself.
    #[must_use]
    pub fn bearer(mut self, bearer: impl Into<String>) -> Self {
        self.matches.bearer = Some(bearer.into());
        self
    }

    /// The same rule for requests whose last user text contains `text`.
    #[must_use]
    pub fn contains(mut self, text: impl Into<String>) -> Self {
        self.matches.contains = Some(text.into());
        self
    }

    /// The same rule at another speed.
    #[must_use]
    pub fn pace(mut self, pace: Pace) -> Self {
        self.pace = pace;
        self
    }

    fn applies(&self, bearer: &Bearer, ask: &Ask<'_>, now: Timestamp) -> bool {
        let over = |resets_at: &Option<i64>| resets_at.is_some_and(|at| Timestamp::from_secs(at) <= now);
        self.times != Some(0)
            && self.matches.bearer.as_deref().is_none_or(|name| bearer.is(name))
            && self.matches.model.as_deref().is_none_or(|model| ask.model.contains(model))
            && self.matches.contains.as_deref().is_none_or(|text| ask.last_text.contains(text))
            && match &self.action {
                // The limit of one model family leaves the others alone, and every limit ends by itself.
                Action::Limit { window, resets_at, .. } => {
                    window.strip_prefix("seven_day_").is_none_or(|family| ask.model.contains(family))
                        && !over(resets_at)
                }
                _ => true,
            }
    }
}

/// Which requests a rule is for. Every field that is given must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Match {
    /// The bearer's label, fingerprint, or the token itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bearer: Option<String>,
    /// Part of the model's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Part of the last user text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub contains: Option<String>,
}

/// The speed of a streamed answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pace {
    /// Milliseconds before the first event.
    pub first_delay_ms: u64,
    /// Milliseconds between two deltas.
    pub chunk_delay_ms: u64,
}

impl Pace {
    pub(super) const fn first_delay(self) -> Duration {
        Duration::from_millis(self.first_delay_ms)
    }

    pub(super) const fn chunk_delay(self) -> Duration {
        Duration::from_millis(self.chunk_delay_ms)
    }
}

/// What happens to a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Action {
    /// A text: this one, or `count` words `tok0 tok1 ...`, or the default answer.
    Text {
        /// The text.
        text: Option<String>,
        /// How many words to make up.
        count: Option<usize>,
    },
    /// Calls of tools, after `text` if given.
    ToolUse {
        /// The calls, in order.
        calls: Vec<ToolCall>,
        /// Said before.
        text: Option<String>,
    },
    /// Thinking, then a text.
    Thinking {
        /// What is thought.
        thinking: String,
        /// What is said then; the default answer if not given.
        text: Option<String>,
    },
    /// Cuts the answer after this many deltas, as if `max_tokens` were reached.
    MaxTokens {
        /// Deltas sent before.
        after_deltas: usize,
    },
    /// The answer runs into the end of the model's context.
    ContextWindow,
    /// The answer ends at a stop text.
    StopSequence {
        /// The stop text; the request's first one if not given.
        sequence: Option<String>,
    },
    /// The provider's safety system ends the answer.
    Refusal {
        /// Said before.
        text: Option<String>,
    },
    /// The turn pauses (`pause_turn`).
    Pause,
    /// Any HTTP status.
    Status {
        /// The status.
        code: u16,
        /// The body; Anthropic's error object for that status if not given.
        body: Option<Value>,
        /// Further headers.
        #[serde(default)]
        headers: BTreeMap<String, String>,
    },
    /// 429 with the headers of a spent limit. Ends by itself at the reset.
    Limit {
        /// `five_hour`, `seven_day`, or `seven_day_opus` and the like (then it is for that family's models only).
        window: String,
        /// When it resets, in seconds since the epoch.
        resets_at: Option<i64>,
        /// The same, from now.
        resets_in_s: Option<i64>,
        /// How full the window is; 1.0 if not given.
        utilization: Option<f64>,
    },
    /// 429 without a word about limits.
    Throttle {
        /// The `retry-after` header.
        retry_after_s: Option<u64>,
    },
    /// 529.
    Overloaded,
    /// Breaks a streamed answer.
    ErrorMidStream {
        /// Deltas sent before.
        after_deltas: usize,
        /// How.
        kind: BreakKind,
    },
    /// Breaks the connection before any answer.
    ResetBeforeHeaders,
    /// Falls silent, until the client goes away.
    Hang {
        /// Where.
        before: HangPoint,
    },
}

/// One call of a tool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToolCall {
    /// The tool's name.
    pub name: String,
    /// Its arguments.
    #[serde(default = "no_arguments")]
    pub input: Value,
}

fn no_arguments() -> Value {
    Value::Object(Map::new())
}

/// How a streamed answer breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BreakKind {
    /// The connection is reset.
    Reset,
    /// The connection is closed in the middle of the body.
    Eof,
    /// An `error` event, then a proper end.
    Event,
}

/// Where an answer falls silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HangPoint {
    /// Before the status line.
    Headers,
    /// Before the first event.
    FirstEvent,
    /// After the first half of the deltas.
    Mid,
}

/// A rule as it is written in JSON, with the pace inside the action.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawRule {
    #[serde(default, rename = "match")]
    matches: Match,
    #[serde(skip_serializing_if = "Option::is_none")]
    times: Option<u32>,
    action: Map<String, Value>,
}

impl TryFrom<RawRule> for Rule {
    type Error = serde_json::Error;

    fn try_from(raw: RawRule) -> Result<Self, Self::Error> {
        let mut action = raw.action;
        let mut pace = Map::new();
        for field in ["first_delay_ms", "chunk_delay_ms"] {
            if let Some(value) = action.remove(field) {
                pace.insert(field.to_owned(), value);
            }
        }
        Ok(Self {
            matches: raw.matches,
            times: raw.times,
            pace: serde_json::from_value(Value::Object(pace))?,
            action: serde_json::from_value(Value::Object(action))?,
        })
    }
}

impl From<Rule> for RawRule {
    fn from(rule: Rule) -> Self {
        let object = |value: Result<Value, _>| match value {
            Ok(Value::Object(map)) => map,
            Ok(_) | Err(_) => Map::new(),
        };
        let mut action = object(serde_json::to_value(&rule.action));
        action.extend(object(serde_json::to_value(rule.pace)));
        Self { matches: rule.matches, times: rule.times, action }
    }
}

/// The rules in force.
#[derive(Debug, Default)]
pub(super) struct Script(Mutex<Vec<Rule>>);

impl Script {
    fn rules(&self) -> MutexGuard<'_, Vec<Rule>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, rules: impl IntoIterator<Item = Rule>) {
        let now = crate::runtime::clock::now();
        self.rules().extend(rules.into_iter().map(|mut rule| {
            if let Action::Limit { resets_at, resets_in_s, .. } = &mut rule.action {
                // From here on the limit has one fixed end, whenever it is asked about.
                *resets_at = resets_at.or(Some(now.as_secs() + resets_in_s.take().unwrap_or(5 * 3600)));
            }
            rule
        }));
    }

    pub(super) fn clear(&self) {
        self.rules().clear();
    }

    pub(super) fn all(&self) -> Vec<Rule> {
        self.rules().clone()
    }

    /// The first rule that applies, for a request that is none to the model and uses up nothing.
    pub(super) fn peek(&self, bearer: &Bearer, now: Timestamp) -> Option<Rule> {
        let ask = Ask::of(&Value::Null);
        self.rules().iter().find(|rule| rule.applies(bearer, &ask, now)).cloned()
    }

    /// The first rule that applies; uses up one of its times.
    pub(super) fn next(&self, bearer: &Bearer, ask: &Ask<'_>, now: Timestamp) -> Option<Rule> {
        let mut rules = self.rules();
        let index = rules.iter().position(|rule| rule.applies(bearer, ask, now))?;
        let rule = rules.get_mut(index)?;
        if let Some(times) = &mut rule.times {
            *times -= 1;
        }
        let chosen = rule.clone();
        if chosen.times == Some(0) {
            rules.remove(index);
        }
        Some(chosen)
    }
}
