//! A request as the Messages API takes it.

use serde_json::{Map, Value, json};

use crate::backend::messages;
use crate::conversation::{Request, Role, Thinking};

/// The answer's limit where the client names none. Every model allows that much.
const MAX_TOKENS: u32 = 32_000;

/// The body of the request, streamed, with the model called `model`.
///
/// The prompt is marked for the cache at three places: after the tools and the system prompt, which stay the same over
/// conversations; at the end of the user's turn before the last, where the last request marked it too; and at the very
/// end, for the next request.
pub(super) fn body(request: &Request, model: &str) -> Vec<u8> {
    let options = &request.options;
    let max_tokens = options.max_tokens.unwrap_or(MAX_TOKENS);
    let mut body = messages::extra_body(options, &request.tools, request.tool_choice.as_ref());
    body.insert("model".to_owned(), json!(model));
    body.insert("max_tokens".to_owned(), json!(max_tokens));
    body.insert("stream".to_owned(), json!(true));
    let system: Vec<Value> =
        request.system.iter().filter(|text| !text.is_empty()).map(|text| text_block(text)).collect();
    if !system.is_empty() {
        body.insert("system".to_owned(), json!(system));
    }
    body.insert("messages".to_owned(), messages(request));
    think(&mut body, request, max_tokens);
    mark_prefix(&mut body);
    Value::Object(body).to_string().into_bytes()
}

fn text_block(text: &str) -> Value {
    json!({ "type": "text", "text": text })
}

fn messages(request: &Request) -> Value {
    let mut messages: Vec<Value> = request
        .turns
        .iter()
        .map(|turn| {
            let role = match turn.role {
                Role::User => "user",
                Role::Assistant => "assistant",
            };
            json!({ "role": role, "content": turn.blocks.iter().map(messages::block).collect::<Vec<_>>() })
        })
        .collect();
    // The last user turn is the last message, the one before it stands two earlier.
    let count = messages.len();
    for index in [count.checked_sub(1), count.checked_sub(3)].into_iter().flatten() {
        if let Some(block) = messages.get_mut(index).and_then(|message| message["content"].as_array_mut()?.last_mut()) {
            mark(block);
        }
    }
    Value::Array(messages)
}

/// Marks the end of the tools, and of the system prompt.
fn mark_prefix(body: &mut Map<String, Value>) {
    for field in ["tools", "system"] {
        if let Some(last) = body.get_mut(field).and_then(|list| list.as_array_mut()?.last_mut()) {
            mark(last);
        }
    }
}

fn mark(block: &mut Value) {
    // An empty text cannot be cached, and the API says so.
    if block["text"] != "" {
        block["cache_control"] = json!({ "type": "ephemeral" });
    }
}

/// Thinking as the client asks and the model allows: a client that asks for none gets none.
fn think(body: &mut Map<String, Value>, request: &Request, max_tokens: u32) {
    let effort = request.options.effort;
    let thinking = match (request.model.thinking, effort) {
        (Thinking::Budget, effort) => {
            let budget = effort.map_or(0, |effort| messages::budget(effort, Some(max_tokens)));
            // These models do not think unless they are told to.
            (budget > 0).then(|| json!({ "type": "enabled", "budget_tokens": budget }))
        }
        // Newer models keep their thinking to themselves unless they are asked to show it.
        (Thinking::Adaptive | Thinking::AlwaysOn, Some(_)) => {
            Some(json!({ "type": "adaptive", "display": "summarized" }))
        }
        (Thinking::Adaptive, None) => Some(json!({ "type": "disabled" })),
        (Thinking::AlwaysOn, None) => None,
    };
    body.extend(thinking.map(|thinking| ("thinking".to_owned(), thinking)));
    if let Some(effort) = effort.filter(|_| request.model.thinking != Thinking::Budget) {
        let config = body.entry("output_config").or_insert_with(|| json!({}));
        config["effort"] = json!(effort.as_str());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::conversation::{Block, Effort, Model, Options, Tool, ToolChoice, Turn};

    fn request(model: &str, options: Options) -> Request {
        let turn = |role, text: &str| Turn { role, blocks: vec![Block::Text(text.to_owned())] };
        Request {
            model: Arc::new(Model::named(model)),
            system: vec!["one".to_owned(), "two".to_owned()],
            turns: vec![turn(Role::User, "a"), turn(Role::Assistant, "b"), turn(Role::User, "c")],
            tools: vec![Tool { name: "f".into(), definition: json!({ "name": "f", "input_schema": {} }) }],
            tool_choice: Some(ToolChoice::Auto { parallel: false }),
            options,
        }
    }

    fn sent(request: &Request) -> Value {
        serde_json::from_slice(&body(request, &request.model.id)).expect("JSON")
    }

    #[test]
    fn the_whole_request_in_the_apis_words() {
        let options = Options {
            max_tokens: Some(100),
            temperature: Some(0.5),
            stop: vec!["x".to_owned()],
            output_schema: Some(json!({ "type": "object" })),
            ..Options::default()
        };
        let cached = json!({ "type": "ephemeral" });
        assert_eq!(
            sent(&request("claude-sonnet-4-5", options)),
            json!({
                "model": "claude-sonnet-4-5", "max_tokens": 100, "stream": true, "temperature": 0.5,
                "stop_sequences": ["x"],
                "output_config": { "format": { "type": "json_schema", "schema": { "type": "object" } } },
                "tools": [{ "name": "f", "input_schema": {}, "cache_control": cached }],
                "tool_choice": { "type": "auto", "disable_parallel_tool_use": true },
                "system": [
                    { "type": "text", "text": "one" },
                    { "type": "text", "text": "two", "cache_control": cached },
                ],
                "messages": [
                    { "role": "user", "content": [{ "type": "text", "text": "a", "cache_control": cached }] },
                    { "role": "assistant", "content": [{ "type": "text", "text": "b" }] },
                    { "role": "user", "content": [{ "type": "text", "text": "c", "cache_control": cached }] },
                ],
            })
        );
    }

    #[test]
    fn thinking_follows_the_request_and_the_model() {
        let thinking = |model: &str, effort, max_tokens| {
            let body = sent(&request(model, Options { max_tokens, effort, ..Options::default() }));
            (body["thinking"].clone(), body["output_config"].clone(), body["max_tokens"].clone())
        };
        let shown = json!({ "type": "adaptive", "display": "summarized" });
        let high = Some(Effort::High);
        let cases = [
            ("claude-sonnet-4-5", None, None, Value::Null, Value::Null),
            ("claude-sonnet-4-5", high, None, json!({ "type": "enabled", "budget_tokens": 16_384 }), Value::Null),
            ("claude-sonnet-4-5", high, Some(2000), json!({ "type": "enabled", "budget_tokens": 1999 }), Value::Null),
            ("claude-sonnet-4-5", high, Some(500), Value::Null, Value::Null),
            ("claude-sonnet-5", None, None, json!({ "type": "disabled" }), Value::Null),
            ("claude-sonnet-5", high, None, shown.clone(), json!({ "effort": "high" })),
            ("claude-sonnet-5-5", None, None, Value::Null, Value::Null),
            ("claude-sonnet-5-5", high, None, shown, json!({ "effort": "high" })),
        ];
        for (model, effort, max_tokens, expected, config) in cases {
            let limit = json!(max_tokens.unwrap_or(MAX_TOKENS));
            assert_eq!(thinking(model, effort, max_tokens), (expected, config, limit), "{model} {effort:?}");
        }
    }
}
