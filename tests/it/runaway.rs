//! The runaway guard: a real proxy, with a scripted CLI behind it.

use std::collections::BTreeSet;
use std::time::Duration;

use auth_pool::alert::{self, Alerts, Channel, ChannelsSettings, Rule, Trigger};
use auth_pool::conversation::{Block, Role, Tool, Turn};
use auth_pool::gateway::{Gateway as _, GatewayError, SessionHint, Settings};
use auth_pool::runtime::{clock, instance};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::alerts::{self, Says};
use super::claude_cli::fake_claude;
use super::gateway::{Scripted, bench_with, call, gateway_settings, read};
use super::reload::{Proxy, member};

async fn start(behaviour: &str, guard: &Value) -> Proxy {
    start_with(behaviour, guard, &json!({})).await
}

async fn start_with(behaviour: &str, guard: &Value, notifications: &Value) -> Proxy {
    let file = json!({
        "subscriptions": [member("a", behaviour), member("b", behaviour)],
        "claude": { "command": fake_claude(), "maxProcesses": 8, "sparesPerSubscription": 0, "selfTest": false },
        "runawayGuard": guard,
        "notifications": notifications,
    });
    Proxy::start(["a", "b"].map(str::to_owned), "auth-pool.json", &file).await
}

async fn ask(proxy: &Proxy, text: &str) -> (u16, Value, Option<String>) {
    let body = json!({ "model": "sonnet", "messages": [{ "role": "user", "content": text }] });
    let answer = reqwest::Client::builder().no_proxy().build().unwrap();
    let answer = answer.post(proxy.url("/v1/chat/completions")).json(&body).send().await.unwrap();
    let retry_after = answer.headers().get("retry-after").map(|after| after.to_str().unwrap().to_owned());
    (answer.status().as_u16(), answer.json().await.unwrap(), retry_after)
}

#[tokio::test]
async fn the_same_prompt_over_and_over_is_stopped_and_others_are_not() {
    let proxy = start("answer", &json!({ "repeatedPrompts": 3 })).await;
    for _ in 0..3 {
        assert_eq!(ask(&proxy, "again").await.0, 200);
    }
    let (status, body, retry_after) = ask(&proxy, "again").await;
    assert_eq!((status, body["error"]["code"].as_str()), (429, Some("runaway_guard")), "{body}");
    assert!(retry_after.unwrap().parse::<u64>().unwrap() <= 60);
    assert!(body["error"]["message"].as_str().unwrap().contains("runawayGuard.repeatedPrompts"));
    assert_eq!(ask(&proxy, "something else").await.0, 200);
    proxy.app.stop().await;
}

#[tokio::test]
async fn the_same_words_in_many_conversations_are_no_loop() {
    let bench = bench_with(&[Scripted::good()], Settings { max_repeats: Some(2), ..gateway_settings() }, |_| {});
    let say = async |session: &str, text: &str, tool: Option<&str>| {
        let mut call = call(session);
        call.session = SessionHint::Session(session.into());
        call.request.turns = vec![Turn { role: Role::User, blocks: vec![Block::Text(text.to_owned())] }];
        let definition = |name: &str| json!({ "name": name, "input_schema": { "type": "object" } });
        call.request.tools =
            tool.map(|name| Tool { name: name.to_owned(), definition: definition(name) }).into_iter().collect();
        let answer = bench.gateway.chat(call).await;
        let stopped = matches!(answer, Err(GatewayError::Runaway { .. }));
        assert!(stopped || answer.is_ok(), "{:?}", answer.err());
        if let Ok(answer) = answer {
            read(answer).await;
        }
        !stopped
    };
    for number in 0..6 {
        let session = format!("s{number}");
        assert!(say(&session, &format!("I am number {number}"), None).await);
        assert!(say(&session, "go on", None).await, "{session}");
    }
    for tool in ["read", "write", "delete"] {
        assert!(say(tool, "use it", Some(tool)).await, "{tool}");
    }
    // A loop that takes a new session each time is one.
    assert!(say("l1", "loop", None).await && say("l2", "loop", None).await);
    assert!(!say("l3", "loop", None).await);
}

#[tokio::test]
async fn starts_without_end_are_stopped() {
    // One start is the question what the aliases mean.
    let proxy = start("exit", &json!({ "spawnsPerMinute": 4, "repeatedPrompts": 0 })).await;
    let mut last = (0, Value::Null, None);
    for _ in 0..4 {
        last = ask(&proxy, "hi").await;
        if last.0 == 429 {
            break;
        }
        assert_eq!(last.1["error"]["code"], "upstream_error", "{}", last.1);
    }
    let (status, body, retry_after) = last;
    assert_eq!((status, body["error"]["code"].as_str()), (429, Some("runaway_guard")), "{body}");
    assert!(retry_after.is_some());
    let started = proxy.debug().await["processes"]["started"].as_u64().unwrap();
    assert!(started <= 4, "{started} were started");
    proxy.app.stop().await;
}

#[tokio::test]
async fn a_request_of_our_own_that_comes_back_goes_no_further() {
    let proxy = start("answer", &json!({})).await;
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    for path in ["/v1/messages?beta=true", "/v1/chat/completions", "/nowhere"] {
        let post = |from: &str| client.post(proxy.url(path)).header(instance::HOP_HEADER, from).json(&json!({})).send();
        let own = post(instance::id()).await.unwrap();
        assert_eq!(own.status(), 508, "{path}");
        assert!(own.text().await.unwrap().contains("loop_detected"));
        assert_ne!(post("another").await.unwrap().status(), 508, "another pool in front of this one is no loop");
    }
    proxy.app.stop().await;
}

#[tokio::test]
async fn whatever_is_stopped_is_told_once() {
    let bench = alerts::bench();
    let mut endpoint = bench.endpoint(&[Says::Status("200 OK")]).await;
    let notifications = json!({
        "webhookUrl": endpoint.url(), "allowHosts": ["127.0.0.1"],
        "rules": [{ "type": "runaway", "channels": ["webhook"] }],
    });
    let guard = json!({ "spawnsPerMinute": 3, "repeatedPrompts": 2 });
    let proxy = start_with("exit", &guard, &notifications).await;

    // Every answer breaks, so that processes are started until the guard steps in, and then the prompt is one too many.
    for _ in 0..6 {
        ask(&proxy, "again").await;
    }
    let mut told = [endpoint.next().await.json(), endpoint.next().await.json()];
    told.sort_by_key(|message| message["data"]["what"].to_string());
    let expected = [("repeated_prompts", json!("anonymous")), ("spawns", Value::Null)];
    for (message, (what, client)) in told.iter().zip(expected) {
        assert_eq!((&message["type"], &message["severity"]), (&json!("runaway"), &json!("critical")), "{message}");
        assert_eq!((&message["data"]["what"], &message["data"]["client"]), (&json!(what), &client), "{message}");
    }
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    for _ in 0..3 {
        let post = client.post(proxy.url("/v1/messages")).header(instance::HOP_HEADER, instance::id());
        assert_eq!(post.json(&json!({})).send().await.unwrap().status(), 508);
    }
    let message = endpoint.next().await.json();
    assert_eq!(message["data"]["what"], "loop", "{message}");
    // What goes on is no news.
    assert!(tokio::time::timeout(Duration::from_millis(1500), endpoint.received.recv()).await.is_err());
    assert!(proxy.debug().await["processes"]["refused"].as_u64().unwrap() > 0);
    proxy.app.stop().await;
}

#[tokio::test]
async fn the_end_is_told_when_nothing_was_stopped_for_a_while() {
    let endpoints = alerts::bench();
    let mut endpoint = endpoints.endpoint(&[Says::Status("200 OK")]).await;
    let settings = auth_pool::gateway::Settings { max_repeats: Some(1), ..gateway_settings() };
    let bench = bench_with(&[Scripted::good()], settings, |_| {});
    let rule = Rule { trigger: Trigger::Runaway, channels: BTreeSet::from([Channel::Webhook]) };
    let channels = ChannelsSettings { webhook: Some(endpoint.target()), slack: None };
    let settings = alert::Settings { rules: vec![rule], channels, ..alert::Settings::default() };
    let weeks = || (clock::now(), Vec::new());
    let _alerts = Alerts::start(settings, bench.pool.effects(), weeks, &bench.tasks, &endpoints.stop);

    drop(bench.chat("a").await.expect("the first is answered"));
    for _ in 0..2 {
        assert!(matches!(bench.gateway.chat(call("a")).await, Err(GatewayError::Runaway { .. })));
    }
    let message = endpoint.next().await.json();
    assert_eq!((&message["data"]["client"], &message["resolved"]), (&json!("anonymous"), &Value::Null), "{message}");
    bench.gateway.look_for_runaways(Instant::now() + Duration::from_secs(50));
    bench.gateway.look_for_runaways(Instant::now() + Duration::from_secs(70));
    let message = endpoint.next().await.json();
    assert_eq!((&message["type"], &message["resolved"]), (&json!("runaway"), &json!(true)), "{message}");
    assert_eq!(message["data"]["client"], "anonymous");
    // Over is over.
    bench.gateway.look_for_runaways(Instant::now() + Duration::from_secs(200));
    assert!(tokio::time::timeout(Duration::from_millis(300), endpoint.received.recv()).await.is_err());
}
