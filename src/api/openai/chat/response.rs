//! The answer as OpenAI's `chat.completion` object, and what streamed and whole answers share.

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use serde::Serialize;
use serde_json::{Value, json};

use crate::api::openai::error::{Cause, Error};
use crate::conversation::{Event, StopReason, Usage};
use crate::gateway::GatewayError;

/// What every piece of one answer repeats.
#[derive(Clone, Debug)]
pub(super) struct Envelope {
    pub(super) id: String,
    /// Unix seconds.
    pub(super) created: i64,
    /// The model as the client named it.
    pub(super) model: String,
    /// Told where the client named its session.
    pub(super) session_id: Option<String>,
    /// Whether the client may see the model's thinking.
    pub(super) show_thinking: bool,
    /// Whether the client takes the answer for JSON, unless it is told that it is a refusal.
    pub(super) is_structured: bool,
}

/// A whole answer.
#[derive(Debug, Default)]
pub(super) struct Completion {
    text: String,
    thinking: String,
    calls: Vec<ToolCall>,
    stop: Option<StopReason>,
    usage: Usage,
}

#[derive(Debug)]
struct ToolCall {
    index: usize,
    id: String,
    name: String,
    arguments: String,
}

impl Completion {
    /// Gathers the events of an answer up to its end.
    pub(super) async fn collect(
        mut events: BoxStream<'static, Result<Event, GatewayError>>,
        keep_thinking: bool,
    ) -> Result<Self, Error> {
        let mut answer = Self::default();
        while let Some(event) = events.next().await {
            match event? {
                Event::Text(text) => answer.text.push_str(&text),
                Event::Thinking(text) if keep_thinking => answer.thinking.push_str(&text),
                Event::ToolUse { index, id, name } => {
                    answer.calls.push(ToolCall { index, id, name, arguments: String::new() });
                }
                Event::ToolInput { index, json } => {
                    if let Some(call) = answer.calls.iter_mut().find(|call| call.index == index) {
                        call.arguments.push_str(&json);
                    }
                }
                Event::Finished { stop, usage } => {
                    return Ok(Self { stop: Some(stop), usage, ..answer });
                }
                Event::Thinking(_) | Event::Started(_) | Event::Limits(_) | Event::Overage(_) | Event::Settled(_) => {}
            }
        }
        Err(unfinished())
    }

    /// The answer as OpenAI writes it.
    pub(super) fn document(self, envelope: &Envelope) -> Value {
        let Self { text, thinking, calls, stop, usage } = self;
        // Without any text `content` is null only where calls stand in its place.
        let (content, refusal) = match stop {
            Some(StopReason::Refusal) if envelope.is_structured => (Value::Null, refusal(&text).into()),
            _ if text.is_empty() && !calls.is_empty() => (Value::Null, Value::Null),
            _ => (text.into(), Value::Null),
        };
        let mut message = json!({ "role": "assistant", "content": content, "refusal": refusal, "annotations": [] });
        if !thinking.is_empty() {
            message["reasoning_content"] = thinking.into();
        }
        if !calls.is_empty() {
            let calls = calls.into_iter().map(|ToolCall { id, name, arguments, .. }| {
                // A call without arguments is an empty object: clients parse this text.
                let arguments = if arguments.is_empty() { NO_ARGUMENTS.to_owned() } else { arguments };
                json!({ "id": id, "type": "function", "function": { "name": name, "arguments": arguments } })
            });
            message["tool_calls"] = calls.collect();
        }
        let mut document = json!({
            "id": envelope.id,
            "object": "chat.completion",
            "created": envelope.created,
            "model": envelope.model,
            "choices": [{
                "index": 0,
                "message": message,
                "logprobs": null,
                "finish_reason": stop.map(|stop| finish_reason(stop, envelope)),
            }],
            "usage": Counts::from(usage),
        });
        if let Some(id) = &envelope.session_id {
            document["session_id"] = id.as_str().into();
        }
        document
    }
}

/// The arguments of a call that has none.
pub(super) const NO_ARGUMENTS: &str = "{}";

/// OpenAI's word for why an answer ended.
pub(super) const fn finish_reason(stop: StopReason, envelope: &Envelope) -> &'static str {
    match stop {
        // As at OpenAI, where the refusal has a field of its own then.
        StopReason::Refusal if envelope.is_structured => "stop",
        StopReason::EndTurn | StopReason::StopSequence => "stop",
        StopReason::MaxTokens => "length",
        StopReason::ToolUse => "tool_calls",
        StopReason::Refusal => "content_filter",
    }
}

/// What a model that refuses says.
pub(super) fn refusal(text: &str) -> &str {
    if text.trim().is_empty() { "The model refused to answer." } else { text }
}

/// The error of a stream of events that ends before the answer does.
pub(super) fn unfinished() -> Error {
    tracing::error!("a stream of events ended without its last event");
    Error::new(Cause::UpstreamFailed, "The answer ended before it was complete.")
}

/// Usage as OpenAI counts it: cached input is part of the prompt, thinking part of the completion.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Counts {
    prompt_tokens: u64,
    completion_tokens: u64,
    total_tokens: u64,
    prompt_tokens_details: PromptDetails,
    completion_tokens_details: CompletionDetails,
}

#[derive(Clone, Copy, Debug, Serialize)]
#[expect(clippy::struct_field_names, reason = "OpenAI's names")]
struct PromptDetails {
    cached_tokens: u64,
    cache_write_tokens: u64,
    audio_tokens: u64,
}

#[derive(Clone, Copy, Debug, Serialize)]
#[expect(clippy::struct_field_names, reason = "OpenAI's names")]
struct CompletionDetails {
    reasoning_tokens: u64,
    audio_tokens: u64,
    accepted_prediction_tokens: u64,
    rejected_prediction_tokens: u64,
}

impl From<Usage> for Counts {
    fn from(usage: Usage) -> Self {
        Self {
            prompt_tokens: usage.total_input(),
            completion_tokens: usage.output,
            total_tokens: usage.total(),
            prompt_tokens_details: PromptDetails {
                cached_tokens: usage.cache_read,
                cache_write_tokens: usage.cache_creation,
                audio_tokens: 0,
            },
            completion_tokens_details: CompletionDetails {
                reasoning_tokens: usage.reasoning,
                audio_tokens: 0,
                accepted_prediction_tokens: 0,
                rejected_prediction_tokens: 0,
            },
        }
    }
}
