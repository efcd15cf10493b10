use serde_json::json;

use super::*;
use crate::conversation::ImageSource;

fn read(messages: Value) -> Result<(Vec<String>, Vec<Turn>), String> {
    conversation(messages, false, &Path::Root.key("messages"))
        .map(|conversation| (conversation.system, conversation.turns))
        .map_err(|error| error.message)
}

fn user(blocks: Vec<Block>) -> Turn {
    Turn { role: Role::User, blocks }
}

fn model(blocks: Vec<Block>) -> Turn {
    Turn { role: Role::Assistant, blocks }
}

fn text(text: &str) -> Block {
    Block::Text(text.into())
}

fn call(id: &str, name: &str, input: Value) -> Block {
    Block::ToolUse { id: id.into(), name: name.into(), input }
}

fn result(id: &str, texts: &[&str]) -> Block {
    let content = texts.iter().map(|text| ToolResultContent::Text((*text).into())).collect();
    Block::ToolResult { tool_use_id: id.into(), content, is_error: false }
}

#[track_caller]
fn check(messages: Value, system: &[&str], turns: &[Turn]) {
    let (read_system, read_turns) = read(messages).unwrap_or_else(|error| panic!("refused: {error}"));
    assert_eq!(read_system, system);
    assert_eq!(read_turns, turns);
}

#[track_caller]
fn refuse(messages: Value, expected: &str) {
    assert_eq!(read(messages).err().as_deref(), Some(expected));
}

#[test]
fn system_and_developer_messages_move_to_the_front_in_order() {
    check(
        json!([
            { "role": "system", "content": "one" },
            { "role": "user", "content": "hi" },
            { "role": "developer", "content": [{ "type": "text", "text": "two" }, { "type": "text", "text": "three" }] },
            { "role": "system", "content": "  " },
            { "role": "user", "content": "again" },
        ]),
        &["one", "two", "three"],
        &[user(vec![text("hi"), text("again")])],
    );
}

#[test]
fn neighbours_of_one_side_become_one_turn() {
    check(
        json!([
            { "role": "user", "content": "a" },
            { "role": "user", "content": [{ "type": "text", "text": "b" }, { "type": "text", "text": "" }] },
            { "role": "assistant", "content": "c" },
            { "role": "assistant", "content": [{ "type": "refusal", "refusal": "d" }], "refusal": "e" },
            { "role": "user", "content": [
                { "type": "image_url", "image_url": { "url": "https://h/i.png", "detail": "low" } },
                { "type": "text", "text": "f" },
            ] },
        ]),
        &[],
        &[
            user(vec![text("a"), text("b")]),
            model(vec![text("c"), text("d"), text("e")]),
            user(vec![Block::Image(ImageSource::Url("https://h/i.png".into())), text("f")]),
        ],
    );
}

#[test]
fn an_answer_that_was_broken_off_before_its_first_word_is_left_out() {
    check(
        json!([
            { "role": "user", "content": "a" },
            { "role": "assistant", "content": "" },
            { "role": "user", "content": "b" },
        ]),
        &[],
        &[user(vec![text("a"), text("b")])],
    );
}

#[test]
fn calls_and_results_keep_their_order_and_the_users_words_follow_the_results() {
    check(
        json!([
            { "role": "user", "content": "weather?" },
            { "role": "assistant", "content": null, "tool_calls": [
                { "id": "c1", "type": "function", "function": { "name": "weather", "arguments": "{\"z\":1,\"a\":2}" } },
                { "id": "functions.time:0", "function": { "name": "time", "arguments": "" } },
            ] },
            { "role": "tool", "tool_call_id": "functions.time:0", "content": "noon" },
            { "role": "tool", "tool_call_id": "c1", "content": [{ "type": "text", "text": "sun" }, { "type": "text", "text": "hot" }] },
            { "role": "user", "content": "and?" },
            { "role": "assistant", "content": "fine", "tool_calls": [
                { "id": "c1", "type": "function", "function": { "name": "weather", "arguments": "{}" } },
            ] },
            { "role": "tool", "tool_call_id": "c1", "content": "" },
        ]),
        &[],
        &[
            user(vec![text("weather?")]),
            model(vec![call("c1", "weather", json!({ "z": 1, "a": 2 })), call("functions_time_0", "time", json!({}))]),
            user(vec![result("functions_time_0", &["noon"]), result("c1", &["sun", "hot"]), text("and?")]),
            model(vec![text("fine"), call("c1", "weather", json!({}))]),
            user(vec![result("c1", &[])]),
        ],
    );
}

#[test]
fn arguments_keep_the_order_in_which_the_model_wrote_them() {
    let (_, turns) = read(json!([
        { "role": "user", "content": "x" },
        { "role": "assistant", "tool_calls": [
            { "id": "c", "type": "function", "function": { "name": "f", "arguments": "{\"z\":1.0,\"a\":[true],\"m\":\"é\"}" } },
        ] },
        { "role": "tool", "tool_call_id": "c", "content": "ok" },
    ]))
    .unwrap_or_default();
    let Block::ToolUse { input, .. } = &turns[1].blocks[0] else { panic!("no call: {turns:?}") };
    assert_eq!(input.to_string(), "{\"z\":1.0,\"a\":[true],\"m\":\"é\"}");
}

#[test]
fn what_is_no_conversation_is_refused_with_its_place() {
    let hi = json!({ "role": "user", "content": "hi" });
    refuse(json!("hi"), "'messages' must be an array, not a string");
    refuse(json!([]), "'messages' must hold at least one message");
    refuse(json!([7]), "'messages[0]' must be an object, not a number");
    refuse(json!([{ "content": "hi" }]), "'messages[0].role' is required");
    refuse(
        json!([{ "role": "robot", "content": "hi" }]),
        "'messages[0].role' must be 'system', 'developer', 'user', 'assistant' or 'tool', not 'robot'",
    );
    refuse(
        json!([{ "role": "function", "name": "f", "content": "hi" }]),
        "'messages[0].role' is 'function', which is deprecated: use 'tool'",
    );
    refuse(json!([{ "role": "system", "content": "hi" }]), "'messages' must hold at least one user message");
    refuse(
        json!([{ "role": "assistant", "content": "hello" }, hi]),
        "'messages[0].role' must be 'user' in the conversation's first message",
    );
    refuse(
        json!([hi, { "role": "assistant", "content": "hello" }]),
        "'messages[1].role' is not supported for the last message: end with a user or a tool message",
    );
    refuse(json!([{ "role": "user", "content": "" }]), "'messages[0].content' must not be empty");
    refuse(json!([{ "role": "user", "content": " \n" }]), "'messages[0].content' must not be empty");
    refuse(json!([{ "role": "user", "content": [] }]), "'messages[0].content' must not be empty");
    refuse(json!([{ "role": "user", "content": null }]), "'messages[0].content' is required");
    refuse(
        json!([hi, { "role": "user", "content": [{ "type": "image_url", "image_url": { "url": "http://h/i" } }] }]),
        "'messages[1].content[0].image_url.url' is an http: URL, which is not supported: use https: or a data: URL",
    );
    refuse(
        json!([{ "role": "system", "content": [{ "type": "image_url", "image_url": { "url": "https://h/i" } }] }]),
        "'messages[0].content[0].type' is 'image_url', which has no place in a message of this role",
    );
    refuse(json!([hi, { "role": "assistant" }, hi]), "'messages[1].content' is required");
    refuse(
        json!([hi, { "role": "assistant", "content": "x", "function_call": { "name": "f", "arguments": "{}" } }, hi]),
        "'messages[1].function_call' is not supported: it is deprecated; use 'tool_calls'",
    );
    refuse(
        json!([hi, { "role": "assistant", "audio": { "id": "a" } }, hi]),
        "'messages[1].audio' is not supported: send the text of the answer",
    );
}

#[test]
fn calls_and_results_must_match() {
    let hi = json!({ "role": "user", "content": "hi" });
    let asks = |id: &str, arguments: &str| {
        json!({ "role": "assistant", "tool_calls": [
            { "id": id, "type": "function", "function": { "name": "f", "arguments": arguments } },
        ] })
    };
    let tells = |id: &str| json!({ "role": "tool", "tool_call_id": id, "content": "x" });
    refuse(
        json!([hi, tells("c")]),
        "'messages[1].tool_call_id' is 'c', which is no unanswered call of the assistant message before it",
    );
    refuse(
        json!([hi, asks("c", "{}"), tells("c"), tells("c")]),
        "'messages[3].tool_call_id' is 'c', which is no unanswered call of the assistant message before it",
    );
    refuse(
        json!([hi, asks("c", "{}"), hi]),
        "'messages[1].tool_calls' must be followed by a tool message for each call, and there is none for 'c'",
    );
    refuse(
        json!([hi, asks("c", "{}")]),
        "'messages[1].tool_calls' must be followed by a tool message for each call, and there is none for 'c'",
    );
    let bad_arguments = "'messages[1].tool_calls[0].function.arguments' must be a JSON object as text";
    refuse(json!([hi, asks("c", "{"), tells("c")]), bad_arguments);
    refuse(json!([hi, asks("c", "[1]"), tells("c")]), bad_arguments);
    refuse(json!([hi, asks("c", &"{\"a\":".repeat(200)), tells("c")]), bad_arguments);
    refuse(json!([hi, asks("", "{}")]), "'messages[1].tool_calls[0].id' must be 1 to 256 characters");
    let mut twice = asks("c", "{}");
    let again = twice["tool_calls"][0].clone();
    if let Some(calls) = twice["tool_calls"].as_array_mut() {
        calls.push(again);
    }
    refuse(json!([hi, twice]), "'messages[1].tool_calls[1].id' is the id of another call in the same message");
    let mut custom = asks("c", "{}");
    custom["tool_calls"][0]["type"] = "custom".into();
    refuse(
        json!([hi, custom]),
        "'messages[1].tool_calls[0].type' must be 'function': other kinds of calls are not supported",
    );
}

#[test]
fn as_many_calls_as_openai_takes() {
    let asks = |count: usize| {
        let calls: Vec<_> = (0..count)
            .map(|index| json!({ "id": index.to_string(), "function": { "name": "f", "arguments": "{}" } }))
            .collect();
        let results =
            (0..count).map(|index| json!({ "role": "tool", "tool_call_id": index.to_string(), "content": "" }));
        let mut messages =
            vec![json!({ "role": "user", "content": "hi" }), json!({ "role": "assistant", "tool_calls": calls })];
        messages.extend(results);
        read(messages.into())
    };
    assert!(asks(128).is_ok());
    assert_eq!(asks(129).err().as_deref(), Some("'messages[1].tool_calls' may hold 128 calls at most, not 129"));
}

mod properties {
    use proptest::prelude::*;

    use super::*;

    /// A message as some client might send it, right or wrong.
    fn message() -> impl Strategy<Value = Value> {
        let role = prop_oneof![
            4 => Just("user"), 4 => Just("assistant"), 3 => Just("tool"), 1 => Just("system"), 1 => Just("developer"),
        ];
        let text = prop_oneof![Just(""), Just(" "), Just("a"), Just("b")];
        let content = prop_oneof![
            3 => text.clone().prop_map(Value::from),
            1 => Just(Value::Null),
            2 => prop::collection::vec(text.prop_map(|text| json!({ "type": "text", "text": text })), 0..3).prop_map(Value::from),
        ];
        let id = prop_oneof![Just("c1"), Just("c.1"), Just("c2")];
        let call = id.clone().prop_map(|id| json!({ "id": id, "function": { "name": "f", "arguments": "{}" } }));
        let calls = prop_oneof![
            2 => Just(Value::Null),
            1 => prop::collection::vec(call, 0..3).prop_map(Value::from),
        ];
        (role, content, calls, id).prop_map(|(role, content, calls, id)| {
            json!({ "role": role, "content": content, "tool_calls": calls, "tool_call_id": id })
        })
    }

    proptest! {
        #[test]
        fn whatever_is_taken_is_a_conversation_the_provider_takes(messages in prop::collection::vec(message(), 0..12)) {
            let Ok((_, turns)) = read(messages.into()) else { return Ok(()) };
            prop_assert_eq!(turns.len() % 2, 1);
            let mut asked: Vec<String> = Vec::new();
            for (index, turn) in turns.iter().enumerate() {
                prop_assert_eq!(turn.role, if index % 2 == 0 { Role::User } else { Role::Assistant });
                prop_assert!(!turn.blocks.is_empty());
                let is_result = |block: &&Block| matches!(block, Block::ToolResult { .. });
                let mut answered = Vec::new();
                for block in turn.blocks.iter().take_while(is_result) {
                    if let Block::ToolResult { tool_use_id, .. } = block {
                        answered.push(tool_use_id.clone());
                    }
                }
                // Results come first, each call has one, and there are no others.
                prop_assert_eq!(turn.blocks.iter().filter(is_result).count(), answered.len());
                answered.sort();
                asked.sort();
                prop_assert_eq!(&answered, &asked);
                asked.clear();
                for block in &turn.blocks {
                    match block {
                        Block::Text(text) => prop_assert!(!text.trim().is_empty()),
                        Block::ToolUse { id, .. } => asked.push(id.clone()),
                        Block::ToolResult { .. } | Block::Image(_) => {}
                    }
                }
            }
        }
    }
}
