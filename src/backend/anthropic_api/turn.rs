//! One request to the Messages API, as a stream of events.

use std::sync::Arc;

use http::StatusCode;
use http::header::{HeaderMap, HeaderValue};
use reqwest::RequestBuilder;

use super::{classify, limits};
use crate::backend::http::{Answer, Dialect, Endpoint, SseEvent, cut_short, not_its_protocol};
use crate::backend::messages::{RawEvent, StreamEvent};
use crate::backend::{Failure, FailureKind};
use crate::conversation::{Event, Model, StopReason, Usage};
use crate::runtime::clock;

/// The version of the API that is spoken.
pub(super) const VERSION: HeaderValue = HeaderValue::from_static("2023-06-01");

/// What has been said so far.
pub(super) struct Turn {
    model: Arc<Model>,
    usage: Usage,
    stop: Option<StopReason>,
    /// The block index of each tool call, in order.
    tool_blocks: Vec<u64>,
}

impl Turn {
    pub(super) fn new(model: Arc<Model>) -> Self {
        Self { model, usage: Usage::default(), stop: None, tool_blocks: Vec::new() }
    }
}

impl Dialect for Turn {
    const PEER: &'static str = "the provider";

    fn request(&self, endpoint: &Endpoint) -> Result<RequestBuilder, Failure> {
        let request = endpoint.post("/v1/messages").header("anthropic-version", VERSION);
        let key = endpoint.credential("")?;
        Ok(if let Some(key) = key { request.header("x-api-key", key) } else { request })
    }

    fn refused(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Failure {
        classify::refused(status, headers, body, clock::now())
    }

    fn accepted(&mut self, headers: &HeaderMap, answer: &mut Answer) {
        if let Some(report) = limits::told(headers) {
            answer.push(Event::Limits(report));
        }
    }

    fn event(&mut self, event: &SseEvent, answer: &mut Answer) -> Result<(), Failure> {
        if event.name == "error" {
            return Err(classify::broken_off(&event.data));
        }
        let event: RawEvent = serde_json::from_str(&event.data).map_err(|error| not_its_protocol::<Self>(&error))?;
        match event.into() {
            StreamEvent::Start(usage) => {
                answer.begins();
                self.usage = usage;
                answer.push(Event::Started(usage));
            }
            StreamEvent::Text(text) => answer.push(Event::Text(text)),
            StreamEvent::Thinking(text) => answer.push(Event::Thinking(text)),
            StreamEvent::ToolUse { block, id, name } => {
                let index = self.tool_blocks.len();
                self.tool_blocks.push(block);
                answer.push(Event::ToolUse { index, id, name });
            }
            StreamEvent::ToolInput { block, json } => {
                if let Some(index) = self.tool_blocks.iter().position(|known| *known == block) {
                    answer.push(Event::ToolInput { index, json });
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
                answer.push(Event::Finished { stop, usage: self.usage });
                answer.push(Event::Settled(self.model.price.cost_with_short_cache(&self.usage)));
                answer.complete();
            }
            StreamEvent::Other => {}
        }
        Ok(())
    }

    fn end(&mut self, cause: Option<Failure>, _: &mut Answer) -> Result<(), Failure> {
        Err(cause.unwrap_or_else(cut_short::<Self>))
    }
}
