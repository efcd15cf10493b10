//! The configuration changes while requests run: a real proxy, with a scripted CLI behind it.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use auth_pool::app::App;
use auth_pool::config::{self, Env, Overrides};
use auth_pool::runtime::tasks::Tasks;
use serde_json::{Value, json};

use super::claude_cli::fake_claude;

/// Nothing in these tests takes this long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// A home directory with CLI profiles, a configuration file in it, and the proxy that follows the file.
pub(super) struct Proxy {
    pub(super) app: App,
    home: tempfile::TempDir,
    client: reqwest::Client,
}

/// A subscription of the file that does `behaviour`.
pub(super) fn member(id: &str, behaviour: &str) -> Value {
    json!({
        "id": id, "type": "claude-max", "configDir": format!("~/.claude-{id}"), "weeklyBudget": 1_000_000,
        "env": { "FAKE_CLAUDE": behaviour },
    })
}

pub(super) fn file(members: &[Value]) -> Value {
    json!({
        "subscriptions": members,
        "claude": { "command": fake_claude(), "maxProcesses": 8, "sparesPerSubscription": 1, "selfTest": false },
        "runawayGuard": { "enabled": false },
    })
}

impl Proxy {
    /// With profiles for `ids`, and `file` at `path` in the home directory.
    pub(super) async fn start(ids: impl IntoIterator<Item = String>, path: &str, file: &Value) -> Self {
        let home = tempfile::tempdir().unwrap();
        for id in ids {
            make_profile(home.path(), &id);
        }
        let path = home.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        if !path.is_symlink() {
            fs::write(&path, file.to_string()).unwrap();
        }
        Self::serve(home, path).await
    }

    async fn serve(home: tempfile::TempDir, path: PathBuf) -> Self {
        let own = Env::from_process();
        let env: Env =
            [("HOME", home.path().to_string_lossy().into_owned()), ("PATH", own.var("PATH").unwrap().into())]
                .map(|(name, value)| (name.to_owned(), value))
                .into_iter()
                .collect();
        let overrides = Overrides { config: Some(path), listen: Some("127.0.0.1:0".to_owned()) };
        let config = config::load(&env, &overrides).unwrap_or_else(|problems| panic!("{problems}"));
        let app = App::start(config, env, overrides).await.unwrap();
        Self { app, home, client: reqwest::Client::builder().no_proxy().build().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.app.addr())
    }

    async fn get(&self, path: &str) -> Value {
        self.client.get(self.url(path)).send().await.unwrap().json().await.unwrap()
    }

    pub(super) async fn debug(&self) -> Value {
        self.get("/debug/auth-pool").await
    }

    /// The view of one subscription.
    pub(super) async fn view(&self, id: &str) -> Option<Value> {
        let debug = self.debug().await;
        debug["status"].as_array().unwrap().iter().find(|view| view["id"] == id).cloned()
    }

    pub(super) async fn ask(&self) -> reqwest::Response {
        ask(&self.client, &self.url("/v1/chat/completions"), false).await
    }

    /// Who answers a new request.
    async fn served_by(&self) -> String {
        let answer = self.ask().await;
        assert_eq!(answer.status(), 200);
        answer.headers()["x-auth-pool-subscription"].to_str().unwrap().to_owned()
    }

    /// Puts another file in the place of the configuration, as editors do.
    fn replace(&self, name: &str, file: &Value) {
        fs::write(self.path("new.json"), file.to_string()).unwrap();
        fs::rename(self.path("new.json"), self.path(name)).unwrap();
    }

    /// Waits until `GET /debug/auth-pool` fulfils `condition`, and tells how long that took.
    pub(super) async fn until(&self, condition: impl Fn(&Value) -> bool) -> Duration {
        let begun = Instant::now();
        loop {
            let debug = self.debug().await;
            if condition(&debug) {
                return begun.elapsed();
            }
            assert!(begun.elapsed() < PATIENCE, "it did not happen: {debug:#}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn make_profile(home: &Path, id: &str) {
    let dir = home.join(format!(".claude-{id}"));
    fs::create_dir(&dir).unwrap();
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).unwrap();
}

async fn ask(client: &reqwest::Client, url: &str, stream: bool) -> reqwest::Response {
    let body = json!({ "model": "sonnet", "stream": stream, "messages": [{ "role": "user", "content": "hi" }] });
    client.post(url).json(&body).send().await.unwrap()
}

fn ids(debug: &Value) -> Vec<&str> {
    debug["status"].as_array().unwrap().iter().map(|view| view["id"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_thousand_subscriptions_are_rewritten_under_load_and_no_request_fails() {
    const ROUNDS: usize = 6;
    let id = |number: usize| format!("m{number:04}");
    let members: Vec<Value> = (0..1000 + ROUNDS).map(|number| member(&id(number), "answer")).collect();
    let proxy = Proxy::start((0..1000 + ROUNDS).map(id), "auth-pool.json", &file(&members[..1000])).await;

    let (served, failed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let over = Arc::new(AtomicBool::new(false));
    let tasks = Tasks::default();
    for _ in 0..3 {
        let (served, failed, over) = (Arc::clone(&served), Arc::clone(&failed), Arc::clone(&over));
        let (client, url) = (proxy.client.clone(), proxy.url("/v1/chat/completions"));
        tasks.spawn("load", async move {
            while !over.load(Ordering::Relaxed) {
                let answer = ask(&client, &url, true).await;
                let (status, text) = (answer.status(), answer.text().await.unwrap_or_default());
                if status == 200 && text.trim_end().ends_with("data: [DONE]") {
                    served.fetch_add(1, Ordering::Relaxed);
                } else {
                    println!("{status}: {text}");
                    failed.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
    }

    let mut slowest = Duration::ZERO;
    for round in 1..=ROUNDS {
        // One goes at the front, where requests go first, and one comes at the end.
        let before = served.load(Ordering::Relaxed);
        proxy.replace("auth-pool.json", &file(&members[round..1000 + round]));
        let written = Instant::now();
        while proxy.get("/health").await["pool"]["subscriptions"] == 999 + round {
            assert!(written.elapsed() < PATIENCE, "the change was not noticed");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        slowest = slowest.max(written.elapsed());
        while served.load(Ordering::Relaxed) < before + 5 {
            assert!(written.elapsed() < PATIENCE, "no request is answered any more");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    over.store(true, Ordering::Relaxed);
    tasks.finished().await;
    let (served, failed) = (served.load(Ordering::Relaxed), failed.load(Ordering::Relaxed));
    println!(
        "{ROUNDS} rewrites of 1000 subscriptions: in force after {slowest:?} at most, {served} served, {failed} failed"
    );
    assert_eq!(failed, 0);
    // A fraction of a second on a quiet machine.
    assert!(slowest < Duration::from_secs(20), "{slowest:?}");
    // The bookkeeping of the last answers may still be under way when their clients have them.
    let over = Instant::now();
    while proxy.get("/health").await["pool"]["inFlight"] != 0 {
        assert!(over.elapsed() < PATIENCE, "a lease has leaked");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    proxy.app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_subscription_ends_what_it_has_begun_and_takes_nothing_new() {
    let go = tempfile::tempdir().unwrap().keep().join("go");
    let members = [member("goes", &format!("until:{}", go.display())), member("stays", "answer")];
    let proxy = Proxy::start(["goes", "stays"].map(str::to_owned), "auth-pool.json", &file(&members[..1])).await;
    let mut running = ask(&proxy.client, &proxy.url("/v1/chat/completions"), true).await;
    assert_eq!(running.headers()["x-auth-pool-subscription"], "goes");
    let mut text = String::new();
    while !text.contains("Hello") {
        text.push_str(&String::from_utf8_lossy(&running.chunk().await.unwrap().unwrap()));
    }

    proxy.replace("auth-pool.json", &file(&members[1..]));
    proxy.until(|debug| ids(debug).contains(&"stays")).await;
    let goes = proxy.view("goes").await.expect("it still answers");
    assert_eq!((&goes["inFlight"], &goes["excluded"]["cause"]), (&json!(1), &json!("removed")), "{goes:#}");
    for _ in 0..3 {
        assert_eq!(proxy.served_by().await, "stays");
    }

    fs::write(&go, "").unwrap();
    text.push_str(&running.text().await.unwrap());
    assert!(text.trim_end().ends_with("data: [DONE]"), "{text}");
    fs::remove_dir_all(go.parent().unwrap()).unwrap();
    // What it has used counts for a week if it comes back; until then only its account is left.
    proxy.until(|debug| debug["totals"]["inFlight"] == 0).await;
    let goes = proxy.view("goes").await.expect("its account");
    assert_eq!((&goes["inFlight"], &goes["weeklyUsed"]), (&json!(0), &json!(0.25)), "{goes:#}");
    assert_eq!(proxy.served_by().await, "stays");
    proxy.app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shorter_time_to_come_back_holds_for_what_is_kept_already() {
    let keeping = |time: &str| {
        let mut file = file(&[member("a", "answer")]);
        file["claude"]["keepIdle"] = json!(time);
        file["claude"]["sparesPerSubscription"] = json!(0);
        file
    };
    let proxy = Proxy::start(["a".to_owned()], "auth-pool.json", &keeping("1h")).await;
    assert_eq!(proxy.ask().await.status(), 200);
    proxy.until(|debug| debug["processes"]["live"] == 1).await;
    proxy.replace("auth-pool.json", &keeping("100ms"));
    proxy.until(|debug| debug["processes"]["live"] == 0 && debug["processes"]["running"] == 0).await;
    proxy.replace("auth-pool.json", &keeping("1h"));
    proxy.until(|debug| debug["configProblems"].is_null()).await;
    proxy.app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_that_was_never_used_is_gone_at_once() {
    let members = [member("a", "answer"), member("b", "answer")];
    let proxy = Proxy::start(["a", "b"].map(str::to_owned), "auth-pool.json", &file(&members)).await;
    proxy.replace("auth-pool.json", &file(&members[..1]));
    proxy.until(|debug| ids(debug) == ["a"]).await;
    proxy.app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_file_changes_nothing_is_shown_and_can_be_mended() {
    let members = [member("a", "answer"), member("b", "answer")];
    let proxy = Proxy::start(["a", "b"].map(str::to_owned), "auth-pool.json", &file(&members[..1])).await;
    assert!(proxy.debug().await["configProblems"].is_null());

    let mut broken = file(&members);
    broken["weeklyBudgetTreshold"] = json!(2);
    broken["subscriptions"][1]["weeklyBudget"] = json!(-1);
    proxy.replace("auth-pool.json", &broken);
    proxy.until(|debug| !debug["configProblems"].is_null()).await;
    let debug = proxy.debug().await;
    let problems = debug["configProblems"].to_string();
    for part in ["weeklyBudgetTreshold", "did you mean `weeklyBudgetThreshold`?", "subscriptions[1].weeklyBudget"] {
        assert!(problems.contains(part), "{part} in {problems}");
    }
    assert_eq!(ids(&debug), ["a"]);
    assert_eq!(proxy.served_by().await, "a");

    proxy.replace("auth-pool.json", &file(&members));
    proxy.until(|debug| debug["configProblems"].is_null() && ids(debug) == ["a", "b"]).await;
    proxy.app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sighup_reads_the_file_again_and_gives_everybody_another_chance() {
    let refused = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts/2.1.329/error_401.jsonl");
    let members = [member("a", &format!("play:{}", refused.display()))];
    let proxy = Proxy::start(["a".to_owned()], "auth-pool.json", &file(&members)).await;
    assert_eq!(proxy.ask().await.status(), 503);
    assert_eq!(proxy.view("a").await.unwrap()["status"], "unauthenticated");
    // Nothing has changed in the file: that somebody has logged in again is known to the operator only.
    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::HUP).unwrap();
    proxy.until(|debug| debug["status"][0]["status"] == "available").await;
    proxy.app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_swapped_link_is_a_changed_file() {
    let members = [member("a", "answer"), member("b", "answer"), member("c", "answer")];
    let home = tempfile::tempdir().unwrap();
    for (version, id) in ["a", "b", "c"].into_iter().enumerate() {
        make_profile(home.path(), id);
        let dir = home.path().join(format!("etc/..v{version}"));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("auth-pool.json"), file(&members[..=version]).to_string()).unwrap();
    }
    // As in a mounted configuration map.
    symlink("..v0", home.path().join("etc/..data")).unwrap();
    symlink("..data/auth-pool.json", home.path().join("etc/auth-pool.json")).unwrap();
    let path = home.path().join("etc/auth-pool.json");
    let proxy = Proxy::serve(home, path).await;
    for (version, expected) in [(1, &["a", "b"][..]), (2, &["a", "b", "c"]), (0, &["a"])] {
        symlink(format!("..v{version}"), proxy.path("etc/..new")).unwrap();
        fs::rename(proxy.path("etc/..new"), proxy.path("etc/..data")).unwrap();
        proxy.until(|debug| ids(debug) == expected).await;
    }
    proxy.app.stop().await;
}
