//! Idle processes are asked how full the provider's windows are.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use auth_pool::backend::claude_cli::{
    ClaudeCli, ClaudeCliBackend, Polled, ProcessCounts, Profile, Settings, SpareSettings, Timers,
};
use auth_pool::backend::{Backend as _, Caller};
use auth_pool::config::Env;
use auth_pool::conversation::{LimitStatus, Model, Window};
use auth_pool::runtime::tasks::Tasks;
use futures_util::StreamExt as _;
use serde_json::{Value, json};

use super::claude_cli::{fake_claude, request, until};
use super::reload::{Proxy, file, member};

const TOLD: &str = r#"{"rate_limits_available":true,"rate_limits":{"five_hour":{"utilization":42,"resets_at":"2100-01-01T00:00:00.000Z"},"seven_day":{"utilization":61,"resets_at":null}}}"#;

struct Bench {
    claude: ClaudeCli,
    backend: ClaudeCliBackend,
    tasks: Tasks,
    _cwd: tempfile::TempDir,
}

impl Bench {
    fn new(usage: &str) -> Self {
        let tasks = Tasks::default();
        let cwd = tempfile::tempdir().unwrap();
        let spares = SpareSettings {
            max_processes: 2,
            max_memory: u64::MAX,
            max_spares: 1,
            spares_per_kind: 1,
            idle_timeout: Duration::from_secs(60),
            max_line_bytes: 1024 * 1024,
        };
        let claude = ClaudeCli::new(spares, &tasks);
        let settings = Settings {
            command: fake_claude(),
            cwd: cwd.path().join("workspace"),
            own_env: Env::from_process().vars().clone(),
            timers: Timers {
                first_event: Duration::from_secs(5),
                idle: Duration::from_secs(5),
                total: Duration::from_secs(20),
            },
        };
        let env = BTreeMap::from([("FAKE_CLAUDE_USAGE".to_owned(), usage.to_owned())]);
        let backend = claude.backend(Profile { env, ..Profile::default() }, settings);
        Self { claude, backend, tasks, _cwd: cwd }
    }

    /// With a spare that is ready.
    async fn ready(usage: &str) -> Self {
        let bench = Self::new(usage);
        bench.backend.prepare(&Model::named("claude-sonnet-4-5"));
        until(|| bench.claude.counts().spare == 1).await;
        bench
    }

    fn assert_counts(&self, running: usize, spare: usize, started: u64) {
        assert_eq!(self.claude.counts(), ProcessCounts { running, spare, started, ..ProcessCounts::default() });
    }

    /// Nothing is left behind.
    async fn end(self) {
        self.claude.close();
        tokio::time::timeout(Duration::from_secs(5), self.tasks.finished()).await.expect("every task ends");
        assert_eq!(self.claude.counts().running + self.claude.counts().spare, 0);
    }
}

#[tokio::test]
async fn an_idle_process_tells_and_is_as_good_as_before() {
    let bench = Bench::ready(TOLD).await;
    for _ in 0..20 {
        let Polled::Told(report) = bench.backend.usage_probe().poll().await.unwrap() else { panic!("it knows") };
        assert_eq!(report.status, LimitStatus::Allowed);
        let [five_hour, seven_day] = report.windows[..] else { panic!("{report:?}") };
        assert_eq!((five_hour.window, seven_day.window), (Window::FiveHour, Window::SevenDay));
        assert!((seven_day.utilization - 0.61).abs() < 1e-9);
        bench.assert_counts(0, 1, 1);
    }
    // The same process serves the next request.
    let mut events = bench.backend.run(&request(&["hi"]), &Caller::anonymous());
    assert!(events.next().await.unwrap().is_ok());
    assert_eq!(bench.claude.counts().started, 1);
    while events.next().await.is_some() {}
    drop(events);
    // It stays with its conversation, and the next one is ready.
    until(|| bench.claude.counts() == ProcessCounts { live: 1, spare: 1, started: 2, ..ProcessCounts::default() })
        .await;
    bench.end().await;
}

#[tokio::test]
async fn who_knows_nothing_or_refuses_keeps_its_process() {
    let bench = Bench::ready(r#"{"rate_limits_available":false,"rate_limits":null}"#).await;
    assert_eq!(bench.backend.usage_probe().poll().await.unwrap(), Polled::NothingKnown);
    bench.assert_counts(0, 1, 1);
    bench.end().await;

    let bench = Bench::ready("refuse").await;
    let error = bench.backend.usage_probe().poll().await.unwrap_err();
    assert_eq!(error.to_string(), "the CLI refused: unknown subtype");
    bench.assert_counts(0, 1, 1);
    bench.end().await;
}

#[tokio::test]
async fn without_an_idle_process_nobody_is_asked() {
    let bench = Bench::new(TOLD);
    assert_eq!(bench.backend.usage_probe().poll().await.unwrap(), Polled::NobodyToAsk);
    bench.assert_counts(0, 0, 0);
    bench.end().await;
}

#[tokio::test]
async fn who_does_not_answer_is_replaced_and_its_place_is_free_again() {
    for usage in ["hang", "exit"] {
        let bench = Bench::ready(usage).await;
        bench.backend.usage_probe().poll().await.unwrap_err();
        until(|| bench.claude.counts() == ProcessCounts { spare: 1, started: 2, ..ProcessCounts::default() }).await;
        bench.end().await;
    }
}

#[tokio::test]
async fn a_poll_that_is_given_up_leaves_nothing_behind() {
    let bench = Bench::ready("hang").await;
    let probe = bench.backend.usage_probe();
    let poll = tokio::time::timeout(Duration::from_millis(50), probe.poll());
    // Looked at as soon as the question is out, however slow the machine is.
    let during = async {
        // It counts as a spare, so that no other is made, but nobody else can have it.
        bench.assert_counts(0, 1, 1);
        assert_eq!(probe.poll().await.unwrap(), Polled::NobodyToAsk);
    };
    let (poll, ()) = tokio::join!(poll, during);
    assert!(poll.is_err());
    until(|| bench.claude.counts() == ProcessCounts { spare: 1, started: 2, ..ProcessCounts::default() }).await;

    // Also when everything is closed meanwhile.
    let poll = tokio::time::timeout(Duration::from_millis(50), probe.poll());
    let (poll, ()) = tokio::join!(poll, async { bench.claude.close() });
    assert!(poll.is_err());
    bench.end().await;
}

#[tokio::test]
async fn a_request_that_waits_for_a_place_gets_that_of_the_process_that_was_asked() {
    let bench = Bench::ready(TOLD).await;
    // One request of another kind runs, the spare takes the second place.
    let other = |model: &str| {
        let mut request = request(&["hi"]);
        request.model = Model::named(model).into();
        request
    };
    let mut first = bench.backend.run(&other("claude-opus-4-8"), &Caller::anonymous());
    assert!(first.next().await.unwrap().is_ok());
    let probe = bench.backend.usage_probe();
    for _ in 0..20 {
        let (polled, events) = tokio::join!(probe.poll(), async {
            let begun = Instant::now();
            let mut second = bench.backend.run(&other("claude-haiku-4-5"), &Caller::anonymous());
            assert!(second.next().await.unwrap().is_ok());
            assert!(begun.elapsed() < Duration::from_secs(4), "it waited for the place of a process that was idle");
            second.collect::<Vec<_>>().await
        });
        assert!(matches!(polled.unwrap(), Polled::Told(_) | Polled::NobodyToAsk));
        assert!(events.iter().all(Result::is_ok), "{events:?}");
    }
    drop(first);
    bench.end().await;
}

/// What the pool says of one of the provider's windows.
fn window(view: &Value, name: &str) -> Option<Value> {
    view["limits"].as_array().unwrap().iter().find(|limit| limit["window"] == name).cloned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_pool_learns_from_polls_but_a_lock_of_a_real_refusal_stays() {
    let mut limited = member("a", "limited:3600");
    limited["env"]["FAKE_CLAUDE_USAGE"] = json!(TOLD);
    let mut file = file(&[limited]);
    file["claude"]["usagePollInterval"] = json!("1s");
    let proxy = Proxy::start(["a".to_owned()], "auth-pool.json", &file).await;
    proxy.until(|debug| window(&debug["status"][0], "seven_day").is_some()).await;
    let view = proxy.view("a").await.unwrap();
    assert_eq!((&view["status"], &view["weeklyPercent"]), (&json!("available"), &json!(61.0)), "{view:#}");
    let five_hour = window(&view, "five_hour").unwrap();
    assert_eq!((&five_hour["utilization"], &five_hour["locked"]), (&json!(0.42), &json!(false)));

    assert_eq!(proxy.ask().await.status(), 429);
    let locked = proxy.view("a").await.unwrap();
    assert_eq!(locked["status"], "cooldown", "{locked:#}");
    let until = &locked["statusCause"]["until"];
    // Two more polls later, which say 42 %, it is still locked, until the same instant.
    for _ in 0..2 {
        let seen = window(&proxy.view("a").await.unwrap(), "seven_day").unwrap()["reportedAt"].as_i64();
        proxy.until(|debug| window(&debug["status"][0], "seven_day").unwrap()["reportedAt"].as_i64() > seen).await;
    }
    let view = proxy.view("a").await.unwrap();
    assert_eq!((&view["status"], &view["statusCause"]["until"]), (&json!("cooldown"), until), "{view:#}");
    let five_hour = window(&view, "five_hour").unwrap();
    assert_eq!((&five_hour["utilization"], &five_hour["locked"]), (&json!(0.42), &json!(true)));
    assert_eq!(proxy.ask().await.status(), 429);
    proxy.app.stop().await;
}
