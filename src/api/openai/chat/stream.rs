//! The answer as OpenAI's `chat.completion.chunk` events.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_util::stream::{BoxStream, Stream, StreamExt as _};
use serde::Serialize;

use super::response::{Counts, Envelope, NO_ARGUMENTS, finish_reason, refusal, unfinished};
use crate::api::Frame;
use crate::api::openai::error::Error;
use crate::conversation::{Event, StopReason, Usage};
use crate::gateway::GatewayError;

/// One frame for every event the client can see, as it arrives: nothing is held back and nothing is joined.
///
/// Ends with `[DONE]`, or after an error's frame without it.
pub(super) struct Chunks {
    envelope: Envelope,
    include_usage: bool,
    /// `None` once the answer is over: the rest of the events is the gateway's business, and dropping a stream of an
    /// answer that failed ends whatever may still run behind it.
    events: Option<BoxStream<'static, Result<Event, GatewayError>>>,
    /// Frames that are ready to go.
    ready: VecDeque<Frame>,
    /// The call whose arguments are awaited, as long as none have come.
    bare_call: Option<usize>,
}

impl Chunks {
    pub(super) fn new(
        envelope: Envelope,
        events: BoxStream<'static, Result<Event, GatewayError>>,
        include_usage: bool,
    ) -> Self {
        let mut chunks =
            Self { envelope, include_usage, events: Some(events), ready: VecDeque::new(), bare_call: None };
        chunks.push_delta(&Delta { role: Some("assistant"), content: Some(""), ..Delta::default() });
        chunks
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Text(text) => self.push_delta(&Delta { content: Some(&text), ..Delta::default() }),
            Event::Thinking(text) if self.envelope.show_thinking => {
                self.push_delta(&Delta { reasoning_content: Some(&text), ..Delta::default() });
            }
            Event::ToolUse { index, id, name } => {
                self.complete_bare_call();
                self.bare_call = Some(index);
                self.push_call(CallDelta {
                    index,
                    id: Some(&id),
                    kind: Some("function"),
                    function: FunctionDelta { name: Some(&name), arguments: "" },
                });
            }
            Event::ToolInput { index, json } => {
                if json.is_empty() {
                    return;
                }
                self.bare_call.take_if(|bare| *bare == index);
                self.push_arguments(index, &json);
            }
            Event::Finished { stop, usage } => self.finish(stop, usage),
            Event::Thinking(_) | Event::Started(_) | Event::Limits(_) | Event::Overage(_) | Event::Settled(_) => {}
        }
    }

    fn finish(&mut self, stop: StopReason, usage: Usage) {
        self.events = None;
        self.complete_bare_call();
        if stop == StopReason::Refusal && self.envelope.is_structured {
            // What came before stands as text already.
            self.push_delta(&Delta { refusal: Some(refusal("")), ..Delta::default() });
        }
        let finish_reason = Some(finish_reason(stop, &self.envelope));
        let choice = Choice { index: 0, delta: Delta::default(), logprobs: None, finish_reason };
        let session_id = self.envelope.session_id.as_deref();
        self.ready.push_back(chunk(&self.envelope, &[choice], self.no_usage(), session_id));
        if self.include_usage {
            let usage = UsageField::Counts(usage.into());
            self.ready.push_back(chunk(&self.envelope, &[], usage, None));
        }
        self.ready.push_back(Frame::data("[DONE]"));
    }

    fn fail(&mut self, error: &Error) {
        self.events = None;
        tracing::Span::current().record("code", error.cause.row().2);
        self.ready.push_back(Frame::data(error.body().to_string()));
    }

    /// Clients parse a call's arguments: without any they must read an empty object, not an empty text.
    fn complete_bare_call(&mut self) {
        if let Some(index) = self.bare_call.take() {
            self.push_arguments(index, NO_ARGUMENTS);
        }
    }

    fn push_arguments(&mut self, index: usize, arguments: &str) {
        self.push_call(CallDelta { index, id: None, kind: None, function: FunctionDelta { name: None, arguments } });
    }

    fn push_call(&mut self, call: CallDelta<'_>) {
        self.push_delta(&Delta { tool_calls: Some([call]), ..Delta::default() });
    }

    fn push_delta(&mut self, delta: &Delta<'_>) {
        let choice = Choice { index: 0, delta: *delta, logprobs: None, finish_reason: None };
        self.ready.push_back(chunk(&self.envelope, &[choice], self.no_usage(), None));
    }

    /// With the usage asked for, every chunk but the last says that it has none.
    const fn no_usage(&self) -> UsageField {
        if self.include_usage { UsageField::Null } else { UsageField::Absent }
    }
}

impl Stream for Chunks {
    type Item = Frame;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Frame>> {
        loop {
            if let Some(frame) = self.ready.pop_front() {
                return Poll::Ready(Some(frame));
            }
            let Some(events) = &mut self.events else { return Poll::Ready(None) };
            match ready!(events.poll_next_unpin(cx)) {
                Some(Ok(event)) => self.handle(event),
                Some(Err(error)) => self.fail(&error.into()),
                None => self.fail(&unfinished()),
            }
        }
    }
}

fn chunk(envelope: &Envelope, choices: &[Choice<'_>], usage: UsageField, session_id: Option<&str>) -> Frame {
    let chunk = Chunk {
        id: &envelope.id,
        object: "chat.completion.chunk",
        created: envelope.created,
        model: &envelope.model,
        choices,
        usage,
        session_id,
    };
    // These types hold nothing that JSON could not.
    Frame::data(serde_json::to_string(&chunk).unwrap_or_default())
}

#[derive(Serialize)]
struct Chunk<'a> {
    id: &'a str,
    object: &'static str,
    created: i64,
    model: &'a str,
    choices: &'a [Choice<'a>],
    #[serde(skip_serializing_if = "UsageField::is_absent")]
    usage: UsageField,
    #[serde(skip_serializing_if = "Option::is_none")]
    session_id: Option<&'a str>,
}

#[derive(Clone, Copy, Serialize)]
#[serde(untagged)]
enum UsageField {
    Absent,
    Null,
    Counts(Counts),
}

impl UsageField {
    const fn is_absent(&self) -> bool {
        matches!(self, Self::Absent)
    }
}

#[derive(Clone, Copy, Serialize)]
struct Choice<'a> {
    index: u32,
    delta: Delta<'a>,
    logprobs: Option<()>,
    finish_reason: Option<&'static str>,
}

#[derive(Clone, Copy, Default, Serialize)]
struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    refusal: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_calls: Option<[CallDelta<'a>; 1]>,
}

#[derive(Clone, Copy, Serialize)]
struct CallDelta<'a> {
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    function: FunctionDelta<'a>,
}

#[derive(Clone, Copy, Serialize)]
struct FunctionDelta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    arguments: &'a str,
}
