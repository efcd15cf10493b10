//! Whose fault it is that CLI processes break: a real proxy, with a scripted CLI behind it.

use serde_json::{Value, json};

use super::claude_cli::fake_claude;
use super::reload::{Proxy, member};

async fn start(behaviours: [(&str, &str); 2]) -> Proxy {
    let members = behaviours.map(|(id, behaviour)| member(id, behaviour));
    let file = json!({
        "subscriptions": members,
        "claude": { "command": fake_claude(), "maxProcesses": 8, "sparesPerSubscription": 0, "selfTest": false },
        "runawayGuard": { "enabled": false },
    });
    Proxy::start(behaviours.map(|(id, _)| id.to_owned()), "auth-pool.json", &file).await
}

async fn ask(proxy: &Proxy, text: &str) -> (u16, Value) {
    let body = json!({ "model": "sonnet", "messages": [{ "role": "user", "content": text }] });
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let answer = client.post(proxy.url("/v1/chat/completions")).json(&body).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

async fn status(proxy: &Proxy, id: &str) -> Value {
    proxy.view(id).await.unwrap()["status"].clone()
}

/// Each request breaks more than one process, so that five of them would open every breaker.
#[tokio::test]
async fn a_cli_that_breaks_everywhere_cuts_no_subscription_off() {
    for behaviour in ["exit", "exit-mid-answer", "garbage"] {
        let proxy = start([("a", behaviour), ("b", behaviour)]).await;
        for number in 0..8 {
            let (status, body) = ask(&proxy, &format!("question {number}")).await;
            let code = body["error"]["code"].as_str();
            assert_eq!((status, code), (502, Some("upstream_error")), "{behaviour}, {number}: {body}");
        }
        for id in ["a", "b"] {
            assert_eq!(status(&proxy, id).await, "available", "{behaviour}, {id}");
        }
        proxy.app.stop().await;
    }
}

#[tokio::test]
async fn a_subscription_whose_processes_alone_break_is_cut_off() {
    let proxy = start([("bad", "exit"), ("good", "answer")]).await;
    for number in 0..40 {
        // Whoever meets the bad one goes on at the good one.
        let (answered, body) = ask(&proxy, &format!("question {number}")).await;
        assert_eq!(answered, 200, "{body}");
        if status(&proxy, "bad").await == "cooldown" {
            break;
        }
    }
    assert_eq!((status(&proxy, "bad").await, status(&proxy, "good").await), (json!("cooldown"), json!("available")));
    proxy.app.stop().await;
}
