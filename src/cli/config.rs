//! `auth-pool config`: check the configuration, print its schema, write a first one.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use clap::Subcommand;

use crate::app::redis_address;
use crate::config::{self, Config, Env, Overrides};

/// What `auth-pool config` can do.
#[derive(Clone, Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Say everything that is wrong with the configuration, or that nothing is.
    Check {
        /// The file to check instead of the one that `serve` would read.
        file: Option<PathBuf>,
    },
    /// Print the JSON Schema of the file, for editors and other programs.
    Schema,
    /// Write a first file from the Claude CLI profiles found in the home directory; never overwrites one.
    Init {
        /// The file to write instead of the one that `serve` would read.
        file: Option<PathBuf>,
    },
}

/// What a command has to say. It belongs on standard output when `code` is 0, else on standard error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Output {
    /// For a person, or for a program; without a line end.
    pub text: String,
    /// The exit code: 0 when all is well, 1 when not.
    pub code: u8,
}

impl Output {
    fn success(text: String) -> Self {
        Self { text, code: 0 }
    }

    fn failure(text: String) -> Self {
        Self { text, code: 1 }
    }
}

/// Runs one command.
pub(super) fn run(command: &ConfigCommand, env: &Env, overrides: &Overrides) -> Output {
    let with = |file: &Option<PathBuf>| {
        let config = file.clone().or_else(|| overrides.config.clone());
        Overrides { config, ..overrides.clone() }
    };
    match command {
        ConfigCommand::Check { file } => check(env, &with(file)),
        ConfigCommand::Schema => Output::success(format!("{:#}", config::json_schema())),
        ConfigCommand::Init { file } => init(env, &config::path(env, &with(file))),
    }
}

fn check(env: &Env, overrides: &Overrides) -> Output {
    // Read by another part than the configuration, which cannot know what an address looks like.
    let redis = redis_address(env).err().map(|error| format!("{error:#}"));
    match (config::load(env, overrides), redis) {
        (Ok(config), None) => Output::success(describe(&config)),
        (Ok(_), Some(problem)) => Output::failure(problem),
        (Err(problems), None) => Output::failure(problems.to_string()),
        (Err(problems), Some(problem)) => Output::failure(format!("{problems}\n  {problem}")),
    }
}

fn describe(config: &Config) -> String {
    let count = config.subscriptions.len();
    let plural = if count == 1 { "" } else { "s" };
    let mut text = format!("{}: ok, {count} subscription{plural}", config.source);
    if !config.beside.is_empty() {
        let _ = write!(text, ", with {}", config.beside.join(" and "));
    }
    if !config.enabled {
        text.push_str(", the pool is switched off");
    }
    let width = config.subscriptions.iter().map(|subscription| subscription.id.len()).max().unwrap_or(0);
    for subscription in &config.subscriptions {
        let off = if subscription.enabled { "" } else { "  (switched off)" };
        let (id, kind, budget) = (&subscription.id, subscription.kind, subscription.weekly_budget);
        // Writing to a string does not fail.
        let place = match (&subscription.config_dir, &subscription.api) {
            (Some(config_dir), _) => config_dir.display().to_string(),
            (None, Some(api)) => format!("{}, key in {}", api.base_url, api.key_env),
            (None, None) => String::new(),
        };
        let _ = write!(text, "\n  {id:width$}  {kind}  {budget} a week  {place}{off}");
    }
    for warning in &config.warnings {
        let _ = write!(text, "\n  warning: {warning}");
    }
    text
}

fn init(env: &Env, path: &Path) -> Output {
    let shown = path.display();
    let Some(home) = env.home() else {
        return Output::failure("the environment variable HOME is not set, so no CLI profile can be found".to_owned());
    };
    let Found { profiles, others } = find_profiles(&home);
    let mut notes = String::new();
    for other in others {
        let _ = write!(notes, "\n  left out ~/{other}: nobody has logged in there");
    }
    if profiles.is_empty() {
        let home = home.display();
        return Output::failure(format!(
            "no Claude CLI profile in {home}: run `claude` and log in, then try again{notes}"
        ));
    }
    if let Err(error) = write_new(path, &starter(&profiles)) {
        return Output::failure(match error.kind() {
            std::io::ErrorKind::AlreadyExists => format!("{shown} exists already and was left as it is"),
            _ => format!("{shown} cannot be written: {error}"),
        });
    }
    let mut text = format!("wrote {shown}");
    for profile in &profiles {
        let _ = write!(text, "\n  subscription `{}` from ~/{}", profile.id, profile.directory);
    }
    text.push_str(&notes);
    text.push_str("\nset each `type` and `weeklyBudget` to what you pay for, then run `auth-pool config check`");
    Output::success(text)
}

struct Profile {
    id: String,
    /// Its name in the home directory.
    directory: String,
}

struct Found {
    profiles: Vec<Profile>,
    /// Directories that are named like a profile but are none.
    others: Vec<String>,
}

/// The directories `~/.claude*` that the CLI has used. Nothing in them is read.
fn find_profiles(home: &Path) -> Found {
    const TRACES: [&str; 4] = [".credentials.json", ".claude.json", "settings.json", "projects"];
    let entries = fs::read_dir(home).into_iter().flatten().flatten();
    let mut directories: Vec<String> = entries
        .filter(|entry| entry.path().is_dir())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(".claude"))
        .collect();
    directories.sort();
    let (used, others): (Vec<_>, Vec<_>) =
        directories.into_iter().partition(|name| TRACES.iter().any(|trace| home.join(name).join(trace).exists()));
    let mut profiles: Vec<Profile> = Vec::new();
    for directory in used {
        let name: String = directory
            .trim_start_matches(".claude")
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' })
            .collect();
        let name = name.trim_start_matches(['.', '_', '-']);
        let name = if name.is_empty() { "default" } else { name.get(..48).unwrap_or(name) };
        let taken = |id: &str| profiles.iter().any(|profile| profile.id == id);
        let numbered = (2..).map(|number| format!("{name}-{number}"));
        let id = std::iter::once(name.to_owned()).chain(numbered).find(|id| !taken(id)).unwrap_or_default();
        profiles.push(Profile { id, directory });
    }
    Found { profiles, others }
}

fn starter(profiles: &[Profile]) -> String {
    let members: Vec<String> = profiles
        .iter()
        .map(|Profile { id, directory }| {
            // Text as JSON writes it: the name of a directory may hold a quote.
            let config_dir = serde_json::Value::from(format!("~/{directory}"));
            format!(
                "    {{\n      \"id\": \"{id}\",\n      \"type\": \"claude-pro\",\n      \"configDir\": {config_dir},\n      \
                 \"weeklyBudget\": 456\n    }}"
            )
        })
        .collect();
    format!(
        "{{\n  \"subscriptions\": [\n{}\n  ],\n  \"maxClientsPerSubscription\": 15,\n  \"weeklyBudgetThreshold\": 0.85\n}}\n",
        members.join(",\n")
    )
}

/// Creates the file for its owner only; fails if it exists.
fn write_new(path: &Path, text: &str) -> std::io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home() -> (tempfile::TempDir, Env) {
        let home = tempfile::tempdir().unwrap();
        for name in [".claude", ".claude-sub1", ".claude_sub1", ".claude-tool"] {
            fs::create_dir(home.path().join(name)).unwrap();
            if name != ".claude-tool" {
                fs::write(home.path().join(name).join(".credentials.json"), "").unwrap();
            }
        }
        let env = [("HOME".to_owned(), home.path().to_string_lossy().into_owned())].into_iter().collect();
        (home, env)
    }

    #[test]
    fn init_writes_what_check_accepts_and_never_overwrites() {
        let (home, env) = home();
        let path = home.path().join("new/auth-pool.json");
        let init = ConfigCommand::Init { file: Some(path.clone()) };
        let output = run(&init, &env, &Overrides::default());
        assert_eq!(output.code, 0, "{}", output.text);
        for id in ["default", "sub1", "sub1-2"] {
            assert!(output.text.contains(&format!("subscription `{id}` from ~/.claude")), "{}", output.text);
        }
        assert!(output.text.contains("left out ~/.claude-tool"), "{}", output.text);

        let check = run(&ConfigCommand::Check { file: Some(path.clone()) }, &env, &Overrides::default());
        assert_eq!(check.code, 0, "{}", check.text);
        assert!(
            check.text.contains(": ok, 3 subscriptions\n  default  claude-pro  $456.00 a week  /"),
            "{}",
            check.text
        );

        let written = fs::read(&path).unwrap();
        let again = run(&init, &env, &Overrides::default());
        assert_eq!(again.code, 1);
        assert!(again.text.ends_with("exists already and was left as it is"));
        assert_eq!(fs::read(&path).unwrap(), written);
    }

    #[test]
    fn check_says_what_is_wrong_with_exit_code_1() {
        let (home, env) = home();
        let path = home.path().join("bad.json");
        fs::write(&path, r#"{"weeklyBudgetTreshold": 2}"#).unwrap();
        let output = run(&ConfigCommand::Check { file: Some(path.clone()) }, &env, &Overrides::default());
        let expected = format!(
            "{}: 1 problem\n  weeklyBudgetTreshold: unknown field; did you mean `weeklyBudgetThreshold`?",
            path.display()
        );
        assert_eq!(output, Output { text: expected, code: 1 });
    }

    #[test]
    fn init_without_a_profile_writes_nothing() {
        let home = tempfile::tempdir().unwrap();
        let env = [("HOME".to_owned(), home.path().to_string_lossy().into_owned())].into_iter().collect();
        let path = home.path().join("auth-pool.json");
        let overrides = Overrides { config: Some(path.clone()), listen: None };
        let output = run(&ConfigCommand::Init { file: None }, &env, &overrides);
        assert_eq!(output.code, 1);
        assert!(!path.exists());
    }

    #[test]
    fn the_schema_is_printed_as_json() {
        let output = run(&ConfigCommand::Schema, &Env::default(), &Overrides::default());
        let schema: serde_json::Value = serde_json::from_str(&output.text).unwrap();
        assert_eq!(schema["title"], "auth-pool.json");
    }
}
