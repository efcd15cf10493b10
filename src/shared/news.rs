//! What replicas tell each other.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::conversation::{LimitReport, Usage};
use crate::units::{MicroUsd, Timestamp};

/// What a request of another replica used; zero if it only gave its place back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Used {
    /// Under which id it is kept in a store that replicas may have in common. An older version tells none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub record: Option<Arc<str>>,
    /// The name of the client's key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<Arc<str>>,
    /// On which subscription.
    pub subscription: Arc<str>,
    /// Tokens.
    pub usage: Usage,
    /// Money.
    pub cost: MicroUsd,
}

/// Something that one replica has learned and that holds for all.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum News {
    /// A request has ended.
    Used(Used),
    /// What the provider said of a subscription's limits.
    Limits {
        /// The subscription.
        subscription: Arc<str>,
        /// What it said.
        report: LimitReport,
    },
    /// A subscription failed so often in a row that it is left alone.
    BreakerOpened {
        /// The subscription.
        subscription: Arc<str>,
        /// When it may be tried again.
        until: Timestamp,
    },
    /// It has been tried and works.
    BreakerClosed {
        /// The subscription.
        subscription: Arc<str>,
    },
    /// Its operator says that a subscription is well: what was known against it is forgotten.
    Restored {
        /// The subscription.
        subscription: Arc<str>,
    },
}

/// What a replica hears.
#[derive(Clone, Debug, PartialEq)]
pub enum Heard {
    /// Another replica tells something.
    News {
        /// The replica that tells it; `None` if it was kept for those who come later.
        from: Option<String>,
        /// What.
        news: News,
    },
    /// The server is out of reach: each replica counts by itself from now on.
    Apart {
        /// Why, without anything secret.
        cause: String,
    },
    /// The server answers again, and knows what happened meanwhile.
    Together {
        /// How long it was away.
        after: Duration,
    },
}

/// What is kept of a piece of news for those who start later.
pub(super) struct Condition {
    /// Of two with the same name the one that ends later is kept. Begins with the subscription and a blank.
    pub(super) name: String,
    /// When it ends by itself; `None` forgets it, and every other one whose name begins so.
    pub(super) until: Option<Timestamp>,
}

impl News {
    /// The condition that it begins or ends, if it is about one.
    pub(super) fn condition(&self) -> Option<Condition> {
        use crate::conversation::LimitStatus::Rejected;
        match self {
            Self::Limits { subscription, report } if report.status == Rejected => {
                let window = report.window.map_or_else(|| "all".to_owned(), |window| format!("{window:?}"));
                Some(Condition { name: format!("{subscription} limit {window}"), until: Some(report.resets_at?) })
            }
            Self::BreakerOpened { subscription, until } => {
                Some(Condition { name: format!("{subscription} breaker"), until: Some(*until) })
            }
            Self::BreakerClosed { subscription } => {
                Some(Condition { name: format!("{subscription} breaker"), until: None })
            }
            Self::Restored { subscription } => Some(Condition { name: format!("{subscription} "), until: None }),
            Self::Used(_) | Self::Limits { .. } => None,
        }
    }

    pub(super) fn encode(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// `None` for what a newer version tells and this one does not understand.
    pub(super) fn decode(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conversation::{Family, LimitStatus, Window, WindowUse};

    #[test]
    fn news_arrive_as_they_were_told() {
        let report = LimitReport {
            status: LimitStatus::Rejected,
            window: Some(Window::SevenDayFamily(Family::Opus)),
            resets_at: Some(Timestamp::from_secs(900)),
            windows: vec![WindowUse { window: Window::FiveHour, utilization: 0.97, resets_at: None }],
        };
        for news in [
            News::Used(Used {
                record: Some("0198".into()),
                client: Some("ann".into()),
                subscription: "a".into(),
                usage: Usage { input: 7, ..Usage::default() },
                cost: MicroUsd::ZERO,
            }),
            News::Limits { subscription: "a".into(), report },
            News::BreakerOpened { subscription: "a".into(), until: Timestamp::from_secs(5) },
            News::BreakerClosed { subscription: "a".into() },
            News::Restored { subscription: "a".into() },
        ] {
            assert_eq!(News::decode(&news.encode()), Some(news));
        }
        assert_eq!(News::decode(r#"{"type":"weather","rain":true}"#), None);
        let usage = serde_json::to_string(&Usage::default()).unwrap();
        let older = format!(r#"{{"type":"used","subscription":"a","usage":{usage},"cost":5}}"#);
        assert!(matches!(News::decode(&older), Some(News::Used(Used { record: None, client: None, .. }))), "{older}");
    }

    #[test]
    fn windows_of_one_subscription_are_conditions_of_their_own() {
        let rejected = |window, resets_at| News::Limits {
            subscription: "a".into(),
            report: LimitReport { status: LimitStatus::Rejected, window, resets_at, windows: Vec::new() },
        };
        let end = Some(Timestamp::from_secs(900));
        let name = |news: &News| news.condition().map(|condition| condition.name);
        assert_ne!(name(&rejected(Some(Window::FiveHour), end)), name(&rejected(Some(Window::SevenDay), end)));
        // A throttle that names no end is over before anybody who starts later needs to know.
        assert_eq!(name(&rejected(None, None)), None);
    }
}
