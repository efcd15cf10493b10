//! Looks at everything a pool needs, and says of each thing how it is and what to do about it.
//!
//! One check, one file or one function; each gives [`Finding`]s, none of which holds a secret. Nothing is changed, nothing
//! is asked of the provider, and nothing is billed. What only a running pool knows is told by `auth-pool status`.

mod cli;
mod configuration;
mod finding;
mod machine;
mod services;

use std::io;
use std::path::Path;

use crate::config::{self, Config, Env, Overrides, Source};
use crate::runtime::tasks::Tasks;

pub use finding::{Finding, Report, Verdict};

/// Checks everything. `tasks` runs the processes that are started on the way; all of them are over afterwards.
pub async fn examine(env: &Env, overrides: &Overrides, tasks: &Tasks) -> Report {
    let mut findings = Vec::new();
    let config = configuration::load(env, overrides, &mut findings);
    let state_dir = env.state_dir();
    findings.extend(machine::check(config.as_ref(), env, state_dir.as_deref()));
    let (found, registration) = services::connections(config.as_ref(), env, tasks).await;
    findings.extend(found);
    if let Some(config) = &config {
        findings.extend(services::check(config, env));
        findings.push(configuration::default_account(config, env));
        // Registered accounts have logins too, and their tokens are in an environment of their own.
        let (config, env) = registration.as_ref().map_or((config, env), |known| (&known.config, &known.env));
        findings.extend(cli::check(config, env, state_dir.as_deref(), tasks).await);
    }
    tasks.finished().await;
    Report::new(findings)
}

/// The nearest directory that exists, at or above `path`.
fn nearest_existing(path: &Path) -> io::Result<&Path> {
    path.ancestors().find(|ancestor| ancestor.is_dir()).ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// Whether the pool is the user's own profile alone, because nobody wrote a configuration.
fn is_unconfigured(config: &Config) -> bool {
    config.source == Source::DefaultProfile
}

/// The file that is looked at.
fn config_path(env: &Env, overrides: &Overrides) -> String {
    config::path(env, overrides).display().to_string()
}
