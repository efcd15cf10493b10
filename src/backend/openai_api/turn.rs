//! One request to an endpoint, as a stream of events.

use std::collections::VecDeque;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _};
use http::StatusCode;
use http::header::{AUTHORIZATION, CONTENT_TYPE};

use super::chunk::{CallDelta, Chunk, Delta, stop_reason};
use super::classify;
use crate::backend::http::{Deadlines, Endpoint, Events, read_error, unreachable};
use crate::backend::{EventStream, Failure, FailureKind};
use crate::conversation::{Event, Usage};
use crate::runtime::clock;

/// Sends `body` and reads the answer. Nothing happens before the stream is polled; dropping it ends the request.
pub(super) fn run(endpoint: Endpoint, body: Vec<u8>) -> EventStream {
    let turn = Turn {
        deadlines: Deadlines::start(endpoint.timers),
        endpoint,
        phase: Phase::Start(body.into()),
        queue: VecDeque::new(),
        usage: Usage::default(),
        finish: None,
        calls: Vec::new(),
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
    deadlines: Deadlines,
    phase: Phase,
    queue: VecDeque<Event>,
    usage: Usage,
    /// Why the answer ended, once that is known. The usage comes after it.
    finish: Option<String>,
    /// The index that the endpoint gave to each call, in order.
    calls: Vec<Option<u64>>,
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
                    Ok(Some(event)) if event.data.trim() == "[DONE]" => self.end(),
                    Ok(Some(event)) => self.handle(&event.data),
                    Ok(None) => self.end(),
                    // Nothing is missing but how much it was.
                    Err(_) if self.finish.is_some() => self.end(),
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
        let mut request = self.endpoint.post("/chat/completions").header(CONTENT_TYPE, "application/json");
        if let Some(key) = self.endpoint.credential("Bearer ")? {
            request = request.header(AUTHORIZATION, key);
        }
        let response = self.deadlines.wait(request.body(body).send()).await?.map_err(unreachable)?;
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
            return Err(Failure::new(FailureKind::Protocol, "the backend answered without a stream"));
        }
        self.phase = Phase::Answering(Box::new(Events::of(response)));
        Ok(())
    }

    fn handle(&mut self, data: &str) -> Result<(), Failure> {
        let chunk: Chunk = serde_json::from_str(data).map_err(|error| {
            Failure::new(FailureKind::Protocol, format!("the backend sent something that is not its protocol: {error}"))
        })?;
        if let Some(error) = chunk.error.filter(|error| !error.is_null()) {
            return Err(classify::broken_off(&error));
        }
        if self.deadlines.answer_begins() {
            self.queue.push_back(Event::Started(Usage::default()));
        }
        if let Some(usage) = chunk.usage {
            self.usage = usage.into();
        }
        if let Some(choice) = chunk.choices.into_iter().next() {
            self.delta(choice.delta);
            self.finish = choice.finish_reason.or_else(|| self.finish.take());
        }
        Ok(())
    }

    fn delta(&mut self, delta: Delta) {
        let filled = |text: Option<String>| text.filter(|text| !text.is_empty());
        let thinking = filled(delta.reasoning_content).or_else(|| filled(delta.reasoning));
        self.queue.extend(thinking.map(Event::Thinking));
        self.queue.extend(filled(delta.content).map(Event::Text));
        self.queue.extend(filled(delta.refusal).map(Event::Text));
        for call in delta.tool_calls.into_iter().flatten() {
            self.call(call);
        }
    }

    fn call(&mut self, call: CallDelta) {
        let CallDelta { index, id, function } = call;
        let name = function.name.filter(|name| !name.is_empty());
        // A call begins with its name. Where calls have no numbers, what has no name goes on with the last one.
        let known = match index {
            Some(_) => self.calls.iter().position(|known| *known == index),
            None if name.is_none() => self.calls.len().checked_sub(1),
            None => None,
        };
        let at = match (known, name) {
            (Some(at), _) => at,
            (None, Some(name)) => {
                let id = id.filter(|id| !id.is_empty());
                let id = id.unwrap_or_else(|| format!("call_{}", uuid::Uuid::new_v4().simple()));
                self.calls.push(index);
                self.queue.push_back(Event::ToolUse { index: self.calls.len() - 1, id, name });
                self.calls.len() - 1
            }
            // Arguments of a call that never began.
            (None, None) => return,
        };
        if let Some(json) = function.arguments.filter(|json| !json.is_empty()) {
            self.queue.push_back(Event::ToolInput { index: at, json });
        }
    }

    /// The stream has ended, as it should or not.
    fn end(&mut self) -> Result<(), Failure> {
        let Some(word) = &self.finish else {
            let detail = "the backend ended its answer before it was complete";
            return Err(Failure::new(FailureKind::Unavailable { status: None }, detail));
        };
        let stop = stop_reason(word, !self.calls.is_empty());
        self.queue.push_back(Event::Finished { stop, usage: self.usage });
        self.phase = Phase::Done;
        Ok(())
    }
}
