//! The commands.

mod alerts;
mod config;
mod demo;
mod doctor;
mod registry;
mod serve;
mod simulate;
mod standin;
mod status;
mod usage;

use std::future::Future;
use std::io::Write as _;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::{Env, Overrides};
use crate::runtime::signals::StopSignals;
use crate::runtime::tasks::Tasks;

/// An OpenAI-compatible proxy in front of a pool of Claude CLI subscriptions.
#[derive(Debug, Parser)]
#[command(version, about, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve clients until told to stop.
    Serve(serve::Args),
    /// Show the whole path on this machine: real CLI, stand-in for the API, three subscriptions, no account.
    Demo(demo::Args),
    /// Show a running pool: budgets, limits, sessions, and when what recovers.
    Status(status::Args),
    /// Compare what Anthropic counts for the organisation's keys with the pool's own account.
    Usage(usage::Args),
    /// Look at everything a pool needs, and say what to do about what is wrong.
    Doctor(doctor::Args),
    /// Register accounts, and look after them.
    #[command(subcommand)]
    Accounts(registry::AccountsCommand),
    /// Make client keys, withdraw them, and seal stored secrets anew.
    #[command(subcommand)]
    Keys(registry::KeysCommand),
    /// Check, describe or begin a configuration.
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Try the alerts' channels out.
    #[command(subcommand)]
    Alerts(alerts::AlertsCommand),
    /// Compare the ways to choose a subscription in a simulated week; uses no account and no network.
    Simulate(simulate::Args),
    /// Serve a stand-in for the Anthropic Messages API on this machine, for tests.
    Standin(standin::Args),
}

impl Cli {
    /// What is logged when `LOG_LEVEL` does not say: of a demo and of the doctor only
    /// what goes wrong, so that they can be read.
    pub const fn default_log_filter(&self) -> &'static str {
        match self.command {
            Command::Demo(_) | Command::Doctor(_) | Command::Accounts(_) | Command::Keys(_) => "warn",
            _ => "info",
        }
    }
}

/// Runs the command that the arguments name. `env` is the process environment.
pub fn run(cli: Cli, env: &Env) -> ExitCode {
    match cli.command {
        Command::Serve(args) => in_runtime(serve::run(args, env)),
        Command::Demo(args) => in_runtime(demo::run(args, env)),
        Command::Alerts(command) => in_runtime(alerts::run(command, env)),
        Command::Doctor(args) => in_runtime(doctor::run(args, env)),
        Command::Accounts(command) => in_runtime(registry::accounts(command, env)),
        Command::Keys(command) => in_runtime(registry::keys(command, env)),
        Command::Status(args) => in_runtime(status::run(args, env)),
        Command::Usage(args) => in_runtime(usage::run(args, env)),
        Command::Standin(args) => in_runtime(stand_in(args)),
        Command::Simulate(args) => match simulate::run(&args) {
            Ok(text) => {
                say(&text);
                ExitCode::SUCCESS
            }
            Err(error) => fail(&error),
        },
        Command::Config(command) => print(&config::run(&command, env, &Overrides::default())),
    }
}

async fn stand_in(args: standin::Args) -> anyhow::Result<()> {
    let mut signals = StopSignals::register()?;
    let stop = async move {
        signals.received().await;
    };
    standin::run(&args, &Tasks::default(), stop).await
}

/// Runs an asynchronous command to its end.
fn in_runtime(command: impl Future<Output = anyhow::Result<()>>) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error.into()),
    };
    match runtime.block_on(command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

/// Prints what a command has to say where it belongs.
fn print(output: &config::Output) -> ExitCode {
    if output.code == 0 {
        say(&output.text);
    } else {
        let mut err = std::io::stderr().lock();
        let _ = writeln!(err, "{}", output.text);
    }
    ExitCode::from(output.code)
}

fn fail(error: &anyhow::Error) -> ExitCode {
    let mut err = std::io::stderr().lock();
    let _ = writeln!(err, "auth-pool: {error:#}");
    ExitCode::FAILURE
}

/// A line for people on stdout. Nobody may be reading any more; that ends nothing.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
