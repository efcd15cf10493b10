//! What a request says, as the Messages API wants it.

use serde_json::{Map, Value, json};

use crate::conversation::{Block, Effort, ImageSource, Options, Tool, ToolChoice, ToolResultContent};

/// The least thinking budget the provider accepts, in tokens.
const MIN_THINKING_BUDGET: u32 = 1024;

/// Sampling, structured output and tools: the fields that are alike for whoever sends the request.
pub(in crate::backend) fn extra_body(
    options: &Options,
    tools: &[Tool],
    choice: Option<&ToolChoice>,
) -> Map<String, Value> {
    let mut body = Map::new();
    if let Some(temperature) = options.temperature {
        body.insert("temperature".to_owned(), json!(temperature));
    }
    if let Some(top_p) = options.top_p {
        body.insert("top_p".to_owned(), json!(top_p));
    }
    if !options.stop.is_empty() {
        body.insert("stop_sequences".to_owned(), json!(options.stop));
    }
    if let Some(schema) = &options.output_schema {
        body.insert("output_config".to_owned(), json!({ "format": { "type": "json_schema", "schema": schema } }));
    }
    if !tools.is_empty() {
        let definitions: Vec<&Value> = tools.iter().map(|tool| &tool.definition).collect();
        body.insert("tools".to_owned(), json!(definitions));
        if let Some(choice) = choice {
            body.insert("tool_choice".to_owned(), tool_choice(choice));
        }
    }
    body
}

fn tool_choice(choice: &ToolChoice) -> Value {
    match choice {
        ToolChoice::Auto { parallel } => json!({ "type": "auto", "disable_parallel_tool_use": !parallel }),
        ToolChoice::None => json!({ "type": "none" }),
        ToolChoice::Any { parallel } => json!({ "type": "any", "disable_parallel_tool_use": !parallel }),
        ToolChoice::Named { name, parallel } => {
            json!({ "type": "tool", "name": name, "disable_parallel_tool_use": !parallel })
        }
    }
}

/// The thinking budget that an effort buys, in tokens; 0 where the answer may not be long enough for any.
pub(in crate::backend) fn budget(effort: Effort, max_tokens: Option<u32>) -> u32 {
    let wanted = match effort {
        Effort::Low => 2_048,
        Effort::Medium => 8_192,
        Effort::High => 16_384,
        Effort::XHigh => 31_999,
    };
    let room = max_tokens.map_or(u32::MAX, |max_tokens| max_tokens.saturating_sub(1));
    let budget = wanted.min(room);
    if budget < MIN_THINKING_BUDGET { 0 } else { budget }
}

/// A piece of a turn in the provider's words.
pub(in crate::backend) fn block(block: &Block) -> Value {
    match block {
        Block::Text(text) => json!({ "type": "text", "text": text }),
        Block::Image(source) => image(source),
        Block::ToolUse { id, name, input } => json!({ "type": "tool_use", "id": id, "name": name, "input": input }),
        Block::ToolResult { tool_use_id, content, is_error } => {
            let content: Vec<Value> = content
                .iter()
                .map(|part| match part {
                    ToolResultContent::Text(text) => json!({ "type": "text", "text": text }),
                    ToolResultContent::Image(source) => image(source),
                })
                .collect();
            let mut result = json!({ "type": "tool_result", "tool_use_id": tool_use_id, "content": content });
            if *is_error {
                result["is_error"] = json!(true);
            }
            result
        }
    }
}

fn image(source: &ImageSource) -> Value {
    let source = match source {
        ImageSource::Base64 { media_type, data } => json!({ "type": "base64", "media_type": media_type, "data": data }),
        ImageSource::Url(url) => json!({ "type": "url", "url": url }),
    };
    json!({ "type": "image", "source": source })
}
