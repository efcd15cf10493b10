//! How long a request over HTTP may take.

use std::future::Future;

use tokio::time::{Instant, timeout_at};

use super::Timers;
use crate::backend::{Failure, FailureKind};

/// The time limits of one request.
///
/// The idle limit counts only while somebody waits for the provider: a client that reads slowly does not use it up.
#[derive(Debug)]
pub(in crate::backend) struct Deadlines {
    timers: Timers,
    first_event_by: Instant,
    total_by: Instant,
    started: bool,
}

impl Deadlines {
    /// Begins now.
    pub(in crate::backend) fn start(timers: Timers) -> Self {
        let now = Instant::now();
        Self { timers, first_event_by: now + timers.first_event, total_by: now + timers.total, started: false }
    }

    /// The provider has begun to answer: from now on the idle limit holds. Tells whether that is news.
    pub(in crate::backend) fn answer_begins(&mut self) -> bool {
        !std::mem::replace(&mut self.started, true)
    }

    /// Waits for the provider, as long as it may take.
    pub(in crate::backend) async fn wait<F: Future>(&self, step: F) -> Result<F::Output, Failure> {
        let (deadline, timer) = if self.started {
            (Instant::now() + self.timers.idle, "idle")
        } else {
            (self.first_event_by, "first event")
        };
        let (deadline, timer) = if self.total_by < deadline { (self.total_by, "total") } else { (deadline, timer) };
        timeout_at(deadline, step).await.map_err(|_| {
            Failure::new(
                FailureKind::TimedOut { timer },
                format!("the {timer} timeout passed without an answer of the provider"),
            )
        })
    }
}
