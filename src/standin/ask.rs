//! What a request asks for, as far as the answer depends on it.

use serde_json::Value;

/// The parts of a request's body that decide its answer. Lenient: what is missing or odd counts as not given.
#[derive(Debug)]
pub(super) struct Ask<'a> {
    pub(super) model: &'a str,
    pub(super) stream: bool,
    pub(super) max_tokens: Option<usize>,
    pub(super) stop_sequences: Vec<&'a str>,
    pub(super) tools: &'a [Value],
    pub(super) tool_choice: Option<&'a Value>,
    pub(super) schema: Option<&'a Value>,
    pub(super) thinking: bool,
    /// The texts of the last user turn, without the reminders that the CLI puts there.
    pub(super) last_text: String,
    /// The tool results of the last user turn.
    pub(super) results: Vec<String>,
    /// 1 for the first question of a conversation, and so on.
    pub(super) turn: usize,
    /// Pictures in the whole conversation.
    pub(super) images: usize,
}

impl<'a> Ask<'a> {
    pub(super) fn of(body: &'a Value) -> Self {
        let messages = list(body, "messages");
        let user = messages.iter().rev().find(|message| message["role"] == "user");
        let blocks = user.map_or(&[] as &[Value], |message| list(message, "content"));
        let last_text = match user.map(|message| &message["content"]) {
            Some(Value::String(text)) => text.trim().to_owned(),
            _ => said(blocks),
        };
        let results = blocks.iter().filter(|block| block["type"] == "tool_result").map(result_text).collect();
        let thinking = body["thinking"]["type"].as_str();
        Self {
            model: body["model"].as_str().unwrap_or_default(),
            stream: body["stream"].as_bool().unwrap_or(false),
            max_tokens: body["max_tokens"].as_u64().and_then(|count| usize::try_from(count).ok()),
            stop_sequences: list(body, "stop_sequences").iter().filter_map(Value::as_str).collect(),
            tools: list(body, "tools"),
            tool_choice: body.get("tool_choice").filter(|choice| choice.is_object()),
            schema: body
                .pointer("/output_config/format/schema")
                .or_else(|| body.pointer("/output_format/schema"))
                .filter(|schema| schema.is_object()),
            thinking: matches!(thinking, Some("enabled" | "adaptive")),
            last_text,
            results,
            turn: messages.iter().filter(|message| message["role"] == "assistant").count() + 1,
            images: messages.iter().flat_map(|message| list(message, "content")).map(images).sum(),
        }
    }

    /// The tool called `name`, if the request offers it.
    pub(super) fn tool(&self, name: &str) -> Option<&'a Value> {
        self.tools.iter().find(|tool| tool["name"] == name)
    }
}

/// The entries of an array field; none if it is missing.
pub(super) fn list<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    value[field].as_array().map_or(&[], Vec::as_slice)
}

/// What was said in `blocks`, one line a block, without the CLI's reminders.
fn said(blocks: &[Value]) -> String {
    let texts: Vec<&str> = blocks
        .iter()
        .filter(|block| block["type"] == "text")
        .filter_map(|block| block["text"].as_str())
        .map(str::trim)
        .filter(|text| !text.is_empty() && !text.starts_with("<system-reminder>"))
        .collect();
    texts.join("\n")
}

fn result_text(result: &Value) -> String {
    match &result["content"] {
        Value::String(text) => text.trim().to_owned(),
        _ => said(list(result, "content")),
    }
}

fn images(block: &Value) -> usize {
    match block["type"].as_str() {
        Some("image") => 1,
        Some("tool_result") => list(block, "content").iter().map(images).sum(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn reminders_are_not_what_the_user_said() {
        let body = json!({"model": "claude-sonnet-5", "messages": [
            {"role": "user", "content": [
                {"type": "text", "text": "<system-reminder>\nToday\n</system-reminder>"},
                {"type": "image", "source": {}},
                {"type": "text", "text": " What is this? "},
            ]},
            {"role": "system", "content": "<system-reminder># Environment"},
        ]});
        let ask = Ask::of(&body);
        assert_eq!(ask.last_text, "What is this?");
        assert_eq!((ask.turn, ask.images, ask.stream), (1, 1, false));
    }
}
