//! Integration tests: the library's parts over real sockets and real processes.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on shall say so and fail")]

mod alerts;
mod architecture;
mod backends;
mod claude_cli;
mod clients;
mod gateway;
mod http;
mod operator;
mod queue;
mod reload;
mod shared;
mod store;
mod structured;
