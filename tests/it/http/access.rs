//! Who may come in: client keys, web pages, the operator.

use std::io::Write;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use auth_pool::runtime::clock;
use auth_pool::server::{ClientKey, Settings};
use auth_pool::units::Timestamp;
use serde_json::json;

use super::gateway::{FakeGateway, Script, finished};
use super::wire::{CHAT, Fixture, chat, key, settings, start, start_with};

async fn with_keys() -> Fixture {
    let client_keys = vec![key("ann", None, false), key("bob", Some(&["opus"]), false), key("boss", None, true)];
    start_with(Settings { client_keys, ..settings() }, FakeGateway::new(Script::Say(vec![finished()]))).await
}

#[tokio::test]
async fn a_client_needs_its_key() {
    let fixture = with_keys().await;
    let body = chat(&json!({})).to_string();
    for path in ["/v1/models", "/v1/models/opus"] {
        fixture.get(path).await.assert_error(401, "invalid_request_error", "invalid_api_key", None);
    }
    let answer = fixture.ask("POST", CHAT, &[], body.as_bytes()).await;
    answer.assert_error(401, "invalid_request_error", "invalid_api_key", None);
    assert_eq!(answer.header("www-authenticate"), Some("Bearer realm=\"auth-pool\""));
    let answer = fixture.ask("POST", CHAT, &[("authorization", "Bearer sk-nobody")], body.as_bytes()).await;
    answer.assert_error(401, "invalid_request_error", "invalid_api_key", None);
    assert!(fixture.gateway.calls.lock().unwrap().is_empty());

    let answer = fixture.ask("POST", CHAT, &[("authorization", "Bearer sk-ann")], body.as_bytes()).await;
    assert_eq!(answer.status, 200);
    assert_eq!(&*fixture.gateway.call().client, "ann");
    for header in ["x-api-key", "api-key"] {
        assert_eq!(fixture.ask("GET", "/v1/models", &[(header, "sk-ann")], b"").await.status, 200);
    }
    // Monitors have none.
    for path in ["/health", "/health/live", "/health/ready"] {
        assert_eq!(fixture.get(path).await.status, 200);
    }
}

#[tokio::test]
async fn a_key_may_be_bound_to_models() {
    let fixture = with_keys().await;
    let bob = [("authorization", "Bearer sk-bob")];
    let ask = |model: &str| {
        let body = chat(&json!({ "model": model })).to_string();
        let fixture = &fixture;
        async move { fixture.ask("POST", CHAT, &bob, body.as_bytes()).await }
    };
    assert_eq!(ask("claude-opus-4-8").await.status, 200);
    ask("gpt-4o").await.assert_error(403, "invalid_request_error", "insufficient_permissions", Some("model"));
    let list = fixture.ask("GET", "/v1/models", &bob, b"").await.json();
    assert_eq!(list["data"].as_array().unwrap().len(), 2, "{list}");
}

#[tokio::test]
async fn a_new_list_of_keys_counts_at_once() {
    let fixture = with_keys().await;
    let ask = async |key: &str| fixture.ask("GET", "/v1/models", &[("x-api-key", key)], b"").await;
    assert_eq!(ask("sk-ann").await.status, 200);
    fixture.settings.store(Settings { client_keys: vec![key("eve", None, false)], ..settings() }.into());
    assert_eq!(ask("sk-ann").await.status, 401);
    assert_eq!(ask("sk-eve").await.status, 200);
}

#[tokio::test]
async fn with_keys_the_operator_needs_an_admin_key_also_on_this_machine() {
    let fixture = with_keys().await;
    let (kind, code) = ("invalid_request_error", "insufficient_permissions");
    for (method, path) in OPERATIONS {
        // A proxy in front that does not say it is one looks like this machine, too.
        fixture.ask(method, path, &[], b"").await.assert_error(401, kind, "invalid_api_key", None);
        fixture.ask(method, path, &[("x-api-key", "sk-ann")], b"").await.assert_error(403, kind, code, None);
        assert_eq!(fixture.ask(method, path, &[("x-api-key", "sk-boss")], b"").await.status, 200);
        let far = [("x-forwarded-for", "203.0.113.9"), ("x-api-key", "sk-boss")];
        assert_eq!(fixture.ask(method, path, &far, b"").await.status, 200);
    }
}

#[tokio::test]
async fn without_keys_the_operator_is_who_comes_from_this_machine() {
    let fixture = start(Script::Say(vec![finished()])).await;
    let (kind, code) = ("invalid_request_error", "insufficient_permissions");
    for (method, path) in OPERATIONS {
        assert_eq!(fixture.ask(method, path, &[], b"").await.status, 200);
        let strangers: [&[(&str, &str)]; 4] = [
            &[("x-forwarded-for", "203.0.113.9")],
            &[("host", "pool.example")],
            &[("origin", "https://evil.example")],
            &[("sec-fetch-site", "cross-site")],
        ];
        for stranger in strangers {
            fixture.ask(method, path, stranger, b"").await.assert_error(403, kind, code, None);
        }
    }
    assert_eq!(fixture.get("/debug/auth-pool").await.json(), json!({ "subscriptions": [] }));
    let answer = fixture.get("/debug/auth-pool/rebalance").await;
    answer.assert_error(405, kind, "method_not_supported", None);
    assert_eq!(answer.header("allow"), Some("POST, OPTIONS"));
    let answer = fixture.get("/debug/auth-pool/decisions?limit=3&session=a%20b").await.json();
    assert_eq!(answer, json!({ "decisions": [], "limit": 3, "session": "a b" }));
    let answer = fixture.get("/debug/auth-pool/decisions?limit=many").await;
    answer.assert_error(400, kind, "invalid_value", Some("limit"));
}

/// Which subscription answered is the operator's business: the names tell how the pool is made.
#[tokio::test]
async fn who_answered_is_told_to_the_operator_alone() {
    const TOLD: [&str; 2] = ["x-auth-pool-subscription", "x-auth-pool-decision"];
    let told = async |fixture: &Fixture, stream: bool, headers: &[(&str, &str)]| {
        let body = chat(&json!({ "stream": stream })).to_string();
        let answer = fixture.ask("POST", CHAT, headers, body.as_bytes()).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert!(answer.header("x-auth-pool-cache").is_some(), "this one is everybody's");
        TOLD.map(|name| answer.header(name).is_some())
    };
    let (keys, none) = (with_keys().await, start(Script::Say(vec![finished()])).await);
    for stream in [false, true] {
        assert_eq!(told(&keys, stream, &[("x-api-key", "sk-boss")]).await, [true; 2]);
        assert_eq!(told(&keys, stream, &[("x-api-key", "sk-ann")]).await, [false; 2]);
        // Without keys it is who comes from this machine, and not through a proxy.
        assert_eq!(told(&none, stream, &[]).await, [true; 2]);
        assert_eq!(told(&none, stream, &[("x-forwarded-for", "203.0.113.9")]).await, [false; 2]);
    }
}

const OPERATIONS: [(&str, &str); 3] =
    [("GET", "/debug/auth-pool"), ("GET", "/debug/auth-pool/decisions"), ("POST", "/debug/auth-pool/rebalance")];

#[tokio::test]
async fn without_keys_no_foreign_page_and_no_foreign_name_gets_in() {
    let fixture = start(Script::Say(vec![finished()])).await;
    let body = chat(&json!({})).to_string();
    let ask = |headers: &'static [(&'static str, &'static str)]| fixture.ask("POST", CHAT, headers, body.as_bytes());
    let (kind, code) = ("invalid_request_error", "insufficient_permissions");
    ask(&[("host", "rebound.example")]).await.assert_error(403, kind, code, None);
    ask(&[("origin", "https://evil.example"), ("content-type", "text/plain")])
        .await
        .assert_error(403, kind, code, None);
    ask(&[("origin", "null")]).await.assert_error(403, kind, code, None);
    ask(&[("sec-fetch-site", "cross-site")]).await.assert_error(403, kind, code, None);
    assert!(fixture.gateway.calls.lock().unwrap().is_empty());
    assert_eq!(ask(&[("host", "127.0.0.1:3000"), ("origin", "http://127.0.0.1:3000")]).await.status, 200);
    assert_eq!(ask(&[("authorization", "Bearer sk-whatever")]).await.status, 200);
}

#[tokio::test]
async fn configured_origins_get_cors_headers_and_others_none() {
    let cors_origins = vec!["https://app.example".to_owned()];
    let fixture =
        start_with(Settings { cors_origins, ..settings() }, FakeGateway::new(Script::Say(vec![finished()]))).await;
    let body = chat(&json!({})).to_string();
    let preflight = [
        ("origin", "https://app.example"),
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "authorization,x-stainless-os"),
        ("access-control-request-private-network", "true"),
    ];
    let answer = fixture.ask("OPTIONS", CHAT, &preflight, b"").await;
    assert_eq!((answer.status, answer.body.len()), (204, 0));
    assert_eq!(answer.header("access-control-allow-origin"), Some("https://app.example"));
    assert_eq!(answer.header("access-control-allow-methods"), Some("POST, OPTIONS"));
    assert_eq!(answer.header("access-control-allow-headers"), Some("authorization,x-stainless-os"));
    assert_eq!(answer.header("access-control-allow-private-network"), Some("true"));
    assert_eq!(answer.header("vary"), Some("Access-Control-Request-Method, Access-Control-Request-Headers, Origin"));

    let answer = fixture.ask("POST", CHAT, &[("origin", "https://app.example")], body.as_bytes()).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("access-control-allow-origin"), Some("https://app.example"));
    let exposed: Vec<_> = answer.header("access-control-expose-headers").unwrap().split(", ").collect();
    for name in [
        "x-request-id",
        "x-auth-pool-backend",
        "x-auth-pool-fallback",
        "x-auth-pool-cache",
        "x-ratelimit-limit-requests",
    ] {
        assert!(exposed.contains(&name), "{name}");
    }
    let own = answer
        .headers
        .keys()
        .map(String::as_str)
        .filter(|name| name.starts_with("x-auth-pool-") || name.starts_with("x-ratelimit-"));
    for name in own {
        assert!(exposed.contains(&name), "{name} is sent and cannot be read");
    }
    // Errors, too, must be readable for the page.
    let answer = fixture.ask("GET", "/nowhere", &[("origin", "https://app.example")], b"").await;
    assert_eq!(answer.header("access-control-allow-origin"), Some("https://app.example"));

    let answer = fixture.ask("POST", CHAT, &[("origin", "https://evil.example")], body.as_bytes()).await;
    assert_eq!(answer.status, 403);
    assert_eq!(answer.header("access-control-allow-origin"), None);
    assert_eq!(answer.header("vary"), Some("Origin"));
    let answer = fixture.post(&chat(&json!({}))).await;
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (200, None));
}

#[tokio::test]
async fn with_keys_a_foreign_page_is_not_refused_but_gets_no_cors_headers() {
    let fixture = with_keys().await;
    let headers = [("origin", "https://evil.example"), ("x-api-key", "sk-ann"), ("host", "pool.example")];
    let answer = fixture.ask("GET", "/v1/models", &headers, b"").await;
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (200, None));
    let preflight = [("origin", "https://evil.example"), ("access-control-request-method", "POST")];
    let answer = fixture.ask("OPTIONS", CHAT, &preflight, b"").await;
    assert_eq!(answer.status, 204);
    assert!(answer.headers.keys().all(|name| !name.starts_with("access-control-")), "{answer:?}");
}

/// What a subscriber writes during a test.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn the_log_knows_who_asked_and_nothing_it_must_not() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_ansi(false);
    // For every thread: tests beside this one have no subscriber, and what they run first would be taken for silent.
    let subscriber = subscriber.with_writer(move || writer.clone()).finish();
    tracing::subscriber::set_global_default(subscriber).unwrap();

    let fixture = with_keys().await;
    let body = chat(&json!({ "messages": [{ "role": "user", "content": "the launch code is 0000" }] })).to_string();
    let ann = [("authorization", "Bearer sk-ann"), ("x-request-id", "req-1")];
    assert_eq!(fixture.ask("POST", CHAT, &ann, body.as_bytes()).await.status, 200);
    let wrong = [("x-api-key", "sk-guess"), ("x-request-id", "req-2")];
    assert_eq!(fixture.ask("POST", CHAT, &wrong, body.as_bytes()).await.status, 401);

    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let line = |id: &str| log.lines().find(|line| line.contains(id) && line.contains("answered")).unwrap();
    for part in ["INFO", "POST", CHAT, "client=\"ann\"", "subscription=\"claude-a\"", "status=200"] {
        assert!(line("req-1").contains(part), "{part} in {}", line("req-1"));
    }
    for part in ["status=401", "code=\"invalid_api_key\""] {
        assert!(line("req-2").contains(part), "{part} in {}", line("req-2"));
    }
    for secret in ["sk-ann", "sk-guess", "launch code"] {
        assert!(!log.contains(secret), "{secret} in {log}");
    }
}

#[tokio::test]
async fn a_key_may_ask_so_often_and_says_how_often_it_still_may() {
    let limited = ClientKey { requests_per_minute: NonZeroU32::new(60), ..key("ann", None, true) };
    let client_keys = vec![limited, key("bob", None, false)];
    let fixture =
        start_with(Settings { client_keys, ..settings() }, FakeGateway::new(Script::Say(vec![finished()]))).await;
    let body = chat(&json!({})).to_string();
    let ask = |key: &'static str, headers: Vec<(&'static str, String)>| {
        let (fixture, body) = (&fixture, &body);
        async move {
            let mut all = vec![("x-api-key", key)];
            all.extend(headers.iter().map(|(name, value)| (*name, value.as_str())));
            fixture.ask("POST", CHAT, &all, body.as_bytes()).await
        }
    };
    let started = Instant::now();
    let (mut passed, mut refused) = (0, None);
    for number in 0..200 {
        // Whoever claims to come from elsewhere is still the same key.
        let answer = ask("sk-ann", vec![("x-forwarded-for", format!("203.0.113.{number}"))]).await;
        assert_eq!(answer.header("x-ratelimit-limit-requests"), Some("60"));
        if answer.status == 429 {
            refused = Some(answer);
            break;
        }
        assert_eq!(answer.status, 200);
        passed += 1;
    }
    // One comes back with every second that the test takes.
    assert!((60..=61 + started.elapsed().as_secs()).contains(&passed), "{passed} passed");
    let refused = refused.expect("a limit");
    refused.assert_error(429, "rate_limit_error", "rate_limit_exceeded", None);
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_eq!(refused.header("x-ratelimit-remaining-requests"), Some("0"));
    assert_eq!(refused.header("x-ratelimit-reset-requests"), Some("1m0s"));
    // Others do not notice, nor do monitors and the operator.
    let answer = ask("sk-bob", Vec::new()).await;
    assert_eq!((answer.status, answer.header("x-ratelimit-limit-requests")), (200, None));
    for path in ["/health", "/health/live", "/health/ready", "/debug/auth-pool"] {
        assert_eq!(fixture.ask("GET", path, &[("x-api-key", "sk-ann")], b"").await.status, 200, "{path}");
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(ask("sk-ann", Vec::new()).await.status, 200, "the promise is kept");
}

#[tokio::test]
async fn without_keys_the_limit_goes_by_address() {
    let requests_per_minute = NonZeroU32::new(2);
    let fixture =
        start_with(Settings { requests_per_minute, ..settings() }, FakeGateway::new(Script::Say(vec![finished()])))
            .await;
    for expected in [200, 200, 429] {
        let spoofed = [("x-forwarded-for", "203.0.113.7"), ("authorization", "Bearer another")];
        assert_eq!(fixture.ask("GET", "/v1/models", &spoofed, b"").await.status, expected);
    }
    for _ in 0..500 {
        assert_eq!(fixture.get("/health").await.status, 200);
    }
}

#[tokio::test]
async fn a_key_opens_what_it_is_for_and_as_long_as_it_lasts() {
    let operator = ClientKey { chat: false, ..key("operator", None, true) };
    let manager = ClientKey { organization: Some("acme".into()), ..key("manager", None, true) };
    let old = ClientKey { expires_at: Some(Timestamp::from_secs(1_700_000_000)), ..key("old", None, true) };
    let new = ClientKey { expires_at: Some(clock::now() + Duration::from_secs(3600)), ..key("new", None, false) };
    let client_keys = vec![operator, manager, old, new];
    let fixture =
        start_with(Settings { client_keys, ..settings() }, FakeGateway::new(Script::Say(vec![finished()]))).await;
    let ask = async |path: &str, key: &str| fixture.ask("GET", path, &[("x-api-key", key)], b"").await;
    let (kind, code) = ("invalid_request_error", "insufficient_permissions");
    ask("/v1/models", "sk-operator").await.assert_error(403, kind, code, None);
    assert_eq!(ask("/debug/auth-pool", "sk-operator").await.status, 200);
    // Whoever runs an organisation does not see the others.
    ask("/debug/auth-pool", "sk-manager").await.assert_error(403, kind, code, None);
    assert_eq!(ask("/v1/models", "sk-manager").await.status, 200);
    for path in ["/v1/models", "/debug/auth-pool"] {
        let answer = ask(path, "sk-old").await;
        answer.assert_error(401, kind, "invalid_api_key", None);
        assert!(answer.json()["error"]["message"].as_str().unwrap().contains("expired"));
    }
    assert_eq!(ask("/v1/models", "sk-new").await.status, 200);
}
