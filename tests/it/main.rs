//! Integration tests: the library's parts over real sockets and real processes.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on shall say so and fail")]

mod alerts;
mod architecture;
mod backends;
mod budgets;
mod claude_cli;
mod clients;
mod cut;
mod failures;
mod gateway;
mod http;
mod operator;
mod overage;
mod program;
mod queue;
mod readiness;
mod registry;
mod reload;
mod replaced;
mod rules;
mod runaway;
mod selftest;
mod shared;
mod spares;
mod store;
mod structured;
mod tool_results;
mod usage;
