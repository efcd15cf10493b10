//! What becomes of every parameter of `POST /v1/chat/completions`.
//!
//! One table for the code, the documentation and the tests. Nothing that OpenAI defines is dropped in silence: a
//! parameter is honoured, is accepted because it changes nothing that a client could notice, or is refused by name.

use std::fmt::Write as _;

use serde_json::{Map, Value};

use crate::api::field::{Invalid, Path, take, wrong_type};

/// One parameter.
#[derive(Clone, Copy, Debug)]
pub struct Parameter {
    /// Its name in the request.
    pub name: &'static str,
    /// What becomes of it.
    pub treatment: Treatment,
    /// How, or why not.
    pub note: &'static str,
}

/// What becomes of a parameter.
#[derive(Clone, Copy, Debug)]
pub enum Treatment {
    /// It does what OpenAI says, as far as the note does not say otherwise.
    Honoured,
    /// An addition of this server that does what the note says.
    Extension,
    /// It is taken and changes nothing.
    Accepted(Shape),
    /// The request is refused, unless the value asks for nothing that is not done anyway.
    Refused {
        /// The values that are taken, for people; empty for none but `null`.
        unless: &'static str,
        /// Whether a value is one of them.
        harmless: fn(&Value) -> bool,
    },
}

/// The JSON type of an accepted parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A string.
    String,
    /// An object.
    Object,
}

use Treatment::{Accepted, Extension, Honoured};

const fn row(name: &'static str, treatment: Treatment, note: &'static str) -> Parameter {
    Parameter { name, treatment, note }
}

/// Refused whatever the value.
const ALWAYS: Treatment = Treatment::Refused { unless: "", harmless: |_| false };

/// Refused unless it is an empty array, object or string, or `false`.
const FILLED: Treatment = Treatment::Refused { unless: "empty", harmless: empty };

const fn unless(unless: &'static str, harmless: fn(&Value) -> bool) -> Treatment {
    Treatment::Refused { unless, harmless }
}

fn empty(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.is_empty(),
        Value::Object(members) => members.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Bool(flag) => !flag,
        Value::Null => true,
        Value::Number(_) => false,
    }
}

fn zero(value: &Value) -> bool {
    value.as_f64() == Some(0.0)
}

const NO_FILES: &str = "clients have no access to the server's files";
const NO_SETTINGS: &str = "clients do not steer the CLI's own settings";
const NO_SERVER_TOOLS: &str = "the server runs no tools for clients; offer your own in 'tools'";

/// Every parameter that the server knows.
pub const PARAMETERS: &[Parameter] = &[
    row("model", Honoured, "any name of `GET /v1/models`"),
    row(
        "messages",
        Honoured,
        "text, images, tool calls and results; system and developer messages are moved to the front; `name` and an \
         image's `detail` have no effect",
    ),
    row("stream", Honoured, ""),
    row("stream_options", Honoured, "`include_usage`; `include_obfuscation` has no effect"),
    row("max_completion_tokens", Honoured, "thinking counts, as at OpenAI"),
    row("max_tokens", Honoured, "the old name of `max_completion_tokens`"),
    row("temperature", Honoured, "the models take 0 to 1: what is above 1 counts as 1; not with `reasoning_effort`"),
    row("top_p", Honoured, "at least 0.95 with `reasoning_effort`"),
    row("stop", Honoured, "up to 16 texts, each with something else than white space"),
    row(
        "reasoning_effort",
        Honoured,
        "`none`, `minimal` (as `low`), `low`, `medium`, `high`, `xhigh`, `max` (as `xhigh`); the thinking comes as \
         `reasoning_content`; without it the model does not think",
    ),
    row("tools", Honoured, "function tools, up to 128; the client executes them"),
    row("tool_choice", Honoured, "`auto`, `none`, `required`, a named function, `allowed_tools`"),
    row("parallel_tool_calls", Honoured, ""),
    row(
        "response_format",
        Honoured,
        "`text`, `json_object`, `json_schema`; the answer is checked here. An answer as a whole that does not fit is \
         asked for once more (which counts in `usage`), a stream ends with an error in place of its last chunk",
    ),
    row("prompt_cache_key", Honoured, "keeps requests on one subscription, where their prompt is cached"),
    row(
        "session_id",
        Extension,
        "names the conversation: with one new turn the request goes on where it stands; the header `X-Session-Id` only \
         keeps requests on one subscription; both are echoed in the answer",
    ),
    row("priority", Extension, "`low`, `normal` or `high`: how much of the owners' reserve the request may use"),
    row("system", Extension, "a system prompt, put before those of the messages"),
    row("metadata", Accepted(Shape::Object), "nothing is stored"),
    row("user", Accepted(Shape::String), "clients are told apart by their keys"),
    row("safety_identifier", Accepted(Shape::String), "clients are told apart by their keys"),
    row("prompt_cache_retention", Accepted(Shape::String), "the CLI decides how long prompts are cached"),
    row("prompt_cache_options", Accepted(Shape::Object), "the CLI decides how long prompts are cached"),
    row("store", unless("`false`", |value| value == false), "nothing is stored"),
    row(
        "service_tier",
        unless("`auto`, `default`", |value| value == "auto" || value == "default"),
        "there is one tier",
    ),
    row("verbosity", unless("`medium`", |value| value == "medium"), "ask for short or long answers in the prompt"),
    row("n", unless("`1`", |value| value.as_f64() == Some(1.0)), "a request has one answer; send several requests"),
    row("frequency_penalty", unless("`0`", zero), "the models have no such setting"),
    row("presence_penalty", unless("`0`", zero), "the models have no such setting"),
    row("logit_bias", FILLED, "the models have no such setting"),
    row("logprobs", unless("`false`", |value| value == false), "the models do not tell them"),
    row("top_logprobs", unless("`0`", zero), "the models do not tell them"),
    row("seed", ALWAYS, "the models have no such setting"),
    row(
        "modalities",
        unless("`[\"text\"]`", |value| value.as_array().is_some_and(|kinds| kinds.iter().all(|kind| kind == "text"))),
        "answers are text",
    ),
    row("audio", ALWAYS, "answers are text"),
    row("prediction", ALWAYS, "the models have no such setting"),
    row("web_search_options", ALWAYS, NO_SERVER_TOOLS),
    row("moderation", ALWAYS, "there is no moderation model behind this server"),
    row("functions", FILLED, "it is deprecated; use 'tools'"),
    row("function_call", ALWAYS, "it is deprecated; use 'tool_choice'"),
    row("append_system_prompt", FILLED, "send a system message"),
    row("json_schema", FILLED, "use 'response_format'"),
    row("max_budget_usd", ALWAYS, "use 'max_completion_tokens'; budgets belong to the subscriptions' owners"),
    row("max_turns", ALWAYS, NO_SETTINGS),
    row("permission_mode", FILLED, NO_SETTINGS),
    row("dangerously_skip_permissions", FILLED, NO_SETTINGS),
    row("betas", FILLED, NO_SETTINGS),
    row("agents", FILLED, NO_SETTINGS),
    row("settings", FILLED, NO_SETTINGS),
    row("allowed_tools", FILLED, NO_SERVER_TOOLS),
    row("disallowed_tools", FILLED, NO_SERVER_TOOLS),
    row("mcp_config", FILLED, NO_SERVER_TOOLS),
    row("mcp_servers", FILLED, NO_SERVER_TOOLS),
    row("working_directory", FILLED, NO_FILES),
    row("context_files", FILLED, NO_FILES),
    row("add_dirs", FILLED, NO_FILES),
];

/// Takes out of a request what is only accepted, and refuses what is not served. What remains is honoured, or unknown.
pub(super) fn screen(request: &mut Map<String, Value>) -> Result<(), Invalid> {
    for Parameter { name, treatment, note } in PARAMETERS {
        let at = Path::Root.key(name);
        match treatment {
            Honoured | Extension => {}
            Accepted(shape) => {
                let Some(value) = take(request, name) else { continue };
                match shape {
                    Shape::String if !value.is_string() => return Err(wrong_type(&value, "a string", &at)),
                    Shape::Object if !value.is_object() => return Err(wrong_type(&value, "an object", &at)),
                    Shape::String | Shape::Object => {}
                }
            }
            Treatment::Refused { unless, harmless } => {
                let Some(value) = take(request, name) else { continue };
                if !harmless(&value) {
                    let unless =
                        if unless.is_empty() { String::new() } else { format!(" unless {}", unless.replace('`', "")) };
                    return Err(at.unsupported(format_args!("is not supported{unless}: {note}")));
                }
            }
        }
    }
    Ok(())
}

/// The table in Markdown, for the README.
pub fn markdown() -> String {
    let mut text = String::from("| parameter | treatment | note |\n|---|---|---|\n");
    for Parameter { name, treatment, note } in PARAMETERS {
        let treatment = match treatment {
            Honoured => "honoured".to_owned(),
            Extension => "addition".to_owned(),
            Accepted(_) => "accepted, no effect".to_owned(),
            Treatment::Refused { unless: "", .. } => "refused".to_owned(),
            Treatment::Refused { unless, .. } => format!("refused unless {unless}"),
        };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "| `{name}` | {treatment} | {note} |");
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The properties of `CreateChatCompletionRequest` in OpenAI's published schema.
    const OPENAI: &str = "audio frequency_penalty function_call functions logit_bias logprobs max_completion_tokens \
        max_tokens messages metadata modalities model moderation n parallel_tool_calls prediction presence_penalty \
        prompt_cache_key prompt_cache_options prompt_cache_retention reasoning_effort response_format \
        safety_identifier seed service_tier stop store stream stream_options temperature tool_choice tools \
        top_logprobs top_p user verbosity web_search_options";

    #[test]
    fn every_parameter_of_openai_is_in_the_table_once() {
        for name in OPENAI.split_whitespace() {
            let rows = PARAMETERS.iter().filter(|parameter| parameter.name == name).count();
            assert_eq!(rows, 1, "{name}");
        }
        assert_eq!(markdown().lines().count(), PARAMETERS.len() + 2);
    }

    #[test]
    fn a_refusal_names_the_parameter_and_the_reason() {
        let check = |request: Value, expected: Option<&str>| {
            let Value::Object(mut request) = request else { panic!("not an object") };
            let message = screen(&mut request).err().map(|error| error.message);
            assert_eq!(message.as_deref(), expected, "{request:?}");
        };
        check(json!({ "n": 1, "logprobs": false, "top_logprobs": null, "logit_bias": {}, "seed": null }), None);
        check(json!({ "presence_penalty": 0, "frequency_penalty": 0.0, "modalities": ["text"] }), None);
        check(
            json!({ "store": false, "service_tier": "auto", "metadata": {}, "user": "u", "verbosity": "medium" }),
            None,
        );
        check(json!({ "allowed_tools": [], "dangerously_skip_permissions": false, "no_such_field": 1 }), None);
        check(
            json!({ "n": 2 }),
            Some("'n' is not supported unless 1: a request has one answer; send several requests"),
        );
        check(json!({ "seed": 0 }), Some("'seed' is not supported: the models have no such setting"));
        check(
            json!({ "context_files": ["/etc/passwd"] }),
            Some("'context_files' is not supported unless empty: clients have no access to the server's files"),
        );
        check(json!({ "metadata": "x" }), Some("'metadata' must be an object, not a string"));
    }
}
