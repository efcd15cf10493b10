//! A request as OpenAI's chat completions take it.
//!
//! | what the dialect cannot say | how it is said |
//! |---|---|
//! | pictures in a tool's result | in a user message after it |
//! | that a tool failed | `Error: ` before its result |
//! | effort `xhigh` | `high`, which every reasoning model knows |

use serde_json::{Map, Value, json};

use crate::conversation::{Block, Effort, ImageSource, Request, Role, Tool, ToolChoice, ToolResultContent, Turn};

/// The body of the request, streamed, with the model called `model`. `limit_field`: what `max_tokens` is called.
pub(super) fn body(request: &Request, model: &str, limit_field: &str) -> Vec<u8> {
    let options = &request.options;
    let mut body = Map::new();
    let mut set = |name: &str, value: Option<Value>| body.extend(value.map(|value| (name.to_owned(), value)));
    set("model", Some(json!(model)));
    set("messages", Some(messages(request)));
    set("stream", Some(json!(true)));
    set("stream_options", Some(json!({ "include_usage": true })));
    set(limit_field, options.max_tokens.map(Value::from));
    set("temperature", options.temperature.map(Value::from));
    set("top_p", options.top_p.map(Value::from));
    set("stop", (!options.stop.is_empty()).then(|| json!(options.stop)));
    set("reasoning_effort", options.effort.map(|effort| json!(effort_word(effort))));
    set(
        "response_format",
        options.output_schema.as_ref().map(|schema| {
            let format = json!({ "name": "answer", "strict": true, "schema": schema });
            json!({ "type": "json_schema", "json_schema": format })
        }),
    );
    if !request.tools.is_empty() {
        set("tools", Some(request.tools.iter().map(tool).collect()));
        let (choice, parallel) = request.tool_choice.as_ref().map_or((None, true), tool_choice);
        set("tool_choice", choice);
        set("parallel_tool_calls", (!parallel).then_some(json!(false)));
    }
    Value::Object(body).to_string().into_bytes()
}

const fn effort_word(effort: Effort) -> &'static str {
    match effort {
        Effort::XHigh => Effort::High.as_str(),
        other => other.as_str(),
    }
}

fn messages(request: &Request) -> Value {
    let mut messages = Vec::new();
    if !request.system.is_empty() {
        messages.push(json!({ "role": "system", "content": request.system.join("\n\n") }));
    }
    for turn in &request.turns {
        match turn.role {
            Role::User => user(turn, &mut messages),
            Role::Assistant => messages.push(assistant(turn)),
        }
    }
    Value::Array(messages)
}

/// Results first: they have to follow the calls at once.
fn user(turn: &Turn, messages: &mut Vec<Value>) {
    let mut parts = Vec::new();
    for block in &turn.blocks {
        if let Block::ToolResult { tool_use_id, content, is_error } = block {
            let mut text = String::from(if *is_error { "Error: " } else { "" });
            for part in content {
                match part {
                    ToolResultContent::Text(more) => text.push_str(more),
                    ToolResultContent::Image(source) => parts.push(image(source)),
                }
            }
            messages.push(json!({ "role": "tool", "tool_call_id": tool_use_id, "content": text }));
        }
    }
    for block in &turn.blocks {
        match block {
            Block::Text(text) => parts.push(json!({ "type": "text", "text": text })),
            Block::Image(source) => parts.push(image(source)),
            Block::ToolResult { .. } | Block::ToolUse { .. } => {}
        }
    }
    match parts.as_slice() {
        [] => {}
        // Many servers take plain text only.
        [only] if only["type"] == "text" => messages.push(json!({ "role": "user", "content": only["text"] })),
        _ => messages.push(json!({ "role": "user", "content": parts })),
    }
}

fn assistant(turn: &Turn) -> Value {
    let (mut text, mut calls) = (String::new(), Vec::new());
    for block in &turn.blocks {
        match block {
            Block::Text(more) => text.push_str(more),
            Block::ToolUse { id, name, input } => {
                let function = json!({ "name": name, "arguments": input.to_string() });
                calls.push(json!({ "id": id, "type": "function", "function": function }));
            }
            Block::Image(_) | Block::ToolResult { .. } => {}
        }
    }
    let content = if text.is_empty() && !calls.is_empty() { Value::Null } else { Value::String(text) };
    let mut message = json!({ "role": "assistant", "content": content });
    if !calls.is_empty() {
        message["tool_calls"] = json!(calls);
    }
    message
}

fn image(source: &ImageSource) -> Value {
    let url = match source {
        ImageSource::Base64 { media_type, data } => format!("data:{media_type};base64,{data}"),
        ImageSource::Url(url) => url.clone(),
    };
    json!({ "type": "image_url", "image_url": { "url": url } })
}

fn tool(tool: &Tool) -> Value {
    let mut function = json!({ "name": tool.name, "parameters": tool.definition["input_schema"] });
    for field in ["description", "strict"] {
        if let Some(value) = tool.definition.get(field) {
            function[field] = value.clone();
        }
    }
    json!({ "type": "function", "function": function })
}

/// The choice, and whether several calls at once are allowed.
fn tool_choice(choice: &ToolChoice) -> (Option<Value>, bool) {
    match choice {
        ToolChoice::Auto { parallel } => (Some(json!("auto")), *parallel),
        ToolChoice::None => (Some(json!("none")), true),
        ToolChoice::Any { parallel } => (Some(json!("required")), *parallel),
        ToolChoice::Named { name, parallel } => {
            (Some(json!({ "type": "function", "function": { "name": name } })), *parallel)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::conversation::{Model, Options};

    #[test]
    fn the_whole_request_in_openais_words() {
        let text = |text: &str| Block::Text(text.to_owned());
        let picture = ImageSource::Base64 { media_type: "image/png".into(), data: "AA==".into() };
        let request = Request {
            model: Arc::new(Model::named("claude-sonnet-5")),
            system: vec!["one".into(), "two".into()],
            turns: vec![
                Turn { role: Role::User, blocks: vec![text("look"), Block::Image(picture.clone())] },
                Turn {
                    role: Role::Assistant,
                    blocks: vec![Block::ToolUse { id: "c1".into(), name: "f".into(), input: json!({ "n": 1 }) }],
                },
                Turn {
                    role: Role::User,
                    blocks: vec![
                        Block::ToolResult {
                            tool_use_id: "c1".into(),
                            content: vec![ToolResultContent::Text("no".into()), ToolResultContent::Image(picture)],
                            is_error: true,
                        },
                        text("and now?"),
                    ],
                },
            ],
            tools: vec![Tool {
                name: "f".into(),
                definition: json!({ "name": "f", "description": "d", "input_schema": { "type": "object" } }),
            }],
            tool_choice: Some(ToolChoice::Named { name: "f".into(), parallel: false }),
            options: Options {
                max_tokens: Some(9),
                stop: vec!["x".into()],
                effort: Some(Effort::XHigh),
                output_schema: Some(json!({ "type": "object" })),
                ..Options::default()
            },
        };
        let sent: Value = serde_json::from_slice(&body(&request, "gpt-5", "max_completion_tokens")).expect("JSON");
        let image = json!({ "type": "image_url", "image_url": { "url": "data:image/png;base64,AA==" } });
        assert_eq!(
            sent,
            json!({
                "model": "gpt-5", "stream": true, "stream_options": { "include_usage": true },
                "max_completion_tokens": 9, "stop": ["x"], "reasoning_effort": "high",
                "response_format": { "type": "json_schema",
                    "json_schema": { "name": "answer", "strict": true, "schema": { "type": "object" } } },
                "messages": [
                    { "role": "system", "content": "one\n\ntwo" },
                    { "role": "user", "content": [{ "type": "text", "text": "look" }, image] },
                    { "role": "assistant", "content": null, "tool_calls": [
                        { "id": "c1", "type": "function", "function": { "name": "f", "arguments": "{\"n\":1}" } }] },
                    { "role": "tool", "tool_call_id": "c1", "content": "Error: no" },
                    { "role": "user", "content": [image, { "type": "text", "text": "and now?" }] },
                ],
                "tools": [{ "type": "function",
                    "function": { "name": "f", "parameters": { "type": "object" }, "description": "d" } }],
                "tool_choice": { "type": "function", "function": { "name": "f" } }, "parallel_tool_calls": false,
            })
        );
    }
}
