//! The events of an answer, as the Messages API streams them.

use serde::Deserialize;

use crate::conversation::{StopReason, Usage};

/// A piece of the provider's stream.
#[derive(Debug, PartialEq)]
pub(in crate::backend) enum StreamEvent {
    /// A message begins; the input side of the usage.
    Start(Usage),
    /// Text.
    Text(String),
    /// Thinking.
    Thinking(String),
    /// A call of a tool begins.
    ToolUse {
        /// The block's index in the message.
        block: u64,
        /// The id of the call.
        id: String,
        /// The tool.
        name: String,
    },
    /// More of a call's arguments.
    ToolInput {
        /// The block's index in the message.
        block: u64,
        /// A piece of JSON text.
        json: String,
    },
    /// Why the message ends and what it used.
    Delta {
        /// Set once it is known.
        stop: Option<StopReason>,
        /// The usage fields this event carries.
        usage: RawUsage,
    },
    /// The message is complete.
    Stop,
    /// Pings, signatures, block ends.
    Other,
}

/// An event as the provider writes it.
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(in crate::backend) enum RawEvent {
    MessageStart {
        message: RawMessage,
    },
    ContentBlockStart {
        index: u64,
        content_block: RawBlock,
    },
    ContentBlockDelta {
        index: u64,
        delta: RawDelta,
    },
    MessageDelta {
        delta: RawMessageDelta,
        #[serde(default)]
        usage: RawUsage,
    },
    MessageStop,
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
pub(in crate::backend) struct RawMessage {
    #[serde(default)]
    usage: RawUsage,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(in crate::backend) enum RawBlock {
    Text {
        #[serde(default)]
        text: String,
    },
    ToolUse {
        id: String,
        name: String,
    },
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
#[serde(tag = "type")]
pub(in crate::backend) enum RawDelta {
    #[serde(rename = "text_delta")]
    Text { text: String },
    #[serde(rename = "thinking_delta")]
    Thinking { thinking: String },
    #[serde(rename = "input_json_delta")]
    InputJson { partial_json: String },
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
pub(in crate::backend) struct RawMessageDelta {
    #[serde(default)]
    stop_reason: Option<String>,
}

/// Usage as the provider writes it. In a `message_delta` only the fields that are there replace earlier ones.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
pub(in crate::backend) struct RawUsage {
    input_tokens: Option<u64>,
    cache_creation_input_tokens: Option<u64>,
    cache_read_input_tokens: Option<u64>,
    output_tokens: Option<u64>,
    output_tokens_details: Option<RawOutputDetails>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
struct RawOutputDetails {
    thinking_tokens: Option<u64>,
}

impl RawUsage {
    /// Overwrites the figures of `usage` with those that are there.
    pub(in crate::backend) fn apply_to(self, usage: &mut Usage) {
        let set = |field: &mut u64, value: Option<u64>| {
            if let Some(value) = value {
                *field = value;
            }
        };
        set(&mut usage.input, self.input_tokens);
        set(&mut usage.cache_creation, self.cache_creation_input_tokens);
        set(&mut usage.cache_read, self.cache_read_input_tokens);
        set(&mut usage.output, self.output_tokens);
        set(&mut usage.reasoning, self.output_tokens_details.and_then(|details| details.thinking_tokens));
    }
}

impl From<RawEvent> for StreamEvent {
    fn from(event: RawEvent) -> Self {
        match event {
            RawEvent::MessageStart { message } => {
                let mut usage = Usage::default();
                message.usage.apply_to(&mut usage);
                Self::Start(usage)
            }
            RawEvent::ContentBlockStart { content_block: RawBlock::Text { text }, .. } if !text.is_empty() => {
                Self::Text(text)
            }
            RawEvent::ContentBlockStart { index, content_block: RawBlock::ToolUse { id, name } } => {
                Self::ToolUse { block: index, id, name }
            }
            RawEvent::ContentBlockDelta { delta: RawDelta::Text { text }, .. } => Self::Text(text),
            RawEvent::ContentBlockDelta { delta: RawDelta::Thinking { thinking }, .. } => Self::Thinking(thinking),
            RawEvent::ContentBlockDelta { index, delta: RawDelta::InputJson { partial_json } } => {
                Self::ToolInput { block: index, json: partial_json }
            }
            RawEvent::MessageDelta { delta, usage } => {
                Self::Delta { stop: delta.stop_reason.as_deref().map(stop_reason), usage }
            }
            RawEvent::MessageStop => Self::Stop,
            RawEvent::ContentBlockStart { .. } | RawEvent::ContentBlockDelta { .. } | RawEvent::Other => Self::Other,
        }
    }
}

fn stop_reason(word: &str) -> StopReason {
    match word {
        "max_tokens" | "model_context_window_exceeded" => StopReason::MaxTokens,
        "stop_sequence" => StopReason::StopSequence,
        "tool_use" => StopReason::ToolUse,
        "refusal" => StopReason::Refusal,
        _ => StopReason::EndTurn,
    }
}
