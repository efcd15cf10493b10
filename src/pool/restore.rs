//! What has to be known again after a restart: given out while the pool runs, taken in when it starts.
//!
//! Budgets follow from the use of the last week; what a subscription's provider said of its limits, its breaker and the
//! sessions that stick to it are given out as they are. A login that failed is not among it: whoever starts the program
//! again has usually mended it, and the next request finds out. Taking in is no replay: no effect is published for what
//! was published when it happened. It may come late, when the pool has been used again already.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::conversation::Window;
use crate::units::Timestamp;

use super::Pool;
use super::breaker::Breaker;
use super::command::{SessionKey, Spent};
use super::explain::Source;
use super::limits::{Lock, Reported};
use super::session::{Kind, SessionId};
use super::usage::WEEK;
use super::window::Record;

/// A lock further away than this is a mistake: no window is longer than a week.
const FURTHEST: Duration = Duration::from_hours(8 * 24);

/// What one request used before.
#[derive(Clone, Debug)]
pub struct PastUse {
    /// Where.
    pub subscription: Arc<str>,
    /// When it ended.
    pub at: Timestamp,
    /// What it used.
    pub spent: Spent,
}

/// What has been learned of one subscription.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Learned {
    /// Limits and throttles of the provider that are in force.
    pub locks: Vec<LearnedLock>,
    /// Throttles in a row: how long the next pause is.
    pub throttles: u32,
    /// How full the provider's windows are.
    pub windows: Vec<LearnedWindow>,
    /// When the provider's week resets, once it has said so.
    pub week_reset: Option<Timestamp>,
    /// When the current block began and ends.
    pub block: Option<(Timestamp, Timestamp)>,
    /// The breaker.
    pub breaker: LearnedBreaker,
}

/// See [`Learned::locks`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LearnedLock {
    /// In words.
    pub cause: String,
    /// On whose word.
    pub source: Source,
    /// Since when.
    pub since: Timestamp,
    /// Until when.
    pub until: Timestamp,
    /// The window that is spent, if the provider said which.
    pub window: Option<Window>,
    /// Whether it is only a pause after a throttle.
    pub throttle: bool,
    /// Whether another replica was told so.
    #[serde(default)]
    pub heard: bool,
}

/// See [`Learned::windows`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LearnedWindow {
    /// Which.
    pub window: Window,
    /// 0.0 to 1.0, sometimes beyond.
    pub utilization: f64,
    /// When it resets.
    pub resets_at: Option<Timestamp>,
    /// When the provider said so.
    pub at: Timestamp,
}

/// See [`Learned::breaker`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum LearnedBreaker {
    /// Lets requests pass.
    Closed {
        /// Failures in a row.
        failures: u32,
    },
    /// Lets nothing pass.
    Open {
        /// Since when.
        since: Timestamp,
        /// Until when.
        until: Timestamp,
    },
    /// Lets one request pass at a time.
    HalfOpen {
        /// Since when.
        since: Timestamp,
        /// Probes that succeeded.
        successes: u32,
    },
}

impl Default for LearnedBreaker {
    fn default() -> Self {
        Self::Closed { failures: 0 }
    }
}

/// Where a session belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PastSession {
    /// Its id in the pool, as text. Holds nothing that the client sent.
    pub id: String,
    /// Its subscription.
    pub subscription: Arc<str>,
    /// When it was assigned to it.
    pub since: Timestamp,
    /// When it was last used.
    pub last_used: Timestamp,
}

impl Pool {
    /// The subscriptions, and when each came as somebody of whom nothing was known. One that was removed and comes back
    /// before it was forgotten is the same.
    pub fn joined(&self) -> Vec<(Arc<str>, Timestamp)> {
        self.order.iter().map(|&at| (self.member(at).id(), self.member(at).joined)).collect()
    }

    /// What has been learned of each subscription.
    pub fn learned(&self, now: Timestamp) -> Vec<(Arc<str>, Learned)> {
        self.order.iter().map(|&at| (self.member(at).id(), self.learned_of(at, now))).collect()
    }

    fn learned_of(&self, at: u32, now: Timestamp) -> Learned {
        let member = self.member(at);
        let locks = member.limits.all_locks_at(now).map(|lock| LearnedLock {
            cause: lock.cause(),
            source: Source::Provider,
            since: lock.since,
            until: lock.until,
            window: lock.window,
            throttle: lock.throttle,
            heard: lock.heard,
        });
        let windows = member.limits.all_reported_at(now).map(|known| LearnedWindow {
            window: known.window,
            utilization: known.utilization,
            resets_at: known.resets_at,
            at: known.at,
        });
        Learned {
            locks: locks.collect(),
            throttles: member.limits.throttles(),
            windows: windows.collect(),
            week_reset: member.usage.week_reset_after(now),
            block: member.usage.block_at(now).map(|block| (block.start, block.end)),
            breaker: match member.breaker.at(now) {
                Breaker::Closed { failures } => LearnedBreaker::Closed { failures },
                Breaker::Open { since, until } => LearnedBreaker::Open { since, until },
                Breaker::HalfOpen { since, successes, .. } => LearnedBreaker::HalfOpen { since, successes },
            },
        }
    }

    /// Where a session belongs; `None` if the pool does not know it.
    pub fn session(&self, key: &SessionKey) -> Option<PastSession> {
        let id = SessionId::of(key);
        let session = self.sessions.get(self.sessions.find(id)?)?;
        Some(PastSession {
            id: id.to_text(session.kind),
            subscription: self.member(session.subscription).id(),
            since: session.since,
            last_used: session.last_used,
        })
    }

    /// Takes in what was used before. What lies more than a week back, or belongs to nobody here, counts for nothing.
    /// Returns how many records counted.
    pub fn recall_usage(&mut self, now: Timestamp, past: impl IntoIterator<Item = PastUse>) -> usize {
        let mut by_member: HashMap<u32, Vec<Record>> = HashMap::new();
        for PastUse { subscription, at, spent } in past {
            if let Some(&member) = self.by_id.get(&subscription).filter(|_| now.since(at) < WEEK) {
                // A clock that was set back must not make records of the future.
                by_member.entry(member).or_default().push(Record::new(at.min(now), &spent));
            }
        }
        let mut counted = 0;
        for (at, records) in by_member {
            counted += records.len();
            let member = self.member_mut(at);
            let newest = records.iter().map(|record| record.at).max();
            member.last_usage = member.last_usage.max(newest);
            member.usage.recall(now, records);
            self.settle_in(at, now);
        }
        counted
    }

    /// Takes in what had been learned of a subscription. What has been learned since is newer, and stays. Returns
    /// whether there is such a subscription.
    pub fn recall_learned(&mut self, now: Timestamp, subscription: &str, learned: &Learned) -> bool {
        let Some(&at) = self.by_id.get(subscription) else { return false };
        let member = self.member_mut(at);
        for lock in &learned.locks {
            let until = lock.until.min(now + FURTHEST);
            let LearnedLock { window, since, throttle, heard, .. } = *lock;
            member.limits.recall_lock(Lock { window, since, until, throttle, heard });
        }
        member.limits.recall_throttles(learned.throttles);
        for &LearnedWindow { window, utilization, resets_at, at } in &learned.windows {
            if utilization.is_finite() {
                member.limits.recall_reported(Reported { window, utilization: utilization.max(0.0), resets_at, at });
            }
        }
        member.usage.recall_resets(now, learned.week_reset, learned.block);
        if member.breaker == Breaker::default() {
            member.breaker = match learned.breaker {
                LearnedBreaker::Closed { failures } => Breaker::Closed { failures },
                LearnedBreaker::Open { since, until } => Breaker::Open { since, until: until.min(now + FURTHEST) },
                LearnedBreaker::HalfOpen { since, successes } => Breaker::HalfOpen { since, successes, probing: false },
            };
        }
        // Its end is announced as that of any lock.
        member.seen_lock = member.limits.lock_at(now);
        self.settle_in(at, now);
        true
    }

    /// Takes in where sessions belong. Those that are known again, are stale, or belong to nobody here are left out.
    /// Returns how many were taken in.
    pub fn recall_sessions(&mut self, now: Timestamp, past: impl IntoIterator<Item = PastSession>) -> usize {
        let mut past: Vec<_> = past.into_iter().collect();
        // The lists run from the longest unused on.
        past.sort_by_key(|session| session.last_used);
        let mut taken = 0;
        for PastSession { id, subscription, since, last_used } in past {
            let Some((kind, id)) = SessionId::from_text(&id) else { continue };
            let Some(&home) = self.by_id.get(&subscription) else { continue };
            let is_stale = now.since(last_used) >= self.settings.session_stale_after;
            if is_stale || self.sessions.find(id).is_some() {
                continue;
            }
            self.sessions.recall(id, kind, home, since.min(now), last_used.min(now));
            taken += 1;
        }
        for index in 0..self.order.len() {
            self.refresh(self.order[index], now);
        }
        taken
    }

    /// Brings what is derived from a member up to date, without announcing what is no news.
    fn settle_in(&mut self, at: u32, now: Timestamp) {
        let member = self.member_mut(at);
        let figures = member.usage.figures(now);
        let level = member.level_at(now, &figures);
        if level != member.level {
            member.level = level;
            member.level_since = now;
        }
        self.refresh(at, now);
    }
}

impl SessionId {
    /// `s` for a session that its client named, `f` for a fingerprint, and 32 hexadecimal digits.
    fn to_text(self, kind: Kind) -> String {
        let kind = match kind {
            Kind::Explicit => 's',
            Kind::Fingerprint => 'f',
        };
        let [first, second] = self.halves();
        format!("{kind}{first:016x}{second:016x}")
    }

    fn from_text(text: &str) -> Option<(Kind, Self)> {
        let (kind, digits) = match text.split_at_checked(1)? {
            ("s", digits) => (Kind::Explicit, digits),
            ("f", digits) => (Kind::Fingerprint, digits),
            _ => return None,
        };
        let (first, second) = digits.split_at_checked(16)?;
        let is_half = |digits: &str| digits.len() == 16 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        let half = |digits: &str| is_half(digits).then(|| u64::from_str_radix(digits, 16).ok()).flatten();
        Some((kind, Self::from_halves([half(first)?, half(second)?])))
    }
}
