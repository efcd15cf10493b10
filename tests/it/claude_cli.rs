//! The CLI backend against a scripted CLI: recorded transcripts of two real builds, and everything that a real one
//! cannot be made to do.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use auth_pool::backend::claude_cli::{ClaudeCli, ClaudeCliBackend, Profile, Settings, SpareSettings, Timers};
use auth_pool::backend::{Backend as _, Caller, Failure, FailureKind};
use auth_pool::config::Env;
use auth_pool::conversation::{Block, Event, Model, Options, Request, Role, StopReason, Turn, Usage};
use auth_pool::runtime::tasks::Tasks;
use auth_pool::units::MicroUsd;
use futures_util::StreamExt;

pub(super) struct Bench {
    claude: ClaudeCli,
    backend: ClaudeCliBackend,
    tasks: Tasks,
    _cwd: tempfile::TempDir,
}

pub(super) fn bench(behaviour: &str) -> Bench {
    bench_with(behaviour, 0)
}

fn bench_with(behaviour: &str, spares: usize) -> Bench {
    bench_for(behaviour, spares, Duration::from_secs(60))
}

fn bench_for(behaviour: &str, spares: usize, idle_timeout: Duration) -> Bench {
    let tasks = Tasks::default();
    let cwd = tempfile::tempdir().expect("a directory");
    let claude = ClaudeCli::new(
        SpareSettings {
            max_processes: 4,
            max_memory: u64::MAX,
            max_spares: spares,
            spares_per_kind: spares.min(1),
            idle_timeout,
            max_line_bytes: 1024 * 1024,
        },
        &tasks,
    );
    let settings = Settings {
        command: fake_claude(),
        cwd: cwd.path().join("workspace"),
        own_env: Env::from_process().vars().clone(),
        timers: Timers {
            first_event: Duration::from_secs(2),
            idle: Duration::from_secs(1),
            total: Duration::from_secs(20),
        },
    };
    let profile = Profile {
        subscription: "sub1".to_owned(),
        env: BTreeMap::from([("FAKE_CLAUDE".to_owned(), behaviour.to_owned())]),
        ..Profile::default()
    };
    let backend = claude.backend(profile, settings);
    Bench { claude, backend, tasks, _cwd: cwd }
}

pub(super) fn fake_claude() -> PathBuf {
    let exe = std::env::current_exe().expect("a running test has a path");
    let dir = exe.parent().and_then(Path::parent).expect("tests run from target/<profile>/deps");
    dir.join("examples/fake-claude")
}

pub(super) fn request(texts: &[&str]) -> Request {
    let turns = texts.iter().enumerate().map(|(position, text)| Turn {
        role: if position % 2 == 0 { Role::User } else { Role::Assistant },
        blocks: vec![Block::Text((*text).to_owned())],
    });
    Request {
        model: Arc::new(Model::named("claude-sonnet-4-5")),
        system: vec!["be brief".to_owned()],
        turns: turns.collect(),
        tools: Vec::new(),
        tool_choice: None,
        options: Options::default(),
    }
}

async fn run(behaviour: &str) -> (Vec<Event>, Option<Failure>) {
    let bench = bench(behaviour);
    collect(&bench, &request(&["hi"])).await
}

pub(super) async fn collect(bench: &Bench, request: &Request) -> (Vec<Event>, Option<Failure>) {
    let mut events = Vec::new();
    let mut stream = bench.backend.run(request, &Caller::anonymous());
    while let Some(item) = stream.next().await {
        match item {
            Ok(event) => events.push(event),
            Err(failure) => {
                assert!(stream.next().await.is_none(), "a failure is the last thing a stream says");
                return (events, Some(failure));
            }
        }
    }
    (events, None)
}

fn kind(failure: Option<Failure>) -> FailureKind {
    failure.expect("the run fails").kind
}

#[tokio::test]
async fn a_good_run_streams_finishes_and_settles() {
    let usage = Usage { input: 10, cache_read: 20, output: 2, ..Usage::default() };
    let (events, failure) = run("answer").await;
    assert_eq!(failure, None);
    assert_eq!(
        events,
        [
            Event::Started(Usage { output: 1, ..usage }),
            Event::Text("Hello".to_owned()),
            Event::Finished { stop: StopReason::EndTurn, usage },
            Event::Settled(MicroUsd::from_usd(0.25)),
        ]
    );
}

#[tokio::test]
async fn history_is_fed_pair_by_pair() {
    let bench = bench("answer");
    let (events, failure) = collect(&bench, &request(&["q0", "a0", "q1", "a1", "q2"])).await;
    assert_eq!(failure, None);
    assert!(events.iter().any(|event| matches!(event, Event::Finished { .. })));
}

#[tokio::test]
async fn each_way_to_break_has_its_own_failure() {
    assert_eq!(kind(run("hang").await.1), FailureKind::TimedOut { timer: "first event" });
    assert_eq!(kind(run("stall-mid-answer").await.1), FailureKind::TimedOut { timer: "idle" });
    assert_eq!(kind(run("garbage").await.1), FailureKind::Protocol);
    assert_eq!(kind(run("half-line").await.1), FailureKind::Crashed);
    assert_eq!(kind(run("long-line").await.1), FailureKind::Protocol);
    assert_eq!(kind(run("exit").await.1), FailureKind::Crashed);
    assert_eq!(kind(run("exit-mid-answer").await.1), FailureKind::Crashed);
    assert_eq!(kind(run("exit-at-start").await.1), FailureKind::Crashed);
    assert_eq!(kind(run("second-start").await.1), FailureKind::Unavailable { status: None });
}

#[tokio::test]
async fn a_flood_on_stderr_stops_nothing() {
    let (events, failure) = run("stderr-flood").await;
    assert_eq!(failure, None);
    assert!(matches!(events.last(), Some(Event::Settled(_))));
}

#[tokio::test]
async fn a_missing_cli_is_a_spawn_failure() {
    let bench = bench("answer");
    let settings = Settings {
        command: "/nowhere/claude".into(),
        cwd: "/".into(),
        own_env: BTreeMap::new(),
        timers: Timers {
            first_event: Duration::from_secs(1),
            idle: Duration::from_secs(1),
            total: Duration::from_secs(1),
        },
    };
    let backend = bench.claude.backend(Profile::default(), settings);
    let first = backend.run(&request(&["hi"]), &Caller::anonymous()).next().await.expect("an answer");
    assert_eq!(first.expect_err("it cannot start").kind, FailureKind::Spawn);
}

#[tokio::test]
async fn dropping_the_stream_kills_the_whole_group() {
    let bench = bench("grandchild");
    let mut stream = bench.backend.run(&request(&["hi"]), &Caller::anonymous());
    let Some(Ok(Event::Text(pid))) = stream.next().await else { panic!("the grandchild's id comes first") };
    let grandchild = PathBuf::from(format!("/proc/{pid}/stat"));
    assert!(is_running(&grandchild));
    let dropped = Instant::now();
    drop(stream);
    while is_running(&grandchild) {
        assert!(dropped.elapsed() < Duration::from_secs(5), "the grandchild lives on");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    until(|| bench.claude.counts().running == 0).await;
}

/// An orphan is reaped by the machine's init, if it has one: a zombie does not count as running.
fn is_running(stat: &Path) -> bool {
    std::fs::read_to_string(stat).is_ok_and(|stat| !stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" Z")))
}

#[tokio::test]
async fn a_spare_is_made_taken_and_made_again() {
    let bench = bench_with("answer", 1);
    bench.backend.prepare(&Model::named("claude-sonnet-4-5"));
    until(|| bench.claude.counts().spare == 1).await;
    let (_, failure) = collect(&bench, &request(&["hi"])).await;
    assert_eq!(failure, None);
    until(|| bench.claude.counts().spare == 1).await;
    assert_eq!(bench.claude.counts().started, 2, "the request took the spare and started none of its own");
    bench.claude.close();
    until(|| bench.claude.counts().spare == 0).await;
    tokio::time::timeout(Duration::from_secs(5), bench.tasks.finished()).await.expect("every task ends");
}

#[tokio::test]
async fn a_spare_that_died_unnoticed_is_replaced() {
    let bench = bench_with("exit-when-idle", 1);
    bench.backend.prepare(&Model::named("claude-sonnet-4-5"));
    until(|| bench.claude.counts().started == 1).await;
    let (events, failure) = collect(&bench, &request(&["hi"])).await;
    assert_eq!(failure, None);
    assert!(matches!(events.last(), Some(Event::Settled(_))));
}

#[tokio::test]
async fn requests_beyond_the_most_processes_wait_for_a_place() {
    let bench = bench("hang");
    let mut streams: Vec<_> = (0..5).map(|_| bench.backend.run(&request(&["hi"]), &Caller::anonymous())).collect();
    let all = futures_util::future::join_all(streams.iter_mut().map(StreamExt::next));
    assert!(tokio::time::timeout(Duration::from_millis(500), all).await.is_err(), "nobody is answered");
    assert_eq!(bench.claude.counts().started, 4, "four places, five requests");
    drop(streams);
    until(|| bench.claude.counts().running == 0).await;
}

/// What a run said, and what it cost.
async fn say(bench: &Bench, request: &Request, caller: &Caller) -> (String, MicroUsd) {
    let events: Vec<_> = bench.backend.run(request, caller).map(|event| event.expect("a good run")).collect().await;
    let text = |event: &Event| if let Event::Text(text) = event { text.clone() } else { String::new() };
    let Some(Event::Settled(cost)) = events.last() else { panic!("{events:?}") };
    (events.iter().map(text).collect(), *cost)
}

#[tokio::test]
async fn a_conversation_goes_on_in_its_process_and_each_turn_has_its_own_cost() {
    let bench = bench("who");
    let caller = Caller::anonymous();
    let mut texts = vec!["q1".to_owned()];
    let mut process = None;
    for turn in 1..=5 {
        let borrowed: Vec<&str> = texts.iter().map(String::as_str).collect();
        let (said, cost) = say(&bench, &request(&borrowed), &caller).await;
        let (pid, count) = said.split_once(' ').expect("the process and a number");
        assert_eq!((count, cost), (turn.to_string().as_str(), MicroUsd::from_usd(0.25)));
        assert_eq!(*process.get_or_insert_with(|| pid.to_owned()), pid);
        texts.extend([said, "next".to_owned()]);
    }
    assert_eq!((bench.claude.counts().started, bench.claude.counts().live), (1, 1));
    // The same words of somebody else have a process of their own.
    let borrowed: Vec<&str> = texts.iter().map(String::as_str).collect();
    let somebody = Caller { client: "somebody".into() };
    assert_ne!(say(&bench, &request(&borrowed), &somebody).await.0.split_once(' ').unwrap().0, process.unwrap());
    bench.claude.close();
    until(|| bench.claude.counts().running + bench.claude.counts().live == 0).await;
    tokio::time::timeout(Duration::from_secs(5), bench.tasks.finished()).await.expect("every task ends");
}

#[tokio::test]
async fn a_live_process_that_dies_is_replaced_without_a_word() {
    let bench = bench("die-later");
    let caller = Caller::anonymous();
    let (first, _) = say(&bench, &request(&["q1"]), &caller).await;
    let (second, cost) = say(&bench, &request(&["q1", &first, "q2"]), &caller).await;
    // The new one has heard the history, but no other question.
    assert!(second.ends_with(" 1") && second != first, "{first} {second}");
    assert_eq!((cost, bench.claude.counts().started), (MicroUsd::from_usd(0.25), 2));
}

/// It hangs without reading, so that what does not fit into its pipe cannot even be written.
#[tokio::test]
async fn a_live_process_that_reads_nothing_is_replaced_without_a_word() {
    let bench = bench("deaf-later");
    let caller = Caller::anonymous();
    let (first, _) = say(&bench, &request(&["q1"]), &caller).await;
    let large = "x".repeat(1024 * 1024);
    let (second, _) = say(&bench, &request(&["q1", &first, &large]), &caller).await;
    assert!(second.ends_with(" 1") && second != first, "{first} {second}");
    assert_eq!(bench.claude.counts().started, 2);
}

#[tokio::test]
async fn live_processes_give_way_to_others_the_oldest_first() {
    let bench = bench("who");
    let caller = Caller::anonymous();
    let mut said = Vec::new();
    for question in ["a", "b", "c", "d", "e"] {
        said.push((question, say(&bench, &request(&[question]), &caller).await.0));
    }
    assert_eq!((bench.claude.counts().started, bench.claude.counts().live), (5, 4));
    let (question, answer) = &said[1];
    assert!(say(&bench, &request(&[question, answer, "next"]), &caller).await.0.ends_with(" 2"));
    let (question, answer) = &said[0];
    assert!(say(&bench, &request(&[question, answer, "next"]), &caller).await.0.ends_with(" 1"), "it is gone");
}

#[tokio::test]
async fn nobody_comes_back_and_the_process_is_let_go() {
    let bench = bench_for("who", 0, Duration::from_millis(200));
    say(&bench, &request(&["q1"]), &Caller::anonymous()).await;
    until(|| bench.claude.counts().live == 0).await;
    until(|| bench.claude.counts().running == 0).await;
}

pub(super) async fn until(condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(10), "it did not happen in ten seconds");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// What a run of a recorded transcript comes to, in a few words.
fn summary(events: &[Event], failure: Option<&Failure>) -> String {
    let mut words: Vec<String> = Vec::new();
    for event in events {
        match event {
            Event::Started(_) => words.push("started".to_owned()),
            Event::Text(_) if words.last().is_some_and(|word| word == "text") => {}
            Event::Text(_) => words.push("text".to_owned()),
            Event::Thinking(_) if words.last().is_some_and(|word| word == "thinking") => {}
            Event::Thinking(_) => words.push("thinking".to_owned()),
            Event::ToolUse { index, name, .. } => words.push(format!("tool {index} {name}")),
            Event::ToolInput { .. } | Event::Overage(_) => {}
            Event::Finished { stop, .. } => words.push(format!("{stop:?}")),
            Event::Limits(_) => words.push("limits".to_owned()),
            Event::Settled(_) => words.push("settled".to_owned()),
        }
    }
    if let Some(failure) = failure {
        words.push(format!("failed: {:?}", failure.kind));
    }
    words.join(", ")
}

#[tokio::test]
async fn transcripts_of_real_builds_come_to_what_they_mean() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts");
    let expected = std::fs::read_to_string(root.join("expected.txt")).unwrap_or_default();
    let mut actual = String::new();
    for build in ["2.1.197", "2.1.329"] {
        let mut files: Vec<PathBuf> =
            std::fs::read_dir(root.join(build)).expect("transcripts").flatten().map(|entry| entry.path()).collect();
        files.sort();
        for file in files {
            let bench = bench(&format!("play:{}", file.display()));
            let (events, failure) = collect(&bench, &request(&["hi"])).await;
            let case = file.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
            let _ = writeln!(actual, "{build} {case}: {}", summary(&events, failure.as_ref()));
        }
    }
    if actual != expected {
        let seen = std::env::temp_dir().join("auth-pool-transcripts-actual.txt");
        std::fs::write(&seen, &actual).expect("a temporary file");
        panic!("tests/transcripts/expected.txt differs from what was seen, written to {}", seen.display());
    }
}
