//! One request to the Messages API, as a stream of events.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _};
use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderValue};

use super::{classify, limits};
use crate::backend::claude_cli::output::{RawEvent, StreamEvent};
use crate::backend::http::{Deadlines, Endpoint, Events, SseEvent, read_error, unreachable};
use crate::backend::{EventStream, Failure, FailureKind};
use crate::conversation::{Event, Model, StopReason, Usage};
use crate::runtime::clock;

/// The version of the API that is spoken.
pub(super) const VERSION: HeaderValue = HeaderValue::from_static("2023-06-01");

/// Sends `body` and reads the answer. Nothing happens before the stream is polled; dropping it ends the request.
pub(super) fn run(endpoint: Endpoint, model: Arc<Model>, body: Vec<u8>) -> EventStream {
    let deadlines = Deadlines::start(endpoint.timers);
    let turn = Turn {
        endpoint,
        model,
        deadlines,
        phase: Phase::Start(body.into()),
        queue: VecDeque::new(),
        usage: Usage::default(),
        stop: None,
        tool_blocks: Vec::new(),
    };
    stream::unfold(turn, |mut turn| async { turn.next().await.map(|item| (item, turn)) }).boxed()
}

enum Phase {
    Start(Bytes),
    Answering(Box<Events>),
    Done,
}

struct Turn {
    endpoint: Endpoint,
    model: Arc<Model>,
    deadlines: Deadlines,
    phase: Phase,
    queue: VecDeque<Event>,
    usage: Usage,
    stop: Option<StopReason>,
    /// The block index of each tool call, in order.
    tool_blocks: Vec<u64>,
}

impl Turn {
    async fn next(&mut self) -> Option<Result<Event, Failure>> {
        loop {
            if let Some(event) = self.queue.pop_front() {
                return Some(Ok(event));
            }
            let step = match &mut self.phase {
                Phase::Start(body) => {
                    let body = std::mem::take(body);
                    self.send(body).await
                }
                Phase::Answering(events) => match events.next(&self.deadlines).await {
                    Ok(Some(event)) => self.handle(&event),
                    Ok(None) => Err(Failure::new(
                        FailureKind::Unavailable { status: None },
                        "the provider ended its answer before it was complete",
                    )),
                    Err(failure) => Err(failure),
                },
                Phase::Done => return None,
            };
            if let Err(failure) = step {
                self.phase = Phase::Done;
                return Some(Err(failure));
            }
        }
    }

    async fn send(&mut self, body: Bytes) -> Result<(), Failure> {
        let mut request = self.endpoint.post("/v1/messages").header("anthropic-version", VERSION);
        if let Some(key) = self.endpoint.credential("")? {
            request = request.header("x-api-key", key);
        }
        let request = request.header(CONTENT_TYPE, "application/json").body(body).send();
        let response = self.deadlines.wait(request).await?.map_err(unreachable)?;
        let (status, headers) = (response.status(), response.headers().clone());
        if status != StatusCode::OK {
            let body = read_error(response, &self.deadlines).await;
            return Err(classify::refused(status, &headers, &body, clock::now()));
        }
        let is_stream = headers
            .get(CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .is_some_and(|kind| kind.starts_with("text/event-stream"));
        if !is_stream {
            return Err(Failure::new(FailureKind::Protocol, "the provider answered without a stream"));
        }
        self.queue.extend(limits::told(&headers).map(Event::Limits));
        self.phase = Phase::Answering(Box::new(Events::of(response)));
        Ok(())
    }

    fn handle(&mut self, event: &SseEvent) -> Result<(), Failure> {
        if event.name == "error" {
            return Err(classify::broken_off(&event.data));
        }
        let event: RawEvent = serde_json::from_str(&event.data).map_err(|error| {
            Failure::new(
                FailureKind::Protocol,
                format!("the provider sent something that is not its protocol: {error}"),
            )
        })?;
        match event.into() {
            StreamEvent::Start(usage) => {
                self.deadlines.answer_begins();
                self.usage = usage;
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
            }
            StreamEvent::Stop => {
                let Some(stop) = self.stop else {
                    return Err(Failure::new(FailureKind::Protocol, "the provider's answer ended without a reason"));
                };
                self.queue.push_back(Event::Finished { stop, usage: self.usage });
                self.queue.push_back(Event::Settled(self.model.price.cost_with_short_cache(&self.usage)));
                self.phase = Phase::Done;
            }
            StreamEvent::Other => {}
        }
        Ok(())
    }
}
