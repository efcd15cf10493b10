//! Why a process could not be started, and what that is to a request.

use std::io;
use std::time::Duration;

use crate::backend::{Failure, FailureKind};

/// Why no process could be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartError {
    /// The pool stops.
    #[error("the pool is shutting down")]
    Closed,
    /// Too many were started lately.
    #[error("{most} CLI processes were started within a minute, and that is the most; more in {}", humantime::format_duration(*after))]
    Runaway {
        /// The most within a minute.
        most: usize,
        /// When there may be another; whole seconds.
        after: Duration,
    },
    /// The operating system refused.
    #[error("the CLI `{command}` could not be started: {source}")]
    Io {
        /// The executable.
        command: String,
        /// Why.
        source: io::Error,
    },
}

impl StartError {
    /// What it is to a request.
    pub(super) fn failure(&self) -> Failure {
        let kind = match self {
            Self::Runaway { .. } => FailureKind::Runaway,
            Self::Closed | Self::Io { .. } => FailureKind::Spawn,
        };
        Failure::new(kind, self.to_string())
    }
}
