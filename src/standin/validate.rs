//! What the real API refuses in a request's structure. Only rules that Anthropic documents or that are long known.

use std::collections::BTreeSet;

use serde_json::Value;

use super::ask::list;

/// Why the API would answer 400, if it would.
pub(super) fn structure(body: &Value) -> Option<String> {
    let Some(max_tokens) = body["max_tokens"].as_u64() else { return Some("max_tokens: Field required".into()) };
    if max_tokens == 0 {
        return Some("max_tokens: Input should be greater than or equal to 1".into());
    }
    thinking(body, max_tokens).or_else(|| tools(body)).or_else(|| messages(list(body, "messages")))
}

/// Why the API would refuse the sampling parameters, if it would: models since Opus 4.7 and Sonnet 5 take none, those
/// since Opus 4.1 take either `temperature` or `top_p`.
pub(super) fn sampling(body: &Value) -> Option<String> {
    const LENIENT: [&str; 3] = ["claude-3", "claude-opus-4-2025", "claude-sonnet-4-2025"];
    const EITHER: [&str; 6] = ["opus-4-1", "opus-4-5", "opus-4-6", "sonnet-4-5", "sonnet-4-6", "haiku-4-5"];
    let model = body["model"].as_str().unwrap_or_default();
    let given = |field: &str| body.get(field).is_some_and(|value| !value.is_null());
    if LENIENT.iter().any(|prefix| model.starts_with(prefix)) {
        return None;
    }
    if EITHER.iter().any(|line| model.contains(line)) {
        let both = given("temperature") && given("top_p");
        return both.then(|| "`temperature` and `top_p` cannot both be specified for this model.".into());
    }
    let refused = ["temperature", "top_p", "top_k"].into_iter().find(|field| given(field) && body[*field] != 1)?;
    Some(format!("`{refused}` is not supported by this model."))
}

fn thinking(body: &Value, max_tokens: u64) -> Option<String> {
    let thinking = &body["thinking"];
    let on = matches!(thinking["type"].as_str(), Some("enabled" | "adaptive"));
    if thinking["type"] == "enabled" {
        let budget = thinking["budget_tokens"].as_u64().unwrap_or(0);
        if budget < 1024 {
            return Some("thinking.enabled.budget_tokens: Input should be greater than or equal to 1024".into());
        }
        if budget >= max_tokens {
            return Some("`max_tokens` must be greater than `thinking.budget_tokens`.".into());
        }
    }
    if on && body["temperature"].as_f64().is_some_and(|value| (value - 1.0).abs() > f64::EPSILON) {
        return Some("`temperature` may only be set to 1 when thinking is enabled.".into());
    }
    let forced = matches!(body["tool_choice"]["type"].as_str(), Some("any" | "tool"));
    (on && forced).then(|| "Thinking may not be enabled when tool_choice forces tool use.".into())
}

fn tools(body: &Value) -> Option<String> {
    let mut names = BTreeSet::new();
    for (index, tool) in list(body, "tools").iter().enumerate() {
        let name = tool["name"].as_str().unwrap_or_default();
        let legal = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        if name.is_empty() || name.len() > 128 || !name.chars().all(legal) {
            return Some(format!("tools.{index}.custom.name: String should match pattern '^[a-zA-Z0-9_-]{{1,128}}$'"));
        }
        if !names.insert(name) {
            return Some("tools: Tool names must be unique.".into());
        }
    }
    let wanted = body["tool_choice"]["name"].as_str().filter(|_| body["tool_choice"]["type"] == "tool")?;
    (!names.contains(wanted)).then(|| format!("Tool '{wanted}' not found in provided tools"))
}

fn messages(messages: &[Value]) -> Option<String> {
    if messages.is_empty() {
        return Some("messages: at least one message is required".into());
    }
    if messages.iter().all(|message| message["role"] != "user") {
        return Some("messages: at least one user message is required".into());
    }
    let mut open: BTreeSet<&str> = BTreeSet::new();
    for (index, message) in messages.iter().enumerate() {
        let content = list(message, "content");
        if message["content"] == "" || (message["content"].is_array() && content.is_empty()) {
            return Some(format!("messages.{index}: all messages must have non-empty content"));
        }
        if content.iter().any(|block| block["type"] == "text" && block["text"] == "") {
            return Some(format!("messages.{index}: text content blocks must be non-empty"));
        }
        let ids = |kind: &'static str, field: &'static str| {
            content.iter().filter(move |block| block["type"] == kind).filter_map(move |block| block[field].as_str())
        };
        match message["role"].as_str() {
            Some("user") => {
                for id in ids("tool_result", "tool_use_id") {
                    if !open.remove(id) {
                        return Some(format!(
                            "messages.{index}.content: unexpected `tool_use_id` found in `tool_result` blocks: {id}. \
                             Each `tool_result` block must have a corresponding `tool_use` block in the previous message."
                        ));
                    }
                }
                if let Some(id) = open.first() {
                    return Some(without_result(index - 1, id));
                }
            }
            Some("assistant") => open.extend(ids("tool_use", "id")),
            // The CLI puts its own reminders between the turns.
            Some("system") => {}
            _ => return Some(format!("messages.{index}.role: Input should be 'user' or 'assistant'")),
        }
    }
    open.first().map(|id| without_result(messages.len() - 1, id))
}

fn without_result(index: usize, id: &str) -> String {
    format!("messages.{index}: `tool_use` ids were found without `tool_result` blocks immediately after: {id}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_call_needs_its_result_and_a_result_its_call() {
        let call =
            json!({"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "f", "input": {}}]});
        let result = json!({"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": ""}]});
        let ask = json!({"role": "user", "content": "hi"});
        let check = |messages: Value| structure(&json!({"max_tokens": 10, "messages": messages}));
        assert_eq!(check(json!([ask, call, result])), None);
        assert!(check(json!([ask, call, ask])).is_some_and(|why| why.contains("without `tool_result`")));
        assert!(check(json!([ask, call])).is_some());
        assert!(check(json!([ask, result])).is_some_and(|why| why.contains("unexpected `tool_use_id`")));
    }

    #[test]
    fn a_thinking_budget_must_fit() {
        let check = |budget: u64, max: u64| {
            structure(&json!({"max_tokens": max, "thinking": {"type": "enabled", "budget_tokens": budget},
                "messages": [{"role": "user", "content": "hi"}]}))
        };
        assert_eq!(check(1024, 2000), None);
        assert!(check(1023, 2000).is_some());
        assert!(check(2000, 2000).is_some());
    }

    #[test]
    fn newer_models_take_no_sampling_parameters() {
        let check = |model: &str| sampling(&json!({"model": model, "temperature": 0.3, "top_p": 0.9}));
        assert!(check("claude-opus-4-8").is_some());
        assert!(check("claude-sonnet-4-5").is_some_and(|why| why.contains("cannot both")));
        assert_eq!(sampling(&json!({"model": "claude-sonnet-4-5", "temperature": 0.3})), None);
        assert_eq!(sampling(&json!({"model": "claude-opus-4-8", "temperature": 1})), None);
    }
}
