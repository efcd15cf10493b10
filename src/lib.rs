//! # auth-pool
//!
//! An OpenAI-compatible reverse proxy in front of a pool of Claude CLI subscriptions.
//!
//! ## Rooms
//!
//! | room | what it is for | may import |
//! |---|---|---|
//! | `main.rs` | arguments, logging, runtime, exit code; nothing else | `cli` |
//! | [`cli`] | the commands: `serve`, `demo`, `config` | everything below |
//! | [`app`] | composition root: builds every part from the configuration, owns run and stop | everything below |
//! | [`server`] | the front door on hyper: accept, limits, client keys, routing, request id, CORS, SSE | `api`, `gateway`, `runtime` |
//! | [`api`] | what clients speak, one folder a dialect, and the operator's views | `gateway`, `conversation`, `runtime` |
//! | [`gateway`] | one request's life: lease -> run -> classify -> retry elsewhere -> finish | `pool`, `backend`, `conversation`, `runtime` |
//! | [`backend`] | executes a request: the official `claude` CLI | `conversation`, `runtime` |
//! | [`pool`] | the brain, pure: (now, command) -> (decision, effects); no I/O, no clock, no tokio | `conversation` |
//! | [`conversation`] | the one inner model: request, turn, event, usage | - |
//! | [`config`] | raw file -> checked configuration, all problems at once | `pool`, `conversation` |
//! | [`standin`] | a loopback stand-in for the Anthropic Messages API, for the demo and the tests | `runtime` |
//! | [`runtime`] | clock, named tasks (the only caller of `tokio::spawn`), stop signals | - |
//! | [`units`] | instants and money | - |
//!
//! Every room may import [`units`].

pub mod api;
pub mod backend;
pub mod cli;
pub mod config;
pub mod conversation;
pub mod gateway;
pub mod pool;
pub mod runtime;
pub mod server;
pub mod standin;
pub mod units;
