//! Every way in which a process can fail: each ends in the right error, leaves nothing behind, and blames whom it should.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use auth_pool::backend::claude_cli::{ClaudeCli, ClaudeCliBackend, Profile, Settings, SpareSettings, Timers};
use auth_pool::backend::{Backend as _, Caller, Failure, FailureKind};
use auth_pool::config::Env;
use auth_pool::conversation::Event;
use auth_pool::runtime::tasks::Tasks;
use futures_util::StreamExt;

use super::claude_cli::{fake_claude, request};

const PATIENCE: Duration = Duration::from_secs(60);

/// What a request came to.
#[derive(Debug, Default)]
struct Outcome {
    text: String,
    is_finished: bool,
    failure: Option<Failure>,
}

impl Outcome {
    fn kind(&self) -> Option<FailureKind> {
        self.failure.as_ref().map(|failure| failure.kind.clone())
    }
}

struct Bench {
    claude: ClaudeCli,
    tasks: Tasks,
    home: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let tasks = Tasks::default();
        let limits = SpareSettings {
            max_processes: 4,
            max_memory: u64::MAX,
            max_spares: 0,
            spares_per_kind: 0,
            idle_timeout: PATIENCE,
            max_line_bytes: 16 * 1024 * 1024,
        };
        let bench = Self { claude: ClaudeCli::new(limits, &tasks), tasks, home: tempfile::tempdir().unwrap() };
        // The folder that they run in is made by the first one.
        for folder in ["tmp", ".claude-a"] {
            fs::create_dir(bench.at(folder)).unwrap();
        }
        bench
    }

    fn at(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn backend(&self, behaviour: &str) -> ClaudeCliBackend {
        // Silence is noticed soon where it is what happens.
        let is_silent = behaviour.ends_with("hang") || behaviour.starts_with("stall");
        let idle = if is_silent { Duration::from_secs(1) } else { PATIENCE };
        let settings = Settings {
            command: fake_claude(),
            cwd: self.at("workspace"),
            own_env: Env::from_process().vars().clone(),
            timers: Timers { first_event: PATIENCE, idle, total: PATIENCE },
        };
        let env = [("FAKE_CLAUDE", behaviour.to_owned()), ("TMPDIR", self.at("tmp").to_string_lossy().into_owned())];
        let profile = Profile {
            subscription: "a".to_owned(),
            config_dir: Some(self.at(".claude-a")),
            env: env.map(|(name, value)| (name.to_owned(), value)).into_iter().collect::<BTreeMap<_, _>>(),
            oauth_token: None,
        };
        self.claude.backend(profile, settings)
    }

    async fn ask(&self, behaviour: &str, texts: &[&str]) -> Outcome {
        let mut outcome = Outcome::default();
        let mut events = self.backend(behaviour).run(&request(texts), &Caller::anonymous());
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Text(text)) => outcome.text.push_str(&text),
                Ok(Event::Finished { .. }) => outcome.is_finished = true,
                Ok(_) => {}
                Err(failure) => outcome.failure = Some(failure),
            }
        }
        outcome
    }

    /// Nothing is left: no process that has our home in its environment, no temporary file, no task, no place taken.
    async fn end(self, case: &str) {
        self.claude.close();
        tokio::time::timeout(PATIENCE, self.tasks.finished())
            .await
            .unwrap_or_else(|_| panic!("{case}: a task is left"));
        assert_eq!(processes_of(self.home.path()), [0; 0], "{case}: a process is left");
        if let Ok(left) = fs::read_dir(self.at("tmp")) {
            let left: Vec<_> = left.flatten().map(|entry| entry.path()).collect();
            assert!(left.is_empty(), "{case}: {left:?}");
        }
        assert_eq!(self.claude.counts().running, 0, "{case}");
    }
}

/// The processes whose environment names `home`.
fn processes_of(home: &Path) -> Vec<u32> {
    let home = home.to_string_lossy().into_owned();
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let environment = |pid: &u32| fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    pids.filter(|pid| String::from_utf8_lossy(&environment(pid)).contains(&home)).collect()
}

#[tokio::test]
async fn each_failure_has_its_kind_and_leaves_nothing() {
    let idle = FailureKind::TimedOut { timer: "idle" };
    for (behaviour, kind) in [
        ("garbage", FailureKind::Protocol),
        ("garbage-mid-answer", FailureKind::Protocol),
        ("half-line", FailureKind::Crashed),
        ("half-line-hang", idle.clone()),
        ("stall-mid-answer", idle),
        ("exit", FailureKind::Crashed),
        ("exit-mid-answer", FailureKind::Crashed),
        ("second-start", FailureKind::Unavailable { status: None }),
        ("lost-mid-answer", FailureKind::Unavailable { status: None }),
        ("long-line", FailureKind::Protocol),
    ] {
        let bench = Bench::new();
        let outcome = bench.ask(behaviour, &["hi"]).await;
        assert_eq!(outcome.kind(), Some(kind), "{behaviour}: {outcome:?}");
        assert!(!outcome.is_finished, "{behaviour}: half an answer is not a whole one");
        bench.end(behaviour).await;
    }
}

#[tokio::test]
async fn what_is_only_noise_disturbs_no_answer() {
    for behaviour in ["stderr-flood", "stderr-flood-mid-answer"] {
        let bench = Bench::new();
        let outcome = bench.ask(behaviour, &["hi"]).await;
        assert_eq!((outcome.kind(), outcome.is_finished), (None, true), "{behaviour}: {outcome:?}");
        bench.end(behaviour).await;
    }
}

#[tokio::test]
async fn a_line_of_ten_megabytes_comes_whole() {
    const BYTES: usize = 10 * 1024 * 1024;
    let bench = Bench::new();
    let outcome = bench.ask(&format!("big-line:{BYTES}"), &["hi"]).await;
    assert_eq!(outcome.kind(), None);
    assert!(outcome.is_finished);
    assert_eq!(outcome.text.len(), "Hello".len() + BYTES);
    bench.end("big-line").await;
}

/// The process ends after the first line it reads, after the second, and so on: while it is set up, while the history is
/// fed, and when the question comes.
#[tokio::test]
async fn an_end_at_any_point_is_a_crash_and_nothing_worse() {
    let mut answered = 0;
    for lines in 1..=10 {
        let bench = Bench::new();
        let behaviour = format!("exit-after:{lines}");
        let outcome = bench.ask(&behaviour, &["q0", "a0", "q1", "a1", "q2"]).await;
        match outcome.kind() {
            None => answered += 1,
            Some(kind) => assert_eq!((kind, answered), (FailureKind::Crashed, 0), "{behaviour}: {outcome:?}"),
        }
        assert_eq!(outcome.is_finished, outcome.failure.is_none(), "{behaviour}");
        bench.end(&behaviour).await;
    }
    assert!((1..8).contains(&answered), "{answered} of 10 were answered: both sides of the question are covered");
}

/// The profile, the working directory and the temporary directory disappear while a process runs.
#[tokio::test]
async fn folders_that_disappear_end_nothing_that_runs() {
    let bench = Bench::new();
    let go_on = bench.at("go-on");
    let mut events = bench.backend(&format!("until:{}", go_on.display())).run(&request(&["hi"]), &Caller::anonymous());
    assert!(matches!(events.next().await, Some(Ok(Event::Started(_)))));
    for folder in [".claude-a", "workspace", "tmp"] {
        fs::remove_dir_all(bench.at(folder)).unwrap();
    }
    fs::write(&go_on, "").unwrap();
    let mut is_finished = false;
    while let Some(event) = events.next().await {
        is_finished |= matches!(event.expect("it goes on"), Event::Finished { .. });
    }
    assert!(is_finished);
    drop(events);

    // A new one has no place for its temporary files; that is no crash of the CLI, and over as soon as there is one again.
    let outcome = bench.ask("answer", &["another"]).await;
    assert_eq!(outcome.kind(), Some(FailureKind::Spawn), "{outcome:?}");
    fs::create_dir(bench.at("tmp")).unwrap();
    let outcome = bench.ask("answer", &["another"]).await;
    assert_eq!((outcome.kind(), outcome.is_finished), (None, true), "{outcome:?}");
    bench.end("folders").await;
}

/// Failures of many kinds in a row: descriptors, tasks and places are as before.
#[tokio::test]
async fn failures_in_a_row_use_nothing_up() {
    let bench = Bench::new();
    // The tasks of the store itself go on: its maker, its measurer, the sweep of live processes.
    let keepers = bench.tasks.len();
    for round in 0..20 {
        for behaviour in ["exit-mid-answer", "garbage", "half-line"] {
            assert!(bench.ask(behaviour, &["hi"]).await.failure.is_some(), "{behaviour} in round {round}");
        }
    }
    let begun = Instant::now();
    while bench.tasks.len() > keepers || bench.claude.counts().running > 0 {
        assert!(begun.elapsed() < PATIENCE, "{} tasks, {:?}", bench.tasks.len(), bench.claude.counts());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    bench.end("many").await;
}
