//! Events in, bytes of the dialect out.

use std::time::Duration;

use futures_util::stream;
use serde_json::{Value, json};

use super::response::{Completion, Envelope};
use super::stream::Chunks;
use super::*;
use crate::conversation::{Event, StopReason, Usage};
use crate::gateway::{Failure, FailureKind, GatewayError};

type Events = Vec<Result<Event, GatewayError>>;

const USAGE: Usage = Usage { input: 10, cache_creation: 20, cache_read: 30, output: 7, reasoning: 2 };

fn envelope() -> Envelope {
    Envelope {
        id: "chatcmpl-1".into(),
        created: 5,
        model: "gpt-4o".into(),
        session_id: None,
        show_thinking: false,
        is_structured: false,
    }
}

#[expect(clippy::unnecessary_wraps, reason = "as the stream carries it")]
fn text(text: &str) -> Result<Event, GatewayError> {
    Ok(Event::Text(text.into()))
}

#[expect(clippy::unnecessary_wraps, reason = "as the stream carries it")]
fn finished(stop: StopReason) -> Result<Event, GatewayError> {
    Ok(Event::Finished { stop, usage: USAGE })
}

fn call(index: usize, id: &str, arguments: &[&str]) -> Events {
    let mut events = vec![Ok(Event::ToolUse { index, id: id.into(), name: "f".into() })];
    events.extend(arguments.iter().map(|json| Ok(Event::ToolInput { index, json: (*json).into() })));
    events
}

async fn frames(envelope: Envelope, events: Events, include_usage: bool) -> Vec<String> {
    let chunks = Chunks::new(envelope, stream::iter(events).boxed(), include_usage);
    chunks.map(|frame| frame.data).collect().await
}

async fn document(envelope: &Envelope, events: Events) -> Value {
    match Completion::collect(stream::iter(events).boxed(), envelope.show_thinking).await {
        Ok(completion) => completion.document(envelope),
        Err(error) => error.body(),
    }
}

/// A chunk around `choices`, as bytes.
fn chunk(choices: &str) -> String {
    format!(
        r#"{{"id":"chatcmpl-1","object":"chat.completion.chunk","created":5,"model":"gpt-4o","choices":[{choices}]}}"#
    )
}

fn delta(delta: &str) -> String {
    chunk(&format!(r#"{{"index":0,"delta":{delta},"logprobs":null,"finish_reason":null}}"#))
}

#[tokio::test]
async fn a_stream_is_role_text_reason_and_done() {
    let events =
        vec![Ok(Event::Started(Usage::default())), text("Hel"), text("lo \"you\"\n"), finished(StopReason::EndTurn)];
    assert_eq!(
        frames(envelope(), events, false).await,
        [
            delta(r#"{"role":"assistant","content":""}"#),
            delta(r#"{"content":"Hel"}"#),
            delta(r#"{"content":"lo \"you\"\n"}"#),
            chunk(r#"{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}"#),
            "[DONE]".into(),
        ]
    );
}

#[tokio::test]
async fn usage_comes_last_and_is_null_before() {
    let envelope = Envelope { session_id: Some("s".into()), ..envelope() };
    let frames = frames(envelope, vec![text("x"), finished(StopReason::MaxTokens)], true).await;
    let chunks: Vec<Value> = frames.iter().map(|frame| serde_json::from_str(frame).unwrap_or_default()).collect();
    assert_eq!(frames.len(), 5);
    for chunk in &chunks[..3] {
        assert_eq!(chunk.get("usage"), Some(&Value::Null), "{chunk}");
    }
    assert_eq!(chunks[2]["choices"][0]["finish_reason"], "length");
    assert_eq!(chunks[2]["session_id"], "s");
    assert_eq!(chunks[3]["choices"], json!([]));
    assert_eq!(chunks[3]["usage"]["prompt_tokens"], 60);
    assert_eq!(chunks[3]["usage"]["completion_tokens"], 7);
    assert_eq!(chunks[3]["usage"]["total_tokens"], 67);
    assert_eq!(chunks[3]["usage"]["prompt_tokens_details"]["cached_tokens"], 30);
    assert_eq!(chunks[3]["usage"]["completion_tokens_details"]["reasoning_tokens"], 2);
    assert_eq!(frames[4], "[DONE]");
}

#[tokio::test]
async fn calls_stream_their_arguments_and_a_bare_call_gets_an_empty_object() {
    let mut events = call(0, "a", &[""]);
    events.extend(call(1, "b", &["{\"x\"", ":1}"]));
    events.extend(call(2, "c", &[]));
    events.push(finished(StopReason::ToolUse));
    let begin = |index: usize, id: &str| {
        delta(&format!(
            r#"{{"tool_calls":[{{"index":{index},"id":"{id}","type":"function","function":{{"name":"f","arguments":""}}}}]}}"#
        ))
    };
    let more = |index: usize, arguments: &str| {
        delta(&format!(r#"{{"tool_calls":[{{"index":{index},"function":{{"arguments":"{arguments}"}}}}]}}"#))
    };
    assert_eq!(
        frames(envelope(), events, false).await,
        [
            delta(r#"{"role":"assistant","content":""}"#),
            begin(0, "a"),
            more(0, "{}"),
            begin(1, "b"),
            more(1, r#"{\"x\""#),
            more(1, ":1}"),
            begin(2, "c"),
            more(2, "{}"),
            chunk(r#"{"index":0,"delta":{},"logprobs":null,"finish_reason":"tool_calls"}"#),
            "[DONE]".into(),
        ]
    );
}

#[tokio::test]
async fn thinking_is_shown_only_to_who_asked_for_it() {
    let events = || vec![Ok(Event::Thinking("hm".into())), text("x"), finished(StopReason::EndTurn)];
    assert_eq!(frames(envelope(), events(), false).await.len(), 4);
    let shown = frames(Envelope { show_thinking: true, ..envelope() }, events(), false).await;
    assert_eq!(shown[1], delta(r#"{"reasoning_content":"hm"}"#));
    assert_eq!(document(&envelope(), events()).await["choices"][0]["message"].get("reasoning_content"), None);
    let shown = document(&Envelope { show_thinking: true, ..envelope() }, events()).await;
    assert_eq!(shown["choices"][0]["message"]["reasoning_content"], "hm");
}

#[tokio::test]
async fn an_error_after_the_first_byte_is_the_last_frame() {
    let failure = || GatewayError::Failed(Failure::new(FailureKind::Crashed, "exit status 1"));
    let expected = r#"{"error":{"message":"The Claude CLI ended before the answer was complete.","type":"server_error","param":null,"code":"upstream_error"}}"#;
    let streamed = frames(envelope(), vec![text("x"), Err(failure()), text("never")], true).await;
    assert_eq!(streamed.len(), 3);
    assert_eq!(streamed[2], expected);
    assert_eq!(document(&envelope(), vec![text("x"), Err(failure())]).await.to_string(), expected);
    // A stream that just ends is an error too, never a short answer.
    let streamed = frames(envelope(), vec![text("x")], false).await;
    assert!(streamed[2].contains("upstream_error"), "{streamed:?}");
    assert_eq!(document(&envelope(), vec![text("x")]).await["error"]["code"], "upstream_error");
}

#[tokio::test]
async fn a_whole_answer_has_openais_shape() {
    let envelope = Envelope { session_id: Some("s".into()), ..envelope() };
    let events = vec![text("Hel"), text("lo"), finished(StopReason::StopSequence), text("never")];
    assert_eq!(
        document(&envelope, events).await.to_string(),
        concat!(
            r#"{"id":"chatcmpl-1","object":"chat.completion","created":5,"model":"gpt-4o","choices":[{"index":0,"#,
            r#""message":{"role":"assistant","content":"Hello","refusal":null,"annotations":[]},"logprobs":null,"#,
            r#""finish_reason":"stop"}],"usage":{"prompt_tokens":60,"completion_tokens":7,"total_tokens":67,"#,
            r#""prompt_tokens_details":{"cached_tokens":30,"cache_write_tokens":20,"audio_tokens":0},"#,
            r#""completion_tokens_details":{"reasoning_tokens":2,"audio_tokens":0,"#,
            r#""accepted_prediction_tokens":0,"rejected_prediction_tokens":0}},"session_id":"s"}"#,
        )
    );
}

#[tokio::test]
async fn a_whole_answer_of_calls_has_no_content() {
    let mut events = call(0, "a", &[]);
    events.extend(call(1, "b", &["{\"x\":", "1}"]));
    events.push(finished(StopReason::ToolUse));
    let document = document(&envelope(), events).await;
    let choice = &document["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls");
    assert_eq!(choice["message"]["content"], Value::Null);
    assert_eq!(
        choice["message"]["tool_calls"],
        json!([
            { "id": "a", "type": "function", "function": { "name": "f", "arguments": "{}" } },
            { "id": "b", "type": "function", "function": { "name": "f", "arguments": "{\"x\":1}" } },
        ])
    );
}

#[tokio::test]
async fn a_refusal_of_the_provider_is_a_content_filter() {
    let document = document(&envelope(), vec![finished(StopReason::Refusal)]).await;
    assert_eq!(document["choices"][0]["finish_reason"], "content_filter");
    assert_eq!(document["choices"][0]["message"]["content"], "");
}

#[tokio::test]
async fn a_refusal_has_its_own_field_where_json_is_expected() {
    let envelope = Envelope { is_structured: true, ..envelope() };
    let choice = &document(&envelope, vec![text("I won't."), finished(StopReason::Refusal)]).await["choices"][0];
    assert_eq!((&choice["finish_reason"], &choice["message"]["content"]), (&json!("stop"), &Value::Null));
    assert_eq!(choice["message"]["refusal"], "I won't.");
    let frames = frames(envelope, vec![finished(StopReason::Refusal)], false).await;
    assert_eq!(frames[1], delta(r#"{"refusal":"The model refused to answer."}"#));
    assert!(frames[2].contains(r#""finish_reason":"stop""#) && frames[3] == "[DONE]", "{frames:?}");
}

#[tokio::test]
async fn what_follows_the_end_is_not_waited_for() {
    // Bookkeeping events may come long after the answer: neither form may wait for them.
    let late = || stream::iter(vec![finished(StopReason::EndTurn)]).chain(stream::pending()).boxed();
    let chunks = Chunks::new(envelope(), late(), false);
    let streamed = tokio::time::timeout(Duration::from_secs(5), chunks.count()).await;
    assert_eq!(streamed.ok(), Some(3));
    let whole = tokio::time::timeout(Duration::from_secs(5), Completion::collect(late(), false)).await;
    assert!(whole.is_ok_and(|answer| answer.is_ok()));
}

mod properties {
    use futures_util::FutureExt as _;
    use proptest::prelude::*;

    use super::*;

    /// What a provider may say: blocks one after the other, each in pieces.
    fn answer() -> impl Strategy<Value = Vec<Event>> {
        let pieces = || prop::collection::vec("[a-z\" \\\\\n é🦀]{0,3}", 0..4);
        let block = prop_oneof![
            pieces().prop_map(|pieces| (0, pieces)),
            pieces().prop_map(|pieces| (1, pieces)),
            pieces().prop_map(|pieces| (2, pieces)),
        ];
        prop::collection::vec(block, 0..6).prop_map(|blocks| {
            let mut events = vec![Event::Started(Usage::default())];
            let mut calls = 0;
            for (kind, pieces) in blocks {
                if kind == 2 {
                    events.push(Event::ToolUse { index: calls, id: format!("c{calls}"), name: "f".into() });
                    calls += 1;
                }
                events.extend(pieces.into_iter().map(|piece| match kind {
                    0 => Event::Text(piece),
                    1 => Event::Thinking(piece),
                    _ => Event::ToolInput { index: calls - 1, json: piece },
                }));
            }
            events
        })
    }

    /// Puts a stream's chunks together as a client does.
    fn join(frames: &[String]) -> Value {
        let (mut text, mut thinking, mut reason) = (String::new(), String::new(), Value::Null);
        let mut calls: Vec<Value> = Vec::new();
        for frame in frames {
            let Ok(chunk) = serde_json::from_str::<Value>(frame) else { continue };
            let choice = &chunk["choices"][0];
            let delta = &choice["delta"];
            text += delta["content"].as_str().unwrap_or_default();
            thinking += delta["reasoning_content"].as_str().unwrap_or_default();
            if let Some(call) = delta.get("tool_calls").map(|calls| &calls[0]) {
                if call["id"].is_string() {
                    assert_eq!(call["index"], calls.len());
                    calls.push(json!({ "id": call["id"], "name": call["function"]["name"], "arguments": "" }));
                }
                let known = call["index"].as_u64().and_then(|index| calls.get_mut(usize::try_from(index).ok()?));
                let known = known.map(|known| &mut known["arguments"]);
                let more = call["function"]["arguments"].as_str().unwrap_or_default();
                if let Some(Value::String(arguments)) = known {
                    arguments.push_str(more);
                }
            }
            if !choice["finish_reason"].is_null() {
                reason = choice["finish_reason"].clone();
            }
        }
        json!({ "text": text, "thinking": thinking, "calls": calls, "reason": reason })
    }

    proptest! {
        #[test]
        fn a_stream_tells_what_a_whole_answer_tells(events in answer(), show_thinking: bool) {
            let items: Events = events.into_iter().map(Ok).chain([finished(StopReason::EndTurn)]).collect();
            let envelope = Envelope { show_thinking, ..envelope() };
            let streamed = frames(envelope.clone(), items.clone(), false).now_or_never().unwrap_or_default();
            prop_assert_eq!(streamed.last().map(String::as_str), Some("[DONE]"));
            prop_assert!(streamed.iter().all(|frame| !frame.contains(['\n', '\r'])));

            let whole = document(&envelope, items).now_or_never().unwrap_or_default();
            let message = &whole["choices"][0]["message"];
            let calls = message["tool_calls"].as_array().cloned().unwrap_or_default();
            let calls: Vec<Value> = calls
                .iter()
                .map(|call| json!({ "id": call["id"], "name": call["function"]["name"], "arguments": call["function"]["arguments"] }))
                .collect();
            prop_assert_eq!(join(&streamed), json!({
                "text": message["content"].as_str().unwrap_or_default(),
                "thinking": message.get("reasoning_content").cloned().unwrap_or_else(|| "".into()),
                "calls": calls,
                "reason": whole["choices"][0]["finish_reason"],
            }));
        }
    }
}
