//! What has ended and is not reported yet.

use std::collections::VecDeque;
use std::sync::Arc;

use serde::Serialize;

use super::news::{News, Used};
use crate::units::Timestamp;

/// Ended requests that are kept while the server is away: a day of more than one a second.
const MOST: usize = 100_000;

/// A request that has ended.
#[derive(Clone, Debug)]
pub(super) struct Settlement {
    pub(super) lease: u64,
    pub(super) session: String,
    pub(super) explicit: bool,
    pub(super) home: Arc<str>,
    pub(super) answered: bool,
    pub(super) used: Used,
    pub(super) at: Timestamp,
    /// When it began, if the server has not counted that.
    pub(super) started: Option<Timestamp>,
}

/// The settlement as the script reads it.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Question {
    subscription: Arc<str>,
    lease: u64,
    session: String,
    explicit: bool,
    home: Arc<str>,
    answered: bool,
    tokens: u64,
    input: u64,
    cost: i64,
    /// Milliseconds since it ended, so that the clocks do not have to agree.
    age: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    started_age: Option<u64>,
    news: String,
}

impl Settlement {
    pub(super) fn question(&self, now: Timestamp) -> Question {
        let age = |at: Timestamp| u64::try_from(now.since(at).as_millis()).unwrap_or(u64::MAX);
        Question {
            subscription: Arc::clone(&self.used.subscription),
            lease: self.lease,
            session: self.session.clone(),
            explicit: self.explicit,
            home: Arc::clone(&self.home),
            answered: self.answered,
            tokens: self.used.usage.total(),
            input: self.used.usage.total_input(),
            cost: self.used.cost.as_micros(),
            age: age(self.at),
            started_age: self.started.map(age),
            news: News::from(self).encode(),
        }
    }
}

/// What could not be told yet, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    settlements: VecDeque<Settlement>,
    news: VecDeque<News>,
    lost: u64,
}

impl Ledger {
    pub(super) fn keep(&mut self, settlement: Settlement) {
        if self.settlements.len() == MOST {
            self.settlements.pop_front();
            self.lost += 1;
        }
        self.settlements.push_back(settlement);
    }

    /// News that is only about use is told by its settlement.
    pub(super) fn keep_news(&mut self, news: News) {
        if self.news.len() == MOST {
            self.news.pop_front();
        }
        self.news.push_back(news);
    }

    /// The next part to tell.
    pub(super) fn next(&mut self, most: usize) -> (Vec<Settlement>, Vec<News>) {
        let settlements = self.settlements.drain(..most.min(self.settlements.len())).collect();
        let news = self.news.drain(..most.min(self.news.len())).collect();
        (settlements, news)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.settlements.is_empty() && self.news.is_empty()
    }

    /// How many settlements were too many to be kept, since last asked.
    pub(super) fn take_lost(&mut self) -> u64 {
        std::mem::take(&mut self.lost)
    }
}
