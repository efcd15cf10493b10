//! How the CLI is started: its arguments and the environment it gets.
//!
//! The environment is built from nothing: a short list of what every program needs, the settings that make the CLI
//! behave like an API, and the subscription's own `env`. In particular no API key of the proxy's own environment
//! reaches the CLI, where it would silently win over the subscription's login.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use super::process::Launch;
use crate::runtime::instance::HOP_HEADER;

/// What a process may inherit: where programs and certificates are, which proxy leads out, language and home.
const INHERITED: [&str; 19] = [
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "TMPDIR",
    "TZ",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "NODE_EXTRA_CA_CERTS",
];

/// Settings under which the CLI does what it is asked and nothing else.
const FIXED: [(&str, &str); 14] = [
    // No calls beside the client's own: without these some builds ask for a title at every turn.
    ("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1"),
    ("CLAUDE_CODE_DISABLE_TERMINAL_TITLE", "1"),
    ("DISABLE_TELEMETRY", "1"),
    ("DISABLE_ERROR_REPORTING", "1"),
    ("DISABLE_AUTOUPDATER", "1"),
    // The gateway decides about retries, on another subscription if need be.
    ("CLAUDE_CODE_MAX_RETRIES", "0"),
    ("CLAUDE_CODE_DISABLE_NONSTREAMING_FALLBACK", "1"),
    // The client owns its history: it is never shortened behind its back.
    ("DISABLE_AUTO_COMPACT", "1"),
    ("CLAUDE_CODE_BLOCKING_LIMIT_OVERRIDE", "100000000"),
    // The client's text arrives as it is: nothing is read on its behalf, nothing is added to it.
    ("CLAUDE_CODE_DISABLE_ATTACHMENTS", "1"),
    ("CLAUDE_CODE_TOTAL_TOKENS_REMINDER", "off"),
    // Client tools keep their names and are all sent.
    ("CLAUDE_AGENT_SDK_MCP_NO_PREFIX", "1"),
    ("ENABLE_TOOL_SEARCH", "false"),
    ("DISABLE_INSTALLATION_CHECKS", "1"),
];

/// Arguments of every process. The one server whose tools need no permission is our own, see [`super::tools`].
const ARGS: [&str; 17] = [
    "-p",
    "--input-format",
    "stream-json",
    "--output-format",
    "stream-json",
    "--verbose",
    "--include-partial-messages",
    "--tools",
    "",
    "--setting-sources",
    "",
    "--strict-mcp-config",
    "--no-session-persistence",
    "--disable-slash-commands",
    "--allowedTools",
    "mcp__x",
    "--model",
];

/// The CLI profile of one subscription and what is added to its environment.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Profile {
    /// The subscription's id, for logs.
    pub subscription: String,
    /// The config dir; `None` leaves the CLI's own default in place.
    pub config_dir: Option<PathBuf>,
    /// The subscription's own additions.
    pub env: BTreeMap<String, String>,
    /// A long-lived token of `claude setup-token`, read from the variable that `oauthTokenEnv` names.
    pub oauth_token: Option<String>,
}

/// What the CLI adds to the head of each of its requests: a header a line.
const CUSTOM_HEADERS: &str = "ANTHROPIC_CUSTOM_HEADERS";

impl Profile {
    /// Has every request of its processes say who caused it, if they go to an address that the owner has named: it might
    /// be our own. Requests to the provider itself carry nothing of ours.
    pub(super) fn mark_requests(&mut self, instance: &str) {
        if !self.env.contains_key("ANTHROPIC_BASE_URL") {
            return;
        }
        let mark = format!("{HOP_HEADER}: {instance}");
        let headers = self.env.entry(CUSTOM_HEADERS.to_owned()).or_default();
        *headers = if headers.is_empty() { mark } else { format!("{headers}\n{mark}") };
    }
}

impl fmt::Debug for Profile {
    /// Without the values that can be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Profile")
            .field("subscription", &self.subscription)
            .field("config_dir", &self.config_dir)
            .field("env", &self.env.keys().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

/// Puts together how to start the CLI for `profile` and the exact model id `model`.
pub(super) fn launch(
    command: &Path,
    profile: &Profile,
    model: &str,
    cwd: &Path,
    own_env: &BTreeMap<String, String>,
) -> Launch {
    let mut env: BTreeMap<&str, OsString> = BTreeMap::new();
    for name in INHERITED {
        if let Some(value) = own_env.get(name) {
            env.insert(name, value.into());
        }
    }
    env.extend(FIXED.iter().map(|(name, value)| (*name, OsString::from(value))));
    if let Some(dir) = &profile.config_dir {
        env.insert("CLAUDE_CONFIG_DIR", dir.into());
    }
    if let Some(token) = &profile.oauth_token {
        env.insert("CLAUDE_CODE_OAUTH_TOKEN", token.into());
    }
    env.extend(profile.env.iter().map(|(name, value)| (name.as_str(), OsString::from(value))));
    Launch {
        command: command.to_owned(),
        args: ARGS.iter().copied().chain([model]).map(OsString::from).collect(),
        env: env.into_iter().map(|(name, value)| (OsString::from(name), value)).collect(),
        cwd: cwd.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_to_a_named_address_are_marked_and_others_are_not() {
        let mut profile = Profile::default();
        profile.mark_requests("me");
        assert!(profile.env.is_empty());
        profile.env.insert("ANTHROPIC_BASE_URL".to_owned(), "http://127.0.0.1:1".to_owned());
        profile.mark_requests("me");
        assert_eq!(profile.env[CUSTOM_HEADERS], "x-auth-pool-hop: me");
        profile.env.insert(CUSTOM_HEADERS.to_owned(), "a: b".to_owned());
        profile.mark_requests("me");
        assert_eq!(profile.env[CUSTOM_HEADERS], "a: b\nx-auth-pool-hop: me");
    }

    #[test]
    fn the_environment_is_an_allow_list() {
        let own_env: BTreeMap<String, String> = [
            ("PATH", "/bin"),
            ("ANTHROPIC_API_KEY", "sk-ant-api-secret"),
            ("ANTHROPIC_AUTH_TOKEN", "secret"),
            ("CLAUDE_CODE_OAUTH_TOKEN", "somebody else's"),
            ("CLAUDECODE", "1"),
            ("DATABASE_URL", "postgres://secret"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        let profile = Profile {
            subscription: "sub1".to_owned(),
            config_dir: Some("/home/me/.claude-sub1".into()),
            env: BTreeMap::from([("ANTHROPIC_BASE_URL".to_owned(), "http://127.0.0.1:1".to_owned())]),
            oauth_token: None,
        };
        let launch = launch(Path::new("claude"), &profile, "claude-sonnet-5", Path::new("/empty"), &own_env);
        let names: Vec<&str> = launch.env.iter().filter_map(|(name, _)| name.to_str()).collect();
        assert!(
            names.contains(&"PATH") && names.contains(&"CLAUDE_CONFIG_DIR") && names.contains(&"ANTHROPIC_BASE_URL")
        );
        for name in
            ["ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN", "CLAUDECODE", "DATABASE_URL"]
        {
            assert!(!names.contains(&name), "{name} must not reach the CLI");
        }
        assert_eq!(launch.args.last().and_then(|arg| arg.to_str()), Some("claude-sonnet-5"));
    }
}
