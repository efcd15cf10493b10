//! `auth-pool status`: a running pool in the terminal.

mod model;
mod view;
mod words;

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use anyhow::{Context as _, bail};
use http::StatusCode;
use serde_json::Value;

use super::say;
use crate::config::Env;
use crate::runtime::signals::StopSignals;
use model::Pool;
use view::Look;

/// How long the pool may take to answer.
const LIMIT: Duration = Duration::from_secs(10);

/// Time between two looks of `--watch`.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);

/// Takes the cursor home and wipes the screen.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// Arguments of `status`.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// Where the pool serves
    #[arg(long, default_value = "http://127.0.0.1:3000")]
    url: String,
    /// The environment variable that holds an admin key; not needed on the pool's own machine
    #[arg(long, value_name = "NAME")]
    key_env: Option<String>,
    /// Print all the pool tells, as JSON
    #[arg(long)]
    json: bool,
    /// Look again every two seconds until stopped
    #[arg(long)]
    watch: bool,
}

pub(super) async fn run(args: Args, env: &Env) -> anyhow::Result<()> {
    let source = Source::new(&args, env)?;
    let is_terminal = std::io::stdout().is_terminal();
    let look = Look { colour: is_terminal && env.var("NO_COLOR").is_none(), unicode: is_utf8(env) };
    if !args.watch {
        say(&source.shown(args.json, look).await?);
        return Ok(());
    }
    let mut signals = StopSignals::register()?;
    loop {
        // A pool that is started again shall be seen again: only a first look that fails ends the command.
        let text = source.shown(args.json, look).await.unwrap_or_else(|error| format!("{error:#}"));
        let wiped = if is_terminal { CLEAR } else { "" };
        let mut out = std::io::stdout().lock();
        if writeln!(out, "{wiped}{text}").and_then(|()| out.flush()).is_err() {
            return Ok(());
        }
        drop(out);
        if tokio::time::timeout(WATCH_INTERVAL, signals.received()).await.is_ok() {
            return Ok(());
        }
    }
}

/// Whether the terminal shows more than ASCII, as far as its locale tells.
fn is_utf8(env: &Env) -> bool {
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(|name| env.var(name)).unwrap_or_default();
    let locale = locale.to_ascii_lowercase();
    locale.contains("utf-8") || locale.contains("utf8")
}

/// Where the state is read.
pub(super) struct Source {
    client: reqwest::Client,
    /// Without a slash at its end.
    base: String,
    key: Option<String>,
}

impl Source {
    fn new(args: &Args, env: &Env) -> anyhow::Result<Self> {
        Self::at(&args.url, args.key_env.as_deref(), env)
    }

    /// The pool at `url`; `key_env` names the variable that holds an admin key.
    pub(super) fn at(url: &str, key_env: Option<&str>, env: &Env) -> anyhow::Result<Self> {
        let base = url.trim_end_matches('/');
        let base = if base.contains("://") { base.to_owned() } else { format!("http://{base}") };
        let key = match key_env {
            Some(name) => Some(env.var(name).with_context(|| format!("the variable {name} is not set"))?.to_owned()),
            None => None,
        };
        // A proxy that leads out of the house is the wrong way to the pool's operator view.
        let client = reqwest::Client::builder().no_proxy().timeout(LIMIT).build()?;
        Ok(Self { client, base, key })
    }

    async fn shown(&self, as_json: bool, look: Look) -> anyhow::Result<String> {
        let value = self.read().await?;
        if as_json {
            return Ok(format!("{value:#}"));
        }
        let pool = Pool::read(value).with_context(|| format!("{} does not answer like an auth-pool", self.base))?;
        Ok(view::render(&pool, &self.base, look))
    }

    /// All that the pool tells.
    pub(super) async fn read(&self) -> anyhow::Result<Value> {
        let base = &self.base;
        let mut request = self.client.get(format!("{base}/debug/auth-pool"));
        if let Some(key) = &self.key {
            request = request.bearer_auth(key);
        }
        let answer = match request.send().await {
            Ok(answer) => answer,
            Err(error) if error.is_connect() => {
                bail!("nothing is listening on {base}: is `auth-pool serve` running? --url names another address")
            }
            Err(error) if error.is_timeout() => {
                bail!("{base} did not answer within {} s", LIMIT.as_secs())
            }
            Err(error) if error.is_builder() => bail!("{base} is not an address; it looks like http://127.0.0.1:3000"),
            Err(error) => return Err(error).with_context(|| format!("{base} cannot be asked")),
        };
        let status = answer.status();
        match status {
            StatusCode::OK => answer.json().await.with_context(|| format!("{base} does not answer like an auth-pool")),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if self.key.is_some() => {
                bail!("{base} refuses the key: it takes one with `admin`")
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                bail!("{base} wants an admin key: --key-env names the variable that holds it")
            }
            _ => bail!("{base} answers with status {status}: is it an auth-pool?"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::tasks::Tasks;

    fn args(url: &str) -> Args {
        Args { url: url.to_owned(), key_env: None, json: false, watch: false }
    }

    async fn complaint(url: &str) -> String {
        format!("{:#}", run(args(url), &Env::default()).await.unwrap_err())
    }

    /// Answers every connection with `answer`.
    async fn serve(tasks: &Tasks, answer: &'static str) -> String {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tasks.spawn("answers", async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let _ = stream.read(&mut [0; 4096]).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        address.to_string()
    }

    #[tokio::test]
    async fn what_went_wrong_is_said_with_what_to_do() {
        let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        assert_eq!(
            complaint(&format!("http://{free}/")).await,
            format!("nothing is listening on http://{free}: is `auth-pool serve` running? --url names another address")
        );
        let tasks = Tasks::default();
        let host = serve(&tasks, "HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
        assert_eq!(
            complaint(&host).await,
            format!("http://{host} wants an admin key: --key-env names the variable that holds it")
        );
        let host = serve(&tasks, "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
        assert!(complaint(&host).await.ends_with("is it an auth-pool?"));
        let host = serve(&tasks, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}").await;
        assert!(complaint(&host).await.starts_with(&format!("http://{host} does not answer like an auth-pool")));
        assert!(complaint("http://[").await.starts_with("http://[ is not an address"));
    }

    #[tokio::test]
    async fn a_variable_without_a_key_is_named() {
        let args = Args { key_env: Some("POOL_KEY".to_owned()), ..args("http://127.0.0.1:1") };
        assert_eq!(run(args, &Env::default()).await.unwrap_err().to_string(), "the variable POOL_KEY is not set");
    }

    #[test]
    fn the_locale_decides_about_characters() {
        let of = |pairs: &[(&str, &str)]| {
            is_utf8(&pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
        };
        assert!(of(&[("LANG", "de_CH.UTF-8")]) && of(&[("LC_CTYPE", "C.utf8"), ("LANG", "C")]));
        assert!(!of(&[("LC_ALL", "C"), ("LANG", "de_CH.UTF-8")]) && !of(&[]));
    }
}
