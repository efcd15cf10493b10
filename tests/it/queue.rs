//! Requests wait while every subscription is busy, and are served in their turn.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use auth_pool::backend::{Backend, Caller, EventStream, Failure, FailureKind};
use auth_pool::conversation::{Block, Event, Request};
use auth_pool::gateway::{
    Answer, Call, ClientRules, Gateway as _, GatewayError, Priority, QueueSettings, RefusalReason, SessionHint,
    Settings,
};
use auth_pool::pool::{Only, Realm};
use auth_pool::runtime::tasks::Tasks;
use futures_util::future::join_all;
use futures_util::{StreamExt as _, stream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::gateway::{Bench, bench_with, call, gateway_settings, good, limited, read};

/// Answers each request as soon as the test lets one go on, and notes in which order they came and how many ran.
struct Gate {
    order: Arc<Mutex<Vec<String>>>,
    running: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
    go: Arc<Semaphore>,
    /// Fails instead, as often as this says.
    failures: Mutex<Vec<FailureKind>>,
}

impl Gate {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            order: Arc::default(),
            running: Arc::default(),
            most: Arc::default(),
            go: Arc::new(Semaphore::new(0)),
            failures: Mutex::default(),
        })
    }

    fn order(&self) -> Vec<String> {
        self.order.lock().unwrap().clone()
    }
}

struct Running(Arc<AtomicUsize>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Backend for Gate {
    fn run(&self, request: &Request, _caller: &Caller) -> EventStream {
        let Block::Text(name) = &request.turns[0].blocks[0] else { panic!("no text") };
        self.order.lock().unwrap().push(name.clone());
        let now = self.running.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        let running = Running(Arc::clone(&self.running));
        let go = Arc::clone(&self.go);
        let events = match self.failures.lock().unwrap().pop() {
            Some(kind) => vec![Err(Failure::new(kind, "scripted"))],
            None => good(),
        };
        let wait = async move {
            go.acquire().await.unwrap().forget();
            stream::iter(events)
        };
        stream::once(wait)
            .flatten()
            .map(move |event| {
                let _ = &running;
                event
            })
            .boxed()
    }
}

fn queue(max_waiting: usize, timeout: Duration) -> Settings {
    Settings { queue: QueueSettings { max_waiting, timeout }, ..gateway_settings() }
}

const PATIENT: Duration = Duration::from_secs(20);

/// Subscriptions behind one gate, each of which runs one request at a time.
fn bench(gate: &Arc<Gate>, subscriptions: usize, settings: Settings) -> Bench {
    let backends: Vec<_> = (0..subscriptions).map(|_| Arc::clone(gate) as Arc<dyn Backend>).collect();
    bench_with(&backends, settings, |settings| {
        // Slots for sessions are not what these tests are about.
        settings.max_clients = 1000;
        for subscription in &mut settings.subscriptions {
            subscription.max_concurrent = 1;
        }
    })
}

fn named(name: &str, priority: Priority) -> Call {
    let mut call = call(name);
    call.request.turns[0].blocks = vec![Block::Text(name.to_owned())];
    Call { priority, ..call }
}

impl Bench {
    /// A client that reads its answer to the end.
    fn client(&self, call: Call) -> JoinHandle<Result<usize, GatewayError>> {
        let gateway = self.gateway.clone();
        Tasks::default().spawn("client", async move { Ok(read(gateway.chat(call).await?).await.len()) })
    }

    /// A client that is known to wait.
    async fn waiting(&self, call: Call) -> JoinHandle<Result<usize, GatewayError>> {
        let before = self.waits();
        let client = self.client(call);
        until(|| self.waits() == before + 1).await;
        client
    }

    fn waits(&self) -> usize {
        self.gateway.health().pool.waiting
    }

    fn figure(&self, name: &str) -> u64 {
        self.gateway.debug()["queue"][name].as_u64().expect("a figure")
    }

    /// Whether everything that was lent came back.
    fn assert_idle(&self) {
        assert_eq!((self.waits(), self.in_flight()), (0, 0));
    }
}

async fn until(condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(10), "it did not happen in ten seconds");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn busy(outcome: &Result<Answer, GatewayError>) -> Duration {
    let Err(GatewayError::Refused { reason: RefusalReason::Busy, retry_after, .. }) = outcome else {
        panic!("it must be refused")
    };
    (*retry_after).expect("a time to come back")
}

#[tokio::test]
async fn ten_requests_for_one_place_are_served_in_the_order_in_which_they_came() {
    let gate = Gate::new();
    let bench = bench(&gate, 1, queue(100, PATIENT));
    let mut clients = vec![bench.client(named("0", Priority::Normal))];
    until(|| gate.order().len() == 1).await;
    for number in 1..=10 {
        clients.push(bench.waiting(named(&number.to_string(), Priority::Normal)).await);
    }
    assert_eq!((bench.figure("waiting"), bench.figure("normal"), bench.figure("maxWaiting")), (10, 10, 100));
    gate.go.add_permits(11);
    for client in join_all(clients).await {
        assert_eq!(client.unwrap(), Ok(3));
    }
    let expected: Vec<String> = (0..=10).map(|number| number.to_string()).collect();
    assert_eq!(gate.order(), expected);
    assert_eq!(gate.most.load(Ordering::SeqCst), 1, "never more than may run");
    assert_eq!(bench.figure("served"), 10);
    bench.assert_idle();
}

#[tokio::test]
async fn high_priority_goes_first_and_low_last() {
    let gate = Gate::new();
    let bench = bench(&gate, 1, queue(100, PATIENT));
    let mut clients = vec![bench.client(named("first", Priority::Normal))];
    until(|| gate.order().len() == 1).await;
    for (name, priority) in [
        ("l1", Priority::Low),
        ("n1", Priority::Normal),
        ("h1", Priority::High),
        ("l2", Priority::Low),
        ("h2", Priority::High),
        ("n2", Priority::Normal),
    ] {
        clients.push(bench.waiting(named(name, priority)).await);
    }
    assert_eq!(["high", "normal", "low"].map(|name| bench.figure(name)), [2, 2, 2]);
    gate.go.add_permits(7);
    join_all(clients).await;
    assert_eq!(gate.order(), ["first", "h1", "h2", "n1", "n2", "l1", "l2"]);
}

#[tokio::test]
async fn who_waits_too_long_is_told_when_to_come_back() {
    let gate = Gate::new();
    let bench = bench(&gate, 1, queue(100, Duration::from_millis(50)));
    let first = bench.client(named("first", Priority::Normal));
    until(|| gate.order().len() == 1).await;
    let begun = Instant::now();
    assert_eq!(busy(&bench.gateway.chat(named("second", Priority::Normal)).await), Duration::from_secs(1));
    assert!(begun.elapsed() >= Duration::from_millis(50), "{:?}", begun.elapsed());
    assert_eq!((bench.figure("timedOut"), bench.waits()), (1, 0));
    gate.go.add_permits(1);
    first.await.unwrap().unwrap();
    assert_eq!(gate.order(), ["first"]);
    bench.assert_idle();
}

#[tokio::test]
async fn a_full_queue_turns_away_at_once_and_no_queue_always() {
    let gate = Gate::new();
    let bench = bench(&gate, 1, queue(2, PATIENT));
    let mut clients = vec![bench.client(named("first", Priority::Normal))];
    until(|| gate.order().len() == 1).await;
    for name in ["a", "b"] {
        clients.push(bench.waiting(named(name, Priority::Normal)).await);
    }
    let begun = Instant::now();
    assert_eq!(busy(&bench.gateway.chat(named("c", Priority::High)).await), Duration::from_secs(1));
    assert_eq!(bench.figure("turnedAway"), 1);
    for settings in [queue(0, PATIENT), queue(100, Duration::ZERO)] {
        bench.gateway.configure(settings);
        busy(&bench.gateway.chat(named("c", Priority::High)).await);
    }
    assert!(begun.elapsed() < PATIENT / 4, "{:?}", begun.elapsed());
    // Those who wait already keep their places.
    gate.go.add_permits(3);
    join_all(clients).await;
    assert_eq!(gate.order(), ["first", "a", "b"]);
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_place_at_once() {
    let gate = Gate::new();
    let bench = bench(&gate, 1, queue(2, PATIENT));
    let first = bench.client(named("first", Priority::Normal));
    until(|| gate.order().len() == 1).await;
    let leaves = bench.waiting(named("leaves", Priority::Normal)).await;
    let stays = bench.waiting(named("stays", Priority::Normal)).await;
    leaves.abort();
    until(|| bench.waits() == 1).await;
    assert_eq!(bench.figure("left"), 1);
    let comes = bench.waiting(named("comes", Priority::Normal)).await;
    gate.go.add_permits(3);
    for client in [first, stays, comes] {
        client.await.unwrap().unwrap();
    }
    assert_eq!(gate.order(), ["first", "stays", "comes"]);
    bench.assert_idle();
}

#[tokio::test]
async fn draining_sends_the_waiting_ones_away_at_once_and_lets_the_running_one_end() {
    let gate = Gate::new();
    let bench = bench(&gate, 1, queue(100, PATIENT));
    let first = bench.client(named("first", Priority::Normal));
    until(|| gate.order().len() == 1).await;
    let mut clients = Vec::new();
    for name in ["a", "b", "c"] {
        clients.push(bench.waiting(named(name, Priority::Normal)).await);
    }
    let begun = Instant::now();
    bench.gateway.drain();
    for client in join_all(clients).await {
        assert_eq!(client.unwrap(), Err(GatewayError::ShuttingDown));
    }
    assert!(begun.elapsed() < PATIENT / 4, "{:?}", begun.elapsed());
    gate.go.add_permits(1);
    assert_eq!(first.await.unwrap(), Ok(3));
    bench.assert_idle();
    until(|| bench.tasks.len() == bench.keepers).await;
}

#[tokio::test]
async fn a_freed_place_wakes_one_and_nobody_overtakes() {
    let gate = Gate::new();
    let bench = bench(&gate, 2, queue(1000, PATIENT));
    let mut clients = Vec::new();
    for number in 0..2 {
        clients.push(bench.client(named(&number.to_string(), Priority::Normal)));
        until(|| gate.order().len() == number + 1).await;
    }
    for number in 2..100 {
        clients.push(bench.waiting(named(&number.to_string(), Priority::Normal)).await);
    }
    for done in 1..=98 {
        gate.go.add_permits(1);
        until(|| gate.order().len() == done + 2).await;
        // One ended, one began: the others were left in peace.
        assert_eq!((bench.waits(), bench.in_flight()), (98 - done, 2));
    }
    gate.go.add_permits(2);
    join_all(clients).await;
    let expected: Vec<String> = (0..100).map(|number| number.to_string()).collect();
    assert_eq!(gate.order(), expected);
    assert_eq!(gate.most.load(Ordering::SeqCst), 2);
    bench.assert_idle();
}

#[tokio::test]
async fn who_cannot_use_a_place_does_not_hold_up_the_others() {
    let gate = Gate::new();
    let backends: [Arc<dyn Backend>; 1] = [Arc::clone(&gate) as Arc<dyn Backend>];
    // Two requests at a time, but one session: a second session finds no slot, the first one's next request does.
    let bench = bench_with(&backends, queue(100, PATIENT), |settings| {
        settings.max_clients = 1;
        settings.subscriptions[0].max_concurrent = 2;
    });
    let of_session = |name: &str, session: &str| {
        let call = named(name, Priority::Normal);
        Call { session: SessionHint::Header(session.into()), ..call }
    };
    let mut clients = Vec::new();
    for name in ["a1", "a2"] {
        clients.push(bench.client(of_session(name, "a")));
        until(|| gate.order().last().is_some_and(|last| last == name)).await;
    }
    let other = bench.waiting(of_session("b1", "b")).await;
    clients.push(bench.waiting(of_session("a3", "a")).await);
    gate.go.add_permits(1);
    until(|| gate.order().len() == 3).await;
    assert_eq!(gate.order(), ["a1", "a2", "a3"]);
    gate.go.add_permits(10);
    join_all(clients).await;
    // The only slot is held by the other session for longer than this one would wait: it was told so at once.
    let Err(GatewayError::Refused { reason, retry_after, .. }) = other.await.unwrap() else { panic!("no slot") };
    assert_eq!(reason, RefusalReason::Busy);
    assert!(retry_after > Some(Duration::from_secs(200)), "{retry_after:?}");
}

#[tokio::test]
async fn who_waits_in_vain_is_told_as_soon_as_that_is_known() {
    let gate = Gate::new();
    let bench = bench(&gate, 1, queue(100, PATIENT));
    gate.failures.lock().unwrap().push(limited(3600));
    let mut clients = vec![bench.client(named("first", Priority::Normal))];
    until(|| gate.order().len() == 1).await;
    for name in ["a", "b"] {
        clients.push(bench.waiting(named(name, Priority::Normal)).await);
    }
    gate.go.add_permits(1);
    let begun = Instant::now();
    for client in join_all(clients).await {
        let Err(GatewayError::Refused { reason, retry_after, .. }) = client.unwrap() else { panic!("all are limited") };
        assert_eq!(reason, RefusalReason::ProviderLimited);
        assert!(retry_after > Some(Duration::from_secs(3500)));
    }
    assert!(begun.elapsed() < PATIENT / 4, "{:?}", begun.elapsed());
    bench.assert_idle();
}

#[tokio::test]
async fn time_alone_serves_who_waits() {
    let gate = Gate::new();
    let bench = bench(&gate, 2, queue(100, PATIENT));
    // The second subscription is out for a second, the first one stays busy.
    bench.pool.observe("sub2", &{
        let FailureKind::Limited(report) = limited(1) else { panic!("a limit") };
        report
    });
    let first = bench.client(named("first", Priority::Normal));
    until(|| gate.order().len() == 1).await;
    let begun = Instant::now();
    let second = bench.waiting(named("second", Priority::Normal)).await;
    until(|| gate.order().len() == 2).await;
    println!("served {:?} after it began to wait for a lock of 1 s", begun.elapsed());
    gate.go.add_permits(2);
    for client in [first, second] {
        client.await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn under_load_with_clients_that_leave_nothing_leaks() {
    let gate = Gate::new();
    gate.go.add_permits(100_000);
    let bench = Arc::new(bench(&gate, 3, queue(50, PATIENT)));
    let tasks = Tasks::default();
    let clients = (0..400_u32).map(|number| {
        let bench = Arc::clone(&bench);
        tasks.spawn("client", async move {
            let priority = [Priority::Low, Priority::Normal, Priority::High][number as usize % 3];
            let chat = async {
                let mut answer = bench.gateway.chat(named(&number.to_string(), priority)).await?;
                while let Some(event) = answer.events.next().await {
                    if matches!(event?, Event::Finished { .. }) && number % 2 == 0 {
                        break;
                    }
                }
                Ok::<_, GatewayError>(())
            };
            // Every fourth leaves at some moment: before, while or after it waits.
            let limit = if number % 4 == 0 { Duration::from_micros(u64::from(number) * 10) } else { PATIENT };
            tokio::time::timeout(limit, chat).await
        })
    });
    let outcomes = join_all(clients.collect::<Vec<_>>()).await;
    let count = |wanted: fn(&Result<(), GatewayError>) -> bool| {
        outcomes.iter().filter(|outcome| matches!(outcome, Ok(Ok(ended)) if wanted(ended))).count()
    };
    let (served, refused) = (count(Result::is_ok), count(Result::is_err));
    println!("{served} served, {refused} turned away, {} left", 400 - served - refused);
    assert!(served > 0);
    until(|| bench.in_flight() == 0).await;
    bench.assert_idle();
    assert!(gate.most.load(Ordering::SeqCst) <= 3);
}

#[tokio::test]
async fn those_who_may_use_the_free_place_are_not_kept_waiting_by_those_who_may_not() {
    let gate = Gate::new();
    let bench = bench(&gate, 2, queue(100, PATIENT));
    let bound = |subscription: &str| {
        let only = Only { subscriptions: Some([subscription.into()].into()), realm: Realm::Every };
        ClientRules { only: Some(Arc::new(only)), weekly_budget: None, max_priority: Priority::High }
    };
    let rules = [("one", bound("sub1")), ("two", bound("sub2"))];
    bench.gateway.clients().apply(rules.into_iter().map(|(name, rules)| (name.into(), rules)).collect());
    let by = |client: &str, name: &str| Call { client: client.into(), ..named(name, Priority::Normal) };
    let first = bench.client(by("one", "first"));
    let second = bench.client(by("two", "second"));
    until(|| gate.order().len() == 2).await;
    let mut waiting = Vec::new();
    for number in 0..6 {
        waiting.push(bench.waiting(by("one", &format!("one{number}"))).await);
    }
    let last = bench.waiting(by("two", "two")).await;
    // Who is let go on first is by chance: what counts is that the seventh of the line is served when `sub2` is free.
    gate.go.add_permits(2);
    until(|| gate.order().contains(&"two".to_owned())).await;
    gate.go.add_permits(100);
    for client in [first, second, last].into_iter().chain(waiting) {
        assert!(client.await.unwrap().is_ok());
    }
    bench.assert_idle();
}
