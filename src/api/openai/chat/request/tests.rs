use serde_json::json;

use super::*;

/// A request for a good model with one message, and `extra` beside it.
fn body(extra: Value) -> Vec<u8> {
    let mut request = json!({ "model": "sonnet", "messages": [{ "role": "user", "content": "hi" }] });
    if let (Value::Object(request), Value::Object(extra)) = (&mut request, extra) {
        request.extend(extra);
    }
    request.to_string().into_bytes()
}

fn read_with(extra: Value, header: Option<&[u8]>) -> Result<ChatRequest, Error> {
    let catalog = Catalog::new([("sonnet", "claude-sonnet-5")], []);
    let caller = Caller {
        client: "test".into(),
        models: None,
        request_id: "r".into(),
        is_operator: false,
        session_header: header.map(<[u8]>::to_vec),
    };
    parse(&body(extra), &catalog, &caller, ModelNames::Known, None)
}

#[track_caller]
fn read(extra: Value) -> ChatRequest {
    read_with(extra, None).unwrap_or_else(|error| panic!("refused: {error}"))
}

/// Refused with this `param`, and words among which these occur.
#[track_caller]
fn refuse(extra: Value, param: &str, words: &str) {
    let shown = extra.to_string();
    let Err(error) = read_with(extra, None) else { panic!("{shown} was taken") };
    assert_eq!(error.param.as_deref(), Some(param), "{shown}: {error}");
    assert!(error.message.contains(words), "{shown}: {error}");
}

#[test]
fn a_plain_request_leaves_everything_to_the_model() {
    let chat = read(json!({ "no_such_field": { "x": 1 }, "temperature": null, "tools": null, "stop": null }));
    assert_eq!(chat.request.model.id, "claude-sonnet-5");
    assert_eq!(chat.model, "sonnet");
    assert_eq!(chat.request.options, Options::default());
    assert_eq!(chat.session, SessionHint::None);
    assert!(!chat.stream && !chat.include_usage && !chat.show_thinking);
}

#[test]
fn sampling_and_limits_are_mapped() {
    let options = |extra| read(extra).request.options;
    assert_eq!(options(json!({ "max_tokens": 7 })).max_tokens, Some(7));
    assert_eq!(options(json!({ "max_tokens": 7, "max_completion_tokens": 7 })).max_tokens, Some(7));
    assert_eq!(options(json!({ "temperature": 0 })).temperature, Some(0.0));
    assert_eq!(options(json!({ "temperature": 0.7 })).temperature, Some(0.7));
    assert_eq!(options(json!({ "temperature": 1.6 })).temperature, Some(1.0));
    assert_eq!(options(json!({ "top_p": 0.5 })).top_p, Some(0.5));
    assert_eq!(options(json!({ "stop": "END" })).stop, ["END"]);
    assert_eq!(options(json!({ "stop": ["a", "b\n"] })).stop, ["a", "b\n"]);
    assert_eq!(options(json!({ "stop": [] })).stop, Vec::<String>::new());
    assert_eq!(options(json!({ "reasoning_effort": "none", "temperature": 0.5 })).effort, None);
    for (word, effort) in [
        ("minimal", Effort::Low),
        ("low", Effort::Low),
        ("medium", Effort::Medium),
        ("high", Effort::High),
        ("xhigh", Effort::XHigh),
        ("max", Effort::XHigh),
    ] {
        let options = options(json!({ "reasoning_effort": word, "temperature": 1 }));
        assert_eq!((options.effort, options.temperature), (Some(effort), None), "{word}");
    }
    let schema = json!({ "type": "object", "properties": { "z": { "type": "null" }, "a": { "type": "string" } },
        "required": ["z", "a"], "additionalProperties": false });
    let format = json!({ "type": "json_schema", "json_schema": { "name": "n", "strict": true, "schema": schema } });
    assert_eq!(options(json!({ "response_format": format })).output_schema, Some(schema));
    assert_eq!(options(json!({ "response_format": { "type": "text" } })), Options::default());
    let chat = read(json!({ "system": "Be nice.", "response_format": { "type": "json_object" } }));
    assert!(chat.request.system.len() == 2 && chat.request.system[1].contains("JSON object"));
    assert!(chat.request.options.output_check.is_some());
}

#[test]
fn a_wrong_value_is_refused_by_name() {
    refuse(json!({ "model": 7 }), "model", "must be a string");
    refuse(json!({ "model": null }), "model", "is required");
    refuse(json!({ "messages": null }), "messages", "is required");
    refuse(json!({ "temperature": 2.1 }), "temperature", "must be between 0 and 2, not 2.1");
    refuse(json!({ "temperature": -0.1 }), "temperature", "must be between 0 and 2");
    refuse(json!({ "temperature": "hot" }), "temperature", "must be a number, not a string");
    refuse(json!({ "top_p": 1.5 }), "top_p", "must be between 0 and 1");
    refuse(json!({ "max_tokens": 0 }), "max_tokens", "must be an integer of at least 1, not 0");
    refuse(json!({ "max_tokens": -5 }), "max_tokens", "must be an integer of at least 1, not -5");
    refuse(json!({ "max_tokens": 1.5 }), "max_tokens", "must be an integer of at least 1, not 1.5");
    refuse(json!({ "max_tokens": "9" }), "max_tokens", "must be an integer, not a string");
    refuse(json!({ "max_tokens": 1u64 << 40 }), "max_tokens", "must be an integer of at least 1");
    refuse(json!({ "max_tokens": 7, "max_completion_tokens": 8 }), "max_tokens", "send one");
    refuse(json!({ "stop": "" }), "stop", "something else than white space");
    refuse(json!({ "stop": ["a", "\n"] }), "stop[1]", "something else than white space");
    refuse(json!({ "stop": vec!["x"; 17] }), "stop", "16 texts at most, not 17");
    refuse(json!({ "stop": 1 }), "stop", "must be a string or an array of strings, not a number");
    refuse(json!({ "stream": "yes" }), "stream", "must be a boolean");
    refuse(json!({ "stream_options": { "include_usage": true } }), "stream_options", "only allowed with 'stream'");
    refuse(
        json!({ "stream": true, "stream_options": { "include_usage": 1 } }),
        "stream_options.include_usage",
        "boolean",
    );
    refuse(json!({ "reasoning_effort": "huge" }), "reasoning_effort", "not 'huge'");
    refuse(json!({ "reasoning_effort": "low", "temperature": 0.5 }), "temperature", "together with 'reasoning_effort'");
    refuse(json!({ "reasoning_effort": "low", "top_p": 0.5 }), "top_p", "together with 'reasoning_effort'");
    let tools = json!([{ "type": "function", "function": { "name": "f" } }]);
    refuse(
        json!({ "reasoning_effort": "low", "tools": tools, "tool_choice": "required" }),
        "tool_choice",
        "together with 'reasoning_effort'",
    );
    refuse(
        json!({ "response_format": { "type": "json_schema", "json_schema": { "name": "n", "schema": { "type": 5 } } } }),
        "response_format.json_schema.schema",
        "is not a usable JSON schema",
    );
    refuse(json!({ "response_format": { "type": "xml" } }), "response_format.type", "not 'xml'");
    refuse(json!({ "response_format": { "type": "json_schema" } }), "response_format.json_schema", "is required");
    refuse(
        json!({ "response_format": { "type": "json_schema", "json_schema": { "name": "n" } } }),
        "response_format.json_schema.schema",
        "is required",
    );
    refuse(json!({ "priority": "urgent" }), "priority", "not 'urgent'");
    refuse(json!({ "n": 2 }), "n", "is not supported");
    refuse(json!({ "working_directory": "/etc" }), "working_directory", "no access to the server's files");
}

#[test]
fn the_session_is_the_first_of_body_header_and_cache_key() {
    let session = |extra, header: Option<&[u8]>| read_with(extra, header).map(|chat| chat.session).ok();
    let both = json!({ "session_id": "--a b", "prompt_cache_key": "k" });
    assert_eq!(session(both.clone(), Some(b"h")), Some(SessionHint::Session("--a b".into())));
    assert_eq!(session(json!({ "prompt_cache_key": "k" }), Some(b" h ")), Some(SessionHint::Header("h".into())));
    assert_eq!(session(json!({ "prompt_cache_key": "k" }), None), Some(SessionHint::CacheKey("k".into())));
    let longest = "é".repeat(256);
    assert_eq!(session(json!({ "session_id": longest }), None), Some(SessionHint::Session(longest.as_str().into())));

    refuse(json!({ "session_id": "x".repeat(257) }), "session_id", "1 to 256 characters");
    refuse(json!({ "session_id": "" }), "session_id", "1 to 256 characters");
    refuse(json!({ "session_id": "a\nb" }), "session_id", "control characters");
    refuse(json!({ "session_id": 5 }), "session_id", "must be a string");
    refuse(json!({ "prompt_cache_key": "a\u{0}" }), "prompt_cache_key", "control characters");
    assert_eq!(session(json!({}), Some(b"\xff")), None);
    assert_eq!(session(json!({}), Some(b"")), None);
}

#[test]
fn a_system_field_comes_before_the_messages() {
    let chat = read(json!({
        "system": "first",
        "messages": [{ "role": "system", "content": "second" }, { "role": "user", "content": "hi" }],
    }));
    assert_eq!(chat.request.system, ["first", "second"]);
}

#[test]
fn unicode_and_long_texts_pass_intact() {
    let long = "🦀 שלום 漢字 e\u{301} ".repeat(10_000);
    let chat = read(json!({ "messages": [{ "role": "user", "content": long }] }));
    assert_eq!(chat.request.turns[0].blocks, [crate::conversation::Block::Text(long)]);
}

#[test]
fn a_key_with_a_list_may_use_only_its_models() {
    let catalog = Catalog::new([("sonnet", "claude-sonnet-5")], []);
    let check = |models: &[&str]| {
        let caller = Caller {
            client: "test".into(),
            models: Some(models.iter().map(|name| (*name).to_owned()).collect()),
            request_id: "r".into(),
            is_operator: false,
            session_header: None,
        };
        parse(&body(json!({})), &catalog, &caller, ModelNames::Known, None).map(|_| ()).map_err(|error| error.cause)
    };
    assert_eq!(check(&["claude-sonnet-5"]), Ok(()));
    assert_eq!(check(&["claude-opus-4-8"]), Err(crate::api::openai::error::Cause::NotAllowed));
}
