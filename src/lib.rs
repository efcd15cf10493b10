//! # auth-pool
//!
//! An OpenAI-compatible reverse proxy in front of a pool of Claude CLI subscriptions.
//!
//! ## Rooms
//!
//! | room | what it is for | may import |
//! |---|---|---|
//! | `main.rs` | arguments, logging, exit code; nothing else | `cli`, `config` |
//! | [`cli`] | the commands: `serve`, `demo`, `status`, `accounts`, `keys`, `config`, `alerts`, `doctor`, `simulate`, `standin` | everything below |
//! | [`doctor`] | checks what a pool needs, one finding each: machine, configuration, CLI, logins, services | `app`, `backend`, `config`, `selftest`, `shared`, `store`, `runtime` |
//! | [`app`] | composition root: builds every part from the configuration; owns run, reload and stop | everything below |
//! | [`server`] | the front door on hyper: accept, limits, client keys, routing, request id, CORS, SSE | `api`, `admin`, `gateway`, `runtime` |
//! | [`api`] | what clients speak, one folder a dialect, and the operator's views | `admin`, `gateway`, `conversation` |
//! | [`gateway`] | one request's life: lease (or a place in the queue) -> run -> classify -> retry elsewhere -> finish | `pool`, `shared`, `backend`, `conversation`, `runtime` |
//! | [`backend`] | executes a request: the official `claude` CLI, the Messages API with a key, or an OpenAI-compatible endpoint | `conversation`, `runtime` |
//! | [`pool`] | the brain, pure: (now, command) -> (decision, effects); no I/O, no clock, no tokio | `conversation` |
//! | [`shared`] | what several replicas have in common, kept in Redis: limits, leases, sessions, news | `pool`, `conversation`, `runtime` |
//! | [`simulator`] | the very same pool in a simulated week: strategies compared with each other and with an optimum | `pool`, `conversation` |
//! | [`alert`] | when the operator is told, and delivery to log, webhook and Slack | `pool`, `runtime` |
//! | [`config`] | raw file and environment -> checked configuration, all problems at once; follows the file | `conversation`, `runtime` |
//! | [`admin`] | what is registered while the program runs: accounts and client keys, for HTTP and for the terminal | `config`, `store`, `secrets`, `runtime` |
//! | [`secrets`] | secrets at rest: sealed, bound to their owner, sealed anew under another key | - |
//! | [`store`] | what outlives the process: SQLite or PostgreSQL, written behind the requests | `pool`, `conversation`, `runtime` |
//! | [`standin`] | a loopback stand-in for the Anthropic Messages API, for the demo and the tests | `runtime` |
//! | [`selftest`] | what the installed CLI can do: tried against the stand-in, remembered for each build | `backend`, `standin`, `conversation`, `runtime` |
//! | [`conversation`] | the one inner model: request, turn, event, usage, models | - |
//! | [`runtime`] | what the machine gives: clock, named tasks (the only caller of `tokio::spawn`), signals | - |
//! | [`units`] | instants and money | - |
//!
//! Every room may import [`units`]. `tests/it/architecture.rs` holds this table; `.clippy.toml` holds the rest: the
//! clock, the environment, tasks and processes have one home each.
//!
//! ## A request's walk
//!
//! `server::accept` (connection) -> `server::request` (id, span) -> `server::origin`, `server::auth` (who may come in) ->
//! `server::body` (cap) -> `api::openai::chat` (parse with field paths -> [`conversation::Request`]) ->
//! [`gateway::PooledGateway`] (attempts) -> [`pool::Pool::acquire`] (one short lock -> lease, a place in the queue, or why not) ->
//! [`backend::claude_cli`] (a spare, specialised -> [`conversation::Event`]s) -> `api::openai::chat` (events -> chunks) ->
//! `server::response` (SSE). The lease is finished however the walk ends, also when the client leaves: everything behind
//! a request hangs on its response body, and dropping that drops the process, its group and the lease.
//!
//! ## Stopping
//!
//! Readiness off and listener closed -> running answers end within the drain timeout -> the rest is cut: error frame,
//! process groups killed -> spares killed -> every task waited for. See [`app::App::stop`].

pub mod admin;
pub mod alert;
pub mod api;
pub mod app;
pub mod backend;
pub mod cli;
pub mod config;
pub mod conversation;
pub mod doctor;
pub mod gateway;
pub mod pool;
pub mod runtime;
pub mod secrets;
pub mod selftest;
pub mod server;
pub mod shared;
pub mod simulator;
pub mod standin;
pub mod store;
pub mod units;
