//! `auth-pool doctor`: what is wrong with this installation, and what to do about it.

use std::path::PathBuf;

use super::say;
use crate::config::{Env, Overrides};
use crate::doctor::{self, Verdict};
use crate::runtime::tasks::Tasks;

/// Arguments of `doctor`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The configuration file [default: $`AUTH_POOL_CONFIG`, else config/auth-pool.json if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// For programs: one JSON object
    #[arg(long)]
    json: bool,
}

/// Prints what was found. Fails when something does not work; warnings are no failure.
pub(super) async fn run(args: Args, env: &Env) -> anyhow::Result<()> {
    let overrides = Overrides { config: args.config, listen: None };
    let report = doctor::examine(env, &overrides, &Tasks::default()).await;
    say(&if args.json { serde_json::to_string_pretty(&report)? } else { report.table() });
    let failed = report.count(Verdict::Failed);
    anyhow::ensure!(report.ok, "{failed} of {} checks failed", report.checks.len());
    Ok(())
}
