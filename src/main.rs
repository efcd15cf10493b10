//! The `auth-pool` program.

use std::io::IsTerminal as _;
use std::process::ExitCode;

use auth_pool::cli::{self, Cli};
use auth_pool::config::Env;
use clap::Parser as _;
use tracing_subscriber::EnvFilter;

/// What is logged when `LOG_LEVEL` is not set, or makes no sense (then the configuration check says so).
const DEFAULT_LOG_FILTER: &str = "info";

fn main() -> ExitCode {
    let env = Env::from_process();
    let filter = env.var("LOG_LEVEL").and_then(|text| EnvFilter::try_new(text).ok());
    tracing_subscriber::fmt()
        .with_env_filter(filter.unwrap_or_else(|| EnvFilter::new(DEFAULT_LOG_FILTER)))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    cli::run(Cli::parse(), &env)
}
