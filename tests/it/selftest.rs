//! The self-test of the CLI against one that never asks the provider, and the pool's reaction to a replaced CLI.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use auth_pool::backend::claude_cli::{Feature, Support};
use auth_pool::config::Env;
use auth_pool::runtime::tasks::Tasks;
use auth_pool::selftest::{self, Subject};
use serde_json::json;

use super::claude_cli::fake_claude;
use super::reload::{Proxy, member};

#[tokio::test]
async fn a_cli_that_asks_elsewhere_proves_nothing() {
    let tasks = Tasks::default();
    let subject = Subject { command: fake_claude(), own_env: Env::from_process().vars().clone() };
    let features = selftest::run(&subject, &tasks).await;
    for feature in Feature::ALL {
        assert!(matches!(features.support(feature), Some(Support::Unknown(_))), "{feature}: {features:?}");
        assert!(features.has(feature), "nothing is taken away on a guess");
    }
    tokio::time::timeout(Duration::from_secs(30), tasks.finished()).await.expect("nothing is left behind");
}

#[tokio::test]
async fn a_missing_cli_proves_nothing_either() {
    let tasks = Tasks::default();
    let subject = Subject { command: "/nowhere/claude".into(), own_env: Env::from_process().vars().clone() };
    let features = selftest::run(&subject, &tasks).await;
    assert!(features.unknown().is_some(), "{features:?}");
}

#[tokio::test]
async fn the_spares_of_a_replaced_cli_give_way() {
    let home = tempfile::tempdir().unwrap();
    let (first, second, link) = (home.path().join("one"), home.path().join("two"), home.path().join("claude"));
    fs::copy(fake_claude(), &first).unwrap();
    fs::copy(fake_claude(), &second).unwrap();
    symlink(&first, &link).unwrap();
    let file = json!({
        "subscriptions": [member("a", "answer")],
        "claude": { "command": link, "maxProcesses": 8, "sparesPerSubscription": 1, "selfTest": false },
    });
    let proxy = Proxy::start(["a".to_owned()], "auth-pool.json", &file).await;
    // The file is looked at every ten seconds.
    let seen = async |path: &Path| {
        let path = json!(fs::canonicalize(path).unwrap());
        let begun = Instant::now();
        loop {
            let debug = proxy.debug().await;
            if debug["cli"]["binary"]["path"] == path && debug["processes"]["spare"] == 1 {
                return debug["processes"]["started"].as_u64().unwrap();
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "it did not happen: {debug:#}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let before = seen(&first).await;
    // As an installer does it: the new link takes the place of the old one in one step.
    symlink(&second, home.path().join("new")).unwrap();
    fs::rename(home.path().join("new"), &link).unwrap();
    assert!(seen(&second).await > before, "the spare is a new process");
    proxy.app.stop().await;
}
