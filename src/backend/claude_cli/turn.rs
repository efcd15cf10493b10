//! One request on one process, as a stream of events.
//!
//! ```text
//! Start -> Feeding (history or results, step by step) -> Answering -> Settling (cost, limits, calls) -> Done
//! ```
//!
//! A request goes on in the process that holds its conversation, if there is one; else the conversation is replayed in a
//! spare. Where the live process fails before the provider has answered, the replay follows: the client notices nothing
//! but the time.
//!
//! The client's answer ends with `Finished`; settling is the pool's. A process that settles well is kept. Whoever drops
//! the stream kills the process.

mod answering;
mod job;
mod settling;

pub(super) use job::Job;

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::{Instant, timeout, timeout_at};
use tracing::{debug, warn};

use super::classify::Evidence;
use super::key::Said;
use super::live::{Held, Kept, Live, Reservation};
use super::output::{self, Line};
use super::process::{Process, ReadError};
use super::script::{self, Script, Until};
use super::spares::{Obtained, Spares, Starting};
use super::tools::{Response, ServerMessage};
use crate::backend::{Failure, FailureKind};
use crate::conversation::{Event, LimitStatus, StopReason, Usage};

/// How long a live process may take for a step before its conversation is replayed in another one.
const STEP_LIMIT: Duration = Duration::from_secs(10);

/// How long a request may take.
#[derive(Clone, Copy, Debug)]
pub struct Timers {
    /// From the request to the provider's first event.
    pub first_event: Duration,
    /// Between two lines of the answer.
    pub idle: Duration,
    /// For everything.
    pub total: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Start,
    Feeding,
    Answering,
    Settling,
    Done,
}

/// Where the next process comes from, or the present one came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// The process that holds the conversation.
    Live,
    /// A spare, if there is one.
    Spare,
    /// Started for this request.
    New,
}

#[derive(Debug)]
pub(super) struct Turn {
    job: Job,
    spares: Spares,
    live: Live,
    process: Option<Process>,
    origin: Origin,
    held: Held,
    phase: Phase,
    /// What is still to be written.
    script: Script,
    /// What the last step waits for.
    until: Until,
    /// Lines read from the current process.
    lines_seen: u64,
    /// Keeps others from starting until our process is up.
    starting: Option<Starting>,
    queue: VecDeque<Event>,
    usage: Usage,
    stop: Option<StopReason>,
    content_sent: bool,
    said: Said,
    /// The calls of the answer, in order.
    calls: Vec<Call>,
    /// The place in which the process will be kept.
    reservation: Option<Reservation>,
    evidence: Evidence,
    timers: Timers,
    first_event_by: Instant,
    step_by: Instant,
    total_by: Instant,
    settle_by: Instant,
    started: bool,
}

/// A call of a tool as it is streamed.
#[derive(Debug)]
struct Call {
    block: u64,
    id: String,
    name: String,
    json: String,
}

impl Turn {
    pub(super) fn new(job: Job, spares: Spares, live: Live, timers: Timers) -> Self {
        let now = Instant::now();
        Self {
            job,
            spares,
            live,
            process: None,
            origin: Origin::Live,
            held: Held::default(),
            phase: Phase::Start,
            script: Script::new(),
            until: Until::Answered,
            lines_seen: 0,
            starting: None,
            queue: VecDeque::new(),
            usage: Usage::default(),
            stop: None,
            content_sent: false,
            said: Said::default(),
            calls: Vec::new(),
            reservation: None,
            evidence: Evidence::default(),
            timers,
            first_event_by: now + timers.first_event,
            step_by: now + timers.first_event,
            total_by: now + timers.total,
            settle_by: now + timers.total,
            started: false,
        }
    }

    pub(super) async fn next(&mut self) -> Option<Result<Event, Failure>> {
        loop {
            if let Some(event) = self.queue.pop_front() {
                self.content_sent |= event.is_content();
                return Some(Ok(event));
            }
            let step = match self.phase {
                Phase::Done => return None,
                Phase::Start => self.start().await,
                Phase::Feeding | Phase::Answering | Phase::Settling => self.read().await,
            };
            if let Err(failure) = step {
                self.end();
                return Some(Err(failure));
            }
        }
    }

    /// Gets a process and writes the first step.
    async fn start(&mut self) -> Result<(), Failure> {
        if self.origin == Origin::Live && !self.resume().await {
            self.origin = Origin::Spare;
        }
        if self.origin != Origin::Live {
            self.obtain().await?;
        }
        let now = Instant::now();
        self.first_event_by = now + self.timers.first_event;
        self.step_by = if self.origin == Origin::Live { now + STEP_LIMIT } else { self.first_event_by };
        self.lines_seen = 0;
        let pid = self.process.as_ref().and_then(Process::id);
        debug!(pid, origin = ?self.origin, steps = self.script.len(), "a process takes a request");
        self.write_step().await
    }

    /// Takes the process that holds the conversation. Whether there is one that can go on.
    async fn resume(&mut self) -> bool {
        let Some(taken) = self.live.take(&self.job.launch, self.job.held) else { return false };
        let Some(Kept { process, mut state }) = taken.ready().await else { return false };
        let Some(script) = script::further(&self.job.request, &mut state) else {
            debug!(pid = process.id(), "a live process cannot take the turn as it is");
            return false;
        };
        self.process = Some(process);
        self.held = state;
        self.script = script;
        true
    }

    async fn obtain(&mut self) -> Result<(), Failure> {
        // Waiting for a process says nothing of the provider, so it has a time of its own.
        let is_new = self.origin == Origin::New;
        let obtained = timeout(self.timers.first_event, self.spares.obtain(&self.job.launch, is_new)).await;
        let Ok(obtained) = obtained else {
            return Err(Failure::new(FailureKind::NoProcess, "no CLI process became free in time"));
        };
        let Obtained { process, start } = obtained.map_err(|error| error.failure())?;
        if start.is_some() {
            self.origin = Origin::New;
        }
        self.starting = start;
        self.process = Some(process);
        (self.script, self.held) = script::fresh(&self.job.request, self.live.trusts_tools());
        Ok(())
    }

    async fn write_step(&mut self) -> Result<(), Failure> {
        let Some(step) = self.script.pop_front() else { return Err(no_process()) };
        if self.write(&step.lines).await? {
            self.phase = if step.until == Until::Answered { Phase::Answering } else { Phase::Feeding };
            self.until = step.until;
        }
        Ok(())
    }

    /// Writes to the process, which has to take it in time: one that hangs reads nothing, and its pipe is soon full. Whether
    /// it has; else the request goes on in another process.
    async fn write(&mut self, lines: &[u8]) -> Result<bool, Failure> {
        let (deadline, timer) = self.deadline();
        let Some(process) = &mut self.process else { return Err(no_process()) };
        match timeout_at(deadline, process.write(lines)).await {
            Ok(Ok(())) => Ok(true),
            Ok(Err(error)) => self.lost(&ReadError::Io(error)).map(|()| false),
            Err(_) => self.or_replay(timed_out(timer)).map(|()| false),
        }
    }

    /// Reads one line and acts on it.
    async fn read(&mut self) -> Result<(), Failure> {
        let (deadline, timer) = self.deadline();
        let Some(process) = &mut self.process else { return Err(no_process()) };
        let line = match timeout_at(deadline, process.read_line()).await {
            Ok(Ok(line)) => output::parse(line).map_err(|error| Failure::new(FailureKind::Protocol, error.to_string())),
            Ok(Err(error)) => return self.lost(&error),
            Err(_) if self.phase == Phase::Settling => {
                self.settle(None);
                return Ok(());
            }
            Err(_) => return self.or_replay(timed_out(timer)),
        };
        self.lines_seen += 1;
        self.starting = None;
        let handled = match line {
            Ok(line) => self.handle(line).await,
            Err(failure) => Err(failure),
        };
        match handled {
            // The answer is complete: what follows it can do no harm.
            Err(_) if self.phase == Phase::Settling => {
                self.settle(None);
                Ok(())
            }
            other => other,
        }
    }

    fn deadline(&self) -> (Instant, &'static str) {
        if self.phase == Phase::Settling {
            return (self.settle_by, "settle");
        }
        let (deadline, timer) = match self.phase {
            _ if self.started => (Instant::now() + self.timers.idle, "idle"),
            Phase::Start | Phase::Feeding => (self.step_by.min(self.first_event_by), "first event"),
            _ => (self.first_event_by, "first event"),
        };
        if self.total_by < deadline { (self.total_by, "total") } else { (deadline, timer) }
    }

    /// The process is gone. A spare that died unnoticed before it said anything is replaced once.
    fn lost(&mut self, error: &ReadError) -> Result<(), Failure> {
        if self.phase == Phase::Settling {
            self.settle(None);
            return Ok(());
        }
        let stderr = self.process.as_ref().map(Process::stderr_tail).unwrap_or_default();
        warn!(%error, origin = ?self.origin, "a CLI process was lost");
        // It may quote a client.
        debug!(stderr, "its last words");
        self.process = None;
        if self.origin == Origin::Spare && self.lines_seen == 0 {
            self.origin = Origin::New;
            self.phase = Phase::Start;
            return Ok(());
        }
        let kind = match error {
            ReadError::Ended | ReadError::Io(_) => FailureKind::Crashed,
            ReadError::LineTooLong(_) => FailureKind::Protocol,
        };
        self.or_replay(Failure::new(kind, error.to_string()))
    }

    /// A live process that fails before the provider has answered is replaced by a replay.
    fn or_replay(&mut self, failure: Failure) -> Result<(), Failure> {
        let is_over = matches!(failure.kind, FailureKind::TimedOut { timer: "total" });
        // The time for the provider's answer runs from the last step on: only then the delay is its own.
        let is_provider = self.phase == Phase::Answering && matches!(failure.kind, FailureKind::TimedOut { .. });
        if self.origin != Origin::Live || self.started || is_over || is_provider {
            return Err(failure);
        }
        debug!(%failure, "a live process failed, its conversation is replayed");
        self.process = None;
        self.origin = Origin::Spare;
        self.phase = Phase::Start;
        Ok(())
    }

    async fn handle(&mut self, line: Line) -> Result<(), Failure> {
        match line {
            Line::Stream(event) => self.stream_event(event),
            Line::Limits(report, overage) => {
                self.queue.extend(overage.map(Event::Overage));
                if report.status == LimitStatus::Rejected && self.phase != Phase::Settling {
                    self.evidence.limits = Some(report);
                } else {
                    self.queue.push_back(Event::Limits(report.answered()));
                }
                Ok(())
            }
            Line::Assistant { error } => {
                if error.is_some() {
                    self.evidence.assistant_error = error;
                }
                Ok(())
            }
            Line::Control { id, error: Some(error) } => self.or_replay(Failure::new(
                FailureKind::Protocol,
                format!("the CLI refused the control request `{id}`: {error}"),
            )),
            Line::Server(message) => self.server_message(message).await,
            Line::Results(calls) => match &self.until {
                Until::ResultTaken(call) if calls.contains(call) => self.write_step().await,
                _ => Ok(()),
            },
            Line::Result(result) => self.result(&result).await,
            Line::Control { error: None, .. } | Line::Other => Ok(()),
        }
    }

    /// The CLI asks our server of tools for something, or delivers a call.
    async fn server_message(&mut self, message: ServerMessage) -> Result<(), Failure> {
        match self.held.shells.respond(message) {
            Response::Write(lines) => {
                if self.write(&lines).await? && self.until == Until::ToolsListed && self.held.shells.is_settled() {
                    return self.write_step().await;
                }
            }
            Response::Call(call) => {
                self.held.calls.push(call);
                if self.phase == Phase::Settling {
                    self.park();
                }
            }
        }
        Ok(())
    }

    fn end(&mut self) {
        self.process = None;
        self.reservation = None;
        self.starting = None;
        self.phase = Phase::Done;
    }
}

fn timed_out(timer: &'static str) -> Failure {
    Failure::new(
        FailureKind::TimedOut { timer },
        format!("the {timer} timeout passed without an answer of the provider"),
    )
}

fn no_process() -> Failure {
    Failure::new(FailureKind::Crashed, "the request has no process")
}
