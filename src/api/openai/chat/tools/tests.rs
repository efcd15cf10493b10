use super::*;

fn read(request: Value) -> Result<(Vec<Tool>, Option<ToolChoice>), String> {
    let Value::Object(mut request) = request else { panic!("not an object") };
    tools(&mut request).map_err(|error| error.message)
}

fn function(name: &str) -> Value {
    json!({ "type": "function", "function": { "name": name } })
}

#[test]
fn a_definition_goes_upstream_as_the_client_wrote_it() {
    let schema = json!({ "type": "object", "required": ["z"], "properties": { "z": { "type": "string" }, "a": {} } });
    let (tools, choice) = read(json!({ "tools": [
        { "type": "function", "function": { "name": "get-it", "description": "d", "parameters": schema, "strict": true } },
        { "type": "function", "function": { "name": "bare", "description": null, "parameters": {}, "strict": false } },
        { "type": "function", "function": { "name": "untyped", "parameters": { "anyOf": [] } } },
    ] }))
    .unwrap_or_default();
    let definitions: Vec<_> = tools.iter().map(|tool| tool.definition.to_string()).collect();
    assert_eq!(
        definitions,
        [
            r#"{"name":"get-it","description":"d","input_schema":{"type":"object","required":["z"],"properties":{"z":{"type":"string"},"a":{}}},"strict":true}"#,
            r#"{"name":"bare","input_schema":{"type":"object","properties":{}}}"#,
            r#"{"name":"untyped","input_schema":{"type":"object","anyOf":[]}}"#,
        ]
    );
    assert_eq!(choice, None);
}

#[test]
fn a_choice_is_mapped() {
    let check = |choice: Value, parallel: Option<bool>, names: &[&str], expected: Option<ToolChoice>| {
        let request = json!({
            "tools": [function("a"), function("b")], "tool_choice": choice, "parallel_tool_calls": parallel,
        });
        let (tools, choice) = read(request).unwrap_or_else(|error| panic!("refused: {error}"));
        assert_eq!(tools.iter().map(|tool| tool.name.as_str()).collect::<Vec<_>>(), names);
        assert_eq!(choice, expected);
    };
    let both = &["a", "b"][..];
    check(json!(null), None, both, None);
    check(json!(null), Some(false), both, Some(ToolChoice::Auto { parallel: false }));
    check(json!("auto"), None, both, Some(ToolChoice::Auto { parallel: true }));
    check(json!("none"), Some(false), both, Some(ToolChoice::None));
    check(json!("required"), Some(false), both, Some(ToolChoice::Any { parallel: false }));
    check(function("b"), Some(true), both, Some(ToolChoice::Named { name: "b".into(), parallel: true }));
    let allowed = |mode: &str, names: &[&str]| {
        let tools: Vec<_> = names.iter().map(|name| function(name)).collect();
        json!({ "type": "allowed_tools", "allowed_tools": { "mode": mode, "tools": tools } })
    };
    check(allowed("required", &["b"]), None, &["b"], Some(ToolChoice::Any { parallel: true }));
    check(allowed("auto", &["a"]), None, &["a"], Some(ToolChoice::Auto { parallel: true }));
    check(allowed("auto", &[]), None, &[], None);
}

#[test]
fn what_cannot_be_offered_is_refused_with_its_place() {
    let check = |request: Value, expected: &str| assert_eq!(read(request).err().as_deref(), Some(expected));
    let long = "x".repeat(65);
    check(json!({ "tools": {} }), "'tools' must be an array, not an object");
    check(json!({ "tools": [{}] }), "'tools[0].type' is required");
    check(json!({ "tools": [{ "type": "web" }] }), "'tools[0].type' must be 'function', not 'web'");
    check(
        json!({ "tools": [{ "type": "custom", "custom": {} }] }),
        "'tools[0].type' is 'custom', which is not supported: use 'function'",
    );
    check(json!({ "tools": [{ "type": "function" }] }), "'tools[0].function' is required");
    for name in ["", "a b", "ü", &long] {
        check(
            json!({ "tools": [function("ok"), function(name)] }),
            "'tools[1].function.name' must be 1 to 64 characters out of a-z, A-Z, 0-9, '_' and '-'",
        );
    }
    check(
        json!({ "tools": [function("a"), function("a")] }),
        "'tools[1].function.name' is 'a', the name of another tool",
    );
    check(
        json!({ "tools": [{ "type": "function", "function": { "name": "a", "parameters": { "type": "string" } } }] }),
        "'tools[0].function.parameters.type' must be 'object'",
    );
    check(
        json!({ "tools": [{ "type": "function", "function": { "name": "a", "parameters": "{}" } }] }),
        "'tools[0].function.parameters' must be an object, not a string",
    );
    check(json!({ "tool_choice": "required" }), "'tool_choice' is 'required', but there are no 'tools'");
    check(json!({ "tool_choice": "any" }), "'tool_choice' must be 'auto', 'none', 'required' or an object, not 'any'");
    check(
        json!({ "tools": [function("a")], "tool_choice": function("b") }),
        "'tool_choice.function.name' is 'b', which is none of the 'tools'",
    );
    check(
        json!({ "tools": [function("a")], "tool_choice": { "type": "custom", "custom": { "name": "a" } } }),
        "'tool_choice.type' must be 'function' or 'allowed_tools', not 'custom'",
    );
    check(
        json!({ "tool_choice": { "type": "allowed_tools", "allowed_tools": { "mode": "auto", "tools": [function("x")] } } }),
        "'tool_choice.allowed_tools.tools[0].function.name' is 'x', which is none of the 'tools'",
    );
}

#[test]
fn exactly_as_many_tools_as_openai_takes() {
    let offer = |count: usize| {
        let tools: Vec<_> = (0..count).map(|index| function(&format!("t{index}"))).collect();
        read(json!({ "tools": tools })).map(|(tools, _)| tools.len())
    };
    assert_eq!(offer(128), Ok(128));
    assert_eq!(offer(129), Err("'tools' may hold 128 tools at most, not 129".into()));
}
