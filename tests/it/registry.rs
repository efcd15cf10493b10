//! Accounts and keys that are registered while the program runs: a real proxy, a real store, a scripted CLI.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use auth_pool::admin::rotate;
use auth_pool::app::{App, store_location, vault};
use auth_pool::config::{self, Config, Env, Overrides};
use auth_pool::store::{Location, Store};
use futures_util::StreamExt as _;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::reload::{file, member};

mod changes;
mod rebalancing;
mod restart;

const ONE: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
const TWO: &str = "f00102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
const TOKEN: &str = "sk-ant-oat01-nobody-may-ever-see-this-token";
const ACCOUNTS: &str = "/api/v1/admin/claude-accounts";
const KEYS: &str = "/api/v1/admin/client-keys";
const PATIENCE: Duration = Duration::from_secs(20);

/// A home directory, in which one proxy after the other runs.
struct House {
    home: tempfile::TempDir,
    key: Option<&'static str>,
    previous: Option<&'static str>,
}

impl House {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join(".claude-own");
        fs::create_dir(&dir).unwrap();
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).unwrap();
        fs::write(home.path().join("auth-pool.json"), file(&[member("own", "answer")]).to_string()).unwrap();
        Self { home, key: Some(ONE), previous: None }
    }

    fn env(&self) -> Env {
        let own = Env::from_process();
        let vars = [
            ("HOME", Some(self.home.path().to_string_lossy().into_owned())),
            ("PATH", own.var("PATH").map(str::to_owned)),
            ("ENCRYPTION_KEY", self.key.map(str::to_owned)),
            ("ENCRYPTION_KEY_PREVIOUS", self.previous.map(str::to_owned)),
        ];
        vars.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
    }

    fn config(&self) -> (Config, Overrides) {
        let overrides =
            Overrides { config: Some(self.home.path().join("auth-pool.json")), listen: Some("127.0.0.1:0".to_owned()) };
        (config::load(&self.env(), &overrides).unwrap_or_else(|problems| panic!("{problems}")), overrides)
    }

    fn store(&self) -> Location {
        store_location(&self.config().0).unwrap().unwrap()
    }

    async fn open(&self) -> Door {
        let (config, overrides) = self.config();
        let app = App::start(config, self.env(), overrides).await.unwrap();
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        Door { base: format!("http://{}", app.addr()), app, client, key: None }
    }

    /// Everything that is on disk below the home directory.
    fn disk(&self) -> Vec<u8> {
        fn read(dir: &Path, all: &mut Vec<u8>) {
            for entry in fs::read_dir(dir).unwrap().flatten() {
                if entry.path().is_dir() {
                    read(&entry.path(), all);
                } else {
                    all.extend(fs::read(entry.path()).unwrap_or_default());
                }
            }
        }
        let mut all = Vec::new();
        read(self.home.path(), &mut all);
        all
    }
}

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

/// A running proxy and somebody who asks it.
struct Door {
    app: App,
    base: String,
    client: reqwest::Client,
    key: Option<String>,
}

type Answer = (StatusCode, Value);

impl Door {
    async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> Answer {
        self.ask_as(self.key.as_deref(), method, path, body).await
    }

    async fn ask_as(&self, key: Option<&str>, method: Method, path: &str, body: Option<Value>) -> Answer {
        let mut request = self.client.request(method, format!("{}{path}", self.base));
        if let Some(key) = key {
            request = request.bearer_auth(key);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await.unwrap();
        let status = answer.status();
        let text = answer.text().await.unwrap();
        assert!(!text.contains(TOKEN), "a secret was told: {text}");
        (status, serde_json::from_str(&text).unwrap_or(Value::Null))
    }

    async fn get(&self, path: &str) -> Value {
        let (status, value) = self.ask(Method::GET, path, None).await;
        assert_eq!(status, 200, "{path}: {value}");
        value
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        let (status, value) = self.ask(Method::POST, path, Some(body)).await;
        assert!(status.is_success(), "{path}: {status} {value}");
        value
    }

    /// The error's status, code, field and words.
    async fn refused(&self, path: &str, body: Value) -> (u16, String, Option<String>, String) {
        let (status, value) = self.ask(Method::POST, path, Some(body)).await;
        let error = &value["error"];
        let text = |field: &str| error[field].as_str().map(str::to_owned);
        (status.as_u16(), text("code").unwrap_or_default(), text("param"), text("message").unwrap_or_default())
    }

    async fn pool(&self) -> BTreeSet<String> {
        let debug = self.get("/debug/auth-pool").await;
        debug["status"].as_array().unwrap().iter().map(|view| view["id"].as_str().unwrap().to_owned()).collect()
    }

    async fn chat(&self, key: Option<&str>, session: &str) -> (u16, Option<String>) {
        let body =
            json!({ "model": "sonnet", "session_id": session, "messages": [{ "role": "user", "content": "hi" }] });
        let mut request = self.client.post(format!("{}/v1/chat/completions", self.base)).json(&body);
        if let Some(key) = key {
            request = request.bearer_auth(key);
        }
        let answer = request.send().await.unwrap();
        let by = answer.headers().get("x-auth-pool-subscription").map(|by| by.to_str().unwrap().to_owned());
        let status = answer.status().as_u16();
        answer.bytes().await.unwrap();
        (status, by)
    }

    /// Follows the events.
    async fn follow(&self, query: &str, last: Option<&str>) -> Events {
        let mut request = self.client.get(format!("{}/api/events/stream{query}", self.base));
        if let Some(key) = &self.key {
            request = request.bearer_auth(key);
        }
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 200);
        assert!(answer.headers()["content-type"].to_str().unwrap().starts_with("text/event-stream"));
        Events { stream: answer.bytes_stream().map(|bytes| bytes.unwrap().to_vec()).boxed(), seen: String::new() }
    }
}

struct Events {
    stream: futures_util::stream::BoxStream<'static, Vec<u8>>,
    seen: String,
}

#[derive(Debug)]
struct Told {
    id: String,
    topic: String,
    data: Value,
}

impl Events {
    /// The next event; `None` when the stream has ended.
    async fn next(&mut self) -> Option<Told> {
        loop {
            if let Some((frame, rest)) = self.seen.split_once("\n\n") {
                let (frame, rest) = (frame.to_owned(), rest.to_owned());
                self.seen = rest;
                if frame.starts_with(':') {
                    continue;
                }
                let field = |name: &str| {
                    let line = frame.lines().find_map(|line| line.strip_prefix(name));
                    line.unwrap_or_default().to_owned()
                };
                let data = serde_json::from_str(&field("data: ")).unwrap();
                return Some(Told { id: field("id: "), topic: field("event: "), data });
            }
            let bytes = tokio::time::timeout(PATIENCE, self.stream.next()).await.expect("an event in time")?;
            self.seen.push_str(std::str::from_utf8(&bytes).unwrap());
        }
    }

    async fn of(&mut self, topic: &str) -> Told {
        loop {
            let told = self.next().await.expect("an event");
            if told.topic == topic {
                return told;
            }
        }
    }
}

fn max(name: &str) -> Value {
    json!({ "name": name, "type": "claude-max", "oauthToken": TOKEN })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_joins_the_pool_at_once_and_for_good() {
    let house = House::new();
    let door = house.open().await;
    let account = door.post(ACCOUNTS, json!({
        "name": "Production Account", "type": "claude-max", "oauthToken": TOKEN, "tier": "pro", "weeklyBudget": 1000,
        "metadata": { "owner": "ops" },
    })).await;
    assert_eq!(account["subscription"], "production-account");
    assert_eq!((&account["status"], &account["hasSecret"]), (&json!("active"), &json!(true)));
    assert_eq!(account["live"]["status"], "available", "{account:#}");
    let id = account["id"].as_str().unwrap().to_owned();
    let own = format!("{ACCOUNTS}/{id}");
    assert_eq!(door.pool().await, ["own", "production-account"].map(str::to_owned).into());
    let served: BTreeSet<_> = {
        let mut served = BTreeSet::new();
        for number in 0..6 {
            served.insert(door.chat(None, &format!("s{number}")).await.1.unwrap());
        }
        served
    };
    assert!(served.contains("production-account"), "{served:?}");
    let test = door.post(&format!("{own}/test"), json!({})).await;
    assert_eq!((&test["ok"], &test["subscription"]), (&json!(true), &json!("production-account")));

    // The same name again, and that of the file, get names of their own.
    assert_eq!(door.post(ACCOUNTS, max("Production  account")).await["subscription"], "production-account-2");
    assert_eq!(door.post(ACCOUNTS, max("own")).await["subscription"], "own-2");
    let list = door.get(&format!("{ACCOUNTS}?limit=2")).await;
    assert_eq!(list["items"][0]["name"], "own");
    let rest = door.get(&format!("{ACCOUNTS}?limit=2&after={}", list["next"].as_str().unwrap())).await;
    assert_eq!((rest["items"][0]["id"].as_str(), &rest["next"]), (Some(&*id), &Value::Null));

    let (status, changed) =
        door.ask(Method::PATCH, &own, Some(json!({ "weeklyBudget": 2000, "tier": null, "maxClients": 3 }))).await;
    assert_eq!(status, 200, "{changed}");
    assert_eq!((&changed["live"]["weeklyBudget"], &changed["tier"]), (&json!(2000.0), &Value::Null));
    assert_eq!(door.post(&format!("{own}/disable"), json!({})).await["live"]["status"], "disabled");
    for number in 0..6 {
        assert_ne!(door.chat(None, &format!("d{number}")).await.1.as_deref(), Some("production-account"));
    }
    door.app.stop().await;

    // It outlives the process, switched off as it was, and its secret is nowhere to be read.
    assert!(!holds(&house.disk(), TOKEN), "the token is on disk");
    let door = house.open().await;
    assert_eq!(door.get(&own).await["live"]["status"], "disabled");
    assert_eq!(door.post(&format!("{own}/enable"), json!({})).await["live"]["status"], "available");
    assert_eq!(door.post(&format!("{own}/reset"), json!({})).await["live"]["status"], "available");
    let (status, gone) = door.ask(Method::DELETE, &own, None).await;
    assert_eq!((status.as_u16(), &gone["deleted"]), (200, &json!(true)));
    assert_eq!(door.ask(Method::GET, &own, None).await.0, 404);
    let begun = Instant::now();
    while door.pool().await.contains("production-account") {
        assert!(begun.elapsed() < PATIENCE, "it is still in the pool");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let audit = door.get("/api/v1/admin/audit?action=account.create").await;
    assert_eq!(audit["items"].as_array().unwrap().len(), 3);
    assert_eq!(audit["items"][0]["actor"], "local");
    door.app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_is_said_with_its_place_and_nothing_is_kept() {
    let house = House::new();
    let door = house.open().await;
    let account = |extra: Value| {
        let mut account = max("a");
        account.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        account
    };
    for (body, param) in [
        (json!({}), "name"),
        (json!({ "name": 7, "type": "claude-max", "oauthToken": TOKEN }), "name"),
        (json!({ "name": "a\nb", "type": "claude-max", "oauthToken": TOKEN }), "name"),
        (json!({ "name": "a" }), "type"),
        (json!({ "name": "a", "type": "claude-max" }), "oauthToken"),
        (json!({ "name": "a", "type": "api" }), "apiKey"),
        (json!({ "name": "a", "type": "gpt", "oauthToken": TOKEN }), "type"),
        (account(json!({ "apiKey": "sk-ant-another-key" })), "apiKey"),
        (account(json!({ "oauthToken": 7 })), "oauthToken"),
        (account(json!({ "oauthToken": "with a space in it" })), "oauthToken"),
        (account(json!({ "weeklyBudget": 0 })), "weeklyBudget"),
        (account(json!({ "weeklyBudget": "much" })), "weeklyBudget"),
        (account(json!({ "maxClients": -1 })), "maxClients"),
        (account(json!({ "maxConcurrent": 1.5 })), "maxConcurrent"),
        (account(json!({ "priority": "urgent" })), "priority"),
        (account(json!({ "enabled": "yes" })), "enabled"),
        (account(json!({ "tier": 7 })), "tier"),
        (account(json!({ "metadata": [] })), "metadata"),
        (account(json!({ "metadata": { "x": "y".repeat(20_000) } })), "metadata"),
        (account(json!({ "organizationId": "a b" })), "organizationId"),
        (account(json!({ "organizationID": "a" })), "organizationID"),
        (account(json!({ "env": { "LD_PRELOAD": "x" } })), "env"),
        (account(json!({ "id": "own" })), "id"),
        (account(json!({ "configDir": "/etc" })), "configDir"),
        (account(json!({ "configDir": "~/.claude/../../etc" })), "configDir"),
        (account(json!({ "baseUrl": "https://example.com" })), "baseUrl"),
    ] {
        let (status, code, found, message) = door.refused(ACCOUNTS, body.clone()).await;
        assert_eq!((status, code.as_str(), found.as_deref()), (400, "invalid_value", Some(param)), "{body} {message}");
    }
    // Everything at once.
    let (.., message) = door.refused(ACCOUNTS, json!({ "name": "", "type": "x", "nam": 1 })).await;
    assert!(message.contains("'name'") && message.contains("'type'") && message.contains("'nam'"), "{message}");

    let (status, _) = door.ask(Method::POST, ACCOUNTS, Some(json!({ "name": "x".repeat(300_000) }))).await;
    assert_eq!(status, 413);
    for (method, path, expected) in [
        (Method::PUT, ACCOUNTS, 405),
        (Method::DELETE, "/api/v1/admin/usage", 405),
        (Method::GET, "/api/v1/admin/nothing", 404),
        (Method::GET, "/api/v1/admin/claude-accounts/none", 404),
        (Method::GET, "/api/v1/admin/claude-accounts/..%2f..%2fetc", 404),
        (Method::POST, "/api/v1/admin/claude-accounts/none/explode", 404),
        (Method::GET, "/api/v1/admin/claude-accounts?limit=0", 400),
        (Method::GET, "/api/v1/admin/claude-accounts?limits=5", 400),
        (Method::GET, "/api/v1/admin/usage?from=yesterday", 400),
        (Method::GET, "/api/v1/admin/usage?groupBy=moon", 400),
        (Method::GET, "/api/v1/admin/activities?status=odd", 400),
        (Method::GET, "/api/events/stream?types=nonsense", 400),
    ] {
        let (status, value) = door.ask(method, path, None).await;
        assert_eq!(status, expected, "{path}: {value}");
    }
    for key in [
        json!({ "name": "k", "scopes": ["root"] }),
        json!({ "name": "k", "scopes": [] }),
        json!({ "name": "k", "scopes": "admin" }),
        json!({ "name": "k/x" }),
        json!({ "name": "k", "requestsPerMinute": 0 }),
        json!({ "name": "k", "weeklyBudget": -1 }),
        json!({ "name": "k", "maxPriority": "top" }),
        json!({ "name": "k", "expiresAt": "2001-01-01T00:00:00Z" }),
        json!({ "name": "k", "models": [7] }),
        json!({ "name": "k", "key": "chosen" }),
    ] {
        assert_eq!(door.refused(KEYS, key.clone()).await.0, 400, "{key}");
    }
    assert_eq!(door.get(ACCOUNTS).await["items"], json!([]));
    assert_eq!(door.get(KEYS).await["items"], json!([]));
    assert_eq!(door.pool().await, ["own".to_owned()].into());
    for empty in ["alerts", "usage?groupBy=client", "activities"] {
        assert!(door.get(&format!("/api/v1/admin/{empty}")).await["items"].is_array());
    }
    door.app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_an_encryption_key_no_secret_is_taken_and_with_another_none_is_opened() {
    let mut house = House::new();
    house.key = None;
    let door = house.open().await;
    let (status, code, ..) = door.refused(ACCOUNTS, max("a")).await;
    assert_eq!((status, code.as_str()), (503, "encryption_key_missing"));
    door.app.stop().await;

    house.key = Some(ONE);
    let door = house.open().await;
    let id = door.post(ACCOUNTS, max("a")).await["id"].as_str().unwrap().to_owned();
    door.app.stop().await;

    // The key is another one: the account is out, and says why; the others serve.
    house.key = Some(TWO);
    let door = house.open().await;
    let account = door.get(&format!("{ACCOUNTS}/{id}")).await;
    assert_eq!(account["status"], "unusable");
    assert!(account["problem"].as_str().unwrap().contains("encryption key"), "{account}");
    assert_eq!(door.chat(None, "s").await.0, 200);
    door.app.stop().await;

    // With the old one beside it everything is sealed anew, after which the old one is not needed.
    let store = Store::open(house.store()).await.unwrap();
    assert!(rotate(&store, &vault(&house.env()).unwrap().unwrap()).await.is_err());
    house.previous = Some(ONE);
    let both = vault(&house.env()).unwrap().unwrap();
    let first = rotate(&store, &both).await.unwrap();
    let second = rotate(&store, &both).await.unwrap();
    assert_eq!((first.resealed, first.kept, second.resealed, second.kept), (1, 0, 0, 1));
    store.close().await;
    house.previous = None;
    let door = house.open().await;
    assert_eq!(door.get(&format!("{ACCOUNTS}/{id}")).await["live"]["status"], "available");
    door.app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_open_what_they_are_for_until_they_are_revoked() {
    let house = House::new();
    let mut door = house.open().await;
    // As long as there is none, whoever sits at the machine is the operator; then nobody is without a key.
    let (status, code, _, message) = door.refused(KEYS, json!({ "name": "app" })).await;
    assert_eq!((status, code.as_str()), (409, "conflict"), "{message}");
    let boss = door.post(KEYS, json!({ "name": "boss", "scopes": ["admin"] })).await;
    let boss_id = boss["id"].as_str().unwrap().to_owned();
    door.key = Some(boss["key"].as_str().unwrap().to_owned());
    assert_eq!(door.ask_as(None, Method::GET, KEYS, None).await.0, 401);
    let app = door.post(KEYS, json!({ "name": "app", "requestsPerMinute": 3, "weeklyBudget": 5 })).await;
    let (id, key) = (app["id"].as_str().unwrap().to_owned(), app["key"].as_str().unwrap().to_owned());
    assert!(key.starts_with("ap-") && key.len() == 46, "{key}");
    assert!(key.starts_with(app["hint"].as_str().unwrap()));
    assert_eq!(door.refused(KEYS, json!({ "name": "app" })).await.0, 409, "names are taken once");

    assert_eq!(door.chat(Some(&key), "s").await.0, 200);
    assert_eq!(door.ask_as(Some(&key), Method::GET, KEYS, None).await.0, 403);
    assert_eq!(door.chat(door.key.as_deref(), "s").await.0, 403, "an admin key without `chat` asks no model");
    let seen = door.get(&format!("{KEYS}/{id}")).await;
    assert!(seen.get("key").is_none() && seen.get("digest").is_none(), "{seen}");
    assert!(seen["weeklyUsed"].as_f64().unwrap() >= 0.0);
    for _ in 0..2 {
        door.chat(Some(&key), "s").await;
    }
    assert_eq!(door.chat(Some(&key), "s").await.0, 429);
    let (status, _) =
        door.ask(Method::PATCH, &format!("{KEYS}/{id}"), Some(json!({ "requestsPerMinute": null }))).await;
    assert_eq!(status, 200);
    assert_eq!(door.chat(Some(&key), "s").await.0, 200, "the limit is lifted at once");

    // The operator cannot lock himself out.
    assert_eq!(door.ask(Method::DELETE, &format!("{KEYS}/{boss_id}"), None).await.0, 409);
    let narrower = Some(json!({ "scopes": ["chat"] }));
    assert_eq!(door.ask(Method::PATCH, &format!("{KEYS}/{boss_id}"), narrower).await.0, 409);
    let own = door.key.take();
    door.app.stop().await;

    let mut door = house.open().await;
    door.key = own;
    assert!(!holds(&house.disk(), &key), "a key is on disk");
    assert_eq!(door.chat(Some(&key), "s").await.0, 200, "it outlives the process");
    assert_eq!(door.ask(Method::DELETE, &format!("{KEYS}/{id}"), None).await.0, 200);
    assert_eq!(door.chat(Some(&key), "s").await.0, 401);
    assert_eq!(door.get(KEYS).await["items"].as_array().unwrap().len(), 1);
    assert_eq!(door.get(&format!("{KEYS}?revoked=true")).await["items"].as_array().unwrap().len(), 2);
    door.app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn organisations_do_not_see_each_other() {
    let house = House::new();
    let mut door = house.open().await;
    door.key = door.post(KEYS, json!({ "name": "boss", "scopes": ["admin"] })).await["key"].as_str().map(str::to_owned);
    let mut keys = Vec::new();
    for organization in ["acme", "other"] {
        // Both may use the same name.
        let key = json!({ "name": "ci", "scopes": ["chat", "admin"], "organizationId": organization });
        keys.push(door.post(KEYS, key).await["key"].as_str().unwrap().to_owned());
        let mut account = max("Main");
        account["organizationId"] = organization.into();
        door.post(ACCOUNTS, account).await;
    }
    let (acme, other) = (keys[0].as_str(), keys[1].as_str());
    let list = door.ask_as(Some(acme), Method::GET, ACCOUNTS, None).await.1;
    let seen: Vec<_> = list["items"].as_array().unwrap().iter().map(|item| item["organizationId"].as_str()).collect();
    assert_eq!(seen, [Some("acme")]);
    let id = list["items"][0]["id"].as_str().unwrap().to_owned();
    let own = format!("{ACCOUNTS}/{id}");
    for (method, path, body) in [
        (Method::GET, own.clone(), None),
        (Method::PATCH, own.clone(), Some(json!({ "enabled": false }))),
        (Method::DELETE, own.clone(), None),
        (Method::POST, format!("{own}/disable"), None),
        (Method::POST, format!("{own}/reset"), None),
        (Method::POST, format!("{own}/test"), None),
    ] {
        assert_eq!(door.ask_as(Some(other), method, &path, body).await.0, 404, "{path}");
    }
    for path in ["claude-accounts", "client-keys", "usage", "alerts", "activities", "audit"] {
        let path = format!("/api/v1/admin/{path}?organizationId=acme");
        assert_eq!(door.ask_as(Some(other), Method::GET, &path, None).await.0, 403, "{path}");
        assert_eq!(door.ask_as(Some(acme), Method::GET, &path, None).await.0, 200, "{path}");
    }
    let mut foreign = max("Mine");
    foreign["organizationId"] = "acme".into();
    assert_eq!(door.ask_as(Some(other), Method::POST, ACCOUNTS, Some(foreign)).await.0, 403);
    // What reaches into the machine is the operator's.
    let reach = json!({ "name": "x", "type": "claude-max", "configDir": "~/.claude-own" });
    assert_eq!(door.ask_as(Some(other), Method::POST, ACCOUNTS, Some(reach)).await.0, 400);
    assert_eq!(door.ask_as(Some(other), Method::GET, "/debug/auth-pool", None).await.0, 403);

    for number in 0..3 {
        let served = door.chat(Some(acme), &format!("s{number}")).await;
        assert_eq!(served.0, 200);
    }
    let allocated = door.get("/debug/auth-pool/decisions?limit=3").await;
    for decision in allocated["decisions"].as_array().unwrap() {
        assert_eq!(decision["chosen"], "main", "{decision}");
    }
    let audit = door.ask_as(Some(other), Method::GET, "/api/v1/admin/audit", None).await.1;
    assert!(audit["items"].as_array().unwrap().iter().all(|entry| entry["organizationId"] == "other"), "{audit}");
    door.app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_are_followed_and_gone_on_with() {
    let house = House::new();
    let door = house.open().await;
    let mut events = door.follow("", None).await;
    assert_eq!(events.next().await.unwrap().topic, "open");
    assert_eq!(door.chat(None, "s").await.0, 200);
    let allocation = events.of("allocation").await;
    assert_eq!((&allocation.data["subscription"], &allocation.data["attempt"]), (&json!("own"), &json!(1)));
    let usage = events.of("usage").await;
    assert!(usage.data["outputTokens"].as_u64().unwrap() > 0, "{usage:?}");
    door.post(ACCOUNTS, max("later")).await;
    let change = events.of("change").await;
    assert_eq!(change.data["action"], "account.create");
    drop(events);

    // Whoever comes back goes on behind what was read last.
    let mut again = door.follow("", Some(&allocation.id)).await;
    assert_eq!(again.next().await.unwrap().data["missed"], 0);
    assert_eq!(again.next().await.unwrap().id, usage.id);
    let mut some = door.follow("?types=change", Some(&allocation.id)).await;
    some.next().await;
    assert_eq!(some.next().await.unwrap().id, change.id);
    let mut foreign = door.follow("?lastEventId=of-another-process", None).await;
    assert_eq!(foreign.next().await.unwrap().data["missed"], Value::Null);

    let begun = Instant::now();
    door.app.stop().await;
    assert!(begun.elapsed() < Duration::from_secs(15), "followers held up the stop");
    while again.next().await.is_some() {}
}
