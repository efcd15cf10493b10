//! Why the pool decided as it did: causes, candidates, and the words for them.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize, Serializer};

use crate::units::Timestamp;

use super::command::SessionKey;
use super::health::HealthBreakdown;
use super::session::{Kind, SessionId};

/// A session's name in logs and views: derived from the client's id, which it does not reveal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionLabel {
    kind: Kind,
    digest: u64,
}

impl SessionLabel {
    pub(super) const fn new(kind: Kind, digest: u64) -> Self {
        Self { kind, digest }
    }
}

impl From<&SessionKey> for SessionLabel {
    fn from(key: &SessionKey) -> Self {
        SessionId::of(key).label(Kind::of(key))
    }
}

impl SessionLabel {
    /// The session's name among replicas: like the label, but with all of its bits.
    pub fn key(&self) -> String {
        let kind = match self.kind {
            Kind::Explicit => 's',
            Kind::Fingerprint => 'f',
        };
        format!("{kind}{:016x}", self.digest)
    }
}

impl fmt::Display for SessionLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Explicit => "session",
            Kind::Fingerprint => "fingerprint",
        };
        write!(f, "{kind}-{:012x}", self.digest >> 16)
    }
}

impl Serialize for SessionLabel {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Whose word keeps a subscription out, or in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The configuration.
    Configuration,
    /// The provider.
    Provider,
    /// Our own account of what was used.
    Account,
    /// The pool's own protection: breaker, slots, ramps.
    Pool,
    /// The request itself.
    Request,
    /// Other replicas that use the same subscriptions.
    Replicas,
}

/// Why a subscription is not given a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// Its owner switched it off.
    Disabled,
    /// It is no longer in the configuration and finishes what it has begun.
    Removed,
    /// It is not logged in, or has no credit.
    Unauthenticated,
    /// The provider rejects everything until a window resets.
    ProviderLimit,
    /// The provider rejects this model family until its window resets.
    FamilyLimit,
    /// The provider throttled it and named no end: a short pause.
    Throttled,
    /// Its breaker is open.
    BreakerOpen,
    /// It has used its share of the weekly budget.
    BudgetSpent,
    /// What is left of its share of the weekly budget is reserved by requests in flight.
    BudgetReserved,
    /// Its breaker is half-open and a probe is on its way.
    Probing,
    /// It has just recovered and is loaded step by step.
    RampingUp,
    /// It runs as many requests as it may at the same time.
    RequestsFull,
    /// It has used what its tier allows in a minute or a day.
    CapacityFull,
    /// Sessions in use hold all its client slots.
    SlotsFull,
    /// This very request failed on it before.
    AlreadyTried,
    /// Whoever sent the request may not use it.
    NotAllowed,
}

/// How many causes there are.
pub(super) const CAUSES: usize = 16;

impl Cause {
    pub(super) const ALL: [Self; CAUSES] = [
        Self::Disabled,
        Self::Removed,
        Self::Unauthenticated,
        Self::ProviderLimit,
        Self::FamilyLimit,
        Self::Throttled,
        Self::BreakerOpen,
        Self::BudgetSpent,
        Self::BudgetReserved,
        Self::Probing,
        Self::RampingUp,
        Self::RequestsFull,
        Self::CapacityFull,
        Self::SlotsFull,
        Self::AlreadyTried,
        Self::NotAllowed,
    ];

    pub(super) const fn index(self) -> usize {
        self as usize
    }

    /// Whose word it is.
    pub const fn source(self) -> Source {
        match self {
            Self::Disabled | Self::Removed | Self::NotAllowed => Source::Configuration,
            Self::Unauthenticated | Self::ProviderLimit | Self::FamilyLimit | Self::Throttled => Source::Provider,
            Self::BudgetSpent | Self::BudgetReserved => Source::Account,
            Self::BreakerOpen
            | Self::Probing
            | Self::RampingUp
            | Self::RequestsFull
            | Self::CapacityFull
            | Self::SlotsFull => Source::Pool,
            Self::AlreadyTried => Source::Request,
        }
    }

    /// Whether it passes as soon as running requests end, so that a session need not move for it.
    pub(super) const fn is_busy(self) -> bool {
        matches!(
            self,
            Self::BudgetReserved
                | Self::Probing
                | Self::RampingUp
                | Self::RequestsFull
                | Self::CapacityFull
                | Self::SlotsFull
        )
    }

    const fn words(self) -> &'static str {
        match self {
            Self::Disabled => "disabled in the configuration",
            Self::Removed => "removed from the configuration",
            Self::Unauthenticated => "not logged in or without credit",
            Self::ProviderLimit => "limited by the provider",
            Self::FamilyLimit => "limited by the provider for this model family",
            Self::Throttled => "throttled by the provider",
            Self::BreakerOpen => "breaker open after failures in a row",
            Self::BudgetSpent => "weekly budget spent",
            Self::BudgetReserved => "waiting for requests that reserve the rest of its weekly budget",
            Self::Probing => "being probed after failures",
            Self::RampingUp => "just recovered and loaded step by step",
            Self::RequestsFull => "at its limit of concurrent requests",
            Self::CapacityFull => "at its limit of requests, tokens or cost in a minute or a day",
            Self::SlotsFull => "all client slots held by sessions in use",
            Self::AlreadyTried => "already tried by this request",
            Self::NotAllowed => "not open to this client",
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.words())
    }
}

/// Why, on whose word, and until when a subscription is out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Exclusion {
    /// Why.
    pub cause: Cause,
    /// On whose word.
    pub source: Source,
    /// Since when, where that is one instant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// When it ends by itself; `None` if it waits for a request to end or for an operator.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
}

impl Exclusion {
    pub(super) const fn new(cause: Cause, since: Option<Timestamp>, until: Option<Timestamp>) -> Self {
        Self { cause, source: cause.source(), since, until }
    }

    pub(super) const fn told_by(self, source: Source) -> Self {
        Self { source, ..self }
    }
}

/// A subscription that was considered.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Candidate {
    /// Its id.
    pub subscription: Arc<str>,
    /// Its health score, 0 to 100.
    pub score: f64,
    /// The score's terms.
    pub breakdown: HealthBreakdown,
    /// Why it could not be chosen, if it could not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub excluded: Option<Exclusion>,
}

/// How many subscriptions are out for one cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ExcludedCount {
    /// Why.
    pub cause: Cause,
    /// How many.
    pub count: u32,
}

/// What kind of decision it was, and its reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The session stayed where it is.
    Sticky,
    /// A new session went to the best subscription.
    Best,
    /// A new session took the slot of the longest idle one.
    GaveWay,
    /// The session moved because its own subscription cannot serve it any more.
    Moved(Cause),
    /// This request runs elsewhere, the session stays: its own subscription is only busy.
    Overflow(Cause),
    /// Nobody can serve it.
    Refused,
}

impl Reason {
    /// The kind in one word, for counting.
    pub const fn kind(self) -> &'static str {
        match self {
            Self::Sticky => "sticky",
            Self::Best | Self::GaveWay => "new",
            Self::Moved(_) => "moved",
            Self::Overflow(_) => "overflow",
            Self::Refused => "refused",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sticky => f.write_str("the session stays on its subscription"),
            Self::Best => f.write_str("new session: the best subscription that can take it"),
            Self::GaveWay => f.write_str("new session: every slot was held, the longest idle session gave way"),
            Self::Moved(cause) => write!(f, "the session moved, its subscription is {cause}"),
            Self::Overflow(cause) => {
                write!(f, "only this request runs elsewhere, the session's subscription is {cause}")
            }
            Self::Refused => f.write_str("no subscription can serve the request"),
        }
    }
}

/// One allocation, explained.
#[derive(Clone, Debug)]
pub struct Decision {
    /// When.
    pub at: Timestamp,
    /// For which of the client's requests. One that waits has one decision: how its waiting ended.
    pub request: Option<Arc<str>>,
    /// For whom.
    pub session: SessionLabel,
    /// Who serves; `None` if nobody can.
    pub chosen: Option<Arc<str>>,
    /// Why.
    pub reason: Reason,
    /// Who was considered, best first. For a sticky session only its own subscription; in a large pool only the first
    /// few, and `excluded` counts the rest.
    pub candidates: Vec<Candidate>,
    /// How many subscriptions could not take a new session, by cause.
    pub excluded: Vec<ExcludedCount>,
    /// How many subscriptions the pool has.
    pub subscriptions: usize,
}

impl Serialize for Decision {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct View<'a> {
            at: Timestamp,
            #[serde(skip_serializing_if = "Option::is_none")]
            request: Option<&'a str>,
            session: SessionLabel,
            chosen: Option<&'a str>,
            kind: &'static str,
            reason: String,
            candidates: &'a [Candidate],
            excluded: &'a [ExcludedCount],
            subscriptions: usize,
        }
        View {
            at: self.at,
            request: self.request.as_deref(),
            session: self.session,
            chosen: self.chosen.as_deref(),
            kind: self.reason.kind(),
            reason: self.reason.to_string(),
            candidates: &self.candidates,
            excluded: &self.excluded,
            subscriptions: self.subscriptions,
        }
        .serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_has_its_own_place() {
        for (index, cause) in Cause::ALL.into_iter().enumerate() {
            assert_eq!(cause.index(), index);
            assert!(!cause.to_string().is_empty());
        }
    }

    #[test]
    fn a_label_does_not_show_the_clients_id() {
        let key = SessionKey::Explicit("alice@example.com/private".into());
        let label = SessionLabel::from(&key).to_string();
        assert!(label.starts_with("session-"), "{label}");
        assert_eq!(label.len(), "session-".len() + 12);
        assert!(!label.contains("alice"));
        assert_eq!(label, SessionLabel::from(&key).to_string());
        assert!(SessionLabel::from(&SessionKey::Fingerprint(7)).to_string().starts_with("fingerprint-"));
    }
}
