//! How soon a rewritten configuration is in force while requests run, and whether any of them feels it. Goal: a file of
//! 1,000 subscriptions within 300 ms of the write, and no request fails.
//!
//! `cargo bench --bench reload`
//!
//! A whole proxy follows its file; its subscriptions are of type `api`, in front of a stand-in for the provider in the
//! same process, so that nothing but the proxy is waited for. Time runs from the moment in which the new file is in its
//! place until the pool's own view shows the change; the quiet time in which a file may still be written is part of it.

#![expect(clippy::unwrap_used, reason = "a measurement that cannot go on shall say so and fail")]

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use auth_pool::app::App;
use auth_pool::config::{self, Env, Overrides};
use auth_pool::runtime::tasks::Tasks;
use auth_pool::standin::{self, Standin};
use serde_json::{Value, json};

const SUBSCRIPTIONS: usize = 1_000;
const ROUNDS: usize = 30;
/// Clients that ask one request after the other.
const CLIENTS: usize = 4;
/// Milliseconds from the write to the effect.
const GOAL: f64 = 300.0;
/// Nothing takes this long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(20);

fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// A configuration in which each round has another member at the front and another one at the end, which alone serves
/// what is asked of the backend `newest-ROUND`.
fn file(round: usize, provider: &str) -> String {
    let member = |number: usize| {
        json!({
            "id": format!("m{number:04}"), "type": "api", "apiKeyEnv": format!("KEY_{number:04}"), "baseUrl": provider,
            "weeklyBudget": 1_000_000,
        })
    };
    let members: Vec<Value> = (round..SUBSCRIPTIONS + round).map(member).collect();
    let newest = format!("m{:04}", SUBSCRIPTIONS + round - 1);
    let named = json!({ "name": format!("newest-{round}"), "type": "claude-cli", "accountId": newest });
    json!({ "subscriptions": members, "backends": [named], "runawayGuard": { "enabled": false } }).to_string()
}

#[derive(Default)]
struct Load {
    served: AtomicUsize,
    failed: AtomicUsize,
    running: AtomicUsize,
    over: AtomicBool,
}

impl Load {
    async fn run(&self, client: reqwest::Client, url: String) {
        let body = json!({ "model": "sonnet", "stream": true, "messages": [{ "role": "user", "content": "hi" }] });
        self.running.fetch_add(1, Ordering::Relaxed);
        while !self.over.load(Ordering::Relaxed) {
            let answer = client.post(&url).json(&body).send().await;
            let whole = match answer {
                Ok(answer) if answer.status() == 200 => answer.text().await.unwrap_or_default(),
                _ => String::new(),
            };
            let count = if whole.trim_end().ends_with("data: [DONE]") { &self.served } else { &self.failed };
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.running.fetch_sub(1, Ordering::Relaxed);
    }

    /// Waits until the last answer is read: a server that stops refuses what comes then.
    async fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
        while self.running.load(Ordering::Relaxed) > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

async fn serve(home: &Path, provider: &str) -> App {
    let path = home.join("auth-pool.json");
    fs::write(&path, file(0, provider)).unwrap();
    let search = Env::from_process().var("PATH").unwrap_or_default().to_owned();
    // Everybody has a key of its own: two with the same one would be the same account.
    let keys = (0..SUBSCRIPTIONS + ROUNDS).map(|key| (format!("KEY_{key:04}"), format!("sk-ant-api03-fake-{key}")));
    let common = [("HOME".to_owned(), home.display().to_string()), ("PATH".to_owned(), search)];
    let env: Env = common.into_iter().chain(keys).collect();
    let overrides = Overrides { config: Some(path), listen: Some("127.0.0.1:0".to_owned()) };
    let config = config::load(&env, &overrides).unwrap_or_else(|problems| panic!("{problems}"));
    App::start(config, env, overrides).await.unwrap()
}

/// Milliseconds from the moment in which the file of a round is in its place until a request is served by the member
/// that is new in it.
async fn rewrite(home: &Path, round: usize, provider: &str, app: &App, client: &reqwest::Client) -> f64 {
    fs::write(home.join("new.json"), file(round, provider)).unwrap();
    let url = format!("http://{}/v1/newest-{round}/chat/completions", app.addr());
    let body = json!({ "model": "sonnet", "messages": [{ "role": "user", "content": "hi" }] });
    fs::rename(home.join("new.json"), home.join("auth-pool.json")).unwrap();
    let written = Instant::now();
    // Until then there is nothing by this name.
    loop {
        let answer = client.post(&url).json(&body).send().await.unwrap();
        if answer.status() == 200 {
            break;
        }
        let text = answer.text().await.unwrap_or_default();
        assert!(written.elapsed() < PATIENCE, "the change was not noticed: {text}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    written.elapsed().as_secs_f64() * 1e3
}

#[tokio::main]
async fn main() {
    let tasks = Tasks::default();
    let provider = Standin::start(&tasks, standin::Options::default()).await.unwrap();
    let home = tempfile::tempdir().unwrap();
    let app = serve(home.path(), &provider.base_url()).await;
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let load = Arc::new(Load::default());
    for _ in 0..CLIENTS {
        let (load, client) = (Arc::clone(&load), client.clone());
        let url = format!("http://{}/v1/chat/completions", app.addr());
        tasks.spawn("load", async move { load.run(client, url).await });
    }
    let mut times = Vec::with_capacity(ROUNDS);
    for round in 1..=ROUNDS {
        times.push(rewrite(home.path(), round, &provider.base_url(), &app, &client).await);
    }
    load.end().await;
    app.stop().await;
    let (served, failed) = (load.served.load(Ordering::Relaxed), load.failed.load(Ordering::Relaxed));
    times.sort_by(f64::total_cmp);
    let (median, longest) = (times[ROUNDS / 2], times[ROUNDS - 1]);
    say(&format!(
        "{ROUNDS} rewrites of {SUBSCRIPTIONS} subscriptions: in force after {median:.0} ms (median), {longest:.0} ms at \
         most, of {GOAL} ms; {served} requests served meanwhile, {failed} failed"
    ));
    say(if longest <= GOAL && failed == 0 { "met" } else { "MISSED" });
}
