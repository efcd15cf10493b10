//! The processes of the pool within their memory.

use std::collections::BTreeMap;
use std::time::Duration;

use auth_pool::backend::claude_cli::{ClaudeCli, ClaudeCliBackend, Profile, Settings, SpareSettings, Timers};
use auth_pool::backend::{Backend as _, Caller};
use auth_pool::config::Env;
use auth_pool::conversation::{Event, Model};
use auth_pool::runtime::tasks::Tasks;
use futures_util::StreamExt;

use super::claude_cli::{fake_claude, request, until};

const PATIENCE: Duration = Duration::from_secs(60);

struct Bench {
    claude: ClaudeCli,
    tasks: Tasks,
    home: tempfile::TempDir,
}

impl Bench {
    fn new(max_memory: u64, spares: usize) -> Self {
        let tasks = Tasks::default();
        let limits = SpareSettings {
            max_processes: 8,
            max_memory,
            max_spares: spares,
            spares_per_kind: spares.min(1),
            idle_timeout: PATIENCE,
            max_line_bytes: 1024 * 1024,
        };
        Self { claude: ClaudeCli::new(limits, &tasks), tasks, home: tempfile::tempdir().unwrap() }
    }

    fn backend(&self, behaviour: &str) -> ClaudeCliBackend {
        let settings = Settings {
            command: fake_claude(),
            cwd: self.home.path().join("workspace"),
            own_env: Env::from_process().vars().clone(),
            timers: Timers { first_event: PATIENCE, idle: PATIENCE, total: PATIENCE },
        };
        let env = BTreeMap::from([("FAKE_CLAUDE".to_owned(), behaviour.to_owned())]);
        let profile = Profile { subscription: "sub1".to_owned(), env, ..Profile::default() };
        self.claude.backend(profile, settings)
    }

    async fn end(self) {
        self.claude.close();
        tokio::time::timeout(PATIENCE, self.tasks.finished()).await.expect("every task ends");
    }
}

/// With room for one process the second request waits until the first is over, and both are answered.
#[tokio::test]
async fn requests_wait_for_memory_as_they_wait_for_a_place() {
    let bench = Bench::new(1, 0);
    let file = bench.home.path().join("go-on");
    let backend = bench.backend(&format!("until:{}", file.display()));
    let mut first = backend.run(&request(&["one"]), &Caller::anonymous());
    assert!(matches!(first.next().await, Some(Ok(Event::Started(_)))));
    let mut second = backend.run(&request(&["two"]), &Caller::anonymous());
    assert!(tokio::time::timeout(Duration::from_millis(300), second.next()).await.is_err(), "it has no process");
    assert_eq!(bench.claude.counts().started, 1);
    std::fs::write(&file, "").unwrap();
    while let Some(event) = first.next().await {
        event.expect("the first is answered");
    }
    drop(first);
    let mut is_finished = false;
    while let Some(event) = second.next().await {
        is_finished |= matches!(event.expect("the second is answered"), Event::Finished { .. });
    }
    assert!(is_finished);
    bench.end().await;
}

/// When the budget shrinks below what is there, spares go, and the last of them only when nothing else is left.
#[tokio::test]
async fn spares_give_way_when_memory_is_short() {
    let bench = Bench::new(u64::MAX, 3);
    let backend = bench.backend("answer");
    for model in ["claude-haiku-4-5", "claude-opus-4-8", "claude-sonnet-5"] {
        backend.prepare(&Model::named(model));
    }
    until(|| bench.claude.counts().spare == 3).await;
    // They are measured every few seconds; until then they count as large ones do.
    let begun = std::time::Instant::now();
    while !(1..300_000_000).contains(&bench.claude.memory().used_bytes) {
        assert!(begun.elapsed() < PATIENCE, "{:?}", bench.claude.memory());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    bench.claude.set_max_memory(1);
    while bench.claude.counts().spare != 1 {
        assert!(begun.elapsed() < PATIENCE, "{:?} {:?}", bench.claude.counts(), bench.claude.memory());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let started = bench.claude.counts().started;
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(bench.claude.counts().started, started, "no spare is made only to go again");
    assert_eq!(bench.claude.counts().spare, 1, "one process alone may take what it needs");
    bench.end().await;
}
