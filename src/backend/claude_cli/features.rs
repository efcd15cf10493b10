//! What the installed CLI can do, as far as it was tried, and what is done about what it cannot.
//!
//! Builds differ. Whether one can do what this program relies on is tried out once a build (see [`crate::selftest`]), not
//! derived from its version number. What was not tried counts as there.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::backend::{Failure, FailureKind};
use crate::conversation::Request;

/// Something that a build of the CLI may be unable to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Feature {
    /// A process that was started ahead takes the system prompt of the request it is given.
    LateSystemPrompt,
    /// A process takes in the turns that a conversation had before.
    HistoryReplay,
    /// The client's tools reach the provider word by word, and calls come back.
    ClientTools,
    /// A process waits for the results of the calls it has made, and goes on with them.
    HybridTools,
    /// A spent limit is reported with its window and its end.
    Limits,
    /// An answer that reaches `max_tokens` ends there, without further requests at the subscription's cost.
    MaxTokens,
    /// An answer that nobody waits for any more is cut at the provider.
    Cancel,
}

impl Feature {
    /// Every feature, in the order in which they are tried and shown.
    pub const ALL: [Self; 7] = [
        Self::LateSystemPrompt,
        Self::HistoryReplay,
        Self::ClientTools,
        Self::HybridTools,
        Self::Limits,
        Self::MaxTokens,
        Self::Cancel,
    ];

    /// As it is written in `/debug` and in the log.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::LateSystemPrompt => "late_system_prompt",
            Self::HistoryReplay => "history_replay",
            Self::ClientTools => "client_tools",
            Self::HybridTools => "hybrid_tools",
            Self::Limits => "limits",
            Self::MaxTokens => "max_tokens",
            Self::Cancel => "cancel",
        }
    }

    /// What is different where it is missing.
    pub const fn without(self) -> &'static str {
        match self {
            Self::LateSystemPrompt => "every request is refused: the CLI would use a system prompt of its own",
            Self::HistoryReplay => "requests with more than one turn are refused",
            Self::ClientTools => "requests with tools are refused",
            Self::HybridTools => "the results of tools are replayed in another process, which takes longer",
            Self::Limits => "a spent limit counts as a throttle: it is tried again and again",
            Self::MaxTokens => "a request with `max_tokens` may cost up to four times its answer",
            Self::Cancel => "an answer that nobody waits for is paid to its end",
        }
    }

    /// Whether `request` cannot be served without it.
    fn is_needed_by(self, request: &Request) -> bool {
        match self {
            Self::LateSystemPrompt => true,
            Self::HistoryReplay => request.turns.len() > 1,
            Self::ClientTools => !request.tools.is_empty(),
            Self::HybridTools | Self::Limits | Self::MaxTokens | Self::Cancel => false,
        }
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What trying a feature out has shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Support {
    /// It works.
    Has,
    /// It does not, and this is what was seen.
    Lacks(String),
    /// It could not be tried, for this reason.
    Unknown(String),
}

/// What one build of the CLI can do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Features(BTreeMap<Feature, Support>);

impl Features {
    /// Records what was seen.
    pub fn set(&mut self, feature: Feature, support: Support) {
        self.0.insert(feature, support);
    }

    /// What is known of `feature`; `None` if it was never tried.
    pub fn support(&self, feature: Feature) -> Option<&Support> {
        self.0.get(&feature)
    }

    /// Whether `feature` may be relied on: it works, or nobody has seen that it does not.
    pub fn has(&self, feature: Feature) -> bool {
        !matches!(self.0.get(&feature), Some(Support::Lacks(_)))
    }

    /// What is missing, each with what was seen.
    pub fn missing(&self) -> impl Iterator<Item = (Feature, &str)> {
        self.0.iter().filter_map(|(feature, support)| match support {
            Support::Lacks(seen) => Some((*feature, seen.as_str())),
            Support::Has | Support::Unknown(_) => None,
        })
    }

    /// Why something could not be tried, if there is such a thing.
    pub fn unknown(&self) -> Option<&str> {
        self.0.values().find_map(|support| match support {
            Support::Unknown(why) => Some(why.as_str()),
            Support::Has | Support::Lacks(_) => None,
        })
    }

    /// Whether every feature was tried, so that trying again would show nothing new.
    pub fn is_complete(&self) -> bool {
        Feature::ALL.iter().all(|feature| matches!(self.0.get(feature), Some(Support::Has | Support::Lacks(_))))
    }

    /// Refuses a request that needs what is missing.
    pub(super) fn admit(&self, request: &Request) -> Result<(), Failure> {
        match self.missing().find(|(feature, _)| feature.is_needed_by(request)) {
            None => Ok(()),
            Some((feature, seen)) => Err(Failure::new(
                FailureKind::Lacking,
                format!("the installed Claude CLI lacks `{feature}` ({seen}); another version may have it"),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::conversation::{Block, Model, Options, Role, Tool, Turn};

    fn request(turns: usize, tools: usize) -> Request {
        let turn = |position: usize| Turn {
            role: if position.is_multiple_of(2) { Role::User } else { Role::Assistant },
            blocks: vec![Block::Text("hi".to_owned())],
        };
        Request {
            model: Arc::new(Model::named("claude-sonnet-4-5")),
            system: Vec::new(),
            turns: (0..turns).map(turn).collect(),
            tools: vec![Tool { name: "f".to_owned(), definition: serde_json::json!({ "name": "f" }) }; tools],
            tool_choice: None,
            options: Options::default(),
        }
    }

    #[test]
    fn only_requests_that_need_what_is_missing_are_refused() {
        let mut features = Features::default();
        assert!(features.admit(&request(3, 1)).is_ok(), "what was not tried counts as there");
        features.set(Feature::HistoryReplay, Support::Lacks("the turns came in another order".to_owned()));
        features.set(Feature::ClientTools, Support::Unknown("the stand-in did not start".to_owned()));
        features.set(Feature::Cancel, Support::Lacks("it went on".to_owned()));
        assert!(features.admit(&request(1, 1)).is_ok());
        let failure = features.admit(&request(3, 0)).expect_err("it needs the history");
        assert_eq!(failure.kind, FailureKind::Lacking);
        assert!(failure.detail.contains("`history_replay` (the turns came in another order)"), "{failure}");
        assert!(!failure.may_retry_elsewhere(), "every subscription has the same CLI");
        features.set(Feature::LateSystemPrompt, Support::Lacks("it came without".to_owned()));
        assert!(features.admit(&request(1, 0)).is_err());
    }

    #[test]
    fn they_survive_json_by_their_names() -> anyhow::Result<()> {
        let mut features = Features::default();
        for feature in Feature::ALL {
            assert!(!features.is_complete());
            features.set(feature, Support::Has);
            assert_eq!(serde_json::to_value(feature)?, feature.as_str());
        }
        assert!(features.is_complete());
        assert_eq!(serde_json::from_str::<Features>(&serde_json::to_string(&features)?)?, features);
        Ok(())
    }
}
