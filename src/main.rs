//! The `auth-pool` program.

use std::io::IsTerminal as _;
use std::process::ExitCode;

use auth_pool::cli::{self, Cli};
use auth_pool::config::Env;
use clap::Parser as _;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let env = Env::from_process();
    // One that makes no sense is the configuration check's business.
    let filter = env.var("LOG_LEVEL").and_then(|text| EnvFilter::try_new(text).ok());
    tracing_subscriber::fmt()
        .with_env_filter(filter.unwrap_or_else(|| EnvFilter::new(cli.default_log_filter())))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    cli::run(cli, &env)
}
