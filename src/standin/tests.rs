//! The stand-in over a real socket.

use std::error::Error;
use std::time::Duration;

use reqwest::{Client, Response};
use serde_json::{Value, json};

use super::*;

type Checked = Result<(), Box<dyn Error>>;

/// A stand-in with a client that speaks as `alice`.
struct Bench {
    standin: Standin,
    client: Client,
}

impl Bench {
    async fn start() -> Result<Self, Box<dyn Error>> {
        let standin = Standin::start(&Tasks::default(), Options::default()).await?;
        Ok(Self { standin, client: Client::builder().no_proxy().build()? })
    }

    async fn ask(&self, body: &Value) -> reqwest::Result<Response> {
        let url = format!("{}/v1/messages?beta=true", self.standin.base_url());
        self.client.post(url).bearer_auth("sk-ant-oat01-fake-alice").json(body).send().await
    }

    async fn control(&self, path: &str, body: &Value) -> reqwest::Result<Response> {
        self.client.post(format!("{}/standin/{path}", self.standin.base_url())).json(body).send().await
    }
}

fn question(text: &str, stream: bool) -> Value {
    json!({"model": "claude-sonnet-5", "max_tokens": 1000, "stream": stream,
        "messages": [{"role": "user", "content": [{"type": "text", "text": text}]}]})
}

/// The events of a stream, and whether it ended properly.
async fn events(mut response: Response) -> (Vec<Value>, bool) {
    let mut text = String::new();
    let whole = loop {
        match response.chunk().await {
            Ok(Some(bytes)) => text.push_str(&String::from_utf8_lossy(&bytes)),
            Ok(None) => break true,
            Err(_) => break false,
        }
    };
    let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
    (data.filter_map(|data| serde_json::from_str(data).ok()).collect(), whole)
}

fn text(events: &[Value]) -> String {
    events.iter().filter_map(|event| event["delta"]["text"].as_str()).collect()
}

#[tokio::test]
async fn a_stream_says_what_was_asked_word_by_word() -> Checked {
    let bench = Bench::start().await?;
    let (events, whole) = events(bench.ask(&question("hello there", true)).await?).await;
    assert!(whole);
    assert_eq!(text(&events), "You said: hello there. (turn 1)");
    let kinds: Vec<&str> = events.iter().filter_map(|event| event["type"].as_str()).collect();
    assert_eq!((kinds.first(), kinds.last()), (Some(&"message_start"), Some(&"message_stop")));
    assert_eq!(kinds.iter().filter(|kind| **kind == "content_block_delta").count(), 6);
    let delta = &events[events.len() - 2];
    assert_eq!((&delta["delta"]["stop_reason"], &delta["usage"]["output_tokens"]), (&json!("end_turn"), &json!(6)));
    assert_eq!(delta["usage"]["input_tokens"], 3);

    let [request] = &bench.standin.requests()[..] else { return Err("not one request".into()) };
    assert_eq!(
        (request.bearer.as_deref(), request.outcome, request.status),
        (Some("alice"), Outcome::Completed, Some(200))
    );
    assert_eq!(request.body["max_tokens"], 1000);
    Ok(())
}

#[tokio::test]
async fn a_whole_answer_is_one_object() -> Checked {
    let bench = Bench::start().await?;
    let mut body = question("call f", false);
    body["tools"] =
        json!([{"name": "f", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}]);
    let answer: Value = bench.ask(&body).await?.json().await?;
    assert_eq!(answer["stop_reason"], "tool_use");
    assert_eq!(answer["content"][0]["input"], json!({"city": "text"}));
    Ok(())
}

#[tokio::test]
async fn a_script_can_be_set_from_outside() -> Checked {
    let bench = Bench::start().await?;
    let rules = json!([
        {"match": {"bearer": "alice", "contains": "hello"}, "times": 1, "action": {"type": "overloaded"}},
        {"match": {"bearer": "bob"}, "action": {"type": "throttle"}},
        {"times": 1, "action": {"type": "text", "count": 3, "chunk_delay_ms": 1}},
    ]);
    assert_eq!(bench.control("script", &rules).await?.status(), 204);
    let refused = bench.ask(&question("hello", true)).await?;
    assert_eq!(refused.status(), 529);
    assert_eq!(refused.json::<Value>().await?["error"]["type"], "overloaded_error");
    assert_eq!(text(&events(bench.ask(&question("hello", true)).await?).await.0), "tok0 tok1 tok2 ");
    assert_eq!(text(&events(bench.ask(&question("hi", true)).await?).await.0), "You said: hi. (turn 1)");

    let wrong = bench.control("script", &json!({"action": {"type": "text", "txt": "?"}})).await?;
    assert_eq!(wrong.status(), 400);
    assert!(wrong.text().await?.contains("txt"));

    let url = format!("{}/standin/requests?since=1", bench.standin.base_url());
    let seen: Value = bench.client.get(url).send().await?.json().await?;
    assert_eq!(seen["requests"].as_array().map(Vec::len), Some(2));
    assert!(!seen.to_string().contains("sk-ant"));
    Ok(())
}

#[tokio::test]
async fn a_limit_refuses_with_its_headers_and_ends_by_itself() -> Checked {
    let bench = Bench::start().await?;
    let limit = |window: &str, in_s| Action::Limit {
        window: window.into(),
        resets_at: None,
        resets_in_s: Some(in_s),
        utilization: None,
    };
    bench.standin.script(Rule::always(limit("seven_day_opus", 60)));
    bench.standin.script(Rule::always(limit("five_hour", 1)).bearer("alice"));
    let refused = bench.ask(&question("hello", true)).await?;
    assert_eq!(refused.status(), 429);
    let header = |response: &Response, name: &str| {
        let value = response.headers().get(format!("anthropic-ratelimit-unified-{name}"));
        value.and_then(|value| value.to_str().ok()).map(str::to_owned)
    };
    assert_eq!(header(&refused, "status").as_deref(), Some("rejected"));
    assert_eq!(header(&refused, "representative-claim").as_deref(), Some("five_hour"));
    tokio::time::sleep(Duration::from_millis(1100)).await;
    bench.standin.set_limits(
        "alice",
        Limits { seven_day: WindowLevel { utilization: 0.61, resets_at: Some(4_000_000_000) }, ..Limits::default() },
    );
    let served = bench.ask(&question("hello", true)).await?;
    assert_eq!(served.status(), 200);
    assert_eq!(header(&served, "status").as_deref(), Some("allowed"));
    assert_eq!(header(&served, "7d-utilization").as_deref(), Some("0.61"));
    Ok(())
}

#[tokio::test]
async fn a_stream_breaks_where_the_script_says() -> Checked {
    let bench = Bench::start().await?;
    for kind in [BreakKind::Reset, BreakKind::Eof, BreakKind::Event] {
        bench.standin.script(Rule::once(Action::ErrorMidStream { after_deltas: 2, kind }));
        let (events, whole) = events(bench.ask(&question("hello", true)).await?).await;
        assert_eq!(text(&events), "tok0 tok1 ", "{kind:?}");
        assert_eq!(whole, kind == BreakKind::Event);
        let last = events.last().map(|event| event["type"].clone());
        assert_eq!(last == Some(json!("error")), kind == BreakKind::Event);
    }
    let outcomes: Vec<Outcome> = bench.standin.requests().iter().map(|request| request.outcome).collect();
    assert_eq!(outcomes, [Outcome::Cut, Outcome::Cut, Outcome::Completed]);
    Ok(())
}

#[tokio::test]
async fn a_client_that_leaves_is_noticed() -> Checked {
    let bench = Bench::start().await?;
    for before in [HangPoint::Headers, HangPoint::FirstEvent, HangPoint::Mid] {
        bench.standin.forget_requests();
        bench.standin.script(Rule::once(Action::Hang { before }));
        let body = question("hello", true);
        let hear = async {
            if let Ok(response) = bench.ask(&body).await {
                events(response).await;
            }
        };
        assert!(tokio::time::timeout(Duration::from_millis(100), hear).await.is_err(), "{before:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
        let outcomes: Vec<Outcome> = bench.standin.requests().iter().map(|request| request.outcome).collect();
        assert_eq!(outcomes, [Outcome::ClientGone], "{before:?}");
    }
    Ok(())
}

#[tokio::test]
async fn what_the_api_refuses_is_refused() -> Checked {
    let bench = Bench::start().await?;
    let url = format!("{}/v1/messages", bench.standin.base_url());
    assert_eq!(bench.client.post(&url).json(&question("hi", true)).send().await?.status(), 401);
    let mut body = question("hi", true);
    body["model"] = json!("gpt-4o");
    assert_eq!(bench.ask(&body).await?.status(), 404);
    body = question("", true);
    assert_eq!(bench.ask(&body).await?.status(), 400);
    assert_eq!(bench.ask(&json!({"model": "claude-sonnet-5", "max_tokens": 1, "messages": []})).await?.status(), 400);
    assert_eq!(bench.client.head(bench.standin.base_url()).send().await?.status(), 200);
    assert_eq!(bench.standin.requests().last().map(|request| request.outcome), Some(Outcome::Completed));
    let elsewhere = format!("{}/v1/elsewhere", bench.standin.base_url());
    assert_eq!(bench.client.get(elsewhere).send().await?.status(), 404);
    Ok(())
}

#[tokio::test]
async fn dropping_it_closes_everything() -> Checked {
    let tasks = Tasks::default();
    let standin = Standin::start(&tasks, Options::default()).await?;
    standin.script(Rule::always(Action::Hang { before: HangPoint::Headers }));
    let client = Client::builder().no_proxy().build()?;
    let request =
        client.post(format!("{}/v1/messages", standin.base_url())).bearer_auth("x").json(&question("hi", true));
    let asked = tasks.spawn("asker", request.send());
    tokio::time::sleep(Duration::from_millis(50)).await;
    drop(standin);
    tokio::time::timeout(Duration::from_secs(5), tasks.finished()).await?;
    assert!(asked.await?.is_err());
    Ok(())
}

#[test]
fn rules_survive_json() -> Checked {
    let pace = Pace { first_delay_ms: 5, chunk_delay_ms: 2 };
    let call = ToolCall { name: "f".into(), input: json!({"a": 1}) };
    let actions = [
        Action::Pause,
        Action::ToolUse { calls: vec![call], text: None },
        Action::ErrorMidStream { after_deltas: 1, kind: BreakKind::Eof },
        Action::Status { code: 418, body: None, headers: [("a".to_owned(), "b".to_owned())].into() },
    ];
    for action in actions {
        let rule = Rule::once(action).bearer("alice").contains("x").pace(pace);
        let json = serde_json::to_string(&rule)?;
        assert_eq!(serde_json::from_str::<Rule>(&json)?, rule, "{json}");
    }
    Ok(())
}
