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

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout, timeout_at};
use tracing::{debug, warn};

use super::classify::{Evidence, classify};
use super::key::{Key, Rolling, Said};
use super::launch::Launch;
use super::live::{Held, Kept, Live, Reservation};
use super::output::{self, Line, TurnResult};
use super::process::{Process, ReadError};
use super::script::{self, Script, Until};
use super::spares::{Obtained, Spares, Starting};
use super::tools::{OpenCall, Response, ServerMessage};
use crate::backend::messages::StreamEvent;
use crate::backend::{Caller, Failure, FailureKind};
use crate::conversation::{Event, LimitStatus, Request, StopReason, Usage};
use crate::units::MicroUsd;

/// How long after the answer the CLI may take to say what it cost, or to deliver the calls it holds.
const SETTLE_LIMIT: Duration = Duration::from_secs(2);

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

/// A request and the kind of process that it needs.
#[derive(Debug)]
pub(super) struct Job {
    launch: Arc<Launch>,
    request: Request,
    /// The conversation but for its last turn: what a process must hold to go on with it.
    held: Key,
    /// The conversation with its last turn.
    asked: Rolling,
}

impl Job {
    pub(super) fn new(launch: Arc<Launch>, request: &Request, caller: &Caller) -> Self {
        let mut asked = Rolling::begin(caller, &request.system);
        let (last, before) = request.turns.split_last().map_or((None, &[][..]), |(last, before)| (Some(last), before));
        for turn in before {
            asked.add(turn);
        }
        let held = asked.key();
        if let Some(turn) = last {
            asked.add(turn);
        }
        Self { launch, request: request.clone(), held, asked }
    }
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

    fn stream_event(&mut self, event: StreamEvent) -> Result<(), Failure> {
        if self.phase == Phase::Settling {
            return match event {
                // The CLI did not wait for the client, and asks the provider again. What it has got for an answer is
                // not the client's.
                StreamEvent::Start(_) => {
                    self.live.distrust_tools();
                    Err(no_process())
                }
                _ => Ok(()),
            };
        }
        match event {
            StreamEvent::Start(usage) => {
                if self.content_sent {
                    return Err(Failure::new(
                        FailureKind::Unavailable { status: None },
                        "the provider's stream broke and began again",
                    ));
                }
                self.started = true;
                self.usage = usage;
                self.said = Said::default();
                self.calls.clear();
                self.queue.push_back(Event::Started(usage));
            }
            StreamEvent::Text(text) => {
                self.said.text(&text);
                self.queue.push_back(Event::Text(text));
            }
            StreamEvent::Thinking(text) => self.queue.push_back(Event::Thinking(text)),
            StreamEvent::ToolUse { block, id, name } => {
                let index = self.calls.len();
                self.calls.push(Call { block, id: id.clone(), name: name.clone(), json: String::new() });
                self.queue.push_back(Event::ToolUse { index, id, name });
            }
            StreamEvent::ToolInput { block, json } => {
                if let Some(index) = self.calls.iter().position(|call| call.block == block) {
                    self.calls[index].json.push_str(&json);
                    self.queue.push_back(Event::ToolInput { index, json });
                }
            }
            StreamEvent::Delta { stop, usage } => {
                usage.apply_to(&mut self.usage);
                self.stop = stop.or(self.stop);
                let stops_here = match self.stop {
                    // Left alone, the CLI would now ask the provider again (to go on, up to three times; after a
                    // refusal once), at the subscription's cost. Only a kill is fast enough to prevent that.
                    Some(StopReason::MaxTokens | StopReason::Refusal) => true,
                    // The same, with an answer of its own to a call that it cannot deliver.
                    Some(StopReason::ToolUse) => !self.calls.iter().all(|call| self.held.shells.deliver(&call.name)),
                    _ => false,
                };
                if let Some(stop) = self.stop.filter(|_| stops_here) {
                    self.process = None;
                    self.finished(stop);
                    self.settle(None);
                }
            }
            StreamEvent::Stop => {
                // Some builds close a broken stream themselves, as if it were complete, but without a reason. Then the
                // turn's result says what happened.
                if let Some(stop) = self.stop {
                    self.finished(stop);
                    self.park();
                }
            }
            StreamEvent::Other => {}
        }
        Ok(())
    }

    async fn result(&mut self, result: &TurnResult) -> Result<(), Failure> {
        match self.phase {
            Phase::Feeding if result.is_error => self.or_replay(classify(&self.evidence, result)),
            Phase::Feeding if self.until == Until::Acknowledged => self.write_step().await,
            Phase::Feeding => Ok(()),
            Phase::Settling => {
                self.settle(Some(result));
                Ok(())
            }
            _ if result.is_error => Err(classify(&self.evidence, result)),
            // What the client said after the results of calls ends one turn and begins another.
            _ if !self.started
                && result.terminal_reason.as_deref() == Some("aborted_tools")
                && script::speaks_after_results(&self.job.request) =>
            {
                Ok(())
            }
            // A build can fall back to a request without stream: then the whole answer is in the result.
            _ if result.turns > 0 && !self.started && !result.text.is_empty() => {
                result.usage.apply_to(&mut self.usage);
                self.queue.push_back(Event::Started(self.usage));
                self.queue.push_back(Event::Text(result.text.clone()));
                self.phase = Phase::Settling;
                self.queue.push_back(Event::Finished { stop: StopReason::EndTurn, usage: self.usage });
                self.answered_all_the_same();
                self.settle(Some(result));
                Ok(())
            }
            _ => Err(Failure::new(FailureKind::Protocol, "the CLI ended the turn without an answer")),
        }
    }

    /// The client's answer is complete.
    fn finished(&mut self, stop: StopReason) {
        self.queue.push_back(Event::Finished { stop, usage: self.usage });
        self.answered_all_the_same();
        self.phase = Phase::Settling;
        self.settle_by = Instant::now() + SETTLE_LIMIT;
        let goes_on = matches!(stop, StopReason::EndTurn | StopReason::StopSequence | StopReason::ToolUse);
        if !goes_on || self.process.is_none() {
            return;
        }
        let mut said = std::mem::take(&mut self.said);
        for Call { id, name, json, .. } in &self.calls {
            // What is no JSON the client cannot send back either.
            let Ok(input) = serde_json::from_str(if json.is_empty() { "{}" } else { json }) else { return };
            said.call(id, name, input);
        }
        if said.is_empty() {
            return;
        }
        let mut asked = self.job.asked.clone();
        asked.answer(said);
        self.reservation = self.live.reserve(&self.job.launch, asked.key());
    }

    /// A rejection that came before the answer is none: what it says of the windows is for the pool.
    fn answered_all_the_same(&mut self) {
        let report = self.evidence.limits.take();
        self.queue.extend(report.map(|report| Event::Limits(report.answered())));
    }

    /// Keeps a process that has delivered all its calls: it says nothing more until it has their results.
    fn park(&mut self) {
        let is_waiting = self.stop == Some(StopReason::ToolUse)
            && self.calls.iter().all(|call| self.held.calls.iter().any(|open| open.tool_use == call.id));
        if !is_waiting {
            return;
        }
        let cost = self.job.request.model.price.cost(&self.usage);
        self.held.spent += cost;
        self.keep(cost);
    }

    /// The request is over for the pool too. Without the CLI's own figure its cost comes from the price list.
    fn settle(&mut self, result: Option<&TurnResult>) {
        let list_price = self.job.request.model.price.cost(&self.usage);
        let Some(total) = result.filter(|result| !result.is_error).and_then(|result| result.total_cost) else {
            self.process = None;
            self.queue.push_back(Event::Settled(list_price));
            return self.end();
        };
        // The CLI tells what all of its requests have cost together.
        let cost = (total - self.held.spent).max(MicroUsd::ZERO);
        self.held.spent = total.max(self.held.spent);
        self.keep(cost);
    }

    fn keep(&mut self, cost: MicroUsd) {
        self.queue.push_back(Event::Settled(cost));
        if let (Some(process), Some(reservation)) = (self.process.take(), self.reservation.take()) {
            self.order_calls();
            reservation.keep(Kept { process, state: std::mem::take(&mut self.held) });
        }
        self.end();
    }

    /// Calls in the order of the answer, whatever the order in which they were delivered.
    fn order_calls(&mut self) {
        let order = |call: &OpenCall| self.calls.iter().position(|known| known.id == call.tool_use);
        self.held.calls.sort_by_key(order);
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
