//! Subscriptions of type `api`: members of the pool like any other.

use std::time::Duration;

use auth_pool::runtime::tasks::Tasks;
use auth_pool::standin::{Action, BreakKind, HangPoint, Outcome, Pace, Rule};
use futures_util::StreamExt as _;
use serde_json::{Value, json};

use super::{
    Proxy, account, ask, frames, good, header, pool, standin, text_of, tool_is_called_and_its_result_read, until, with,
};

#[tokio::test]
async fn an_answer_comes_whole_or_in_pieces_and_is_paid_from_the_budget() {
    let tasks = Tasks::default();
    let standin = standin(&tasks).await;
    let proxy = Proxy::start(&pool(&[account("a", &standin.base_url())])).await;
    let answer = good(proxy.chat(&with(ask("hello"), &json!({ "max_tokens": 100, "temperature": 0.5 }))).await).await;
    assert_eq!(answer["choices"][0]["message"]["content"], "You said: hello. (turn 1)");
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert!(answer["usage"]["prompt_tokens"].as_u64().unwrap() > 0);

    let streamed = with(ask("hello"), &json!({ "stream": true, "stream_options": { "include_usage": true } }));
    let (frames, done) = frames(proxy.chat(&streamed).await).await;
    assert!(done);
    assert_eq!(text_of(&frames, "content"), "You said: hello. (turn 1)");
    assert!(frames.len() > 6, "word by word: {frames:?}");
    assert!(frames.last().unwrap()["usage"]["completion_tokens"].as_u64().unwrap() > 0);

    let requests = standin.requests();
    assert_eq!(requests.len(), 2, "nothing is asked but what the client asks");
    assert_eq!(requests[0].bearer.as_deref(), Some("a"));
    assert_eq!(requests[0].headers["anthropic-version"], "2023-06-01");
    assert_eq!(requests[0].body["max_tokens"], 100);
    assert_eq!(requests[0].body["temperature"], 0.5);
    let view = proxy.view("a").await;
    assert!(view["weeklyUsed"].as_f64().unwrap() > 0.0 && view["inFlight"] == 0, "{view:#}");
    proxy.app.stop().await;
}

#[tokio::test]
async fn tools_images_thinking_and_structured_answers_reach_the_provider() {
    let tasks = Tasks::default();
    let standin = standin(&tasks).await;
    let proxy = Proxy::start(&pool(&[account("a", &standin.base_url())])).await;
    tool_is_called_and_its_result_read(&proxy).await;

    let pixel = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";
    let seen = json!({ "messages": [{ "role": "user", "content": [
        { "type": "text", "text": "what is it?" }, { "type": "image_url", "image_url": { "url": pixel } }] }] });
    let seen = good(proxy.chat(&with(ask(""), &seen)).await).await;
    assert_eq!(seen["choices"][0]["message"]["content"], "You said: what is it?. (turn 1, 1 image)");

    for model in ["claude-sonnet-4-5", "claude-sonnet-5", "claude-sonnet-5-5"] {
        let thought = json!({ "model": model, "reasoning_effort": "high", "stream": true });
        let (frames, _) = frames(proxy.chat(&with(ask("why?"), &thought)).await).await;
        assert_eq!(text_of(&frames, "reasoning_content"), "Let me think about this.", "{model}");
    }

    let schema = json!({ "response_format": { "type": "json_schema", "json_schema": { "name": "s", "strict": true,
        "schema": { "type": "object", "properties": { "ok": { "type": "boolean" } }, "required": ["ok"],
            "additionalProperties": false } } } });
    let fits = good(proxy.chat(&with(ask("json please"), &schema)).await).await;
    assert_eq!(fits["choices"][0]["message"]["content"], r#"{"ok":true}"#);
    proxy.app.stop().await;
}

#[tokio::test]
async fn a_conversation_is_read_from_the_cache_the_second_time() {
    let tasks = Tasks::default();
    let standin = standin(&tasks).await;
    let proxy = Proxy::start(&pool(&[account("a", &standin.base_url())])).await;
    let long = "a long system prompt that is worth keeping. ".repeat(400);
    let turn = |messages: Value| with(ask(""), &json!({ "messages": messages }));
    let system = json!({ "role": "system", "content": long });
    let first = good(proxy.chat(&turn(json!([system, { "role": "user", "content": "one" }]))).await).await;
    assert_eq!(first["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
    let second = good(
        proxy
            .chat(&turn(json!([
                system,
                { "role": "user", "content": "one" },
                { "role": "assistant", "content": first["choices"][0]["message"]["content"] },
                { "role": "user", "content": "two" },
            ])))
            .await,
    )
    .await;
    let cached = second["usage"]["prompt_tokens_details"]["cached_tokens"].as_f64().unwrap();
    assert!(cached > 4000.0, "{second:#}");
    // The first request writes the prompt to the 5-minute cache (1.25 x $3 per million), the second reads it ($0.30).
    let used = proxy.view("a").await["weeklyUsed"].as_f64().unwrap();
    let most = (cached * 3.75 + cached * 0.3) / 1e6 * 1.15;
    assert!(used > cached * 3.75 / 1e6 && used < most, "{used} {most}");
    proxy.app.stop().await;
}

#[tokio::test]
async fn a_limited_account_rests_and_the_other_one_serves() {
    let tasks = Tasks::default();
    let standin = standin(&tasks).await;
    let members = [account("a", &standin.base_url()), account("b", &standin.base_url())];
    let proxy = Proxy::start(&pool(&members)).await;
    let limit = Action::Limit {
        window: "five_hour".to_owned(),
        resets_at: None,
        resets_in_s: Some(3000),
        utilization: Some(1.0),
    };
    standin.script(Rule::always(limit).bearer("a"));
    standin.script(Rule::once(Action::Throttle { retry_after_s: Some(900) }).bearer("b").contains("later"));
    for _ in 0..3 {
        let answer = proxy.chat(&ask("hello")).await;
        assert_eq!(header(&answer, "x-auth-pool-subscription").as_deref(), Some("b"));
        good(answer).await;
    }
    assert_eq!(standin.requests().iter().filter(|request| request.bearer.as_deref() == Some("a")).count(), 1);
    let view = proxy.view("a").await;
    assert_eq!(view["status"], "cooldown", "{view:#}");
    // When both rest, the client learns when the first one returns: the throttle's own word counts.
    let refused = proxy.chat(&ask("later")).await;
    let after: u64 = header(&refused, "retry-after").expect("a time").parse().unwrap();
    assert_eq!(refused.status(), 429);
    assert!((800..=900).contains(&after), "{after}");
    proxy.app.stop().await;
}

#[tokio::test]
async fn each_failure_has_its_verdict() {
    let tasks = Tasks::default();
    let standin = standin(&tasks).await;
    let members = [account("a", &standin.base_url()), account("b", &standin.base_url())];
    let proxy = Proxy::start(&pool(&members)).await;
    // Overload, a reset connection and a server's mistake are tried elsewhere and ground nobody.
    for action in [
        Action::Overloaded,
        Action::ResetBeforeHeaders,
        Action::Status { code: 500, body: None, headers: std::collections::BTreeMap::new() },
    ] {
        standin.script(Rule::once(action));
        good(proxy.chat(&ask("hello")).await).await;
    }
    for id in ["a", "b"] {
        assert_eq!(proxy.view(id).await["status"], "available");
    }
    // What the client did wrong is told to it, and asked once.
    standin.forget_requests();
    let body = json!({ "type": "error", "error": { "type": "invalid_request_error", "message": "prompt is too long: 2 > 1" } });
    standin.script(Rule::once(Action::Status {
        code: 400,
        body: Some(body),
        headers: std::collections::BTreeMap::new(),
    }));
    let refused = proxy.chat(&ask("hello")).await;
    assert_eq!(refused.status(), 400);
    let refused: Value = refused.json().await.unwrap();
    assert_eq!(refused["error"]["code"], "context_length_exceeded");
    assert_eq!(standin.requests().len(), 1);
    // A key that is not accepted any more takes its account out.
    let gone = Action::Status { code: 401, body: None, headers: std::collections::BTreeMap::new() };
    standin.script(Rule::always(gone).bearer("a"));
    for question in ["one", "two", "three", "four"] {
        good(proxy.chat(&ask(question)).await).await;
    }
    assert_eq!(proxy.view("a").await["status"], "unauthenticated");
    proxy.app.stop().await;
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_begun_anew_or_ends_in_an_error() {
    let tasks = Tasks::default();
    let standin = standin(&tasks).await;
    let members = [account("a", &standin.base_url()), account("b", &standin.base_url())];
    let proxy = Proxy::start(&pool(&members)).await;
    for kind in [BreakKind::Reset, BreakKind::Eof, BreakKind::Event] {
        standin.script(Rule::once(Action::ErrorMidStream { after_deltas: 3, kind }));
        let whole = good(proxy.chat(&ask("hello")).await).await;
        assert_eq!(whole["choices"][0]["message"]["content"], "You said: hello. (turn 1)", "{kind:?}");

        standin.script(Rule::once(Action::ErrorMidStream { after_deltas: 3, kind }));
        let (frames, done) = frames(proxy.chat(&with(ask("hello"), &json!({ "stream": true }))).await).await;
        assert!(!done && frames.last().unwrap()["error"].is_object(), "{kind:?} {frames:?}");
        assert_eq!(text_of(&frames, "content"), "tok0 tok1 tok2 ");
    }
    proxy.app.stop().await;
}

#[tokio::test]
async fn a_client_that_leaves_closes_the_connection_to_the_provider() {
    let tasks = Tasks::default();
    let standin = standin(&tasks).await;
    let proxy = Proxy::start(&pool(&[account("a", &standin.base_url())])).await;
    standin.script(Rule::always(Action::Hang { before: HangPoint::Mid }).contains("mid"));
    standin.script(Rule::always(Action::Hang { before: HangPoint::Headers }).contains("head"));
    let answer = proxy.chat(&with(ask("mid"), &json!({ "stream": true }))).await;
    let mut pieces = answer.bytes_stream();
    assert!(pieces.next().await.unwrap().is_ok());
    let waiting = proxy.client.post(proxy.url("/v1/chat/completions")).json(&ask("head")).send();
    assert!(tokio::time::timeout(Duration::from_millis(300), waiting).await.is_err());
    drop(pieces);
    until(async || standin.requests().iter().all(|request| request.outcome == Outcome::ClientGone)).await;
    until(async || proxy.view("a").await["inFlight"] == 0).await;
    assert_eq!(proxy.view("a").await["status"], "available", "leaving is not a failure");
    proxy.app.stop().await;
}

#[tokio::test]
async fn silence_has_an_end() {
    let tasks = Tasks::default();
    let standin = standin(&tasks).await;
    let mut file = pool(&[account("a", &standin.base_url())]);
    file["claude"] = json!({ "firstEventTimeout": "400ms", "idleTimeout": "400ms", "totalTimeout": "20s" });
    file["accountSelection"] = json!({ "retryOnFailure": false });
    let proxy = Proxy::start(&file).await;
    for before in [HangPoint::Headers, HangPoint::FirstEvent, HangPoint::Mid] {
        standin.script(Rule::once(Action::Hang { before }));
        let refused = proxy.chat(&ask("hello")).await;
        assert_eq!(refused.status(), 504, "{before:?}");
    }
    // Slow is not silent.
    standin.script(
        Rule::once(Action::Text { text: None, count: Some(12) }).pace(Pace { first_delay_ms: 50, chunk_delay_ms: 50 }),
    );
    good(proxy.chat(&ask("hello")).await).await;
    proxy.app.stop().await;
}

#[tokio::test]
async fn models_have_the_names_that_the_operator_gives_them() {
    let tasks = Tasks::default();
    let standin = standin(&tasks).await;
    let mut member = account("a", &format!("{}/v1/", standin.base_url()));
    member["models"] = json!({ "sonnet": "claude-sonnet-at-the-gateway", "claude-opus-4-8": "claude-opus-eu" });
    let proxy = Proxy::start(&pool(&[member])).await;
    for (asked, sent) in [
        ("claude-sonnet-4-5", "claude-sonnet-at-the-gateway"),
        ("sonnet", "claude-sonnet-at-the-gateway"),
        ("claude-opus-4-8", "claude-opus-eu"),
        ("claude-haiku-4-5", "claude-haiku-4-5"),
    ] {
        standin.forget_requests();
        let answer = good(proxy.chat(&with(ask("hello"), &json!({ "model": asked }))).await).await;
        assert_eq!(answer["model"], asked);
        assert_eq!(standin.requests()[0].body["model"], sent);
    }
    proxy.app.stop().await;
}

#[tokio::test]
async fn keys_are_shown_nowhere() {
    let tasks = Tasks::default();
    let standin = standin(&tasks).await;
    let proxy = Proxy::start(&pool(&[account("a", &standin.base_url())])).await;
    let gone = Action::Status { code: 401, body: None, headers: std::collections::BTreeMap::new() };
    standin.script(Rule::always(gone));
    let refused = proxy.chat(&ask("hello")).await.text().await.unwrap();
    let debug = proxy.get("/debug/auth-pool").await.to_string();
    for text in [refused, debug] {
        assert!(!text.contains("sk-ant-api03"), "{text}");
    }
    proxy.app.stop().await;
}
