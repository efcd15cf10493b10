//! The whole program: its file, its reload, its command.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use auth_pool::alert::signature;
use auth_pool::app::App;
use auth_pool::config::{self, Env, Overrides};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{Endpoint, LONG, Says, bench, until};

struct Home {
    dir: tempfile::TempDir,
}

impl Home {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir(dir.path().join(".claude-sub1")).expect("a profile");
        Self { dir }
    }

    fn write(&self, notifications: &Value, fake_claude: &str) {
        let file = json!({
            "subscriptions": [{
                "id": "sub1", "type": "claude-pro", "configDir": self.dir.path().join(".claude-sub1"),
                "weeklyBudget": 1, "env": {"FAKE_CLAUDE": fake_claude}
            }],
            "weeklyBudgetThreshold": 1,
            "claude": {"command": fake_claude_path(), "sparesPerSubscription": 0, "selfTest": false},
            "runawayGuard": {"enabled": false},
            "notifications": notifications,
        });
        // As editors do.
        let (new, path) = (self.dir.path().join("new"), self.path());
        fs::write(&new, file.to_string()).and_then(|()| fs::rename(&new, path)).expect("a file");
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("auth-pool.json")
    }

    fn env(&self) -> Env {
        let home = self.dir.path().to_string_lossy().into_owned();
        let path = Env::from_process().var("PATH").unwrap_or_default().to_owned();
        let vars = [("HOME", home), ("PATH", path), ("HOOK_KEY", "s3cret".to_owned())];
        vars.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

fn fake_claude_path() -> String {
    let exe = std::env::current_exe().expect("a running test has a path");
    let dir = exe.parent().and_then(Path::parent).expect("tests run from target/<profile>/deps");
    dir.join("examples/fake-claude").to_string_lossy().into_owned()
}

fn notifications(endpoint: &Endpoint, rules: &Value) -> Value {
    json!({
        "webhookUrl": endpoint.url(), "allowHosts": ["127.0.0.1"], "webhookSecretEnv": "HOOK_KEY", "rules": rules
    })
}

async fn chat(addr: SocketAddr) -> (u16, String) {
    let body = json!({"model": "claude-sonnet-4-5", "messages": [{"role": "user", "content": "hi"}]});
    let url = format!("http://{addr}/v1/chat/completions");
    let response = reqwest::Client::new().post(url).json(&body).send().await.expect("an answer");
    (response.status().as_u16(), response.text().await.expect("a body"))
}

async fn debug(addr: SocketAddr) -> Value {
    reqwest::get(format!("http://{addr}/debug/auth-pool")).await.expect("an answer").json().await.expect("JSON")
}

#[tokio::test]
async fn requests_do_not_feel_a_webhook_that_hangs_and_a_reload_brings_its_alert_elsewhere() {
    let (bench, home) = (bench(), Home::new());
    let mut hangs = bench.endpoint(&[Says::Nothing]).await;
    let mut works = bench.endpoint(&[Says::Status("200 OK")]).await;
    let rules = json!([
        {"type": "usage_threshold", "threshold": 0.2, "channels": ["webhook", "log"]},
        {"type": "failover", "channels": ["webhook"]}
    ]);
    home.write(&notifications(&hangs, &rules), "answer");
    let overrides = Overrides { config: Some(home.path()), listen: Some("127.0.0.1:0".to_owned()) };
    let config = config::load(&home.env(), &overrides).expect("a good file");
    let app = App::start(config, home.env(), overrides).await.expect("it starts");

    // One answer costs a quarter of the week's dollar.
    let (status, text) = chat(app.addr()).await;
    assert_eq!(status, 200, "{text}");
    let message = hangs.next().await;
    assert_eq!(message.json()["message"], "Subscription sub1 at 25% weekly budget");
    assert_eq!(message.json()["data"]["weeklyUsed"], 0.25);
    let begun = Instant::now();
    assert_eq!(chat(app.addr()).await.0, 200);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    let view = debug(app.addr()).await;
    assert_eq!(view["alerts"]["channels"]["webhook"]["waiting"], 1, "{view}");
    let rules_in_force = &view["alerts"]["rules"];
    assert_eq!(rules_in_force, 5, "two, and three levels of quota alerts");
    assert!(!view.to_string().contains(&hangs.url()), "the address can be a credential");

    home.write(&notifications(&works, &rules), "answer");
    assert_eq!(works.next().await.body, message.body, "the alert that waited");
    until(|| works.received.is_empty()).await;
    let view = debug(app.addr()).await;
    assert_eq!(view["alerts"]["channels"]["webhook"]["delivered"], 1, "{view}");
    timeout(LONG, app.stop()).await.expect("it stops");
}

#[tokio::test]
async fn a_subscription_that_cannot_log_in_is_told() {
    let (bench, home) = (bench(), Home::new());
    let mut endpoint = bench.endpoint(&[Says::Status("200 OK")]).await;
    let transcript = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts/2.1.329/not_logged_in.jsonl");
    let rules = json!([{"type": "auth_failed", "channels": ["webhook"]}]);
    home.write(&notifications(&endpoint, &rules), &format!("play:{}", transcript.display()));
    let overrides = Overrides { config: Some(home.path()), listen: Some("127.0.0.1:0".to_owned()) };
    let config = config::load(&home.env(), &overrides).expect("a good file");
    let app = App::start(config, home.env(), overrides).await.expect("it starts");
    assert_ne!(chat(app.addr()).await.0, 200);
    let message = endpoint.next().await;
    assert_eq!(message.header("x-auth-pool-signature"), Some(signature("s3cret", message.body.as_bytes()).as_str()));
    let message = message.json();
    assert_eq!((&message["type"], &message["severity"]), (&json!("auth_failed"), &json!("critical")), "{message}");
    timeout(LONG, app.stop()).await.expect("it stops");
}

#[expect(clippy::disallowed_methods, reason = "the program itself is what is tried out")]
async fn alerts_test(home: &Home) -> (Option<i32>, String, String) {
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_auth-pool"))
        .args(["alerts", "test", "--config"])
        .arg(home.path())
        .env_clear()
        .envs(home.env().vars())
        .stdin(Stdio::null())
        .output();
    let output = timeout(LONG, output).await.expect("in time").expect("it runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[tokio::test]
async fn alerts_test_sends_one_of_each_and_says_how_each_fared() {
    let (bench, home) = (bench(), Home::new());
    let mut endpoint = bench.endpoint(&[Says::Status("200 OK")]).await;
    let kinds = ["usage_threshold", "failover", "rotation", "limit_reached", "auth_failed", "recovered"];
    let rules = kinds.map(|kind| match kind {
        "usage_threshold" => json!({"type": kind, "threshold": 0.8, "channels": ["webhook", "log"]}),
        _ => json!({"type": kind, "channels": ["webhook"]}),
    });
    let off = json!({"type": "rotation", "channels": ["webhook"], "enabled": false});
    let rules: Vec<Value> = rules.into_iter().chain([off]).collect();
    home.write(&notifications(&endpoint, &json!(rules)), "answer");
    let (code, out, err) = alerts_test(&home).await;
    assert_eq!(code, Some(0), "{out}{err}");
    let mut arrived = Vec::new();
    for _ in kinds {
        let message = endpoint.next().await;
        assert!(message.header("x-auth-pool-signature").is_some());
        assert_eq!(message.json()["data"]["test"], true);
        arrived.push(message.json()["type"].as_str().expect("a type").to_owned());
    }
    arrived.sort();
    let mut expected = kinds.to_vec();
    expected.sort_unstable();
    assert_eq!(arrived, expected);
    let rows: Vec<String> = out.lines().map(|row| row.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    let expected = [
        "usage_threshold 80 % webhook ok delivered",
        "usage_threshold 80 % log ok logged",
        "quota_alert 100 % log ok logged",
    ];
    for row in expected {
        assert!(rows.iter().any(|found| found.starts_with(row)), "{row}: {out}");
    }
    assert!(err.contains("Test: Subscription sub1 at 80% weekly budget"), "{err}");
}

#[tokio::test]
async fn alerts_test_fails_when_one_fails() {
    let (bench, home) = (bench(), Home::new());
    let endpoint = bench.endpoint(&[Says::Status("404 Not Found")]).await;
    let rules = json!([{"type": "rotation", "channels": ["webhook"]}]);
    home.write(&notifications(&endpoint, &rules), "answer");
    let (code, out, err) = alerts_test(&home).await;
    assert_eq!(code, Some(1), "{out}{err}");
    assert!(out.contains("FAILED  it answered 404 Not Found"), "{out}");
    assert!(err.contains("1 of 4 alerts did not arrive"), "{err}");
}
