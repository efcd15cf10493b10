//! What a backend beside the pool uses is paid for, whatever the endpoint tells and however the answer ends.

use futures_util::StreamExt as _;
use serde_json::{Value, json};

use super::hostile::{STREAM, Upstream};
use super::{PATIENCE, Proxy, account, ask, pool, until, with};

/// See `keys()`.
const ANN: &str = "sk-ant-api03-fake-c";
const OPERATOR: &str = "sk-ant-api03-fake-b";

/// Characters of a piece: 10 000 tokens, which cost 15 cents.
const PIECE: usize = 40_000;

fn piece() -> Vec<u8> {
    let chunk = json!({ "choices": [{ "index": 0, "delta": { "content": "x".repeat(PIECE) } }] });
    format!("data: {chunk}\n\n").into_bytes()
}

fn openai(name: &str, upstream: &Upstream) -> Value {
    json!({
        "name": name, "type": "openai-api", "baseUrl": format!("{}/v1", upstream.url()), "apiKeyEnv": "KEY_OPENAI",
        "models": { "*": "whatever" },
    })
}

async fn chat(proxy: &Proxy, backend: &str) -> reqwest::Response {
    let url = proxy.url(&format!("/v1/{backend}/chat/completions"));
    let body = with(ask("hello"), &json!({ "stream": true }));
    proxy.client.post(url).bearer_auth(ANN).json(&body).send().await.unwrap()
}

async fn look(proxy: &Proxy, path: &str) -> Value {
    proxy.client.get(proxy.url(path)).bearer_auth(OPERATOR).send().await.unwrap().json().await.unwrap()
}

#[tokio::test]
async fn who_leaves_or_is_cut_off_or_hears_no_usage_pays_and_still_has_paid_after_a_restart() {
    // None of them tells how much it was.
    let end = "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n";
    let whole = Upstream::start(STREAM.to_owned(), [piece(), end.into()].concat(), 1).await;
    let breaks = Upstream::start(STREAM.to_owned(), piece(), 1).await;
    let endless = Upstream::start(STREAM.to_owned(), piece(), 1_000_000).await;
    let names = ["whole", "breaks", "endless"];
    let file = with(
        pool(&[account("a", &whole.url())]),
        &json!({
            "backends": [openai("whole", &whole), openai("breaks", &breaks), openai("endless", &endless)],
            "clientKeys": [
                { "name": "ann", "env": "KEY_C", "weeklyBudget": 0.4 },
                { "name": "operator", "env": "KEY_B", "admin": true },
            ],
        }),
    );
    let proxy = Proxy::start(&file).await;
    let events = proxy.client.get(proxy.url("/api/events/stream?types=usage")).bearer_auth(OPERATOR).send();
    let mut events = events.await.unwrap().bytes_stream();

    assert!(chat(&proxy, "whole").await.text().await.unwrap().contains("[DONE]"));
    assert!(!chat(&proxy, "breaks").await.text().await.unwrap().contains("[DONE]"));
    let mut left = chat(&proxy, "endless").await;
    left.chunk().await.unwrap().expect("a piece");
    drop(left);

    // Each is told to those who follow it,
    let mut told = String::new();
    let all_told = async {
        while told.matches("event: usage").count() < names.len() {
            told.push_str(std::str::from_utf8(&events.next().await.unwrap().unwrap()).unwrap());
        }
    };
    tokio::time::timeout(PATIENCE, all_told).await.expect("an event for each");
    // kept under the backend's name,
    until(async || look(&proxy, "/api/v1/admin/usage?client=ann").await["items"].as_array().unwrap().len() == 3).await;
    let outcomes = ["completed", "unavailable", "abandoned"];
    for (name, outcome) in names.into_iter().zip(outcomes) {
        let usage = look(&proxy, &format!("/api/v1/admin/usage?subscription={name}")).await["items"][0].clone();
        assert_eq!((&usage["client"], &usage["outcome"]), (&"ann".into(), &outcome.into()), "{usage:#}");
        assert!(
            usage["usage"]["input"].as_u64() > Some(0) && usage["usage"]["output"].as_u64() >= Some(10_000),
            "{usage:#}"
        );
        assert!(usage["cost"].as_u64() >= Some(150_000), "{usage:#}");
        let activity = look(&proxy, &format!("/api/v1/admin/activities?subscription={name}")).await["items"][0].clone();
        assert_eq!((&activity["id"], &activity["cost"]), (&usage["activityId"], &usage["cost"]), "{activity:#}");
        assert!(told.contains(&format!("\"subscription\":\"{name}\"")), "{told}");
    }
    // counted,
    let counts = look(&proxy, "/debug/auth-pool").await["routing"]["backends"].clone();
    for backend in counts.as_array().unwrap() {
        assert!(backend["outputTokens"].as_u64() >= Some(10_000), "{backend:#}");
    }
    // and paid: now, and after a restart.
    assert_eq!(chat(&proxy, "whole").await.status(), 429);
    let proxy = proxy.restarted().await;
    assert_eq!(chat(&proxy, "whole").await.status(), 429, "the budget is new");
    proxy.app.stop().await;
}
