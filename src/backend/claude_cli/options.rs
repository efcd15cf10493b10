//! What is set in a process for a request, and how it gets from one request's settings to the next one's.
//!
//! Nothing goes away by itself: a setting that is left out of a request has to be taken back by name.

use serde_json::{Map, Value, json};

use super::input::{self, SETTINGS, THINKING};
use crate::backend::messages;
use crate::conversation::{Request, Thinking};

/// What is set in a process. The default is what a fresh one does by itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Applied {
    effort: Option<&'static str>,
    /// What is merged into the provider's request, as JSON text; empty for nothing.
    body: String,
    max_tokens: Option<u32>,
    thinking: Option<u32>,
}

impl Applied {
    /// What `request` wants. `has_shells`: whether the process knows tools, which it would send by itself.
    pub(super) fn wanted(request: &Request, has_shells: bool) -> Self {
        let options = &request.options;
        let mut body = messages::extra_body(options, &request.tools, request.tool_choice.as_ref());
        if has_shells && request.tools.is_empty() {
            body.insert("tools".to_owned(), json!([]));
        }
        Self {
            effort: options
                .effort
                .filter(|_| request.model.thinking != Thinking::Budget)
                .map(crate::conversation::Effort::as_str),
            body: if body.is_empty() { String::new() } else { Value::Object(body).to_string() },
            max_tokens: options.max_tokens,
            thinking: input::thinking_budget(request),
        }
    }

    /// Whether the way to `wanted` can be gone while results of calls are awaited: the CLI then asks the provider again
    /// with the settings that it began its turn with, and only the request's body is read anew.
    pub(super) fn may_change_within_turn(&self, wanted: &Self) -> bool {
        (self.effort, self.max_tokens, self.thinking) == (wanted.effort, wanted.max_tokens, wanted.thinking)
    }

    /// Appends the control requests that lead to `wanted`; none if nothing changes.
    pub(super) fn change_to(&self, wanted: &Self, lines: &mut Vec<u8>) {
        let mut settings = Map::new();
        if self.effort != wanted.effort {
            settings.insert("effortLevel".to_owned(), json!(wanted.effort));
        }
        let mut env = Map::new();
        if self.body != wanted.body {
            let body = if wanted.body.is_empty() { "{}" } else { &wanted.body };
            env.insert("CLAUDE_CODE_EXTRA_BODY".to_owned(), json!(body));
        }
        if self.max_tokens != wanted.max_tokens {
            let most = wanted.max_tokens.map_or_else(String::new, |most| most.to_string());
            env.insert("CLAUDE_CODE_MAX_OUTPUT_TOKENS".to_owned(), json!(most));
        }
        if !env.is_empty() {
            settings.insert("env".to_owned(), Value::Object(env));
        }
        if !settings.is_empty() {
            input::control(lines, SETTINGS, &json!({ "subtype": "apply_flag_settings", "settings": settings }));
        }
        if self.thinking != wanted.thinking {
            let request = json!({ "subtype": "set_max_thinking_tokens", "max_thinking_tokens": wanted.thinking });
            input::control(lines, THINKING, &request);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::conversation::{Effort, Model, Options, Tool};

    fn request(model: &str, options: Options) -> Request {
        Request {
            model: Arc::new(Model::named(model)),
            system: Vec::new(),
            turns: Vec::new(),
            tools: Vec::new(),
            tool_choice: None,
            options,
        }
    }

    fn lines(from: &Applied, to: &Applied) -> Vec<Value> {
        let mut lines = Vec::new();
        from.change_to(to, &mut lines);
        let text = String::from_utf8(lines).unwrap();
        text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["request"].clone()).collect()
    }

    #[test]
    fn what_a_request_leaves_out_is_taken_back() {
        let full = Options {
            max_tokens: Some(5_000),
            temperature: Some(0.5),
            effort: Some(Effort::High),
            ..Options::default()
        };
        let fresh = Applied::default();
        let full = Applied::wanted(&request("claude-sonnet-5", full), false);
        let plain = Applied::wanted(&request("claude-sonnet-5", Options::default()), false);
        assert_eq!(
            lines(&fresh, &full),
            [json!({ "subtype": "apply_flag_settings", "settings": { "effortLevel": "high", "env": {
                "CLAUDE_CODE_EXTRA_BODY": r#"{"temperature":0.5}"#, "CLAUDE_CODE_MAX_OUTPUT_TOKENS": "5000" } } })]
        );
        assert_eq!(
            lines(&full, &plain),
            [
                json!({ "subtype": "apply_flag_settings", "settings": { "effortLevel": null, "env": {
                    "CLAUDE_CODE_EXTRA_BODY": "{}", "CLAUDE_CODE_MAX_OUTPUT_TOKENS": "" } } }),
                json!({ "subtype": "set_max_thinking_tokens", "max_thinking_tokens": 0 }),
            ]
        );
        let back = lines(&plain, &full);
        assert_eq!(back[1], json!({ "subtype": "set_max_thinking_tokens", "max_thinking_tokens": null }));
        assert!(lines(&full, &full).is_empty() && lines(&plain, &plain).is_empty());
    }

    #[test]
    fn a_process_that_knows_tools_sends_none_without_being_asked() {
        let mut request = request("claude-sonnet-4-5", Options::default());
        assert_eq!(Applied::wanted(&request, false).body, "");
        assert_eq!(Applied::wanted(&request, true).body, r#"{"tools":[]}"#);
        request.tools.push(Tool { name: "f".to_owned(), definition: json!({ "name": "f" }) });
        assert_eq!(Applied::wanted(&request, true).body, r#"{"tools":[{"name":"f"}]}"#);
    }
}
