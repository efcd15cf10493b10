//! Backends beside the pool: asked by name, and when the pool cannot serve.

use std::collections::BTreeMap;
use std::time::Duration;

use auth_pool::runtime::tasks::Tasks;
use auth_pool::standin::{Action, HangPoint, Outcome, Rule, Standin};
use auth_pool::store::{Activity, ActivityFilter, ActivityStatus, Page, UsageFilter};
use auth_pool::units::MicroUsd;
use futures_util::StreamExt as _;
use serde_json::{Value, json};

use super::{
    Proxy, account, ask, frames, good, header, pool, standin, text_of, tool_is_called_and_its_result_read, until, with,
};

/// What another proxy of ours answers with is what OpenAI would: it is the upstream of the `openai-api` backend.
struct Upstream {
    standin: Standin,
    proxy: Proxy,
    _tasks: Tasks,
}

impl Upstream {
    async fn start() -> Self {
        let tasks = Tasks::default();
        let standin = standin(&tasks).await;
        let mut file = pool(&[account("b", &standin.base_url())]);
        file["accountSelection"] = json!({ "retryOnFailure": false });
        Self { proxy: Proxy::start(&file).await, standin, _tasks: tasks }
    }
}

/// A pool of one account whose limit is spent, with `backends` beside it.
fn spent(standin: &Standin, backends: &Value, routing: &Value) -> Value {
    let limit =
        Action::Limit { window: "seven_day".to_owned(), resets_at: None, resets_in_s: Some(7200), utilization: None };
    standin.script(Rule::always(limit).bearer("a"));
    with(pool(&[account("a", &standin.base_url())]), &json!({ "backends": backends, "routing": routing }))
}

fn other_account(standin: &Standin, name: &str, key: &str) -> Value {
    json!({ "name": name, "type": "anthropic-api", "baseUrl": standin.base_url(), "apiKeyEnv": format!("KEY_{key}") })
}

fn openai(upstream: &Upstream) -> Value {
    json!({
        "name": "openai", "type": "openai-api", "baseUrl": upstream.proxy.url("/v1"), "apiKeyEnv": "KEY_OPENAI",
        "models": { "*": "claude-haiku-4-5" },
    })
}

#[tokio::test]
async fn when_nobody_in_the_pool_can_serve_the_chain_does_and_says_so() {
    let tasks = Tasks::default();
    let standin = standin(&tasks).await;
    let backends = json!([other_account(&standin, "reserve", "B")]);
    let file = spent(&standin, &backends, &json!({ "fallbackChain": ["reserve"] }));
    let proxy = Proxy::start(&file).await;
    for _ in 0..2 {
        let answer = proxy.chat(&ask("hello")).await;
        assert_eq!(header(&answer, "x-auth-pool-backend").as_deref(), Some("reserve"));
        assert_eq!(header(&answer, "x-auth-pool-subscription"), None);
        let reason = header(&answer, "x-auth-pool-fallback").unwrap();
        assert_eq!(reason, "all subscriptions of the pool are limited by the provider");
        let body = good(answer).await;
        assert_eq!(body["choices"][0]["message"]["content"], "You said: hello. (turn 1)");
    }
    // The account is left alone while it is limited, and nobody was asked whether it could.
    let by = |name: &str| standin.requests().iter().filter(|request| request.bearer.as_deref() == Some(name)).count();
    assert_eq!((by("a"), by("b")), (1, 2));
    let routing = proxy.get("/debug/auth-pool").await["routing"].clone();
    assert_eq!(routing["order"], json!(["pool", "reserve"]));
    assert_eq!(routing["backends"][0]["requests"], 2);
    assert_eq!(routing["backends"][0]["inFlight"], 0);
    assert!(routing["backends"][0]["outputTokens"].as_u64().unwrap() > 0);
    proxy.app.stop().await;
}

#[tokio::test]
async fn what_a_backend_beside_the_pool_has_used_is_kept_with_the_request() {
    let tasks = Tasks::default();
    let standin = standin(&tasks).await;
    let backends = json!([other_account(&standin, "reserve", "B")]);
    let proxy = Proxy::start(&spent(&standin, &backends, &json!({ "fallbackChain": ["reserve"] }))).await;
    good(proxy.chat(&ask("hello")).await).await;
    let url = "/v1/reserve/chat/completions";
    good(proxy.post(url, &ask("by name")).await).await;
    let hang = Action::Hang { before: HangPoint::Mid };
    standin.script(Rule::once(hang).bearer("b"));
    let mut left = proxy.post(url, &with(ask("a client that leaves"), &json!({ "stream": true }))).await;
    left.chunk().await.unwrap();
    drop(left);

    let store = proxy.store().await;
    let filter = UsageFilter { subscription: Some("reserve".to_owned()), ..UsageFilter::default() };
    until(async || store.usage(&filter, &Page::default()).await.unwrap().items.len() == 3).await;
    let records = store.usage(&filter, &Page::default()).await.unwrap().items;
    let outcomes: Vec<_> = records.iter().rev().map(|record| record.outcome.as_str()).collect();
    assert_eq!(outcomes, ["completed", "completed", "abandoned"]);
    assert!(records.iter().all(|record| record.usage.total_input() > 0 && record.cost > MicroUsd::ZERO), "{records:?}");
    // One request, one activity, though the pool was tried first; each knows its record.
    let done = |activities: &[Activity]| activities.iter().all(|one| one.status != ActivityStatus::Running);
    let all = ActivityFilter::default();
    until(async || done(&store.activities(&all, &Page::default()).await.unwrap().items)).await;
    let activities = store.activities(&all, &Page::default()).await.unwrap().items;
    let told: Vec<_> =
        activities.iter().rev().map(|one| (one.attempts, one.status, one.subscription.as_deref())).collect();
    let by = Some("reserve");
    let expected =
        [(2, ActivityStatus::Completed, by), (1, ActivityStatus::Completed, by), (1, ActivityStatus::Cancelled, by)];
    assert_eq!(told, expected);
    for (activity, record) in activities.iter().zip(&records) {
        assert_eq!((Some(&activity.id), activity.cost), (record.activity_id.as_ref(), record.cost));
    }
    proxy.app.stop().await;
}

#[tokio::test]
async fn with_fallback_switched_off_the_client_learns_when_to_come_back() {
    let tasks = Tasks::default();
    let standin = standin(&tasks).await;
    let backends = json!([other_account(&standin, "reserve", "B")]);
    let mut file = spent(&standin, &backends, &json!({ "fallbackChain": ["reserve"] }));
    file["fallbackWhenExhausted"] = json!(false);
    let proxy = Proxy::start(&file).await;
    let refused = proxy.chat(&ask("hello")).await;
    assert_eq!(refused.status(), 429);
    let after: u64 = header(&refused, "retry-after").unwrap().parse().unwrap();
    assert!((7000..=7200).contains(&after), "{after}");
    // By its name it still answers.
    let named = proxy.post("/v1/reserve/chat/completions", &ask("hello")).await;
    assert_eq!(header(&named, "x-auth-pool-backend").as_deref(), Some("reserve"));
    assert_eq!(header(&named, "x-auth-pool-fallback"), None);
    good(named).await;
    proxy.app.stop().await;
}

#[tokio::test]
async fn a_full_pool_and_a_spent_budget_lead_to_the_chain_too() {
    let tasks = Tasks::default();
    let standin = standin(&tasks).await;
    let mut member = account("a", &standin.base_url());
    member["maxConcurrent"] = json!(1);
    let file = with(
        pool(&[member]),
        &json!({ "backends": [other_account(&standin, "reserve", "B")], "routing": { "fallbackChain": ["reserve"] } }),
    );
    let proxy = Proxy::start(&file).await;
    standin.script(Rule::always(Action::Hang { before: HangPoint::Mid }).contains("stay"));
    let running = proxy.chat(&with(ask("stay"), &json!({ "stream": true }))).await;
    assert_eq!(header(&running, "x-auth-pool-subscription").as_deref(), Some("a"));
    let second = proxy.chat(&ask("hello")).await;
    assert_eq!(header(&second, "x-auth-pool-backend").as_deref(), Some("reserve"), "full");
    good(second).await;
    drop(running);
    proxy.app.stop().await;

    let mut poor = account("a", &standin.base_url());
    poor["weeklyBudget"] = json!(0.000_01);
    let file = with(
        pool(&[poor]),
        &json!({ "backends": [other_account(&standin, "reserve", "B")], "routing": { "fallbackChain": ["reserve"] } }),
    );
    let proxy = Proxy::start(&file).await;
    for _ in 0..2 {
        let answer = proxy.chat(&ask("hello")).await;
        let reason = header(&answer, "x-auth-pool-fallback");
        good(answer).await;
        if reason.is_some() {
            return proxy.app.stop().await;
        }
    }
    panic!("a spent budget did not lead to the fallback");
}

#[tokio::test]
async fn a_chain_goes_on_when_a_link_fails_and_the_pools_word_is_what_the_client_reads() {
    let tasks = Tasks::default();
    let standin = standin(&tasks).await;
    let upstream = Upstream::start().await;
    let backends = json!([other_account(&standin, "first", "B"), openai(&upstream)]);
    let file = spent(&standin, &backends, &json!({ "fallbackChain": ["first", "openai"] }));
    let proxy = Proxy::start(&file).await;
    standin.script(Rule::always(Action::Overloaded).bearer("b"));
    let answer = proxy.chat(&ask("hello")).await;
    assert_eq!(header(&answer, "x-auth-pool-backend").as_deref(), Some("openai"));
    good(answer).await;
    assert_eq!(upstream.standin.requests()[0].body["model"], "claude-haiku-4-5");

    upstream.standin.script(Rule::always(Action::Status { code: 500, body: None, headers: BTreeMap::new() }));
    let refused = proxy.chat(&ask("hello")).await;
    assert_eq!(refused.status(), 429, "the pool's limit, not the fallback's failure");
    assert!(header(&refused, "retry-after").is_some());
    let routing = proxy.get("/debug/auth-pool").await["routing"].clone();
    assert!(routing["backends"][1]["lastFailure"].as_str().unwrap().contains("Unavailable"), "{routing:#}");
    proxy.app.stop().await;
    upstream.proxy.app.stop().await;
}

#[tokio::test]
async fn a_failover_is_an_alert() {
    let tasks = Tasks::default();
    let standin = standin(&tasks).await;
    let (hook, mut posted) = webhook().await;
    let backends = json!([other_account(&standin, "reserve", "B")]);
    let mut file = spent(&standin, &backends, &json!({ "fallbackChain": ["reserve"] }));
    file["notifications"] = json!({
        "rules": [{ "type": "failover", "channels": ["webhook"] }], "webhookUrl": hook, "allowHosts": ["127.0.0.1"],
    });
    let proxy = Proxy::start(&file).await;
    good(proxy.chat(&ask("hello")).await).await;
    let alert = tokio::time::timeout(super::PATIENCE, posted.recv()).await.expect("no alert").unwrap();
    assert_eq!((alert["type"].as_str(), alert["severity"].as_str()), (Some("failover"), Some("warning")));
    assert_eq!(alert["data"]["backend"], "reserve");
    assert!(alert["message"].as_str().unwrap().contains("limited by the provider"), "{alert:#}");
    proxy.app.stop().await;
}

/// An endpoint that takes one JSON body after the other.
async fn webhook() -> (String, tokio::sync::mpsc::UnboundedReceiver<Value>) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    Tasks::default().spawn("webhook", async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (mut seen, mut buffer) = (Vec::new(), [0; 4096]);
            loop {
                let count = stream.read(&mut buffer).await.unwrap_or(0);
                seen.extend_from_slice(&buffer[..count]);
                let text = String::from_utf8_lossy(&seen);
                let body = text.split_once("\r\n\r\n").and_then(|(_, body)| serde_json::from_str::<Value>(body).ok());
                if let Some(body) = body {
                    let _ = sender.send(body);
                    let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n").await;
                    break;
                }
                if count == 0 {
                    break;
                }
            }
        }
    });
    (url, receiver)
}

#[tokio::test]
async fn another_provider_gets_everything_in_its_own_words() {
    let upstream = Upstream::start().await;
    let file = with(
        pool(&[account("a", "http://127.0.0.1:9")]),
        &json!({ "backends": [openai(&upstream)], "routing": { "defaultBackend": "openai" } }),
    );
    let proxy = Proxy::start(&file).await;
    let streamed = with(ask("hello"), &json!({ "stream": true, "stream_options": { "include_usage": true } }));
    let answer = proxy.chat(&streamed).await;
    assert_eq!(header(&answer, "x-auth-pool-backend").as_deref(), Some("openai"));
    let (frames, done) = frames(answer).await;
    assert!(done);
    assert_eq!(text_of(&frames, "content"), "You said: hello. (turn 1)");
    let usage = &frames.last().unwrap()["usage"];
    assert!(usage["prompt_tokens"].as_u64().unwrap() > 0 && usage["completion_tokens"].as_u64().unwrap() > 0);

    tool_is_called_and_its_result_read(&proxy).await;

    let short = good(proxy.chat(&with(ask("a b c d e f"), &json!({ "max_tokens": 3 }))).await).await;
    assert_eq!(short["choices"][0]["finish_reason"], "length");
    let thought = with(ask("why?"), &json!({ "reasoning_effort": "low", "stream": true }));
    let (frames, _) = super::frames(proxy.chat(&thought).await).await;
    assert_eq!(text_of(&frames, "reasoning_content"), "Let me think about this.");
    proxy.app.stop().await;
    upstream.proxy.app.stop().await;
}

#[tokio::test]
async fn a_key_that_may_use_the_pool_only_is_served_by_it_wherever_it_stands_in_the_chain() {
    let tasks = Tasks::default();
    let standin = standin(&tasks).await;
    let start = async |routing: Value| {
        let file = json!({
            "backends": [other_account(&standin, "reserve", "B"), { "name": "everybody", "type": "claude-cli" }],
            "routing": routing,
            "clientKeys": [{ "name": "narrow", "env": "KEY_C", "subscriptions": ["a"] }],
        });
        Proxy::start(&with(pool(&[account("a", &standin.base_url())]), &file)).await
    };
    let status = async |proxy: &Proxy, path: &str| {
        let sent = proxy.client.post(proxy.url(path)).bearer_auth("sk-ant-api03-fake-c").json(&ask("hello")).send();
        sent.await.unwrap().status().as_u16()
    };
    let chat = "/v1/chat/completions";
    let behind = start(json!({ "defaultBackend": "reserve", "fallbackChain": ["everybody"] })).await;
    assert_eq!(status(&behind, chat).await, 200);
    assert_eq!(status(&behind, "/v1/reserve/chat/completions").await, 403);
    behind.app.stop().await;
    // Where the pool is not asked at all, there is nobody for it.
    let without = start(json!({ "defaultBackend": "reserve" })).await;
    assert_eq!(status(&without, chat).await, 403);
    without.app.stop().await;
    let asked: Vec<_> = standin.requests().into_iter().filter_map(|request| request.bearer).collect();
    assert_eq!(asked, ["a"]);
}

#[tokio::test]
async fn a_name_in_the_path_leads_to_that_backend_or_subscription_only() {
    let tasks = Tasks::default();
    let standin = standin(&tasks).await;
    let upstream = Upstream::start().await;
    let file = with(
        pool(&[account("a", &standin.base_url()), account("c", &standin.base_url())]),
        &json!({ "backends": [
            openai(&upstream),
            { "name": "cli-c", "type": "claude-cli", "accountId": "c" },
            { "name": "everybody", "type": "claude-cli" },
        ] }),
    );
    let proxy = Proxy::start(&file).await;
    for question in ["one", "two", "three"] {
        let answer = proxy.post("/v1/cli-c/chat/completions", &ask(question)).await;
        assert_eq!(header(&answer, "x-auth-pool-subscription").as_deref(), Some("c"));
        good(answer).await;
    }
    good(proxy.post("/v1/everybody/chat/completions", &ask("hello")).await).await;
    let missing = proxy.post("/v1/nobody/chat/completions", &ask("hello")).await;
    assert_eq!(missing.status(), 404);
    // A name that is none of Claude's is the endpoint's own; here it has none like that.
    let own = with(ask("hello"), &json!({ "model": "gpt-5" }));
    assert_eq!(proxy.chat(&own).await.status(), 404);
    good(proxy.post("/v1/openai/chat/completions", &own).await).await;
    // Limited, it does not give way to another.
    let limit =
        Action::Limit { window: "five_hour".into(), resets_at: None, resets_in_s: Some(600), utilization: None };
    standin.script(Rule::always(limit).bearer("c"));
    assert_eq!(proxy.post("/v1/cli-c/chat/completions", &ask("four")).await.status(), 429);
    proxy.app.stop().await;
    upstream.proxy.app.stop().await;
}

#[tokio::test]
async fn a_client_that_leaves_a_fallback_closes_its_connection_and_frees_its_place() {
    let tasks = Tasks::default();
    let standin = standin(&tasks).await;
    let mut reserve = other_account(&standin, "reserve", "B");
    reserve["maxConcurrent"] = json!(1);
    let file = spent(&standin, &json!([reserve]), &json!({ "fallbackChain": ["reserve"] }));
    let proxy = Proxy::start(&file).await;
    standin.script(Rule::once(Action::Hang { before: HangPoint::Mid }).bearer("b"));
    let answer = proxy.chat(&with(ask("hello"), &json!({ "stream": true }))).await;
    let mut pieces = answer.bytes_stream();
    assert!(pieces.next().await.unwrap().is_ok());
    assert_eq!(proxy.chat(&ask("hello")).await.status(), 429, "its only place is taken");
    drop(pieces);
    until(async || standin.requests().iter().any(|request| request.outcome == Outcome::ClientGone)).await;
    until(async || proxy.get("/debug/auth-pool").await["routing"]["backends"][0]["inFlight"] == 0).await;
    good(proxy.chat(&ask("hello")).await).await;
    proxy.app.stop().await;
    tokio::time::sleep(Duration::ZERO).await;
}
