//! The official CLI's own login, with the terminal handed through to it.
//!
//! What is typed and shown there stays between its user and the CLI.

use std::path::Path;
use std::process::{ExitStatus, Stdio};

/// Variables under which the CLI would log in with something else, or not at all.
const KEPT_FROM_IT: [&str; 5] = [
    "ANTHROPIC_API_KEY",
    "ANTHROPIC_AUTH_TOKEN",
    "CLAUDE_CODE_OAUTH_TOKEN",
    "CLAUDE_CODE_USE_BEDROCK",
    "CLAUDE_CODE_USE_VERTEX",
];

/// Runs `command` with `args` in the profile `config_dir` until it ends. `None` as the profile is the user's own.
pub async fn hand_over(command: &Path, args: &[&str], config_dir: Option<&Path>) -> std::io::Result<ExitStatus> {
    #[expect(clippy::disallowed_methods, reason = "the terminal's own group: what the user types must reach the CLI")]
    let mut process = tokio::process::Command::new(command);
    for name in KEPT_FROM_IT {
        process.env_remove(name);
    }
    if let Some(config_dir) = config_dir {
        process.env("CLAUDE_CONFIG_DIR", config_dir);
    }
    process.args(args).stdin(Stdio::inherit()).stdout(Stdio::inherit()).stderr(Stdio::inherit());
    process.kill_on_drop(true).status().await
}
