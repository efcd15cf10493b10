//! The models of one backend, below its own path.

use auth_pool::runtime::tasks::Tasks;
use serde_json::{Value, json};

use super::{Proxy, account, ask, good, standin, with};

#[tokio::test]
async fn each_name_that_takes_a_chat_lists_its_models() {
    let tasks = Tasks::default();
    let standin = standin(&tasks).await;
    let file = json!({
        "subscriptions": [account("a", &standin.base_url())],
        "backends": [
            { "name": "whole-pool", "type": "claude-cli" },
            { "name": "only-a", "type": "claude-cli", "accountId": "a" },
            { "name": "reserve", "type": "anthropic-api", "apiKeyEnv": "KEY_B", "baseUrl": standin.base_url() },
            { "name": "router", "type": "openai-api", "baseUrl": "http://127.0.0.1:9/v1", "models": { "fast": "llama-3" } },
        ],
    });
    let proxy = Proxy::start(&file).await;
    let ids = async |path: &str| -> Vec<String> {
        let list = proxy.get(path).await;
        assert_eq!(list["object"], "list", "{path}: {list}");
        let data: Vec<Value> = list["data"].as_array().unwrap().clone();
        data.iter().map(|model| model["id"].as_str().unwrap().to_owned()).collect()
    };
    let all = ids("/v1/models").await;
    let catalog: Vec<String> = all.iter().filter(|id| !id.contains('/')).cloned().collect();
    for of_the_pool in ["whole-pool", "only-a"] {
        assert_eq!(ids(&format!("/v1/{of_the_pool}/models")).await, catalog);
    }
    for beside in ["reserve", "router"] {
        let own: Vec<String> =
            all.iter().filter_map(|id| id.strip_prefix(&format!("{beside}/"))).map(str::to_owned).collect();
        assert!(!own.is_empty());
        assert_eq!(ids(&format!("/v1/{beside}/models")).await, own);
    }
    // What is listed there is taken there.
    assert!(ids("/v1/reserve/models").await.contains(&"sonnet".to_owned()));
    let sonnet = with(ask("hi"), &json!({ "model": "sonnet" }));
    good(proxy.post("/v1/reserve/chat/completions", &sonnet).await).await;

    let one = proxy.get("/v1/router/models/fast").await;
    assert_eq!(one, json!({ "id": "fast", "object": "model", "created": 0, "owned_by": "router" }));
    for (path, code) in [
        ("/v1/router/models/slow", "model_not_found"),
        ("/v1/only-a/models/slow", "model_not_found"),
        ("/v1/nobody/models", "unknown_url"),
        ("/v1/nobody/models/fast", "unknown_url"),
    ] {
        let answer = proxy.client.get(proxy.url(path)).send().await.unwrap();
        assert_eq!(answer.status(), 404, "{path}");
        assert_eq!(answer.json::<Value>().await.unwrap()["error"]["code"], code, "{path}");
    }
    assert_eq!(proxy.client.post(proxy.url("/v1/router/models")).send().await.unwrap().status(), 405);
    proxy.app.stop().await;
}
