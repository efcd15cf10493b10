//! `auth-pool demo`: the whole path on this machine, without an account.
//!
//! The real CLI is pointed at the loopback stand-in by the subscriptions' own `env`; everything else is what `serve` does,
//! the configuration file included.

use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use futures_util::StreamExt as _;
use serde_json::{Value, json};

use super::say;
use crate::app::App;
use crate::config::{self, Env, Overrides};
use crate::runtime::signals::StopSignals;
use crate::runtime::tasks::Tasks;
use crate::standin::{self, Standin};

const SUBSCRIPTIONS: [&str; 3] = ["sub1", "sub2", "sub3"];
const MODEL: &str = "sonnet";
const QUESTION: &str = "In one sentence: what does a pool of subscriptions do?";

/// How long the demo waits for a process to be ready before it sends its request.
const SPARE_LIMIT: Duration = Duration::from_secs(15);

/// How long the demo waits for the request's cost.
const SETTLE_LIMIT: Duration = Duration::from_secs(3);

/// The pause between two words of an answer.
const CHUNK_DELAY_MS: u64 = 30;

/// Arguments of `demo`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The official CLI: a path, or a name looked for in PATH.
    #[arg(long, value_name = "PATH", default_value = "claude")]
    claude: PathBuf,
    /// The address to listen on; port 0 takes a free one.
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:0")]
    listen: String,
    /// End after the first answer instead of staying up.
    #[arg(long)]
    once: bool,
}

pub(super) async fn run(args: Args, env: &Env) -> anyhow::Result<()> {
    let mut signals = StopSignals::register()?;
    let claude = find(&args.claude, env)?;
    say(&format!("1/5  Claude CLI            {}", claude.display()));

    let tasks = Tasks::default();
    // Slow enough to see the answer come word by word.
    let pace = standin::Pace { chunk_delay_ms: CHUNK_DELAY_MS, ..standin::Pace::default() };
    let standin = Standin::start(&tasks, standin::Options { pace, ..standin::Options::default() })
        .await
        .context("the stand-in cannot start")?;
    say(&format!("2/5  stand-in for the API  {}", standin.base_url()));

    let home = tempfile::Builder::new().prefix("auth-pool-demo-").tempdir()?;
    let file = write_config(home.path(), &claude, &standin.base_url())?;
    say(&format!("3/5  three subscriptions   {}", file.display()));

    let overrides = Overrides { config: Some(file), listen: Some(args.listen) };
    // What the demo keeps goes with it.
    let env = env.without(config::env::DATABASE_URL);
    let config = config::load(&env, &overrides)?;
    let app = App::start(config, env, overrides).await?;
    let addr = app.addr();
    say(&format!("4/5  proxy                 http://{addr}"));
    await_spares(addr).await?;

    say(&format!("5/5  one streamed request  \"{QUESTION}\"\n"));
    ask(addr).await?;
    explain(addr).await?;

    if !args.once {
        say(&format!(
            "\nTry it yourself (Ctrl-C ends the demo):\n\n  curl -N http://{addr}/v1/chat/completions \\\n    \
             -H 'Content-Type: application/json' \\\n    \
             -d '{{\"model\":\"{MODEL}\",\"stream\":true,\"messages\":[{{\"role\":\"user\",\"content\":\"Hello\"}}]}}'\n\n  \
             curl http://{addr}/debug/auth-pool"
        ));
        signals.received().await;
    }
    app.stop().await;
    drop(standin);
    Ok(())
}

/// The CLI's full path, or what to do about it.
fn find(command: &Path, env: &Env) -> anyhow::Result<PathBuf> {
    let found = if command.components().count() > 1 {
        command.is_file().then(|| command.to_owned())
    } else {
        let path = env.var("PATH").unwrap_or_default();
        std::env::split_paths(path).map(|dir| dir.join(command)).find(|file| file.is_file())
    };
    let Some(found) = found else {
        bail!(
            "there is no `{}`: run `scripts/demo`, which installs the official CLI into the working folder, or name it \
             with --claude",
            command.display()
        )
    };
    Ok(fs::canonicalize(found)?)
}

/// A configuration as a user would write it; only the credentials are made up.
fn write_config(home: &Path, claude: &Path, base_url: &str) -> anyhow::Result<PathBuf> {
    let mut subscriptions = Vec::new();
    for id in SUBSCRIPTIONS {
        let dir = home.join(format!(".claude-{id}"));
        fs::create_dir(&dir)?;
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700))?;
        subscriptions.push(json!({
            "id": id,
            "email": format!("{id}@example.com"),
            "type": "claude-pro",
            "configDir": dir,
            "weeklyBudget": 456,
            "env": {
                "ANTHROPIC_BASE_URL": base_url,
                "CLAUDE_CODE_OAUTH_TOKEN": format!("sk-ant-oat01-made-up-for-{id}"),
            },
        }));
    }
    let config = json!({
        "subscriptions": subscriptions,
        "claude": { "command": claude, "selfTest": false },
        "store": { "path": home.join("auth-pool.db") },
    });
    let file = home.join("auth-pool.json");
    fs::write(&file, serde_json::to_string_pretty(&config)?)?;
    Ok(file)
}

async fn await_spares(addr: SocketAddr) -> anyhow::Result<()> {
    let begun = Instant::now();
    while begun.elapsed() < SPARE_LIMIT {
        let health: Value = reqwest::get(format!("http://{addr}/health")).await?.json().await?;
        let spares = health["backend"]["spares"].as_u64().unwrap_or(0);
        if spares >= SUBSCRIPTIONS.len() as u64 {
            say(&format!("     {spares} processes ready    after {:.1} s", begun.elapsed().as_secs_f64()));
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    say("     no spare processes    the request will wait for one to start");
    Ok(())
}

/// Sends the request as any client would, and shows the text as it comes.
async fn ask(addr: SocketAddr) -> anyhow::Result<()> {
    let body = json!({
        "model": MODEL,
        "stream": true,
        "stream_options": { "include_usage": true },
        "session_id": "demo",
        "messages": [{ "role": "user", "content": QUESTION }],
    });
    let sent = Instant::now();
    let response = reqwest::Client::new().post(format!("http://{addr}/v1/chat/completions")).json(&body).send().await?;
    if !response.status().is_success() {
        bail!("the proxy answered {}: {}", response.status(), response.text().await?);
    }
    let mut first = None;
    let mut pending = Vec::new();
    let mut chunks = response.bytes_stream();
    while let Some(chunk) = chunks.next().await {
        pending.extend_from_slice(&chunk?);
        while let Some(end) = pending.windows(2).position(|pair| pair == b"\n\n") {
            let frame: Vec<u8> = pending.drain(..end + 2).collect();
            let Some(data) = frame.strip_prefix(b"data: ") else { continue };
            let Ok(chunk) = serde_json::from_slice::<Value>(data) else { continue };
            if let Some(error) = chunk.get("error") {
                bail!("the answer broke off: {error}");
            }
            if let Some(text) = chunk["choices"][0]["delta"]["content"].as_str().filter(|text| !text.is_empty()) {
                first.get_or_insert_with(|| sent.elapsed());
                show(text);
            }
            if let Some(usage) = chunk.get("usage").filter(|usage| usage.is_object()) {
                say(&format!(
                    "\n\n     first token after {:.0} ms, all after {:.0} ms; {} prompt + {} completion tokens",
                    first.unwrap_or_default().as_secs_f64() * 1e3,
                    sent.elapsed().as_secs_f64() * 1e3,
                    usage["prompt_tokens"],
                    usage["completion_tokens"],
                ));
            }
        }
    }
    if first.is_none() {
        bail!("the answer was empty");
    }
    Ok(())
}

/// Which subscription served, and why: what the pool itself says.
async fn explain(addr: SocketAddr) -> anyhow::Result<()> {
    let debug = settled(addr).await?;
    let decision = debug["decisions"].as_array().and_then(|decisions| decisions.first()).unwrap_or(&Value::Null);
    let scores: Vec<String> = decision["candidates"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|known| {
            let score = known["score"].as_f64().unwrap_or_default();
            format!("{} {score:.1}", known["subscription"].as_str().unwrap_or("?"))
        })
        .collect();
    say(&format!(
        "     served by {}: {} (health {})\n",
        decision["chosen"].as_str().unwrap_or("?"),
        decision["reason"].as_str().unwrap_or("?"),
        scores.join(", "),
    ));
    for subscription in debug["status"].as_array().into_iter().flatten() {
        say(&format!(
            "     {:<6} {:<10} health {:>5.1}   used ${:.6} of ${:.0}   sessions {}",
            subscription["id"].as_str().unwrap_or("?"),
            subscription["status"].as_str().unwrap_or("?"),
            subscription["healthScore"].as_f64().unwrap_or_default(),
            subscription["weeklyUsed"].as_f64().unwrap_or_default(),
            subscription["weeklyBudget"].as_f64().unwrap_or_default(),
            subscription["assignedClients"],
        ));
    }
    Ok(())
}

/// The pool's own view, once the CLI has said what the answer cost; that is a moment after the answer.
async fn settled(addr: SocketAddr) -> anyhow::Result<Value> {
    let begun = Instant::now();
    loop {
        let debug: Value = reqwest::get(format!("http://{addr}/debug/auth-pool")).await?.json().await?;
        if debug["totals"]["inFlight"] == 0 || begun.elapsed() > SETTLE_LIMIT {
            return Ok(debug);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Text without a line end, at once.
fn show(text: &str) {
    let mut out = std::io::stdout().lock();
    // Nobody may be reading any more; that ends nothing.
    let _ = write!(out, "{text}").and_then(|()| out.flush());
}
