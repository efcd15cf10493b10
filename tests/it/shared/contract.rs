//! The contract of what replicas share, as their clients see it: several gateways on one Redis server keep to it exactly
//! as one gateway does whose pool counts in memory.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use auth_pool::backend::{Backend, Caller, EventStream, Failure, FailureKind};
use auth_pool::conversation::{Block, Event, Request};
use auth_pool::gateway::{
    Answer, Call, ClientRules, Gateway as _, GatewayError, PooledGateway, Priority, QueueSettings, RefusalReason,
    SharedPool,
};
use auth_pool::pool::{Effect, Status, SubscriptionSettings};
use auth_pool::runtime::{clock, tasks::Tasks};
use auth_pool::shared::{Settings, Shared};
use auth_pool::units::MicroUsd;
use futures_util::future::join_all;
use futures_util::{StreamExt as _, stream};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::patient;
use super::server::RedisServer;
use crate::gateway::{Bench, bench_with, call, gateway_settings, good, limited, read};

/// Answers at once; a request for `wait` waits for the test, one for `limit` meets a limit, one for `fail` fails.
struct Subscription(Arc<Notify>);

impl Backend for Subscription {
    fn run(&self, request: &Request, _: &Caller) -> EventStream {
        // A session's earlier turns come before what is asked now.
        let Some(Block::Text(text)) = request.turns.last().and_then(|turn| turn.blocks.last()) else {
            panic!("no text")
        };
        let scripted = |kind| stream::iter(vec![Err(Failure::new(kind, "scripted"))]).boxed();
        match text.as_str() {
            "wait" => {
                let go = Arc::clone(&self.0);
                let mut events = good().into_iter();
                let first: Vec<Result<Event, Failure>> = events.by_ref().take(2).collect();
                let rest: Vec<_> = events.collect();
                let wait = async move {
                    go.notified().await;
                    stream::iter(rest)
                };
                stream::iter(first).chain(stream::once(wait).flatten()).boxed()
            }
            "limit" => scripted(limited(3600)),
            "fail" => scripted(FailureKind::Crashed),
            _ => stream::iter(good()).boxed(),
        }
    }
}

/// What replicas share.
pub(super) enum Common {
    /// They are one: its pool's memory.
    Memory,
    Redis(RedisServer),
}

pub(super) struct Replicas {
    pub(super) gateways: Vec<PooledGateway>,
    pub(super) pools: Vec<SharedPool>,
    pub(super) go: Arc<Notify>,
    _common: Common,
    _tasks: Vec<Tasks>,
    stop: CancellationToken,
}

impl Drop for Replicas {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Replicas {
    /// `count` replicas with `members` subscriptions each, changed by `adjust`; a request that finds no place is refused
    /// at once, or waits for `patience`. No request is tried a second time.
    async fn start(
        common: Common,
        (count, members, patience): (usize, usize, Duration),
        adjust: impl Fn(&mut SubscriptionSettings),
    ) -> Self {
        Self::start_trying(1, common, (count, members, patience), adjust).await
    }

    /// With up to `max_attempts` for each request.
    pub(super) async fn start_trying(
        max_attempts: u32,
        common: Common,
        (count, members, patience): (usize, usize, Duration),
        adjust: impl Fn(&mut SubscriptionSettings),
    ) -> Self {
        let (go, stop) = <(Arc<Notify>, CancellationToken)>::default();
        let build = || {
            let backends: Vec<_> =
                (0..members).map(|_| Arc::new(Subscription(Arc::clone(&go))) as Arc<dyn Backend>).collect();
            let queue = QueueSettings { max_waiting: 100, timeout: patience };
            let settings = auth_pool::gateway::Settings { queue, max_attempts, ..gateway_settings() };
            bench_with(&backends, settings, |settings| settings.subscriptions.iter_mut().for_each(&adjust))
        };
        let benches: Vec<Bench> = match &common {
            Common::Memory => vec![build()],
            Common::Redis(_) => (0..count).map(|_| build()).collect(),
        };
        if let Common::Redis(server) = &common {
            for Bench { pool, tasks, gateway, .. } in &benches {
                let hear = {
                    let gateway = gateway.clone();
                    move |heard| gateway.hear(heard)
                };
                let settings = Settings { prefix: "contract:".to_owned(), ..patient() };
                let shared = Shared::start(&server.address(), settings, hear, tasks, &stop);
                assert!(shared.joined(Duration::from_secs(20)).await);
                pool.share(shared);
            }
        }
        let one_of = |index: usize| &benches[index % benches.len()];
        Self {
            gateways: (0..count).map(|index| one_of(index).gateway.clone()).collect(),
            pools: (0..count).map(|index| one_of(index).pool.clone()).collect(),
            _tasks: benches.iter().map(|bench| bench.tasks.clone()).collect(),
            go,
            _common: common,
            stop,
        }
    }

    pub(super) async fn ask(&self, replica: usize, session: &str, text: &str) -> Result<Answer, GatewayError> {
        self.gateways[replica].chat(saying(session, text)).await
    }

    /// A whole answer: who gave it.
    pub(super) async fn served(&self, replica: usize, session: &str) -> Arc<str> {
        let answer = self.ask(replica, session, "hi").await.expect("an answer");
        let subscription = Arc::clone(&answer.subscription);
        read(answer).await;
        subscription
    }

    pub(super) async fn is_busy(&self, replica: usize, session: &str) -> bool {
        match self.ask(replica, session, "hi").await {
            Ok(answer) => {
                read(answer).await;
                false
            }
            Err(GatewayError::Refused { reason: RefusalReason::Busy, .. }) => true,
            Err(error) => panic!("{error:?}"),
        }
    }

    fn status(&self, replica: usize, index: usize) -> (Status, f64) {
        let view = self.pools[replica].peek(|pool, now| pool.snapshot(now)).subscriptions.swap_remove(index);
        (view.status, view.weekly_used)
    }
}

pub(super) fn saying(session: &str, text: &str) -> Call {
    let mut call = call(session);
    call.request.turns[0].blocks = vec![Block::Text(text.to_owned())];
    call
}

/// Waits for what replicas learn of each other.
pub(super) async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    let begun = Instant::now();
    while !condition().await {
        assert!(begun.elapsed() < Duration::from_secs(30), "it did not happen: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub(super) const AT_ONCE: Duration = Duration::ZERO;

async fn requests_at_the_same_time(common: Common) {
    let replicas = Replicas::start(common, (3, 1, AT_ONCE), |member| member.max_concurrent = 4).await;
    let mut running = Vec::new();
    for number in 0..12 {
        match replicas.ask(number % 3, &format!("s{number}"), "wait").await {
            Ok(answer) => running.push(answer),
            Err(GatewayError::Refused { reason: RefusalReason::Busy, .. }) => {}
            Err(error) => panic!("{error:?}"),
        }
    }
    assert_eq!(running.len(), 4);
    // A client that leaves gives its place back to all.
    running.pop();
    until("the place is free for another replica", async || !replicas.is_busy(1, "next").await).await;
}

async fn requests_in_a_minute(common: Common) {
    let limit = |member: &mut SubscriptionSettings| member.capacity.requests_per_minute = Some(5);
    let replicas = Replicas::start(common, (2, 1, AT_ONCE), limit).await;
    for number in 0..5 {
        replicas.served(number % 2, &format!("s{number}")).await;
    }
    for replica in [0, 1] {
        let refused = replicas.ask(replica, "more", "hi").await.err().expect("a refusal");
        let GatewayError::Refused { reason: RefusalReason::Busy, retry_after: Some(after), .. } = refused else {
            panic!("{refused:?}")
        };
        // It says when: one bucket later at most than the window is long.
        assert!(after > Duration::from_secs(10) && after <= Duration::from_secs(62), "{after:?}");
    }
}

async fn money_in_a_day(common: Common) {
    // Each answer costs half a dollar.
    let limit = |member: &mut SubscriptionSettings| member.capacity.cost_per_day = Some(MicroUsd::from_usd(1.4));
    let replicas = Replicas::start(common, (2, 1, AT_ONCE), limit).await;
    let mut served = 0;
    for number in 0..8 {
        // One after the other, each settled: then the last may go over the limit, and none after it begins.
        if let Ok(answer) = replicas.ask(number % 2, &format!("s{number}"), "hi").await {
            read(answer).await;
            served += 1;
            let used = f64::from(served) * 0.5;
            until("everybody knows what was used", async || replicas.status(1, 0).1 >= used - 1e-9).await;
        }
    }
    assert_eq!(served, 3);
}

async fn sessions_stay(common: Common) {
    let replicas = Replicas::start(common, (3, 4, AT_ONCE), |_| {}).await;
    for number in 0..20 {
        let session = format!("s{number}");
        let first = replicas.served(number % 3, &session).await;
        for replica in [1, 2, 0, 1] {
            assert_eq!(replicas.served(replica, &session).await, first, "{session}");
        }
    }
}

async fn client_slots(common: Common) {
    let replicas = Replicas::start(common, (2, 1, AT_ONCE), |member| member.max_clients = Some(3)).await;
    for number in 0..3 {
        replicas.served(number % 2, &format!("s{number}")).await;
    }
    assert!(replicas.is_busy(0, "s3").await && replicas.is_busy(1, "s4").await);
    // Those who hold one are served, by whichever replica.
    for replica in [0, 1] {
        replicas.served(replica, "s1").await;
    }
}

async fn a_limit_of_the_provider(common: Common) {
    let replicas = Replicas::start(common, (2, 2, AT_ONCE), |_| {}).await;
    let first = replicas.served(0, "s").await;
    assert!(replicas.ask(0, "s", "limit").await.is_err());
    let index = usize::from(&*first == "sub2");
    until("the other replica knows", async || replicas.status(1, index).0 == Status::Cooldown).await;
    // The session moves, and stays where it is now for everybody.
    let second = replicas.served(1, "s").await;
    assert_ne!(second, first);
    assert_eq!(replicas.served(0, "s").await, second);
}

async fn a_breaker(common: Common) {
    let replicas = Replicas::start(common, (2, 1, AT_ONCE), |_| {}).await;
    let mut effects = replicas.pools[0].effects();
    for number in 0..5 {
        assert!(replicas.ask(0, &format!("s{number}"), "fail").await.is_err());
    }
    let opened = std::iter::from_fn(|| effects.try_recv().ok());
    let opened = opened.flat_map(|(_, effects)| effects.to_vec());
    assert!(opened.into_iter().any(|effect| matches!(effect, Effect::BreakerOpened { .. })));
    until("the other replica leaves it alone", async || {
        let refused = replicas.ask(1, "s", "hi").await.err();
        matches!(refused, Some(GatewayError::Refused { reason: RefusalReason::NoneHealthy, .. }))
    })
    .await;
}

async fn the_operators_word(common: Common) {
    let replicas = Replicas::start(common, (2, 1, AT_ONCE), |_| {}).await;
    let is_out = async |replica: usize, reason: RefusalReason| {
        let refused = replicas.ask(replica, "s", "hi").await.err();
        matches!(refused, Some(GatewayError::Refused { reason: why, .. }) if why == reason)
    };
    for number in 0..5 {
        assert!(replicas.ask(0, &format!("s{number}"), "fail").await.is_err());
    }
    until("the breaker is open", async || is_out(1, RefusalReason::NoneHealthy).await).await;
    assert!(replicas.pools[1].restore("sub1") && !replicas.pools[1].restore("nobody"));
    until("all is well again", async || replicas.ask(0, "t", "hi").await.is_ok()).await;
    // The same limit is news again after that.
    for _ in 0..2 {
        until("it serves", async || replicas.ask(1, "t", "hi").await.is_ok()).await;
        assert!(replicas.ask(0, "t", "limit").await.is_err());
        until("it is limited", async || is_out(1, RefusalReason::ProviderLimited).await).await;
        assert!(replicas.pools[1].restore("sub1"));
        until("it serves again", async || replicas.ask(0, "t", "hi").await.is_ok()).await;
    }
}

async fn what_a_client_has_spent(common: Common) {
    let replicas = Replicas::start(common, (2, 1, AT_ONCE), |_| {}).await;
    // Each answer costs half a dollar.
    let budget = Some(MicroUsd::from_usd(1.4));
    let rules = ClientRules { only: None, weekly_budget: budget, max_priority: Priority::High };
    for gateway in &replicas.gateways {
        gateway.clients().apply(HashMap::from([("anonymous".into(), rules.clone())]));
    }
    for number in 0..3_u8 {
        let spent = MicroUsd::from_usd(f64::from(number) * 0.5);
        let is_known = |gateway: &PooledGateway| gateway.clients().spent(clock::now(), "anonymous") == spent;
        until("all know what was spent", async || replicas.gateways.iter().all(is_known)).await;
        replicas.served(usize::from(number % 2), "s").await;
    }
    until("nobody may spend more", async || {
        let refused = join_all([0, 1].map(|replica| replicas.ask(replica, "s", "hi"))).await;
        refused.iter().all(|answer| matches!(answer, Err(GatewayError::ClientBudget { .. })))
    })
    .await;
}

async fn whoever_waits_is_served(common: Common) {
    let patience = Duration::from_secs(60);
    let replicas = Replicas::start(common, (2, 1, patience), |member| member.max_concurrent = 1).await;
    let running = replicas.ask(0, "a", "wait").await.expect("an answer");
    let waiting = {
        let gateway = replicas.gateways[1].clone();
        Tasks::default()
            .spawn("client", async move { gateway.chat(saying("b", "hi")).await.map(|answer| answer.subscription) })
    };
    until("the other waits", async || replicas.gateways[1].health().pool.waiting == 1).await;
    replicas.go.notify_one();
    read(running).await;
    assert_eq!(&*waiting.await.unwrap().expect("an answer"), "sub1");
}

memory_and_redis! {
    requests_at_the_same_time,
    requests_in_a_minute,
    money_in_a_day,
    sessions_stay,
    client_slots,
    a_limit_of_the_provider,
    a_breaker,
    the_operators_word,
    what_a_client_has_spent,
    whoever_waits_is_served,
}
