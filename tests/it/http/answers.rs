//! What a well-behaved client sees.

use std::time::Duration;

use auth_pool::conversation::{Event, LimitReport, LimitStatus};
use auth_pool::gateway::{Failure, FailureKind, GatewayError, Priority, RefusalReason, SessionHint};
use auth_pool::server::Settings;
use serde_json::json;

use super::gateway::{FakeGateway, Script, finished, follow, text};
use super::wire::{CHAT, chat, request, settings, start, start_with};

#[tokio::test]
async fn a_stream_is_exact_to_the_byte() {
    let fixture = start(Script::Say(vec![text("Hel"), text("lo"), finished()])).await;
    let options = json!({ "stream": true, "stream_options": { "include_usage": true }, "session_id": "s-1" });
    let answer = fixture.post(&chat(&options)).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), Some("text/event-stream; charset=utf-8"));
    assert_eq!(answer.header("cache-control"), Some("no-cache"));
    assert_eq!(answer.header("x-auth-pool-subscription"), Some("claude-a"));
    assert_eq!(answer.header("x-auth-pool-decision"), Some("best health 97 ? of 3"));
    let first = answer.text().lines().next().unwrap();
    let first: serde_json::Value = serde_json::from_str(first.strip_prefix("data: ").unwrap()).unwrap();
    let (id, created) = (first["id"].as_str().unwrap(), first["created"].as_i64().unwrap());
    assert!(id.starts_with("chatcmpl-") && id.len() == 41, "{id}");
    let head = format!(
        r#"data: {{"id":"{id}","object":"chat.completion.chunk","created":{created},"model":"gpt-4o","choices":["#
    );
    let delta = |delta: &str| {
        format!(r#"{head}{{"index":0,"delta":{delta},"logprobs":null,"finish_reason":null}}],"usage":null}}"#)
    };
    let expected = [
        delta(r#"{"role":"assistant","content":""}"#),
        delta(r#"{"content":"Hel"}"#),
        delta(r#"{"content":"lo"}"#),
        format!(
            r#"{head}{{"index":0,"delta":{{}},"logprobs":null,"finish_reason":"stop"}}],"usage":null,"session_id":"s-1"}}"#
        ),
        format!(
            concat!(
                r#"{head}],"usage":{{"prompt_tokens":60,"completion_tokens":7,"total_tokens":67,"#,
                r#""prompt_tokens_details":{{"cached_tokens":30,"cache_write_tokens":20,"audio_tokens":0}},"#,
                r#""completion_tokens_details":{{"reasoning_tokens":2,"audio_tokens":0,"#,
                r#""accepted_prediction_tokens":0,"rejected_prediction_tokens":0}}}}}}"#,
            ),
            head = head
        ),
        "data: [DONE]".to_owned(),
        String::new(),
    ];
    assert_eq!(answer.text(), expected.join("\n\n"));
}

#[tokio::test]
async fn every_piece_leaves_at_once() {
    let (sender, script) = follow();
    let fixture = start(script).await;
    let mut wire = fixture.connect().await;
    wire.send(&request("POST", CHAT, &[], chat(&json!({ "stream": true })).to_string().as_bytes())).await;
    // The role is there before the first word is.
    wire.read_until(r#""delta":{"role":"assistant","content":""}"#).await;
    for word in ["one", "two", "three"] {
        sender.send(text(word)).unwrap();
        wire.read_until(&format!(r#""delta":{{"content":"{word}"}}"#)).await;
    }
    sender.send(finished()).unwrap();
    // The end does not wait for what the gateway still does: the sender is alive.
    wire.read_until("data: [DONE]\n\n\r\n0\r\n\r\n").await;
    fixture.all_closed().await;
}

#[tokio::test]
async fn a_whole_answer_and_what_the_gateway_learns_of_it() {
    let fixture = start(Script::Say(vec![text("Hello"), finished()])).await;
    let body = chat(&json!({ "prompt_cache_key": "k", "priority": "high", "max_tokens": 5 })).to_string();
    let headers = [("x-request-id", "req.1_a-Z"), ("x-session-id", "s-2")];
    let answer = fixture.ask("POST", CHAT, &headers, body.as_bytes()).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.header("x-request-id"), Some("req.1_a-Z"));
    let completion = answer.json();
    assert_eq!(completion["object"], "chat.completion");
    assert_eq!(completion["model"], "gpt-4o");
    assert_eq!(completion["session_id"], "s-2");
    assert_eq!(completion["choices"][0]["message"]["content"], "Hello");
    assert_eq!(completion["usage"]["prompt_tokens_details"]["cached_tokens"], 30);

    let call = fixture.gateway.call();
    assert_eq!(call.session, SessionHint::Header("s-2".into()));
    assert_eq!(&*call.client, "anonymous");
    assert!(!call.stream);
    assert_eq!(call.priority, Priority::High);
    assert_eq!(call.request.model.id, "claude-sonnet-5");
    assert_eq!(call.request.options.max_tokens, Some(5));
}

#[tokio::test]
async fn every_refusal_of_the_gateway_has_its_status_in_both_forms() {
    let refused = |reason| GatewayError::Refused {
        reason,
        retry_after: Some(Duration::from_millis(30_500)),
        message: "No luck.".into(),
    };
    let failed = |kind| GatewayError::Failed(Failure::new(kind, "because"));
    let report = LimitReport { status: LimitStatus::Rejected, window: None, resets_at: None, windows: Vec::new() };
    let (request_error, server_error) = ("invalid_request_error", "server_error");
    let table = [
        (refused(RefusalReason::Busy), 503, server_error, "capacity_exhausted", Some("31")),
        (refused(RefusalReason::ProviderLimited), 429, "rate_limit_error", "upstream_rate_limited", Some("31")),
        (refused(RefusalReason::BudgetSpent), 429, "insufficient_quota", "insufficient_quota", Some("31")),
        (refused(RefusalReason::NoneHealthy), 503, server_error, "no_healthy_subscription", Some("31")),
        (GatewayError::ShuttingDown, 503, server_error, "shutting_down", Some("1")),
        (failed(FailureKind::Limited(report)), 429, "rate_limit_error", "upstream_rate_limited", None),
        (failed(FailureKind::Unavailable { status: Some(529) }), 503, server_error, "upstream_overloaded", Some("2")),
        (failed(FailureKind::Unavailable { status: Some(500) }), 502, server_error, "upstream_error", None),
        (failed(FailureKind::Unavailable { status: None }), 502, server_error, "upstream_error", None),
        (failed(FailureKind::Unauthenticated), 503, server_error, "no_healthy_subscription", None),
        (failed(FailureKind::Billing), 503, server_error, "no_healthy_subscription", None),
        (failed(FailureKind::ModelNotFound), 404, request_error, "model_not_found", None),
        (failed(FailureKind::PromptTooLong), 400, request_error, "context_length_exceeded", None),
        (failed(FailureKind::TooLarge), 413, request_error, "request_too_large", None),
        (failed(FailureKind::InvalidRequest), 400, request_error, "invalid_value", None),
        (failed(FailureKind::Spawn), 502, server_error, "upstream_error", None),
        (failed(FailureKind::Crashed), 502, server_error, "upstream_error", None),
        (failed(FailureKind::Protocol), 502, server_error, "upstream_error", None),
        (failed(FailureKind::TimedOut { timer: "idle" }), 504, server_error, "upstream_timeout", None),
    ];
    for (error, status, kind, code, retry_after) in table {
        let param = match code {
            "model_not_found" => Some("model"),
            "context_length_exceeded" => Some("messages"),
            _ => None,
        };
        let fixture = start(Script::Refuse(error.clone())).await;
        for stream in [false, true] {
            let answer = fixture.post(&chat(&json!({ "stream": stream }))).await;
            answer.assert_error(status, kind, code, param);
            assert_eq!(answer.header("retry-after"), retry_after, "{error:?}");
        }
        // After the first byte the same error is the last frame.
        let fixture = start(Script::Say(vec![text("x"), Err(error.clone())])).await;
        let answer = fixture.post(&chat(&json!({ "stream": true }))).await;
        assert_eq!(answer.status, 200);
        let last = answer.text().trim_end().lines().last().unwrap().strip_prefix("data: ").unwrap();
        let last: serde_json::Value = serde_json::from_str(last).unwrap();
        assert_eq!(last["error"]["code"], code);
        assert!(!answer.text().contains("[DONE]"));
        // As a whole answer it is nothing else than that error.
        fixture.post(&chat(&json!({}))).await.assert_error(status, kind, code, param);
    }
}

#[tokio::test]
async fn models_are_listed_and_shown() {
    let fixture = start(Script::Hang).await;
    let list = fixture.get("/v1/models").await.json();
    assert_eq!(list["object"], "list");
    let data = list["data"].as_array().unwrap();
    assert!(data.iter().any(|model| model["id"] == "gpt-4o"));
    let expected = json!({ "id": "sonnet", "object": "model", "created": 0, "owned_by": "anthropic" });
    assert!(data.contains(&expected), "{list}");
    assert_eq!(fixture.get("/v1/models/sonnet").await.json(), expected);
    let unknown = fixture.get("/v1/models/sonet").await;
    unknown.assert_error(404, "invalid_request_error", "model_not_found", Some("model"));
    assert!(unknown.text().contains("Did you mean 'sonnet'?"), "{}", unknown.text());
    let unknown = fixture.post(&chat(&json!({ "model": "claude-sonnet-55" }))).await;
    unknown.assert_error(404, "invalid_request_error", "model_not_found", Some("model"));
}

#[tokio::test]
async fn health_is_told_without_a_key_and_readiness_with_its_reason() {
    let checks = |pool: &str| json!({ "pool": { "status": pool, "subscriptions": 0, "eligible": 0 } });
    let fixture = start(Script::Hang).await;
    assert_eq!(
        fixture.get("/health").await.json(),
        json!({
            "status": "ok", "version": "0.0.0", "uptimeSeconds": 5,
            "pool": { "subscriptions": 0, "eligible": 0, "inFlight": 0, "sessions": 0, "waiting": 0 },
            "backend": { "live": 0, "spares": 0 },
        })
    );
    let live = fixture.get("/health/live").await.json();
    assert_eq!(live["status"], "ok");
    assert!(live["timestamp"].as_str().is_some_and(|at| at.parse::<jiff::Timestamp>().is_ok()), "{live}");
    assert_eq!(fixture.get("/health/ready").await.json(), json!({ "status": "ready", "checks": checks("ok") }));
    for service in ["/health/redis", "/health/db"] {
        let answer = fixture.get(service).await;
        assert_eq!((answer.status, answer.json()["status"].as_str()), (200, Some("not_configured")), "{service}");
    }

    let fixture = start_with(settings(), FakeGateway::unready("no subscription is logged in")).await;
    let answer = fixture.get("/health/ready").await;
    assert_eq!(answer.status, 503);
    assert_eq!(
        answer.json(),
        json!({ "status": "not_ready", "reason": "no subscription is logged in", "checks": checks("down") })
    );
}

#[tokio::test]
async fn methods_and_paths() {
    let fixture = start(Script::Hang).await;
    for path in ["/", "/v1", "/v1/chat", "/v1/completions", "/v1/chat/completions/", "/debug", "/health/"] {
        fixture.get(path).await.assert_error(404, "invalid_request_error", "unknown_url", None);
    }
    for (method, path, allow) in [
        ("GET", CHAT, "POST, OPTIONS"),
        ("DELETE", CHAT, "POST, OPTIONS"),
        ("POST", "/v1/models", "GET, HEAD, OPTIONS"),
        ("PUT", "/health", "GET, HEAD, OPTIONS"),
    ] {
        let answer = fixture.ask(method, path, &[], b"").await;
        answer.assert_error(405, "invalid_request_error", "method_not_supported", None);
        assert_eq!(answer.header("allow"), Some(allow));
        let answer = fixture.ask("OPTIONS", path, &[], b"").await;
        assert_eq!((answer.status, answer.header("allow"), answer.body.len()), (204, Some(allow), 0));
    }
    let whole = fixture.get("/health").await;
    let head = fixture.ask("HEAD", "/health", &[], b"").await;
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(head.header("content-length"), whole.header("content-length"));
    let head = fixture.ask("HEAD", "/nowhere", &[], b"").await;
    assert_eq!((head.status, head.body.len()), (404, 0));
}

#[tokio::test]
async fn request_ids_are_echoed_if_sane_and_made_if_not() {
    let fixture = start(Script::Say(vec![finished()])).await;
    let long = "x".repeat(129);
    for path in ["/health", "/nowhere", CHAT] {
        let echoed = |id: &'static str| {
            let fixture = &fixture;
            async move { fixture.ask("GET", path, &[("x-request-id", id)], b"").await.header("x-request-id") == Some(id) }
        };
        assert!(echoed("a").await && echoed("req_A-1.2").await);
        for id in ["", "a b", "a;b", "<script>", "ü", &long] {
            let answer = fixture.ask("GET", path, &[("x-request-id", id)], b"").await;
            let made = answer.header("x-request-id").unwrap();
            assert!(made != id && made.len() == 36 && made.as_bytes()[14] == b'7', "{id:?} -> {made}");
        }
    }
}

#[tokio::test]
async fn silence_is_filled_with_comments() {
    let (sender, script) = follow();
    let settings = Settings { sse_keep_alive: Duration::from_millis(30), ..settings() };
    let fixture = start_with(settings, FakeGateway::new(script)).await;
    let mut wire = fixture.connect().await;
    wire.send(&request("POST", CHAT, &[], chat(&json!({ "stream": true })).to_string().as_bytes())).await;
    wire.read_until("assistant").await;
    for _ in 0..3 {
        wire.read_until(": keep-alive\n\n").await;
    }
    sender.send(text("x")).unwrap();
    sender.send(finished()).unwrap();
    wire.read_until("data: [DONE]\n\n").await;
}

#[tokio::test]
async fn thinking_and_calls_reach_the_client() {
    let call = |index: usize| Ok(Event::ToolUse { index, id: format!("toolu_{index}"), name: "weather".into() });
    let events = vec![
        Ok(Event::Thinking("hm".into())),
        call(0),
        Ok(Event::ToolInput { index: 0, json: "{\"a\":1}".into() }),
        call(1),
        finished(),
    ];
    let fixture = start(Script::Say(events)).await;
    let tools = json!([{ "type": "function", "function": { "name": "weather" } }]);
    let answer = fixture.post(&chat(&json!({ "tools": tools, "reasoning_effort": "low" }))).await.json();
    let message = &answer["choices"][0]["message"];
    assert_eq!(message["reasoning_content"], "hm");
    assert_eq!(message["tool_calls"][0]["function"], json!({ "name": "weather", "arguments": "{\"a\":1}" }));
    assert_eq!(message["tool_calls"][1]["function"], json!({ "name": "weather", "arguments": "{}" }));
    assert_eq!(fixture.gateway.call().request.tools[0].name, "weather");
}
