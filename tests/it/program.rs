//! The program itself, as a process of its own that a test may kill.

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use auth_pool::config::Env;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::claude_cli::fake_claude;

/// Long enough for a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The key that everybody shows, for a configuration that names keys.
const KEY: &str = "sk-program-of-the-tests";
pub(super) const KEY_SHA256: &str = "274dc0c04155b10084247a67d438b7ec39c75391657e27c9aac53c2ebef8a4fa";

/// `auth-pool serve` with a folder of its own. Killed, if it still runs, when dropped.
pub(super) struct Program {
    child: Child,
    pub(super) url: String,
    pub(super) client: reqwest::Client,
    folder: TempDir,
}

impl Program {
    /// Starts it with this configuration and these variables, and waits until it listens. On a runtime of several threads.
    pub(super) fn serve(file: &Value, vars: &[(&str, &str)]) -> Self {
        tokio::task::block_in_place(|| Self::start(file, vars))
    }

    fn start(file: &Value, vars: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("auth-pool.json");
        std::fs::write(&path, file.to_string()).unwrap();
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let mut child = command(&folder, vars)
            .args(["serve", "--listen", "127.0.0.1:0", "--config"])
            .arg(&path)
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut said = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut said).unwrap();
        let shown = [(AUTHORIZATION, HeaderValue::try_from(format!("Bearer {KEY}")).unwrap())];
        let client =
            reqwest::Client::builder().no_proxy().default_headers(HeaderMap::from_iter(shown)).build().unwrap();
        let url = said.split_once("http://").map(|(_, address)| format!("http://{}", address.trim()));
        let program = Self { child, url: url.unwrap_or_default(), client, folder };
        assert!(!program.url.is_empty(), "it does not listen: {said:?}\n{}", program.log());
        program
    }

    /// SIGKILL, and nothing before it. The moment.
    pub(super) fn kill(&self) -> Instant {
        let at = Instant::now();
        kill_process(Pid::from_child(&self.child), Signal::KILL).unwrap();
        at
    }

    /// What it has logged so far.
    pub(super) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    pub(super) async fn get(&self, path: &str) -> Value {
        let sent = self.client.get(format!("{}{path}", self.url)).send();
        tokio::time::timeout(PATIENCE, sent).await.expect("hangs").unwrap().json().await.unwrap()
    }

    /// A question, as JSON; the answer's status and body.
    pub(super) async fn chat(&self, body: &Value) -> reqwest::Result<(u16, Value)> {
        let response = self.client.post(format!("{}/v1/chat/completions", self.url)).json(body).send().await?;
        Ok((response.status().as_u16(), response.json().await?))
    }

    /// Waits until what the operator sees is so.
    pub(super) async fn until(&self, what: &str, path: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        let begun = Instant::now();
        loop {
            let view = self.get(path).await;
            if is_so(&view) {
                return view;
            }
            assert!(begun.elapsed() < PATIENCE, "it did not happen: {what}\n{view:#}\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// What one command of the program says: exit code, standard output and error.
pub(super) fn run(args: &[&str], vars: &[(&str, &str)]) -> (Option<i32>, String, String) {
    let folder = tempfile::tempdir().unwrap();
    let output = command(&folder, vars).args(args).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// The program in an environment with nothing of the machine's user in it, and with the umask 002.
#[expect(clippy::disallowed_methods, reason = "the program itself is what is tried out; it is killed and waited for")]
fn command(folder: &TempDir, vars: &[(&str, &str)]) -> Command {
    // What is made for others of its group as well is the custom in many places.
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", "umask 002; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_auth-pool")])
        .current_dir(folder.path())
        .env_clear()
        .env("HOME", folder.path())
        .env("PATH", Env::from_process().var("PATH").unwrap())
        .envs(vars.iter().copied())
        .stdin(Stdio::null());
    command
}

/// With its umask the folders that CLI processes run in would be its group's as well, which no CLI starts in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cli_processes_start_whatever_the_umask() {
    let home = tempfile::tempdir().unwrap();
    let profile = home.path().join(".claude-a");
    std::fs::create_dir(&profile).unwrap();
    std::fs::set_permissions(&profile, std::fs::Permissions::from_mode(0o700)).unwrap();
    let file = json!({
        "subscriptions": [{
            "id": "a", "type": "claude-max", "configDir": profile, "weeklyBudget": 1_000_000,
            "env": { "FAKE_CLAUDE": "answer" },
        }],
        "claude": { "command": fake_claude(), "selfTest": false },
    });
    let program = Program::serve(&file, &[]);
    let (status, body) =
        program.chat(&json!({ "model": "sonnet", "messages": [{ "role": "user", "content": "hi" }] })).await.unwrap();
    assert_eq!(status, 200, "{body}\n{}", program.log());

    let path = home.path().join("auth-pool.json");
    std::fs::write(&path, file.to_string()).unwrap();
    let (_, said, error) =
        tokio::task::block_in_place(|| run(&["doctor", "--json", "--config", path.to_str().unwrap()], &[]));
    let report: Value = serde_json::from_str(&said).unwrap_or_else(|_| panic!("{said}\n{error}"));
    let checks = report["checks"].as_array().unwrap();
    // That is the word of the CLI itself, which has run.
    let login = checks.iter().find(|check| check["check"] == "login a").and_then(|check| check["seen"].as_str());
    assert!(login.is_some_and(|seen| seen.starts_with("nobody is logged in")), "{report:#}");
}
