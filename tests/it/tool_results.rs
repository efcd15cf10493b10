//! Results of tools that have failed, with the real CLI in its pinned builds: what the provider gets is what was sent,
//! on the live process and by replay. Chat completions have no word for a failure, so no end-to-end test can send one.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use auth_pool::backend::claude_cli::{ClaudeCli, ClaudeCliBackend, Profile, Settings, SpareSettings, Timers};
use auth_pool::backend::{Backend as _, Caller};
use auth_pool::config::Env;
use auth_pool::conversation::{Block, Event, ImageSource, Request, Role, Tool, ToolResultContent, Turn};
use auth_pool::runtime::tasks::Tasks;
use auth_pool::standin::{Action, Options, Rule, Standin, ToolCall};
use futures_util::StreamExt as _;
use serde_json::{Value, json};

use super::claude_cli::{request, until};

const PATIENCE: Duration = Duration::from_secs(120);

struct Bench {
    standin: Standin,
    claude: ClaudeCli,
    backend: ClaudeCliBackend,
    tasks: Tasks,
    _home: tempfile::TempDir,
}

impl Bench {
    async fn start(command: PathBuf) -> Self {
        let tasks = Tasks::default();
        let standin = Standin::start(&tasks, Options::default()).await.unwrap();
        let home = tempfile::tempdir().unwrap();
        fs::create_dir(home.path().join(".claude")).unwrap();
        let limits = SpareSettings {
            max_processes: 3,
            max_memory: u64::MAX,
            max_spares: 0,
            spares_per_kind: 0,
            idle_timeout: PATIENCE,
            max_line_bytes: 16 * 1024 * 1024,
        };
        let claude = ClaudeCli::new(limits, &tasks);
        let env = [
            ("ANTHROPIC_BASE_URL", standin.base_url()),
            ("CLAUDE_CODE_OAUTH_TOKEN", "sk-ant-oat01-fake-a".to_owned()),
            ("HOME", home.path().to_string_lossy().into_owned()),
            ("NO_PROXY", "127.0.0.1".to_owned()),
            ("no_proxy", "127.0.0.1".to_owned()),
        ];
        let profile = Profile {
            subscription: "a".to_owned(),
            config_dir: Some(home.path().join(".claude")),
            env: env.map(|(name, value)| (name.to_owned(), value)).into(),
            oauth_token: None,
        };
        let settings = Settings {
            command,
            cwd: home.path().join("workspace"),
            own_env: Env::from_process().vars().clone(),
            timers: Timers { first_event: PATIENCE, idle: PATIENCE, total: PATIENCE },
        };
        let backend = claude.backend(profile, settings);
        Self { standin, claude, backend, tasks, _home: home }
    }

    /// The calls of the answer, as a turn of the client's history.
    async fn ask(&self, request: &Request) -> Vec<Block> {
        let mut events = self.backend.run(request, &Caller::anonymous());
        let mut calls = Vec::new();
        while let Some(event) = events.next().await {
            if let Event::ToolUse { id, name, .. } = event.expect("an answer") {
                calls.push(Block::ToolUse { id, name, input: json!({}) });
            }
        }
        calls
    }

    /// The last result in the last request that reached the provider.
    fn last_result(&self) -> Value {
        let requests = self.standin.requests();
        let asked = requests.iter().rfind(|request| request.path.starts_with("/v1/messages?")).expect("a request");
        let messages = asked.body["messages"].as_array().expect("messages");
        let blocks = messages.iter().filter_map(|message| message["content"].as_array()).flatten();
        blocks.filter(|block| block["type"] == "tool_result").map(plain).next_back().expect("a result")
    }

    async fn end(self) {
        let Self { standin, claude, tasks, .. } = self;
        claude.close();
        drop(standin);
        tokio::time::timeout(PATIENCE, tasks.finished()).await.expect("every task ends");
    }
}

/// A result without marks for the cache, its text in one form of the two that mean the same.
fn plain(block: &Value) -> Value {
    let content = match &block["content"] {
        Value::String(text) => json!([{ "type": "text", "text": text }]),
        other => other.clone(),
    };
    json!({ "id": block["tool_use_id"], "content": content, "is_error": block["is_error"] == true })
}

fn text(text: impl Into<String>) -> ToolResultContent {
    ToolResultContent::Text(text.into())
}

fn builds() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli");
    let folders = fs::read_dir(root).unwrap().flatten().map(|entry| entry.path());
    let pinned = folders.filter(|folder| folder.join("package.json").exists());
    let builds: Vec<PathBuf> = pinned.map(|folder| folder.join("node_modules/.bin/claude")).collect();
    for build in &builds {
        assert!(build.exists(), "{} is missing: scripts/test e2e installs it", build.display());
    }
    assert!(!builds.is_empty());
    builds
}

fn sent(part: &ToolResultContent) -> Value {
    match part {
        ToolResultContent::Text(text) => json!({ "type": "text", "text": text }),
        ToolResultContent::Image(ImageSource::Url(url)) => {
            json!({ "type": "image", "source": { "type": "url", "url": url } })
        }
        other @ ToolResultContent::Image(_) => panic!("{other:?}"),
    }
}

/// One conversation, in which every result is answered with a further call.
#[tokio::test]
async fn failures_reach_the_provider_as_they_were_sent() {
    let address = ToolResultContent::Image(ImageSource::Url("https://example.com/a.png".to_owned()));
    let cases = [
        ("short", vec![text("it failed:\n  € @/etc/hostname")], true, true),
        ("as long as may be", vec![text("e".repeat(8_900))], true, true),
        ("among blanks", vec![text("\n  it failed\u{a0}")], true, false),
        ("100 kB", vec![text("Error €\n".repeat(12_000))], true, false),
        ("two texts", vec![text("one"), text("two")], true, false),
        ("no failure", vec![text(" /clear")], false, true),
        ("a picture elsewhere", vec![text("see"), address], false, false),
    ];
    for build in builds() {
        let bench = Bench::start(build.clone()).await;
        let definition = json!({ "name": "look", "description": "looks", "input_schema": { "type": "object" } });
        let mut conversation = request(&["look"]);
        conversation.tools = vec![Tool { name: "look".to_owned(), definition }];
        let call = ToolCall { name: "look".to_owned(), input: json!({}) };
        bench.standin.script(Rule::always(Action::ToolUse { calls: vec![call], text: None }));
        let mut calls = bench.ask(&conversation).await;
        for (case, content, is_error, is_live) in &cases {
            let [Block::ToolUse { id, .. }] = &calls[..] else { panic!("{case}: {calls:?}") };
            let id = id.clone();
            until(|| bench.claude.counts().parked == 1).await;
            let result = Block::ToolResult { tool_use_id: id.clone(), content: content.clone(), is_error: *is_error };
            conversation.turns.push(Turn { role: Role::Assistant, blocks: calls });
            conversation.turns.push(Turn { role: Role::User, blocks: vec![result] });
            let before = bench.claude.counts().started;
            calls = bench.ask(&conversation).await;
            assert_eq!(bench.claude.counts().started == before, *is_live, "{}: {case}", build.display());
            let content: Vec<Value> = content.iter().map(sent).collect();
            let expected = json!({ "id": id, "content": content, "is_error": is_error });
            assert_eq!(bench.last_result(), expected, "{}: {case}", build.display());
        }
        bench.end().await;
    }
}
