//! A loopback stand-in for the Anthropic Messages API.
//!
//! The demo, `doctor --self-test` and the tests point the real `claude` CLI at it, so that everything but the model
//! itself is real. It answers by fixed rules (see [`Options`] and the default answer below), counts tokens and plays
//! the prompt cache, and refuses what the real API is known to refuse.
//!
//! Without a script the answer mentions what was asked: `You said: hello. (turn 1)`. It is streamed word by word and
//! every word counts as one output token; four characters count as one input token. Tools are called when
//! `tool_choice` demands it or when the last user text says `call <tool>` (optionally followed by the arguments as
//! JSON); a JSON schema in `output_config.format` is answered with JSON that fits it.
//!
//! ## Control
//!
//! | endpoint | what it does |
//! |---|---|
//! | `POST /standin/script` | adds a [`Rule`] (or a list of them): `{"match":{"bearer":"alice"},"times":1,"action":{"type":"overloaded"}}` |
//! | `GET`, `DELETE /standin/script` | the rules still in force; forgets them |
//! | `POST /standin/limits` | sets what a bearer's answers say of its [`Limits`]: `{"bearer":"alice","five_hour":{"utilization":0.4}}` |
//! | `DELETE /standin/limits` | forgets all limits |
//! | `GET /standin/requests?since=N` | the [`Recorded`] requests after number `N` |
//! | `DELETE /standin/requests` | forgets them |
//!
//! `GET /v1/models` lists two models to whoever has a key that no rule refuses by a status, and bills nobody.
//! `GET /v1/organizations/...` answers with the reports of the Admin API, to keys that begin with `sk-ant-admin`.
//!
//! The first rule that matches a request decides; a request that no rule matches gets the default answer.

mod answer;
mod ask;
mod cache;
mod connection;
mod control;
mod limits;
mod messages;
mod organization;
mod record;
mod reply;
mod schema;
mod script;
mod server;
mod sse;
#[cfg(test)]
mod tests;
mod validate;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

pub use limits::{Limits, WindowLevel};
pub use record::{Outcome, Recorded};
pub use script::{Action, BreakKind, HangPoint, Match, Pace, Rule, ToolCall};

use crate::runtime::tasks::Tasks;
use server::State;

/// How a stand-in behaves where no script says otherwise.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Where to listen; must be a loopback address. Port 0 takes any free one.
    pub listen: SocketAddr,
    /// The speed of the default answer.
    pub pace: Pace,
    /// How many requests are remembered; older ones are forgotten.
    pub keep: usize,
    /// Whether requests are refused that the real API is known to refuse for their structure: calls without results,
    /// empty texts, a thinking budget above `max_tokens`, ...
    pub strict: bool,
    /// Whether sampling parameters are refused as the real API is believed to refuse them on newer models.
    pub sampling_rules: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            pace: Pace::default(),
            keep: 1000,
            strict: true,
            sampling_rules: false,
        }
    }
}

/// A running stand-in. Dropping it closes the listener and cuts every connection.
#[derive(Debug)]
pub struct Standin {
    addr: SocketAddr,
    state: Arc<State>,
    /// Lets go of every task when dropped.
    _stop: DropGuard,
}

impl Standin {
    /// Binds and starts to serve in the background.
    pub async fn start(tasks: &Tasks, options: Options) -> io::Result<Self> {
        if !options.listen.ip().is_loopback() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the stand-in listens on loopback addresses only"));
        }
        let listener = TcpListener::bind(options.listen).await?;
        let addr = listener.local_addr()?;
        let state = Arc::new(State::new(options));
        let stop = CancellationToken::new();
        tasks.spawn("standin", server::run(listener, Arc::clone(&state), tasks.clone(), stop.clone()));
        Ok(Self { addr, state, _stop: stop.drop_guard() })
    }

    /// The bound address.
    pub const fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// What `ANTHROPIC_BASE_URL` has to be.
    pub fn base_url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// The requests seen so far, oldest first.
    pub fn requests(&self) -> Vec<Recorded> {
        self.state.log.since(0)
    }

    /// Forgets the requests seen so far.
    pub fn forget_requests(&self) {
        self.state.log.clear();
    }

    /// Adds a rule behind those already there.
    pub fn script(&self, rule: Rule) {
        self.state.script.add([rule]);
    }

    /// Forgets every rule.
    pub fn forget_script(&self) {
        self.state.script.clear();
    }

    /// Sets what successful answers to `bearer` (its label, its fingerprint or the token itself) say of its limits.
    pub fn set_limits(&self, bearer: &str, limits: Limits) {
        self.state.limits.set(bearer, limits);
    }
}
