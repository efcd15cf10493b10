//! One request on one process, as a stream of events.
//!
//! ```text
//! Start -> Feeding (history, one acknowledgement a pair) -> Answering -> Settling (cost, limits) -> Done
//! ```
//!
//! The client's answer ends with `Finished`; settling is the pool's. Whoever drops the stream kills the process.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::stream::{Stream, StreamExt as _};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::{debug, warn};

use super::classify::{Evidence, classify};
use super::input;
use super::output::{self, Line, StreamEvent, TurnResult};
use super::process::{Launch, Process, ReadError};
use super::spares::{Obtained, Spares, Starting};
use crate::backend::{EventStream, Failure, FailureKind};
use crate::conversation::{Event, LimitStatus, Model, Request, Role, StopReason, Usage};
use crate::runtime::tasks::Tasks;

/// How long after the answer the CLI may take to say what it cost.
const SETTLE_LIMIT: Duration = Duration::from_secs(2);

/// Bytes of an answer that may wait for a client who reads slowly.
const MAX_BACKLOG_BYTES: usize = 16 * 1024 * 1024;

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

/// A request in the form in which it is written to a process.
#[derive(Debug)]
pub(super) struct Job {
    launch: Arc<Launch>,
    model: Arc<Model>,
    /// What is written in one go; the CLI acknowledges every chunk but the last.
    chunks: Vec<Vec<u8>>,
}

impl Job {
    pub(super) fn new(launch: Arc<Launch>, request: &Request) -> Self {
        let mut chunks = Vec::with_capacity(request.turns.len() / 2 + 1);
        let mut chunk = input::specialise(request);
        let last = request.turns.len().saturating_sub(1);
        for (position, turn) in request.turns.iter().enumerate() {
            input::turn(&mut chunk, turn, position, position == last);
            // An assistant turn is taken in at once, a user turn is queued until it is acknowledged: so a chunk ends
            // with every user turn.
            if turn.role == Role::User {
                chunks.push(std::mem::take(&mut chunk));
            }
        }
        Self { launch, model: Arc::clone(&request.model), chunks }
    }
}

/// Runs `job` on a spare, or on a process of its own if there is none.
///
/// The process is read in a task of its own, as fast as it writes, however slowly the client reads: what has to be
/// stopped at once (see [`Turn::stream_event`]) is seen at once. Dropping the stream ends the task.
pub(super) fn run(job: Job, spares: Spares, timers: Timers, tasks: &Tasks) -> EventStream {
    let now = Instant::now();
    let turn = Turn {
        job,
        spares,
        process: None,
        phase: Phase::Start,
        chunk: 0,
        lines_seen: 0,
        cold: false,
        starting: None,
        queue: VecDeque::new(),
        usage: Usage::default(),
        stop: None,
        content_sent: false,
        tool_blocks: Vec::new(),
        evidence: Evidence::default(),
        first_event: timers.first_event,
        first_event_by: now + timers.first_event,
        total_by: now + timers.total,
        settle_by: now + timers.total,
        idle: timers.idle,
        started: false,
    };
    let (sender, events) = mpsc::unbounded_channel();
    let backlog = Arc::new(AtomicUsize::new(0));
    let task = tasks.spawn("claude-cli-turn", pump(turn, sender, Arc::clone(&backlog)));
    Answer { events, backlog, task: task.abort_handle() }.boxed()
}

async fn pump(mut turn: Turn, events: mpsc::UnboundedSender<Result<Event, Failure>>, backlog: Arc<AtomicUsize>) {
    while let Some(event) = turn.next().await {
        let waiting = size(&event) + backlog.fetch_add(size(&event), Ordering::Relaxed);
        if events.send(event).is_err() {
            return;
        }
        if waiting > MAX_BACKLOG_BYTES {
            let _ = events.send(Err(Failure::new(FailureKind::Overflow, "the client reads too slowly")));
            return;
        }
    }
}

/// What an event takes up while it waits, roughly.
fn size(event: &Result<Event, Failure>) -> usize {
    let text = match event {
        Ok(Event::Text(text) | Event::Thinking(text) | Event::ToolInput { json: text, .. }) => text.len(),
        _ => 0,
    };
    size_of::<Event>() + text
}

/// The events of a turn as they come. Dropping it ends the turn.
struct Answer {
    events: mpsc::UnboundedReceiver<Result<Event, Failure>>,
    backlog: Arc<AtomicUsize>,
    task: AbortHandle,
}

impl Stream for Answer {
    type Item = Result<Event, Failure>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let event = ready!(self.events.poll_recv(cx));
        if let Some(event) = &event {
            self.backlog.fetch_sub(size(event), Ordering::Relaxed);
        }
        Poll::Ready(event)
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.task.abort();
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

#[derive(Debug)]
struct Turn {
    job: Job,
    spares: Spares,
    process: Option<Process>,
    phase: Phase,
    /// The next chunk to write.
    chunk: usize,
    /// Lines read from the current process.
    lines_seen: u64,
    /// Whether the process was started for this request, or the next one must be.
    cold: bool,
    /// Keeps others from starting until our process is up.
    starting: Option<Starting>,
    queue: VecDeque<Event>,
    usage: Usage,
    stop: Option<StopReason>,
    content_sent: bool,
    /// The block index of each tool call, in order.
    tool_blocks: Vec<u64>,
    evidence: Evidence,
    first_event: Duration,
    first_event_by: Instant,
    total_by: Instant,
    settle_by: Instant,
    idle: Duration,
    started: bool,
}

impl Turn {
    async fn next(&mut self) -> Option<Result<Event, Failure>> {
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

    /// Gets a process and writes the first chunk.
    async fn start(&mut self) -> Result<(), Failure> {
        // Waiting for a process says nothing of the provider, so it has a time of its own.
        let obtained = timeout(self.first_event, self.spares.obtain(&self.job.launch, self.cold)).await;
        let Ok(obtained) = obtained else {
            return Err(Failure::new(FailureKind::NoProcess, "no CLI process became free in time"));
        };
        let Obtained { process, start } =
            obtained.map_err(|error| Failure::new(FailureKind::Spawn, error.to_string()))?;
        self.first_event_by = Instant::now() + self.first_event;
        self.cold = start.is_some();
        self.starting = start;
        debug!(pid = process.id(), cold = self.cold, "a process takes a request");
        self.process = Some(process);
        self.chunk = 0;
        self.lines_seen = 0;
        self.write_chunk().await
    }

    async fn write_chunk(&mut self) -> Result<(), Failure> {
        let Some(process) = &mut self.process else { return Err(no_process()) };
        let Some(chunk) = self.job.chunks.get(self.chunk) else { return Err(no_process()) };
        let written = timeout_at(self.first_event_by, process.write(chunk)).await;
        self.chunk += 1;
        self.phase = if self.chunk == self.job.chunks.len() { Phase::Answering } else { Phase::Feeding };
        match written {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => self.lost(&ReadError::Io(error)),
            Err(_) => Err(timed_out("first event")),
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
            Err(_) => return Err(timed_out(timer)),
        };
        self.lines_seen += 1;
        self.starting = None;
        match line {
            Ok(line) => self.handle(line).await,
            // The answer is complete: what follows it can do no harm.
            Err(_) if self.phase == Phase::Settling => {
                self.settle(None);
                Ok(())
            }
            Err(failure) => Err(failure),
        }
    }

    fn deadline(&self) -> (Instant, &'static str) {
        if self.phase == Phase::Settling {
            return (self.settle_by, "settle");
        }
        let (deadline, timer) =
            if self.started { (Instant::now() + self.idle, "idle") } else { (self.first_event_by, "first event") };
        if self.total_by < deadline { (self.total_by, "total") } else { (deadline, timer) }
    }

    /// The process is gone. A spare that died unnoticed before it said anything is replaced once.
    fn lost(&mut self, error: &ReadError) -> Result<(), Failure> {
        if self.phase == Phase::Settling {
            self.settle(None);
            return Ok(());
        }
        let stderr = self.process.as_ref().map(Process::stderr_tail).unwrap_or_default();
        warn!(%error, cold = self.cold, "a CLI process was lost");
        // It may quote a client.
        debug!(stderr, "its last words");
        self.process = None;
        if !self.cold && self.lines_seen == 0 {
            self.cold = true;
            self.phase = Phase::Start;
            return Ok(());
        }
        let kind = match error {
            ReadError::Ended | ReadError::Io(_) => FailureKind::Crashed,
            ReadError::LineTooLong(_) => FailureKind::Protocol,
        };
        Err(Failure::new(kind, error.to_string()))
    }

    async fn handle(&mut self, line: Line) -> Result<(), Failure> {
        match line {
            Line::Stream(event) => self.stream_event(event),
            Line::Limits(report) => {
                if report.status == LimitStatus::Rejected {
                    self.evidence.limits = Some(report);
                } else {
                    self.queue.push_back(Event::Limits(report));
                }
                Ok(())
            }
            Line::Assistant { error } => {
                if error.is_some() {
                    self.evidence.assistant_error = error;
                }
                Ok(())
            }
            Line::Control { id, error: Some(error) } => {
                Err(Failure::new(FailureKind::Protocol, format!("the CLI refused the control request `{id}`: {error}")))
            }
            Line::Result(result) => self.result(&result).await,
            Line::Control { error: None, .. } | Line::Other => Ok(()),
        }
    }

    fn stream_event(&mut self, event: StreamEvent) -> Result<(), Failure> {
        if self.phase == Phase::Settling {
            return Ok(());
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
                self.tool_blocks.clear();
                self.queue.push_back(Event::Started(usage));
            }
            StreamEvent::Text(text) => self.queue.push_back(Event::Text(text)),
            StreamEvent::Thinking(text) => self.queue.push_back(Event::Thinking(text)),
            StreamEvent::ToolUse { block, id, name } => {
                let index = self.tool_blocks.len();
                self.tool_blocks.push(block);
                self.queue.push_back(Event::ToolUse { index, id, name });
            }
            StreamEvent::ToolInput { block, json } => {
                if let Some(index) = self.tool_blocks.iter().position(|known| *known == block) {
                    self.queue.push_back(Event::ToolInput { index, json });
                }
            }
            StreamEvent::Delta { stop, usage } => {
                usage.apply_to(&mut self.usage);
                self.stop = stop.or(self.stop);
                if let Some(stop @ (StopReason::MaxTokens | StopReason::Refusal)) = self.stop {
                    // Left alone, the CLI would now ask the provider again (to go on, up to three times; after a
                    // refusal once), at the subscription's cost. Only a kill is fast enough to prevent that.
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
                }
            }
            StreamEvent::Other => {}
        }
        Ok(())
    }

    async fn result(&mut self, result: &TurnResult) -> Result<(), Failure> {
        match self.phase {
            Phase::Feeding if result.is_error => Err(classify(&self.evidence, result)),
            Phase::Feeding => self.write_chunk().await,
            Phase::Settling => {
                self.settle(Some(result));
                Ok(())
            }
            _ if result.is_error => Err(classify(&self.evidence, result)),
            // A build can fall back to a request without stream: then the whole answer is in the result.
            _ if result.turns > 0 && !self.started && !result.text.is_empty() => {
                result.usage.apply_to(&mut self.usage);
                self.queue.push_back(Event::Started(self.usage));
                self.queue.push_back(Event::Text(result.text.clone()));
                self.finished(StopReason::EndTurn);
                self.settle(Some(result));
                Ok(())
            }
            _ => Err(Failure::new(FailureKind::Protocol, "the CLI ended the turn without an answer")),
        }
    }

    /// The client's answer is complete.
    fn finished(&mut self, stop: StopReason) {
        self.queue.push_back(Event::Finished { stop, usage: self.usage });
        self.phase = Phase::Settling;
        self.settle_by = Instant::now() + SETTLE_LIMIT;
    }

    /// The request is over for the pool too. Without the CLI's own figure its cost comes from the price list.
    fn settle(&mut self, result: Option<&TurnResult>) {
        let cost =
            result.and_then(|result| result.total_cost).unwrap_or_else(|| self.job.model.price.cost(&self.usage));
        self.queue.push_back(Event::Settled(cost));
        self.end();
    }

    fn end(&mut self) {
        self.process = None;
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
