//! Several replicas together use no more than one may.

use std::time::Duration;

use auth_pool::conversation::{LimitReport, LimitStatus, Usage, Window};
use auth_pool::pool::{Placement, Shortage, Standing};
use auth_pool::runtime::clock;
use auth_pool::shared::{Ask, Heard, News, Settings, Used, Verdict};
use auth_pool::units::MicroUsd;
use futures_util::future::join_all;

use super::server::{PASSWORD, RedisServer};
use super::{Replica, ask, at, bounds, input, patient, standing};

const NOTHING: (Usage, MicroUsd) =
    (Usage { input: 0, cache_creation: 0, cache_read: 0, output: 0, reasoning: 0 }, MicroUsd::ZERO);

fn used(heard: &Heard) -> Option<Used> {
    match heard {
        Heard::News { news: News::Used(used), .. } => Some(used.clone()),
        _ => None,
    }
}

/// Which bound keeps it out, and for how long as far as that is known.
async fn refused(replica: &Replica, ask: &Ask) -> (Shortage, Option<Duration>) {
    match replica.admit(ask).await {
        Verdict::Full { shortage, wait } => (shortage, wait),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_replicas_run_no_more_at_the_same_time_than_one_may() {
    let server = RedisServer::start();
    let replicas = join_all((0..3).map(|_| Replica::join(&server, patient()))).await;
    let asks = (0..120).map(|number| bounds(ask(&format!("s{number}")), |bounds| bounds.concurrent = 7));
    let verdicts = join_all(asks.enumerate().map(|(index, ask)| {
        let replica = &replicas[index % 3];
        async move { replica.admit(&ask).await }
    }))
    .await;
    let mut admitted = Vec::new();
    for verdict in verdicts {
        match verdict {
            Verdict::Admitted(admission) => admitted.push(admission),
            Verdict::Full { shortage: Shortage::Requests, wait: None } => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(admitted.len(), 7);
    // What one gives back, another may have.
    admitted.pop().unwrap().settle(true, NOTHING.0, NOTHING.1);
    let next = bounds(ask("next"), |bounds| bounds.concurrent = 7);
    loop {
        match replicas[0].admit(&next).await {
            Verdict::Admitted(_) => break,
            Verdict::Full { .. } => tokio::time::sleep(Duration::from_millis(5)).await,
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_of_requests_holds_for_all_and_ends_when_it_says() {
    let server = RedisServer::start();
    // Long enough that nothing ends while a busy machine counts to five.
    let settings = Settings { minute: Duration::from_secs(6), ..patient() };
    let (one, other) = (Replica::join(&server, settings.clone()).await, Replica::join(&server, settings).await);
    let limited = |session: &str| bounds(ask(session), |bounds| bounds.capacity.requests_per_minute = Some(5));
    let mut wait = None;
    let mut admitted = 0;
    for number in 0..40 {
        let replica = if number % 2 == 0 { &one } else { &other };
        match replica.admit(&limited(&format!("s{number}"))).await {
            Verdict::Admitted(admission) => {
                admission.settle(true, NOTHING.0, NOTHING.1);
                admitted += 1;
            }
            Verdict::Full { shortage: Shortage::Capacity, wait: told } => wait = told,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(admitted, 5);
    let wait = wait.expect("it is known when a window ends");
    assert!(wait <= Duration::from_millis(6200), "{wait:?}");
    tokio::time::sleep(wait).await;
    other.admitted(&limited("later")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_count_by_estimate_while_they_run_and_by_what_they_were_afterwards() {
    let server = RedisServer::start();
    let (one, other) = (Replica::join(&server, patient()).await, Replica::join(&server, patient()).await);
    let limited = |session: &str| {
        let ask = Ask { tokens: 60, ..ask(session) };
        bounds(ask, |bounds| bounds.capacity.tokens_per_minute = Some(100))
    };
    let (first, second) = (one.admitted(&limited("a")).await, other.admitted(&limited("b")).await);
    // 120 are estimated, and any of them may end at any moment.
    assert_eq!(refused(&one, &limited("c")).await, (Shortage::Capacity, None));
    // They were fewer than thought,
    first.settle(true, input(20), MicroUsd::ZERO);
    second.settle(true, input(20), MicroUsd::ZERO);
    other.flushed().await;
    one.admitted(&limited("c")).await.settle(true, input(70), MicroUsd::ZERO);
    // and now they are 110.
    let (shortage, wait) = refused(&one, &limited("d")).await;
    assert_eq!(shortage, Shortage::Capacity);
    assert!(wait.is_some_and(|wait| wait > Duration::from_secs(30)), "{wait:?}");
    // The window of a day knows of them too, and money is counted like tokens.
    let daily = |tokens| bounds(ask("e"), |bounds| bounds.capacity.tokens_per_day = Some(tokens));
    let (_, wait) = refused(&one, &daily(110)).await;
    assert!(wait.is_some_and(|wait| wait > Duration::from_secs(23 * 3600)), "{wait:?}");
    one.admitted(&daily(1000)).await.settle(true, input(1), MicroUsd::from_usd(2.5));
    let costly = |cost| bounds(ask("f"), |bounds| bounds.capacity.cost_per_day = Some(MicroUsd::from_usd(cost)));
    assert_eq!(refused(&one, &costly(2.5)).await.0, Shortage::Capacity);
    one.admitted(&costly(2.51)).await;
    let input_only = bounds(ask("g"), |bounds| bounds.capacity.input_tokens_per_minute = Some(111));
    assert_eq!(refused(&one, &input_only).await.0, Shortage::Capacity);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_stays_where_the_first_replica_has_put_it() {
    let server = RedisServer::start();
    let (one, other) = (Replica::join(&server, patient()).await, Replica::join(&server, patient()).await);
    one.admitted(&ask("s")).await.settle(true, NOTHING.0, NOTHING.1);
    let elsewhere = at("sub2", ask("s"));
    let Verdict::Bound(home) = other.admit(&elsewhere).await else { panic!("it is bound") };
    assert_eq!(&*home, "sub1");
    // One that has just found out that sub1 cannot serve it may move it; then the first one follows.
    other.admitted(&standing(Standing::MovedFrom("sub1".into()), elsewhere)).await;
    let long_since = standing(Standing::Since(clock::now() - Duration::from_secs(60)), ask("s"));
    let Verdict::Bound(home) = one.admit(&long_since).await else { panic!("it is bound") };
    assert_eq!(&*home, "sub2");
    // A move that came after the binding, as the rebalancer's, goes before it.
    one.admitted(&standing(Standing::Since(clock::now() + Duration::from_secs(60)), ask("s"))).await;
    // A request that only this once runs elsewhere does not move it.
    let placement = Placement { home: "sub1".into(), standing: Standing::New };
    other.admitted(&Ask { placement, ..at("sub2", ask("s")) }).await;
    one.admitted(&standing(Standing::New, ask("s"))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_was_never_answered_is_not_bound() {
    let server = RedisServer::start();
    let replica = Replica::join(&server, patient()).await;
    let one_slot = |session: &str| bounds(ask(session), |bounds| bounds.clients = 1);
    replica.admitted(&one_slot("a")).await.settle(false, NOTHING.0, NOTHING.1);
    let held = replica.admitted(&at("sub2", ask("a"))).await;
    // And it has left its slot to others.
    replica.admitted(&one_slot("b")).await.settle(true, NOTHING.0, NOTHING.1);
    let (shortage, wait) = refused(&replica, &one_slot("c")).await;
    assert_eq!(shortage, Shortage::Slots);
    assert!(wait.is_some_and(|wait| wait > Duration::from_secs(200)), "it is idle in five minutes: {wait:?}");
    held.settle(true, NOTHING.0, NOTHING.1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_longest_idle_session_gives_way_but_never_one_that_runs() {
    let server = RedisServer::start();
    let settings = Settings { session_idle_after: Duration::from_millis(300), ..patient() };
    let (one, other) = (Replica::join(&server, settings.clone()).await, Replica::join(&server, settings).await);
    let limited = |session: &str| bounds(ask(session), |bounds| bounds.clients = 2);
    let running = one.admitted(&limited("runs")).await;
    other.admitted(&limited("idle")).await.settle(true, NOTHING.0, NOTHING.1);
    other.flushed().await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    let third = other.admitted(&limited("third")).await;
    // The one that runs keeps its slot though its last beginning was long ago.
    assert_eq!(refused(&one, &limited("fourth")).await.0, Shortage::Slots);
    // A request that nobody named holds a slot while it runs, and no longer.
    third.settle(false, NOTHING.0, NOTHING.1);
    other.flushed().await;
    let unnamed = Ask { explicit: false, ..limited("f1") };
    let unnamed = one.admitted(&unnamed).await;
    assert_eq!(refused(&one, &limited("fifth")).await.0, Shortage::Slots);
    unnamed.settle(true, NOTHING.0, NOTHING.1);
    one.flushed().await;
    one.admitted(&limited("fifth")).await;
    drop(running);
}

#[tokio::test(flavor = "multi_thread")]
async fn news_reach_the_others_and_what_lasts_those_who_come_later() {
    let server = RedisServer::start();
    let (one, mut other) = (Replica::join(&server, patient()).await, Replica::join(&server, patient()).await);
    let mut admission = one.admitted(&ask("s")).await;
    admission.bill("0198".into(), "ann".into());
    admission.settle(true, input(7), MicroUsd::from_usd(1.0));
    let used = other.hears(used).await;
    assert_eq!((&*used.subscription, used.usage.input, used.cost), ("sub1", 7, MicroUsd::from_usd(1.0)));
    assert_eq!((used.record.as_deref(), used.client.as_deref()), (Some("0198"), Some("ann")));
    let limit = |hours: u64| News::Limits {
        subscription: "sub1".into(),
        report: LimitReport {
            status: LimitStatus::Rejected,
            window: Some(Window::FiveHour),
            resets_at: Some(clock::now() + Duration::from_secs(hours * 3600)),
            windows: Vec::new(),
        },
    };
    let (real, milder) = (limit(3), limit(1));
    one.shared.tell(real.clone());
    one.shared.tell(milder.clone());
    one.shared.tell(News::BreakerOpened { subscription: "sub2".into(), until: clock::now() + Duration::from_secs(60) });
    one.shared.tell(News::BreakerClosed { subscription: "sub2".into() });
    let is_closed = |heard: &Heard| matches!(heard, Heard::News { news: News::BreakerClosed { .. }, .. }).then_some(());
    other.hears(is_closed).await;
    // One that starts now hears of the lock, the real one, and not of the breaker, which is over.
    let mut late = Replica::join(&server, patient()).await;
    late.hears(|heard| (*heard == Heard::News { from: None, news: real.clone() }).then_some(())).await;
    assert!(late.heard.try_recv().is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_operator_forgets_is_forgotten_by_all_and_by_those_who_come_later() {
    let server = RedisServer::start();
    let (one, mut other) = (Replica::join(&server, patient()).await, Replica::join(&server, patient()).await);
    let until = clock::now() + Duration::from_secs(3600);
    for subscription in ["sub1", "sub10"] {
        one.shared.tell(News::BreakerOpened { subscription: subscription.into(), until });
        let report = LimitReport {
            status: LimitStatus::Rejected,
            window: Some(Window::FiveHour),
            resets_at: Some(until),
            windows: Vec::new(),
        };
        one.shared.tell(News::Limits { subscription: subscription.into(), report });
    }
    one.shared.tell(News::Restored { subscription: "sub1".into() });
    let restored = |heard: &Heard| match heard {
        Heard::News { from: Some(_), news: News::Restored { subscription } } => Some(subscription.clone()),
        _ => None,
    };
    assert_eq!(&*other.hears(restored).await, "sub1");
    // The other one is another matter, however alike their names are.
    let mut late = Replica::join(&server, patient()).await;
    for _ in 0..2 {
        late.hears(|heard| format!("{heard:?}").contains("\"sub10\"").then_some(())).await;
    }
    assert!(late.heard.try_recv().is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_key_begins_with_the_prefix_and_expires_and_nothing_shows_the_password() {
    let server = RedisServer::start();
    let settings = Settings { prefix: "mine:".to_owned(), ..patient() };
    let replica = Replica::join(&server, settings.clone()).await;
    let running = replica.admitted(&ask("s")).await;
    replica.admitted(&ask("t")).await.settle(true, input(5), MicroUsd::from_usd(0.5));
    let stranger = Replica::join(&server, patient()).await;
    stranger.admitted(&ask("u")).await.settle(true, input(5), MicroUsd::ZERO);
    replica
        .shared
        .tell(News::BreakerOpened { subscription: "sub1".into(), until: clock::now() + Duration::from_secs(60) });
    let mut keys = Vec::new();
    while keys.iter().filter(|key: &&String| key.ends_with("conditions")).count() == 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        keys = server.keys();
    }
    assert!(
        keys.iter().any(|key| key == "mine:leases:sub1") && keys.iter().any(|key| key == "mine:day:sub1"),
        "{keys:?}"
    );
    for key in &keys {
        assert!(key.starts_with("mine:") || key.starts_with("claude:capacity:"), "{keys:?}");
        assert!(server.life(key) > 0, "{key} never expires");
    }
    assert!(server.life("mine:minute:sub1") >= 60_000, "a window is not forgotten before it ends");
    let shown = format!("{:?} {:?} {:?}", replica.shared, replica.shared.status(), server.address());
    assert!(!shown.contains(PASSWORD), "{shown}");
    // Who leaves in good order takes its leases along.
    replica.leave().await;
    assert!(!server.keys().iter().any(|key| key == "mine:leases:sub1"), "{:?}", server.keys());
    drop(running);
}
