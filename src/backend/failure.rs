//! A failed request: whose fault, and may another subscription be tried.

use crate::conversation::LimitReport;

/// Who has to change something before the same request can succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The client: its request is refused wherever it goes.
    Client,
    /// The subscription: another one may well serve it.
    Subscription,
    /// The provider or its connection: a later or another attempt may succeed.
    Provider,
    /// This machine: the CLI or its process.
    Backend,
}

/// What went wrong.
#[derive(Clone, Debug, PartialEq)]
pub enum FailureKind {
    /// The provider refused because a limit is spent, or throttles (then the report names no reset).
    Limited(LimitReport),
    /// The provider says it is overloaded, or failed inside (5xx, 529).
    Unavailable {
        /// The HTTP status, where there was one.
        status: Option<u16>,
    },
    /// The subscription is not, or no longer, logged in.
    Unauthenticated,
    /// The subscription has no credit left.
    Billing,
    /// The provider does not know the model, or this subscription may not use it.
    ModelNotFound,
    /// The conversation is longer than the model's context.
    PromptTooLong,
    /// The request is larger than the provider takes.
    TooLarge,
    /// The provider refuses the request as it stands.
    InvalidRequest,
    /// The installed CLI cannot do what the request needs.
    Lacking,
    /// Something goes in circles: too many processes were started, or the provider's address leads back to this program.
    Runaway,
    /// The process could not be started.
    Spawn,
    /// All processes that may run are running.
    NoProcess,
    /// The client reads so slowly that its answer would fill the memory.
    Overflow,
    /// The process ended before the answer was complete.
    Crashed,
    /// The process said something that is not its protocol.
    Protocol,
    /// Nothing came in time.
    TimedOut {
        /// Which timer fired: `first event`, `idle` or `total`.
        timer: &'static str,
    },
}

/// Bytes of an explanation. A broken provider or CLI can write megabytes, which would go into the log and to the client.
const MOST_DETAIL_BYTES: usize = 4096;

/// A failed request.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{detail}")]
pub struct Failure {
    /// The verdict.
    pub kind: FailureKind,
    /// For people: what the provider or the process said. Holds no secret.
    pub detail: String,
}

impl Failure {
    /// A failure with its explanation, of which no more is kept than somebody may want to read.
    pub fn new(kind: FailureKind, detail: impl Into<String>) -> Self {
        let mut detail = detail.into();
        if detail.len() > MOST_DETAIL_BYTES {
            detail.truncate(detail.floor_char_boundary(MOST_DETAIL_BYTES));
            detail.push('…');
        }
        Self { kind, detail }
    }

    /// Whose fault it is.
    pub fn fault(&self) -> Fault {
        match self.kind {
            FailureKind::ModelNotFound
            | FailureKind::PromptTooLong
            | FailureKind::TooLarge
            | FailureKind::InvalidRequest
            | FailureKind::Overflow => Fault::Client,
            FailureKind::Limited(_) | FailureKind::Unauthenticated | FailureKind::Billing => Fault::Subscription,
            FailureKind::Unavailable { .. } | FailureKind::TimedOut { .. } => Fault::Provider,
            FailureKind::Lacking
            | FailureKind::Runaway
            | FailureKind::Spawn
            | FailureKind::NoProcess
            | FailureKind::Crashed
            | FailureKind::Protocol => Fault::Backend,
        }
    }

    /// Whether the same request may be tried on another subscription (as long as the client has seen nothing).
    pub fn may_retry_elsewhere(&self) -> bool {
        match self.kind {
            // Another subscription may have the model.
            FailureKind::ModelNotFound => true,
            // Processes are the machine's, not the subscription's.
            FailureKind::Lacking
            | FailureKind::Runaway
            | FailureKind::NoProcess
            | FailureKind::TimedOut { timer: "total" } => false,
            _ => self.fault() != Fault::Client,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_explanation_is_as_long_as_somebody_may_read() {
        let short = "it is €".to_owned();
        assert_eq!(Failure::new(FailureKind::Spawn, short.clone()).detail, short);
        let long = Failure::new(FailureKind::Spawn, format!("x{}", "€".repeat(1_000_000))).detail;
        assert!(long.len() <= MOST_DETAIL_BYTES + '…'.len_utf8() && long.ends_with("€…"), "{}", long.len());
    }
}
