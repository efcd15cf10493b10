//! What clients ask for: requests in the order of time, the same for every strategy.

use std::time::Duration;

use crate::conversation::{Family, Usage};
use crate::units::{MicroUsd, Timestamp};

use super::recorded::Recorded;
use super::workload::{START, Week, Workload};

/// One request, with what it costs wherever it is served.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Request {
    /// When the client asks.
    pub at: Timestamp,
    /// Its session.
    pub session: u64,
    /// Its number in the session.
    pub turn: u32,
    /// Whether the client names its session. Such a session holds a client slot.
    pub named: bool,
    /// Whether no request of the session follows.
    pub last: bool,
    /// The line of the model.
    pub family: Family,
    /// What it costs where the session's conversation is in the prompt cache.
    pub cost: MicroUsd,
    /// What it costs beyond that where it is not: the context must be written again instead of being read.
    pub rewrite: MicroUsd,
    /// Tokens where the conversation is in the prompt cache.
    pub usage: Usage,
    /// How long the answer takes.
    pub duration: Duration,
}

/// What a trace is made from.
#[derive(Clone, Debug)]
pub enum Source {
    /// Made up, from a seed.
    Synthetic(Workload),
    /// Read from a usage log.
    Recorded(Recorded),
}

impl Source {
    /// The first instant.
    pub fn start(&self) -> Timestamp {
        match self {
            Self::Synthetic(_) => START,
            Self::Recorded(log) => log.start(),
        }
    }

    /// The instant at which the simulation ends.
    pub fn end(&self) -> Timestamp {
        match self {
            Self::Synthetic(workload) => workload.end(),
            Self::Recorded(log) => log.end(),
        }
    }

    /// Every request, in the order of time. The same at every call.
    pub fn requests(&self) -> Requests<'_> {
        match self {
            Self::Synthetic(workload) => Requests::Synthetic(Box::new(workload.week())),
            Self::Recorded(log) => Requests::Recorded(log.requests().iter()),
        }
    }
}

/// See [`Source::requests`].
pub enum Requests<'a> {
    /// Made as they are asked for: a large week does not fit into memory.
    Synthetic(Box<Week<'a>>),
    /// As they were read.
    Recorded(std::slice::Iter<'a, Request>),
}

impl Iterator for Requests<'_> {
    type Item = Request;

    fn next(&mut self) -> Option<Request> {
        match self {
            Self::Synthetic(week) => week.next(),
            Self::Recorded(requests) => requests.next().copied(),
        }
    }
}
