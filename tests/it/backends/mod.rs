//! Backends over HTTP: a real proxy in front of the stand-in, of another proxy, and of upstreams that mean no good.

mod accounting;
mod api_subscriptions;
mod configuration;
mod fallback;
mod hostile;
mod models;
mod organization;
mod single_account;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use auth_pool::app::App;
use auth_pool::config::{self, Env, Overrides};
use auth_pool::runtime::tasks::Tasks;
use auth_pool::standin::{Options, Standin};
use auth_pool::store::{Location, Store};
use serde_json::{Value, json};

/// Nothing in these tests takes this long unless it hangs.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// A running proxy that follows no file but the one it was started with.
pub(super) struct Proxy {
    pub(super) app: App,
    pub(super) client: reqwest::Client,
    home: tempfile::TempDir,
}

pub(super) async fn standin(tasks: &Tasks) -> Standin {
    Standin::start(tasks, Options { sampling_rules: true, ..Options::default() }).await.unwrap()
}

/// A subscription of type `api` whose key is in `KEY_<ID>`.
pub(super) fn account(id: &str, base_url: &str) -> Value {
    json!({
        "id": id, "type": "api", "apiKeyEnv": format!("KEY_{}", id.to_uppercase()), "baseUrl": base_url,
        "weeklyBudget": 1_000_000,
    })
}

pub(super) fn pool(members: &[Value]) -> Value {
    json!({ "subscriptions": members })
}

impl Proxy {
    pub(super) async fn start(file: &Value) -> Self {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("auth-pool.json");
        std::fs::write(&path, file.to_string()).unwrap();
        Self::serve(home, path, keys()).await
    }

    /// Stops it, and starts another with the same file and the same store.
    pub(super) async fn restarted(self) -> Self {
        let Self { app, home, .. } = self;
        app.stop().await;
        let path = home.path().join("auth-pool.json");
        Self::serve(home, path, keys()).await
    }

    /// With the file at `path`, and an environment of its own.
    pub(super) async fn serve(home: tempfile::TempDir, path: PathBuf, vars: Vec<(String, String)>) -> Self {
        let path_var = Env::from_process().var("PATH").unwrap().to_owned();
        let common = [("HOME".to_owned(), home.path().display().to_string()), ("PATH".to_owned(), path_var)];
        let env: Env = common.into_iter().chain(vars).collect();
        let overrides = Overrides { config: Some(path), listen: Some("127.0.0.1:0".to_owned()) };
        let config = config::load(&env, &overrides).unwrap_or_else(|problems| panic!("{problems}"));
        let app = App::start(config, env, overrides).await.unwrap();
        Self { app, client: reqwest::Client::builder().no_proxy().build().unwrap(), home }
    }

    /// What is kept over restarts.
    pub(super) async fn store(&self) -> Store {
        Store::open(Location::file(self.home.path().join(".local/state/auth-pool/auth-pool.db"))).await.unwrap()
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.app.addr())
    }

    pub(super) async fn post(&self, path: &str, body: &Value) -> reqwest::Response {
        let sent = self.client.post(self.url(path)).json(body).send();
        tokio::time::timeout(PATIENCE, sent).await.expect("hangs").unwrap()
    }

    pub(super) async fn chat(&self, body: &Value) -> reqwest::Response {
        self.post("/v1/chat/completions", body).await
    }

    pub(super) async fn get(&self, path: &str) -> Value {
        self.client.get(self.url(path)).send().await.unwrap().json().await.unwrap()
    }

    /// The operator's view of one subscription.
    pub(super) async fn view(&self, id: &str) -> Value {
        let debug = self.get("/debug/auth-pool").await;
        let views = debug["status"].as_array().unwrap();
        views.iter().find(|view| view["id"] == id).unwrap_or_else(|| panic!("no {id} in {debug:#}")).clone()
    }
}

/// The keys of everybody a test may name; the stand-in knows them by what follows `-fake-`.
fn keys() -> Vec<(String, String)> {
    let keys = ["a", "b", "c", "openai"];
    keys.map(|name| (format!("KEY_{}", name.to_uppercase()), format!("sk-ant-api03-fake-{name}"))).into()
}

/// A question.
pub(super) fn ask(text: &str) -> Value {
    json!({ "model": "claude-sonnet-4-5", "messages": [{ "role": "user", "content": text }] })
}

pub(super) fn with(mut body: Value, fields: &Value) -> Value {
    for (name, value) in fields.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

/// A good answer as JSON.
pub(super) async fn good(response: reqwest::Response) -> Value {
    let status = response.status();
    let body: Value = response.json().await.unwrap();
    assert_eq!(status, 200, "{body:#}");
    body
}

pub(super) fn header(response: &reqwest::Response, name: &str) -> Option<String> {
    response.headers().get(name).map(|value| value.to_str().unwrap().to_owned())
}

/// The model calls a tool of the client's and goes on with what it said.
pub(super) async fn tool_is_called_and_its_result_read(proxy: &Proxy) {
    let tools = json!({ "tools": [{ "type": "function", "function": {
        "name": "weather", "parameters": { "type": "object", "properties": { "city": { "type": "string" } } } } }] });
    let called = good(proxy.chat(&with(ask(r#"call weather {"city":"Kyiv"}"#), &tools)).await).await;
    let call = &called["choices"][0]["message"]["tool_calls"][0];
    assert_eq!(called["choices"][0]["finish_reason"], "tool_calls");
    assert_eq!(call["function"]["arguments"], r#"{"city":"Kyiv"}"#);
    let messages = json!({ "messages": [
        { "role": "system", "content": "be brief" },
        { "role": "user", "content": "call weather" },
        { "role": "assistant", "content": null, "tool_calls": [call] },
        { "role": "tool", "tool_call_id": call["id"], "content": "sunny" },
    ] });
    let told = good(proxy.chat(&with(with(ask(""), &tools), &messages)).await).await;
    assert_eq!(told["choices"][0]["message"]["content"], "The tool said: sunny. (turn 2)");
}

/// The frames of a whole streamed answer, without `[DONE]`, and whether that came.
pub(super) async fn frames(response: reqwest::Response) -> (Vec<Value>, bool) {
    let text = tokio::time::timeout(PATIENCE, response.text()).await.expect("hangs").unwrap();
    let data: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    let done = data.last() == Some(&"[DONE]");
    (data.iter().filter(|data| **data != "[DONE]").map(|data| serde_json::from_str(data).unwrap()).collect(), done)
}

/// The text of the frames' deltas.
pub(super) fn text_of(frames: &[Value], field: &str) -> String {
    frames.iter().filter_map(|frame| frame["choices"][0]["delta"][field].as_str()).collect()
}

pub(super) async fn until(condition: impl AsyncFn() -> bool) {
    let begun = Instant::now();
    while !condition().await {
        assert!(begun.elapsed() < PATIENCE, "it did not happen");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
