//! Spares over their life: how they are started, and what becomes of those that nobody wants any more.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use auth_pool::backend::claude_cli::{ClaudeCli, ClaudeCliBackend, Profile, Settings, SpareSettings, Timers};
use auth_pool::backend::{Backend as _, Caller};
use auth_pool::config::Env;
use auth_pool::conversation::{Event, Model};
use auth_pool::runtime::priority::Priority;
use auth_pool::runtime::tasks::Tasks;
use futures_util::StreamExt;

use super::claude_cli::{fake_claude, request, until};

const PATIENCE: Duration = Duration::from_secs(60);

/// How much nicer a process is that gives way.
const STEPS: i32 = 10;

struct Bench {
    claude: ClaudeCli,
    tasks: Tasks,
    home: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        Self::with_places(8)
    }

    fn with_places(max_processes: usize) -> Self {
        let tasks = Tasks::default();
        let limits = SpareSettings {
            max_processes,
            max_memory: u64::MAX,
            max_spares: 3,
            spares_per_kind: 1,
            idle_timeout: PATIENCE,
            max_line_bytes: 1024 * 1024,
        };
        Self { claude: ClaudeCli::new(limits, &tasks), tasks, home: tempfile::tempdir().unwrap() }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// Its processes are ready when the file `ready` is there.
    fn backend(&self, subscription: &str, behaviour: &str) -> ClaudeCliBackend {
        let settings = Settings {
            command: fake_claude(),
            cwd: self.at("workspace"),
            own_env: Env::from_process().vars().clone(),
            timers: Timers { first_event: PATIENCE, idle: PATIENCE, total: PATIENCE },
        };
        let env = [
            ("FAKE_CLAUDE", behaviour.to_owned()),
            ("FAKE_CLAUDE_READY", self.at("ready").to_string_lossy().into_owned()),
            ("SUBSCRIPTION", subscription.to_owned()),
        ];
        let env: BTreeMap<_, _> = env.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        self.claude.backend(Profile { subscription: subscription.to_owned(), env, ..Profile::default() }, settings)
    }

    /// The niceness of each process of ours.
    fn niceness(&self) -> Vec<i32> {
        self.processes().into_iter().filter_map(niceness).collect()
    }

    fn processes(&self) -> Vec<u32> {
        let home = self.home.path().to_string_lossy().into_owned();
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let environment = |pid: u32| fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        pids.filter(|pid| String::from_utf8_lossy(&environment(*pid)).contains(&home)).collect()
    }

    async fn end(self) {
        self.claude.close();
        tokio::time::timeout(PATIENCE, self.tasks.finished()).await.expect("every task ends");
    }
}

/// The 19th field of its line; the name before may hold anything.
fn niceness(pid: u32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(16)?.parse().ok()
}

fn own_niceness() -> i32 {
    niceness(std::process::id()).unwrap()
}

/// What a process that nobody waits for is while it starts, on this system.
fn nicer() -> i32 {
    own_niceness() + if Priority::find().is_some() { STEPS } else { 0 }
}

#[tokio::test]
async fn a_spare_gives_way_until_it_is_ready() {
    let bench = Bench::new();
    bench.backend("a", "answer").prepare(&Model::named("claude-sonnet-5"));
    until(|| bench.niceness() == [nicer()]).await;
    assert_eq!(bench.claude.counts().spare, 0);
    fs::write(bench.at("ready"), "").unwrap();
    until(|| bench.claude.counts().spare == 1).await;
    assert_eq!(bench.niceness(), [own_niceness()], "whoever gets it is served as well as others");
    bench.end().await;
}

/// Not for ever, however busy the machine is.
#[tokio::test]
async fn a_spare_does_not_give_way_for_ever() {
    let bench = Bench::new();
    bench.backend("a", "answer").prepare(&Model::named("claude-sonnet-5"));
    until(|| bench.niceness() == [nicer()]).await;
    until(|| bench.niceness() == [own_niceness()]).await;
    assert_eq!(bench.claude.counts().spare, 0, "it is not ready yet");
    fs::write(bench.at("ready"), "").unwrap();
    until(|| bench.claude.counts().spare == 1).await;
    bench.end().await;
}

/// There is one place, which the process has that is about to be a spare.
#[tokio::test]
async fn who_waits_for_the_place_of_a_spare_gets_the_spare() {
    for (subscription, gets_it) in [("a", true), ("b", false)] {
        let bench = Bench::with_places(1);
        let asked = request(&["hi"]);
        bench.backend("a", "who").prepare(&asked.model);
        until(|| bench.claude.counts().started == 1).await;
        let [spare] = bench.processes()[..] else { panic!("one process") };
        let mut events = bench.backend(subscription, "who").run(&asked, &Caller::anonymous());
        assert!(tokio::time::timeout(Duration::from_millis(100), events.next()).await.is_err(), "there is no place");
        fs::write(bench.at("ready"), "").unwrap();
        let mut said = String::new();
        while let Some(event) = events.next().await {
            if let Event::Text(text) = event.expect("it is answered") {
                said.push_str(&text);
            }
        }
        assert_eq!(said == format!("{spare} 1"), gets_it, "{said}: that of another subscription gives way");
        bench.end().await;
    }
}

/// A request has its process, and its subscription is removed: neither the process nor a new spare may stay.
#[tokio::test]
async fn what_runs_on_after_its_subscription_was_removed_leaves_nothing() {
    let bench = Bench::new();
    fs::write(bench.at("ready"), "").unwrap();
    let go_on = bench.at("go-on");
    let (gone, stays) =
        (bench.backend("gone", &format!("until:{}", go_on.display())), bench.backend("stays", "answer"));
    let mut running = gone.run(&request(&["hi"]), &Caller::anonymous());
    assert!(matches!(running.next().await, Some(Ok(Event::Started(_)))));
    bench.claude.retain(3, [&stays]);
    // Another one was on its way to it.
    let mut late = gone.run(&request(&["late"]), &Caller::anonymous());
    assert!(matches!(late.next().await, Some(Ok(Event::Started(_)))));
    fs::write(&go_on, "").unwrap();
    for events in [&mut running, &mut late] {
        let mut is_settled = false;
        while let Some(event) = events.next().await {
            is_settled |= matches!(event.expect("it is answered"), Event::Settled(_));
        }
        assert!(is_settled);
    }
    until(|| bench.niceness().is_empty()).await;
    stays.prepare(&Model::named("claude-sonnet-5"));
    until(|| bench.claude.counts().spare == 1).await;
    let counts = bench.claude.counts();
    assert_eq!((counts.live, counts.running), (0, 0), "{counts:?}");
    bench.end().await;
}
