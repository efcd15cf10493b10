//! The server goes away, and comes back.

use std::time::{Duration, Instant};

use auth_pool::conversation::Usage;
use auth_pool::pool::Shortage;
use auth_pool::shared::{Heard, News, Settings, State, Verdict};
use auth_pool::units::MicroUsd;

use super::server::{PASSWORD, RedisServer};
use super::{Replica, ask, bounds, input, patient};

fn apart(heard: &Heard) -> Option<String> {
    match heard {
        Heard::Apart { cause } => Some(cause.clone()),
        _ => None,
    }
}

fn together(heard: &Heard) -> Option<Duration> {
    match heard {
        Heard::Together { after } => Some(*after),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_server_costs_one_timeout_and_what_happened_meanwhile_counts_afterwards() {
    let server = RedisServer::start();
    // A window that no busy machine outlasts.
    let minute = Duration::from_hours(1);
    let hasty = Settings { timeout: Duration::from_millis(200), minute, ..Settings::default() };
    let mut one = Replica::join(&server, hasty).await;
    let other = Replica::join(&server, Settings { minute, ..patient() }).await;
    let limited = |session: &str| bounds(ask(session), |bounds| bounds.concurrent = 3);
    let before = one.admitted(&limited("before")).await;
    server.freeze();
    let begun = Instant::now();
    let Verdict::Apart(first) = one.admit(&limited("first")).await else { panic!("nobody answers") };
    assert!(begun.elapsed() >= Duration::from_millis(200));
    let cause = one.hears(apart).await;
    assert!(cause.contains("200 ms"), "{cause}");
    assert_eq!(one.shared.status().state, State::Apart);
    // From now on nobody waits: a thousand are let through in less time than one would have waited.
    let begun = Instant::now();
    let mut meanwhile = Vec::new();
    for number in 0..1000 {
        let Verdict::Apart(admission) = one.admit(&limited(&format!("m{number}"))).await else {
            panic!("nobody answers")
        };
        meanwhile.push(admission);
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    // One of them runs on, one has used something, the rest is over.
    let on = meanwhile.pop();
    let used = meanwhile.pop().unwrap();
    used.settle(true, input(500), MicroUsd::from_usd(3.0));
    drop(meanwhile);
    server.thaw();
    one.hears(together).await;
    // `before`, `first` and `on` run: that is all there may be, for everybody.
    match other.admit(&limited("after")).await {
        Verdict::Full { shortage: Shortage::Requests, .. } => {}
        verdict => panic!("{verdict:?}"),
    }
    let tokens = bounds(ask("tokens"), |bounds| bounds.capacity.tokens_per_day = Some(500));
    assert!(matches!(other.admit(&tokens).await, Verdict::Full { shortage: Shortage::Capacity, wait: Some(_) }));
    // Every request counts once: `before`, `first`, and the thousand. The server may have carried out late what was
    // asked for `first` before nobody waited for it any more.
    let requests = |most| bounds(ask("requests"), |bounds| bounds.capacity.requests_per_minute = Some(most));
    assert!(matches!(other.admit(&requests(1002)).await, Verdict::Full { shortage: Shortage::Capacity, .. }));
    drop(other.admitted(&requests(1004)).await);
    first.settle(true, Usage::default(), MicroUsd::ZERO);
    drop((before, on));
    // What came late from before the freeze has gone back too: all three places are free.
    let mut held = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(20);
    while held.len() < 3 {
        assert!(Instant::now() < deadline, "only {} places came back", held.len());
        match other.admit(&limited(&format!("again{}", held.len()))).await {
            Verdict::Admitted(admission) => held.push(admission),
            _ => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_sent_and_not_answered_counts_once() {
    let server = RedisServer::start();
    let mut one = Replica::join(&server, patient()).await;
    let mut other = Replica::join(&server, patient()).await;
    let running = one.admitted(&ask("s")).await;
    one.flushed().await;
    // The server has it, carries it out when it wakes up, and by then is told once more.
    server.freeze();
    running.settle(true, input(500), MicroUsd::from_usd(3.0));
    one.hears(apart).await;
    server.thaw();
    one.hears(together).await;
    one.flushed().await;
    let daily = |tokens| bounds(ask("t"), |bounds| bounds.capacity.tokens_per_day = Some(tokens));
    assert!(matches!(other.admit(&daily(500)).await, Verdict::Full { shortage: Shortage::Capacity, .. }));
    other.admitted(&daily(501)).await.settle(true, Usage::default(), MicroUsd::ZERO);
    // The others hear of it once. What comes behind it says that there is no more.
    one.shared.tell(News::BreakerClosed { subscription: "sub1".into() });
    let mut times = 0;
    other
        .hears(|heard| {
            times += u32::from(matches!(heard, Heard::News { news: News::Used(used), .. } if used.usage.input == 500));
            matches!(heard, Heard::News { news: News::BreakerClosed { .. }, .. }).then_some(())
        })
        .await;
    assert_eq!(times, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_forgot_everything_is_told_what_runs() {
    let mut server = RedisServer::start();
    let mut one = Replica::join(&server, patient()).await;
    let limited = |session: &str| bounds(ask(session), |bounds| bounds.concurrent = 2);
    let running = one.admitted(&limited("runs")).await;
    server.restart_empty();
    one.hears(apart).await;
    one.hears(together).await;
    let other = Replica::join(&server, patient()).await;
    let second = other.admitted(&limited("second")).await;
    assert!(matches!(other.admit(&limited("third")).await, Verdict::Full { shortage: Shortage::Requests, .. }));
    drop((running, second));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_server_requests_run_and_the_cause_names_no_secret() {
    let server = RedisServer::start();
    server.freeze();
    let mut replica = Replica::start(&server, Settings::default());
    assert!(matches!(replica.admit(&ask("s")).await, Verdict::Apart(_)));
    let cause = replica.hears(apart).await;
    assert!(!cause.contains(PASSWORD) && !cause.contains("127.0.0.1"), "{cause}");
    assert!(!replica.shared.joined(Duration::from_millis(10)).await);
    server.thaw();
    replica.hears(together).await;
    assert_eq!(replica.shared.status().state, State::Together);
    replica.admitted(&ask("s")).await;
}
