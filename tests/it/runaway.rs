//! The runaway guard: a real proxy, with a scripted CLI behind it.

use auth_pool::runtime::instance;
use serde_json::{Value, json};

use super::claude_cli::fake_claude;
use super::reload::{Proxy, member};

async fn start(behaviour: &str, guard: &Value) -> Proxy {
    let file = json!({
        "subscriptions": [member("a", behaviour), member("b", behaviour)],
        "claude": { "command": fake_claude(), "maxProcesses": 8, "sparesPerSubscription": 0, "selfTest": false },
        "runawayGuard": guard,
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
