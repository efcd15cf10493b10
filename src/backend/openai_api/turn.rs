//! One request to an endpoint, as a stream of events.

use http::StatusCode;
use http::header::{AUTHORIZATION, HeaderMap};
use reqwest::RequestBuilder;

use super::chunk::{CallDelta, Chunk, Delta, stop_reason};
use super::classify;
use crate::backend::Failure;
use crate::backend::http::{Answer, Dialect, Endpoint, SseEvent, cut_short, not_its_protocol};
use crate::conversation::{Event, Usage};
use crate::runtime::clock;

/// What has been said so far.
#[derive(Default)]
pub(super) struct Turn {
    usage: Usage,
    /// Why the answer ended, once that is known. The usage comes after it.
    finish: Option<String>,
    /// The index that the endpoint gave to each call, in order.
    calls: Vec<Option<u64>>,
}

impl Dialect for Turn {
    const PEER: &'static str = "the backend";

    fn request(&self, endpoint: &Endpoint) -> Result<RequestBuilder, Failure> {
        let request = endpoint.post("/chat/completions");
        let key = endpoint.credential("Bearer ")?;
        Ok(if let Some(key) = key { request.header(AUTHORIZATION, key) } else { request })
    }

    fn refused(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Failure {
        classify::refused(status, headers, body, clock::now())
    }

    fn event(&mut self, event: &SseEvent, answer: &mut Answer) -> Result<(), Failure> {
        if event.data.trim() == "[DONE]" {
            return self.end(None, answer);
        }
        let chunk: Chunk = serde_json::from_str(&event.data).map_err(|error| not_its_protocol::<Self>(&error))?;
        if let Some(error) = chunk.error.filter(|error| !error.is_null()) {
            return Err(classify::broken_off(&error));
        }
        if answer.begins() {
            answer.push(Event::Started(Usage::default()));
        }
        if let Some(usage) = chunk.usage {
            self.usage = usage.into();
        }
        if let Some(choice) = chunk.choices.into_iter().next() {
            self.delta(choice.delta, answer);
            self.finish = choice.finish_reason.or_else(|| self.finish.take());
        }
        Ok(())
    }

    /// The stream has ended, as it should or not.
    fn end(&mut self, cause: Option<Failure>, answer: &mut Answer) -> Result<(), Failure> {
        let Some(word) = &self.finish else { return Err(cause.unwrap_or_else(cut_short::<Self>)) };
        // Whatever the cause is, nothing is missing but how much it was.
        let stop = stop_reason(word, !self.calls.is_empty());
        answer.push(Event::Finished { stop, usage: self.usage });
        answer.complete();
        Ok(())
    }
}

impl Turn {
    fn delta(&mut self, delta: Delta, answer: &mut Answer) {
        let filled = |text: Option<String>| text.filter(|text| !text.is_empty());
        let thinking = filled(delta.reasoning_content).or_else(|| filled(delta.reasoning));
        let texts = [filled(delta.content), filled(delta.refusal)].into_iter().flatten().map(Event::Text);
        thinking.map(Event::Thinking).into_iter().chain(texts).for_each(|event| answer.push(event));
        for call in delta.tool_calls.into_iter().flatten() {
            self.call(call, answer);
        }
    }

    fn call(&mut self, call: CallDelta, answer: &mut Answer) {
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
                answer.push(Event::ToolUse { index: self.calls.len() - 1, id, name });
                self.calls.len() - 1
            }
            // Arguments of a call that never began.
            (None, None) => return,
        };
        if let Some(json) = function.arguments.filter(|json| !json.is_empty()) {
            answer.push(Event::ToolInput { index: at, json });
        }
    }
}
