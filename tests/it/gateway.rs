//! The gateway over a real pool and scripted backends: failover, retries, and leases that cannot leak.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use auth_pool::backend::claude_cli::{ClaudeCli, SpareSettings};
use auth_pool::backend::{Backend, Caller, EventStream, Failure, FailureKind};
use auth_pool::conversation::{
    Block, Catalog, Event, LimitReport, LimitStatus, Model, Options, Request, Role, StopReason, Turn, Usage, Window,
};
use auth_pool::gateway::{
    Answer, Call, Gateway as _, GatewayError, PooledGateway, Priority, QueueSettings, RefusalReason, SessionHint,
    SharedPool,
};
use auth_pool::pool::{
    BreakerSettings, CapacityLimits, Pool, RebalanceSettings, SelectionSettings, Settings, Status, SubscriptionSettings,
};
use auth_pool::runtime::{clock, tasks::Tasks};
use auth_pool::units::{MicroUsd, Timestamp};
use futures_util::future::join_all;
use futures_util::{StreamExt as _, stream};

/// What a backend answers, call after call; the last answer is repeated.
pub(super) struct Scripted {
    answers: Mutex<Vec<Vec<Result<Event, Failure>>>>,
    calls: AtomicUsize,
    /// Streams that have not been dropped.
    pub(super) open: Arc<AtomicUsize>,
    /// Never ends after what it says.
    hangs: bool,
}

impl Scripted {
    pub(super) fn new(answers: Vec<Vec<Result<Event, Failure>>>) -> Arc<Self> {
        Arc::new(Self { answers: Mutex::new(answers), calls: AtomicUsize::new(0), open: Arc::default(), hangs: false })
    }

    /// Says this, and then nothing for ever.
    pub(super) fn hanging(answer: Vec<Result<Event, Failure>>) -> Arc<Self> {
        Arc::new(Self {
            hangs: true,
            answers: Mutex::new(vec![answer]),
            calls: AtomicUsize::new(0),
            open: Arc::default(),
        })
    }

    pub(super) fn good() -> Arc<Self> {
        Self::new(vec![good()])
    }

    pub(super) fn failing(kind: FailureKind) -> Arc<Self> {
        Self::new(vec![vec![Err(Failure::new(kind, "scripted"))]])
    }

    pub(super) fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Backend for Scripted {
    fn run(&self, _: &Request, _: &Caller) -> EventStream {
        let call = self.calls.fetch_add(1, Ordering::SeqCst);
        let answers = self.answers.lock().expect("no test panics while it holds this");
        let answer = answers[call.min(answers.len() - 1)].clone();
        self.open.fetch_add(1, Ordering::SeqCst);
        let open = Open(Arc::clone(&self.open));
        let events = stream::iter(answer).map(move |event| {
            let _ = &open;
            event
        });
        if self.hangs { events.chain(stream::pending()).boxed() } else { events.boxed() }
    }
}

pub(super) fn good() -> Vec<Result<Event, Failure>> {
    let usage = Usage { input: 100, output: 10, ..Usage::default() };
    vec![
        Ok(Event::Started(usage)),
        Ok(Event::Text("hello".to_owned())),
        Ok(Event::Finished { stop: StopReason::EndTurn, usage }),
        Ok(Event::Settled(MicroUsd::from_usd(0.5))),
    ]
}

pub(super) fn limited(resets_in: u64) -> FailureKind {
    FailureKind::Limited(LimitReport {
        status: LimitStatus::Rejected,
        window: Some(Window::FiveHour),
        resets_at: Some(Timestamp::from_millis(clock::now().as_millis()) + Duration::from_secs(resets_in)),
        windows: Vec::new(),
    })
}

pub(super) struct Bench {
    pub(super) gateway: PooledGateway,
    pub(super) pool: SharedPool,
    pub(super) tasks: Tasks,
    /// How many tasks run for as long as the gateway does.
    pub(super) keepers: usize,
}

pub(super) const REBALANCING: RebalanceSettings =
    RebalanceSettings { enabled: true, cost_gap: MicroUsd::from_micros(5_000_000), max_moves: 3 };

pub(super) fn gateway_settings() -> auth_pool::gateway::Settings {
    let queue = QueueSettings { max_waiting: 100, timeout: Duration::from_secs(30) };
    auth_pool::gateway::Settings {
        max_attempts: 3,
        deadline: Duration::from_secs(600),
        max_repeats: None,
        rebalancing: REBALANCING,
        queue,
    }
}

fn bench(backends: &[Arc<Scripted>]) -> Bench {
    let backends: Vec<_> = backends.iter().map(|backend| Arc::clone(backend) as Arc<dyn Backend>).collect();
    bench_with(&backends, gateway_settings(), |_| {})
}

/// A bench whose pool's rules are changed by `adjust`.
pub(super) fn bench_with(
    backends: &[Arc<dyn Backend>],
    gateway: auth_pool::gateway::Settings,
    adjust: impl FnOnce(&mut Settings),
) -> Bench {
    let names: Vec<Arc<str>> = (1..=backends.len()).map(|number| format!("sub{number}").into()).collect();
    let subscription = |id: &Arc<str>| SubscriptionSettings {
        id: Arc::clone(id),
        email: None,
        kind: "claude-pro".into(),
        weekly_budget: MicroUsd::from_usd(456.0),
        max_clients: None,
        max_concurrent: 10,
        enabled: true,
        priority: Priority::Normal,
        organization: None,
        capacity: CapacityLimits::default(),
    };
    let mut settings = Settings {
        subscriptions: names.iter().map(subscription).collect(),
        max_clients: 15,
        weekly_budget_threshold: 0.85,
        selection: SelectionSettings::default(),
        organizations: HashMap::new(),
        rebalancing: REBALANCING,
        breaker: BreakerSettings { failure_threshold: 5, success_threshold: 2, reset_after: Duration::from_secs(300) },
        session_idle_after: Duration::from_secs(300),
        session_stale_after: Duration::from_secs(3600),
    };
    adjust(&mut settings);
    let tasks = Tasks::default();
    let pool = SharedPool::new(Pool::new(settings, clock::now()));
    let by_name: HashMap<Arc<str>, Arc<dyn Backend>> = names.into_iter().zip(backends.iter().cloned()).collect();
    let spares = SpareSettings {
        max_processes: 1,
        max_memory: u64::MAX,
        max_spares: 0,
        spares_per_kind: 0,
        idle_timeout: Duration::from_secs(60),
        max_line_bytes: 1024,
    };
    let claude = ClaudeCli::new(spares, &tasks);
    let gateway = PooledGateway::new(pool.clone(), by_name, Catalog::new([], []), claude, gateway, tasks.clone());
    let keepers = tasks.len();
    Bench { gateway, pool, tasks, keepers }
}

pub(super) fn call(session: &str) -> Call {
    Call {
        id: format!("request-of-{session}").into(),
        request: Request {
            model: Arc::new(Model::named("claude-sonnet-4-5")),
            system: Vec::new(),
            turns: vec![Turn { role: Role::User, blocks: vec![Block::Text("hi".to_owned())] }],
            tools: Vec::new(),
            tool_choice: None,
            options: Options::default(),
        },
        session: SessionHint::Session(session.into()),
        client: "anonymous".into(),
        stream: true,
        priority: Priority::Normal,
        backend: None,
    }
}

pub(super) async fn read(answer: Answer) -> Vec<Result<Event, GatewayError>> {
    answer.events.collect().await
}

impl Bench {
    pub(super) async fn chat(&self, session: &str) -> Result<Answer, GatewayError> {
        self.gateway.chat(call(session)).await
    }

    pub(super) fn in_flight(&self) -> usize {
        self.pool.with(|pool, _| (pool.in_flight(), Vec::new()))
    }

    pub(super) fn status(&self, index: usize) -> (Status, f64, u32) {
        let view = self.pool.with(|pool, now| (pool.snapshot(now), Vec::new())).subscriptions.swap_remove(index);
        (view.status, view.weekly_used, view.in_flight)
    }
}

#[tokio::test]
async fn a_good_answer_is_passed_on_and_its_cost_recorded() {
    let bench = bench(&[Scripted::good()]);
    let answer = bench.chat("s").await.expect("an answer");
    assert_eq!(&*answer.subscription, "sub1");
    let events = read(answer).await;
    assert_eq!(events.len(), 3, "what is for the pool is not shown to the client: {events:?}");
    let (_, used, in_flight) = bench.status(0);
    assert!((used - 0.5).abs() < 1e-9 && in_flight == 0, "{used}");
}

#[tokio::test]
async fn a_client_that_has_its_answer_need_not_wait_for_the_cost() {
    let bench = bench(&[Scripted::good()]);
    let mut answer = bench.chat("s").await.expect("an answer");
    while let Some(Ok(event)) = answer.events.next().await {
        if matches!(event, Event::Finished { .. }) {
            break;
        }
    }
    drop(answer);
    bench.gateway.drain();
    tokio::task::yield_now().await;
    let (_, used, in_flight) = bench.status(0);
    assert!((used - 0.5).abs() < 1e-9 && in_flight == 0, "{used}");
}

#[tokio::test]
async fn a_limited_subscription_is_left_at_once_and_stays_out_until_its_reset() {
    let (first, second) = (Scripted::failing(limited(3600)), Scripted::good());
    let bench = bench(&[Arc::clone(&first), Arc::clone(&second)]);
    for session in ["a", "b", "c"] {
        let answer = bench.chat(session).await.expect("the other one serves");
        assert_eq!(&*answer.subscription, "sub2");
        read(answer).await;
    }
    assert_eq!((first.calls(), second.calls()), (1, 3));
    assert_eq!(bench.status(0).0, Status::Cooldown);
}

#[tokio::test]
async fn when_all_are_limited_the_client_learns_when_to_come_back() {
    let bench = bench(&[Scripted::failing(limited(100)), Scripted::failing(limited(50))]);
    let Err(GatewayError::Refused { reason, retry_after, .. }) = bench.chat("s").await else {
        panic!("it must be refused")
    };
    assert_eq!(reason, RefusalReason::ProviderLimited);
    let seconds = retry_after.expect("a time").as_secs_f64();
    assert!((48.0..=50.1).contains(&seconds), "{seconds}");
}

#[tokio::test]
async fn when_to_come_back_is_known_also_when_the_attempts_are_used_up() {
    let resets = |all: &[u64]| bench(&all.iter().map(|after| Scripted::failing(limited(*after))).collect::<Vec<_>>());
    let refused = |bench: Bench| async move {
        match bench.chat("s").await {
            Err(GatewayError::Refused { reason, retry_after, .. }) => (reason, retry_after.expect("a time")),
            _ => panic!("it must be refused"),
        }
    };
    let (reason, after) = refused(resets(&[300, 50, 200])).await;
    assert_eq!(reason, RefusalReason::ProviderLimited);
    assert!((48.0..=50.1).contains(&after.as_secs_f64()), "{after:?}");
    // With three attempts the fourth was not asked.
    let bench = resets(&[300, 50, 200, 100]);
    let pool = bench.pool.clone();
    let (reason, after) = refused(bench).await;
    assert_eq!((reason, after), (RefusalReason::Busy, Duration::from_secs(1)));
    // To find that out nobody was chosen: the decisions are the attempts.
    let chosen: BTreeSet<_> = pool.peek(|pool, _| pool.decisions().map(|decision| decision.chosen.clone()).collect());
    assert_eq!(chosen.len(), 3, "{chosen:?}");
    assert_eq!(pool.peek(|pool, now| (pool.decisions().count(), pool.health(now).sessions)), (3, 0));
}

#[tokio::test]
async fn the_clients_own_mistake_is_tried_once() {
    let backend = Scripted::failing(FailureKind::InvalidRequest);
    let bench = bench(&[Arc::clone(&backend), Scripted::good()]);
    let Err(GatewayError::Failed(failure)) = bench.chat("s").await else { panic!("it must fail") };
    assert_eq!(failure.kind, FailureKind::InvalidRequest);
    assert_eq!((backend.calls(), bench.in_flight()), (1, 0));
    assert_eq!(bench.status(0).0, Status::Available);
}

#[tokio::test]
async fn overload_is_retried_elsewhere_and_grounds_nobody() {
    let overloaded = FailureKind::Unavailable { status: Some(529) };
    let bench = bench(&[Scripted::failing(overloaded), Scripted::good()]);
    let answer = bench.chat("s").await.expect("the other one serves");
    assert_eq!(&*answer.subscription, "sub2");
    read(answer).await;
    assert_eq!(bench.status(0).0, Status::Available);
}

#[tokio::test]
async fn a_lone_subscription_gets_a_second_chance_after_a_passing_failure() {
    let crash = vec![Err(Failure::new(FailureKind::Crashed, "scripted"))];
    let backend = Scripted::new(vec![crash.clone(), crash, good()]);
    let bench = bench(&[Arc::clone(&backend)]);
    read(bench.chat("s").await.expect("the third attempt")).await;
    assert_eq!(backend.calls(), 3);
}

#[tokio::test]
async fn neither_an_overload_nor_the_tries_of_one_request_open_the_breaker() {
    let cases = [(Some(529), false), (Some(503), false), (Some(500), true), (None, true)];
    join_all(cases.map(async |(status, is_counted)| {
        let backend = Scripted::failing(FailureKind::Unavailable { status });
        let bench = bench(&[Arc::clone(&backend)]);
        for _ in 0..4 {
            assert!(matches!(bench.chat("s").await, Err(GatewayError::Failed(_))), "{status:?}");
        }
        assert_eq!((backend.calls(), bench.status(0).0), (12, Status::Available), "{status:?}");
        assert!(bench.chat("s").await.is_err());
        let expected = if is_counted { Status::Cooldown } else { Status::Available };
        assert_eq!(bench.status(0).0, expected, "five requests that failed with {status:?}");
    }))
    .await;
}

#[tokio::test]
async fn three_attempts_are_the_most() {
    let overloaded = FailureKind::Unavailable { status: Some(529) };
    let backends: Vec<_> = (0..5).map(|_| Scripted::failing(overloaded.clone())).collect();
    let bench = bench(&backends);
    let Err(GatewayError::Failed(failure)) = bench.chat("s").await else { panic!("it must fail") };
    assert_eq!(failure.kind, overloaded);
    assert_eq!(backends.iter().map(|backend| backend.calls()).sum::<usize>(), 3);
    assert_eq!(bench.in_flight(), 0);
}

#[tokio::test]
async fn nothing_is_retried_once_the_client_has_seen_something() {
    let broken = vec![
        Ok(Event::Started(Usage { input: 100, ..Usage::default() })),
        Ok(Event::Text("hel".to_owned())),
        Err(Failure::new(FailureKind::Crashed, "scripted")),
    ];
    let other = Scripted::good();
    let bench = bench(&[Scripted::new(vec![broken]), Arc::clone(&other)]);
    let events = read(bench.chat("s").await.expect("it begins")).await;
    assert!(matches!(events.last(), Some(Err(GatewayError::Failed(_)))), "{events:?}");
    assert_eq!((other.calls(), bench.in_flight()), (0, 0));
    assert!(bench.status(0).1 > 0.0, "what was read was paid for");
}

#[tokio::test]
async fn a_whole_answer_can_be_begun_anew_elsewhere_until_it_is_complete() {
    let broken = vec![
        Ok(Event::Started(Usage { input: 100, ..Usage::default() })),
        Ok(Event::Text("hel".to_owned())),
        Err(Failure::new(FailureKind::Unavailable { status: None }, "scripted")),
    ];
    let bench = bench(&[Scripted::new(vec![broken]), Scripted::good()]);
    let answer = bench.gateway.chat(Call { stream: false, ..call("s") }).await.expect("the other one serves");
    assert_eq!(&*answer.subscription, "sub2");
    let texts = read(answer).await.into_iter().filter(|event| matches!(event, Ok(Event::Text(_)))).collect::<Vec<_>>();
    assert_eq!(texts, [Ok(Event::Text("hello".to_owned()))], "nothing of the broken answer is shown");
    assert!(bench.status(0).1 > 0.0, "what was read was paid for");
}

#[tokio::test]
async fn a_client_that_leaves_ends_the_work_and_the_lease() {
    let backend = Arc::new(Scripted {
        answers: Mutex::new(vec![good()[..2].to_vec()]),
        calls: AtomicUsize::new(0),
        open: Arc::default(),
        hangs: true,
    });
    let bench = bench(&[Arc::clone(&backend)]);
    for session in 0..50 {
        let mut answer = bench.chat(&format!("s{}", session % 3)).await.expect("it begins");
        assert!(answer.events.next().await.is_some());
        assert_eq!(bench.in_flight(), 1);
        drop(answer);
        assert_eq!((bench.in_flight(), backend.open.load(Ordering::SeqCst)), (0, 0));
    }
    assert_eq!(bench.status(0).0, Status::Available, "leaving is not a failure");
}

#[tokio::test]
async fn kill_ends_running_answers_with_an_error_and_new_ones_are_refused() {
    let backend = Arc::new(Scripted {
        answers: Mutex::new(vec![good()[..2].to_vec()]),
        calls: AtomicUsize::new(0),
        open: Arc::default(),
        hangs: true,
    });
    let bench = bench(&[backend]);
    let answer = bench.chat("s").await.expect("it begins");
    bench.gateway.drain();
    assert!(bench.gateway.ready().is_err());
    assert!(matches!(bench.chat("t").await, Err(GatewayError::ShuttingDown)));
    bench.gateway.kill();
    assert_eq!(read(answer).await.last(), Some(&Err(GatewayError::ShuttingDown)));
    assert_eq!(bench.in_flight(), 0);
    assert_eq!(bench.tasks.len(), bench.keepers, "what ran for an answer has ended");
}

#[tokio::test]
async fn sessions_stay_and_clients_do_not_share_them() {
    let backends = [Scripted::good(), Scripted::good(), Scripted::good()];
    let bench = bench(&backends);
    let mut homes = Vec::new();
    for session in ["a", "b", "c", "a", "b", "c", "a", "b", "c"] {
        let answer = bench.chat(session).await.expect("an answer");
        homes.push(Arc::clone(&answer.subscription));
        read(answer).await;
    }
    assert_eq!(homes[..3], homes[3..6]);
    assert_eq!(homes[..3], homes[6..]);
    let mut other = call("a");
    other.client = "somebody else".into();
    read(bench.gateway.chat(other).await.expect("an answer")).await;
    let sessions = bench.pool.with(|pool, now| (pool.health(now).sessions, Vec::new()));
    assert_eq!(sessions, 4);
}
