//! How the CLI is started: its arguments and the environment it gets.
//!
//! The environment is built from nothing: a short list of what every program needs, the settings that make the CLI
//! behave like an API, and the subscription's own `env`. In particular no API key of the proxy's own environment
//! reaches the CLI, where it would silently win over the subscription's login.
//!
//! All of that but the model is the same for every process of a subscription. It is put together once, and has a number
//! by which kinds of processes are told apart.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

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

/// What starts the same CLI for the same profile has the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct KindId([u8; 32]);

/// How processes of one profile are started, whatever their model. Two of the same number are equal.
pub(super) struct Recipe {
    /// The executable.
    command: PathBuf,
    /// Its arguments but for the last one; never a client's text.
    args: Vec<OsString>,
    /// Its complete environment.
    env: Vec<(OsString, OsString)>,
    /// The empty directory it runs in.
    cwd: PathBuf,
    id: KindId,
}

impl Recipe {
    /// Puts together how to start `command` for `profile`.
    pub(super) fn new(command: &Path, profile: &Profile, cwd: &Path, own_env: &BTreeMap<String, String>) -> Arc<Self> {
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
        let env = env.into_iter().map(|(name, value)| (OsString::from(name), value)).collect();
        Self::of(command, ARGS.iter().map(OsString::from).collect(), env, cwd)
    }

    /// From its parts.
    pub(super) fn of(command: &Path, args: Vec<OsString>, env: Vec<(OsString, OsString)>, cwd: &Path) -> Arc<Self> {
        let id = number(command, &args, &env, cwd);
        Arc::new(Self { command: command.to_owned(), args, env, cwd: cwd.to_owned(), id })
    }

    /// How to start a process for the exact model id `model`.
    pub(super) fn launch(self: &Arc<Self>, model: &str) -> Launch {
        Launch { recipe: Arc::clone(self), last: model.into() }
    }

    /// How to start the same program for the same profile, to do something else.
    pub(super) fn launch_command<const COUNT: usize>(&self, words: [&str; COUNT], last: &str) -> Launch {
        let args = words.map(OsString::from).to_vec();
        Launch { recipe: Self::of(&self.command, args, self.env.clone(), &self.cwd), last: last.into() }
    }

    /// Its number.
    pub(super) fn id(&self) -> KindId {
        self.id
    }
}

/// Length goes before every text, so that no two lists of texts look alike.
fn number(command: &Path, args: &[OsString], env: &[(OsString, OsString)], cwd: &Path) -> KindId {
    let mut hash = Sha256::new();
    let mut text = |text: &OsStr| {
        let bytes = text.as_encoded_bytes();
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    text(command.as_os_str());
    text(cwd.as_os_str());
    text(OsStr::new(&args.len().to_string()));
    for arg in args {
        text(arg);
    }
    for (name, value) in env {
        text(name);
        text(value);
    }
    KindId(hash.finalize().into())
}

impl PartialEq for Recipe {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for Recipe {}

impl fmt::Debug for Recipe {
    /// Names of variables only: their values can be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recipe")
            .field("command", &self.command)
            .field("args", &self.args)
            .field("env", &self.env.iter().map(|(name, _)| name).collect::<Vec<_>>())
            .field("cwd", &self.cwd)
            .finish_non_exhaustive()
    }
}

/// Everything needed to start a process. Cheap to copy and to compare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Launch {
    recipe: Arc<Recipe>,
    /// The last argument: the model.
    last: OsString,
}

impl Launch {
    /// The executable.
    pub(super) fn command(&self) -> &Path {
        &self.recipe.command
    }

    /// Its arguments.
    pub(super) fn args(&self) -> impl Iterator<Item = &OsStr> {
        self.recipe.args.iter().chain([&self.last]).map(OsString::as_os_str)
    }

    /// Its complete environment.
    pub(super) fn env(&self) -> &[(OsString, OsString)] {
        &self.recipe.env
    }

    /// The empty directory it runs in.
    pub(super) fn cwd(&self) -> &Path {
        &self.recipe.cwd
    }

    /// The number of what starts the same CLI for the same profile, whatever the model.
    pub(super) fn kind(&self) -> KindId {
        self.recipe.id
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
        let recipe = Recipe::new(Path::new("claude"), &profile, Path::new("/empty"), &own_env);
        let launch = recipe.launch("claude-sonnet-5");
        let names: Vec<&str> = launch.env().iter().filter_map(|(name, _)| name.to_str()).collect();
        assert!(
            names.contains(&"PATH") && names.contains(&"CLAUDE_CONFIG_DIR") && names.contains(&"ANTHROPIC_BASE_URL")
        );
        for name in
            ["ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN", "CLAUDECODE", "DATABASE_URL"]
        {
            assert!(!names.contains(&name), "{name} must not reach the CLI");
        }
        assert_eq!(launch.args().last().and_then(|arg| arg.to_str()), Some("claude-sonnet-5"));
    }

    #[test]
    fn a_kind_is_known_by_its_number() {
        let texts = |texts: &[&str]| texts.iter().map(OsString::from).collect::<Vec<_>>();
        let recipe = |command: &str, args: &[&str], env: &[(&str, &str)], cwd: &str| {
            let env = env.iter().map(|(name, value)| (OsString::from(name), OsString::from(value))).collect();
            Recipe::of(Path::new(command), texts(args), env, Path::new(cwd))
        };
        let all = [
            recipe("claude", &["-p"], &[("A", "1")], "/empty"),
            recipe("claud", &["e-p"], &[("A", "1")], "/empty"),
            recipe("claude", &["-p"], &[("A1", "")], "/empty"),
            recipe("claude", &["-p", "A", "1"], &[], "/empty"),
            recipe("claude", &[], &[("A", "1")], "/empty"),
            recipe("claude", &["-p"], &[("A", "2")], "/empty"),
            recipe("claude", &["-p"], &[("A", "1")], "/other"),
        ];
        for (index, one) in all.iter().enumerate() {
            assert!(all[index + 1..].iter().all(|other| other.id() != one.id()), "{one:?}");
        }
        let again = recipe("claude", &["-p"], &[("A", "1")], "/empty");
        assert_eq!(all[0].launch("opus"), again.launch("opus"), "wherever it was put together");
        assert_ne!(all[0].launch("opus"), again.launch("haiku"));
        assert_eq!(all[0].launch("opus").kind(), again.launch("haiku").kind());
        let kinds = super::super::kinds::Kinds::only([again.id()]);
        assert!(kinds.have(&all[0].launch("opus")) && !kinds.have(&all[1].launch("opus")));
    }

    /// Requests only look at the number: what it was made of is hashed once for a profile.
    #[test]
    fn the_number_is_made_once() {
        let recipe = Recipe::new(Path::new("claude"), &Profile::default(), Path::new("/empty"), &BTreeMap::new());
        let (one, other) = (recipe.launch("opus"), recipe.launch("haiku"));
        assert!(Arc::ptr_eq(&one.recipe, &other.recipe) && Arc::ptr_eq(&one.recipe, &one.clone().recipe));
        let login = recipe.launch_command(["auth", "status"], "--json");
        assert_eq!(login.args().collect::<Vec<_>>(), ["auth", "status", "--json"]);
        assert_eq!((login.env(), login.cwd()), (one.env(), one.cwd()));
        assert_ne!(login.kind(), one.kind());
    }
}
