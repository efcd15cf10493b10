//! The CLI is replaced while the pool runs: a real proxy, with a broken CLI and then a scripted one behind it.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::claude_cli::fake_claude;
use super::reload::{Proxy, file, member};

/// The file is looked at every ten seconds. A breaker that opened stays so for 300.
const PATIENCE: Duration = Duration::from_secs(120);

async fn status(proxy: &Proxy, id: &str) -> Value {
    proxy.view(id).await.unwrap()["status"].clone()
}

async fn until_both_are(proxy: &Proxy, cli: &str, key: &str, mut act: impl AsyncFnMut()) {
    let begun = Instant::now();
    while [status(proxy, "cli").await, status(proxy, "key").await] != [cli, key] {
        assert!(begun.elapsed() < PATIENCE, "it did not happen: {:#}", proxy.debug().await);
        act().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mended_cli_serves_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let command = folder.path().join("claude");
    fs::write(&command, "#!/bin/sh\nexit 7\n").unwrap();
    fs::set_permissions(&command, fs::Permissions::from_mode(0o755)).unwrap();
    // Nobody listens there.
    let by_key = json!({
        "id": "key", "type": "api", "apiKeyEnv": "PATH", "baseUrl": "http://127.0.0.1:1", "weeklyBudget": 1_000_000,
    });
    let mut file = file(&[member("cli", "answer"), by_key]);
    file["claude"]["command"] = json!(command);
    file["claude"]["sparesPerSubscription"] = json!(0);
    let proxy = Proxy::start(["cli".to_owned()], "auth-pool.json", &file).await;
    until_both_are(&proxy, "cooldown", "cooldown", async || assert_ne!(proxy.ask().await.status(), 200)).await;

    symlink(fake_claude(), folder.path().join("new")).unwrap();
    fs::rename(folder.path().join("new"), &command).unwrap();
    until_both_are(&proxy, "available", "cooldown", async || tokio::time::sleep(Duration::from_millis(50)).await).await;
    let answer = proxy.ask().await;
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["x-auth-pool-subscription"]),
        (200, &"cli".parse().unwrap())
    );
    proxy.app.stop().await;
}
