//! The rules over a pool: what is sent when.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use auth_pool::alert::{Alerts, Channel, ChannelsSettings, Rule, Settings, Target, Trigger};
use auth_pool::conversation::{LimitReport, LimitStatus, Window, WindowUse};
use auth_pool::gateway::SharedPool;
use auth_pool::pool::{CapacityLimits, Pool, Priority, SubscriptionSettings};
use auth_pool::runtime::clock;
use auth_pool::units::MicroUsd;
use serde_json::json;

use super::{Bench, QUICK, Says, bench, until};

fn pool() -> SharedPool {
    let subscription = |id: &str| SubscriptionSettings {
        id: id.into(),
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
    let subscriptions = vec![subscription("sub1"), subscription("sub2")];
    let settings = auth_pool::pool::Settings { subscriptions, ..auth_pool::pool::Settings::default() };
    SharedPool::new(Pool::new(settings, clock::now()))
}

/// The provider says how much of a week is used.
fn used(pool: &SharedPool, subscription: &str, utilization: f64) {
    let resets_at = Some(clock::now() + Duration::from_hours(48));
    let windows = vec![WindowUse { window: Window::SevenDay, utilization, resets_at }];
    let report = LimitReport { status: LimitStatus::Allowed, window: None, resets_at: None, windows };
    pool.observe(subscription, &report);
}

fn limited(pool: &SharedPool, subscription: &str) {
    let resets_at = Some(clock::now() + Duration::from_hours(1));
    let report =
        LimitReport { status: LimitStatus::Rejected, window: Some(Window::FiveHour), resets_at, windows: Vec::new() };
    pool.observe(subscription, &report);
}

fn alerts(bench: &Bench, pool: &SharedPool, rules: &[Trigger], target: Target) -> Alerts {
    counted_alerts(bench, pool, rules, target).0
}

/// And how often the weeks have been looked at.
fn counted_alerts(bench: &Bench, pool: &SharedPool, rules: &[Trigger], target: Target) -> (Alerts, Arc<AtomicUsize>) {
    let (looked_at, looks) = (pool.clone(), Arc::<AtomicUsize>::default());
    let counter = Arc::clone(&looks);
    let weeks = move || {
        counter.fetch_add(1, Ordering::SeqCst);
        looked_at.with(|pool, now| ((now, pool.usage_views(now, 0, 100).0), Vec::new()))
    };
    let alerts = Alerts::start(settings(rules, target), pool.effects(), weeks, &bench.tasks, &bench.stop);
    (alerts, looks)
}

fn settings(rules: &[Trigger], target: Target) -> Settings {
    let channels = BTreeSet::from([Channel::Webhook]);
    Settings {
        rules: rules.iter().map(|trigger| Rule { trigger: *trigger, channels: channels.clone() }).collect(),
        channels: ChannelsSettings { webhook: Some(target), slack: None },
        tick: Duration::from_millis(5),
        pace: QUICK,
    }
}

#[tokio::test]
async fn a_crossing_is_sent_once_and_one_more_at_the_next_threshold() {
    let (bench, pool) = (bench(), pool());
    let mut endpoint = bench.endpoint(&[Says::Status("200 OK")]).await;
    let rules = [0.8, 0.9].map(|share| Trigger::UsageThreshold { share });
    let (alerts, looks) = counted_alerts(&bench, &pool, &rules, endpoint.target());
    for share in [0.5, 0.799, 0.8, 0.85, 0.89, 0.9, 0.97] {
        used(&pool, "sub1", share);
        let before = looks.load(Ordering::SeqCst);
        until(|| looks.load(Ordering::SeqCst) >= before + 3).await;
    }
    let message = endpoint.next().await.json();
    assert_eq!(message["type"], "usage_threshold");
    assert_eq!(message["severity"], "warning");
    assert_eq!(message["subscriptionId"], "sub1");
    assert_eq!(message["message"], "Subscription sub1 at 80% weekly budget");
    assert_eq!(
        message["data"],
        json!({
            "weeklyUsed": 0,
            "weeklyBudget": 456,
            "weeklyPercent": "80.0",
            "burnRate": 0,
            "estimatedTimeUntilExhaustion": null,
            "threshold": 80
        })
    );
    let id = message["id"].as_str().expect("an id").to_owned();
    assert_eq!(id.as_bytes()[14], b'7', "{id}");
    assert!(message["at"].as_str().is_some_and(|at| at.ends_with('Z')));
    let second = endpoint.next().await.json();
    assert_eq!(second["data"]["threshold"], 90);
    assert_ne!(second["id"], id.as_str());
    until(|| alerts.view()["channels"]["webhook"]["waiting"] == 0).await;
    assert_eq!(alerts.view()["channels"]["webhook"]["delivered"], 2);
    assert!(endpoint.received.try_recv().is_err(), "staying above repeats nothing");
}

#[tokio::test]
async fn events_reach_the_webhook_and_new_rules_and_addresses_take_effect() {
    let (bench, pool) = (bench(), pool());
    let mut first = bench.endpoint(&[Says::Status("200 OK")]).await;
    let mut second = bench.endpoint(&[Says::Status("200 OK")]).await;
    let rules = [Trigger::UsageThreshold { share: 0.8 }, Trigger::LimitReached, Trigger::Recovered];
    let alerts = alerts(&bench, &pool, &rules, first.target());
    limited(&pool, "sub1");
    let message = first.next().await.json();
    assert_eq!((&message["type"], &message["subscriptionId"]), (&json!("limit_reached"), &json!("sub1")));
    assert_eq!(message["data"]["cause"], "five_hour limit of the provider");
    pool.with(|pool, now| pool.restore(now, "sub1"));
    assert_eq!(first.next().await.json()["type"], "recovered");
    used(&pool, "sub2", 0.85);
    assert_eq!(first.next().await.json()["data"]["threshold"], 80);

    until(|| alerts.view()["channels"]["webhook"]["delivered"] == 3).await;
    alerts.apply(settings(&[0.8, 0.5].map(|share| Trigger::UsageThreshold { share }), second.target()));
    let message = second.next().await.json();
    assert_eq!(message["data"]["threshold"], 50, "what is new is told, what is known is not");
    limited(&pool, "sub2");
    used(&pool, "sub1", 0.6);
    let message = second.next().await.json();
    assert_eq!((&message["type"], &message["subscriptionId"]), (&json!("usage_threshold"), &json!("sub1")));
    assert!(first.received.try_recv().is_err() && second.received.try_recv().is_err());
}

#[tokio::test]
async fn the_pool_does_not_feel_an_endpoint_that_hangs() {
    let (bench, pool) = (bench(), pool());
    let mut endpoint = bench.endpoint(&[Says::Nothing]).await;
    let rules = [Trigger::LimitReached, Trigger::Recovered, Trigger::UsageThreshold { share: 0.8 }];
    let alerts = alerts(&bench, &pool, &rules, endpoint.target());
    limited(&pool, "sub1");
    endpoint.next().await;
    let begun = Instant::now();
    for _ in 0..2000 {
        limited(&pool, "sub2");
        pool.with(|pool, now| pool.restore(now, "sub2"));
        assert!(pool.with(|pool, now| (pool.health(now), Vec::new())).eligible >= 1);
    }
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert_eq!(alerts.view()["channels"]["webhook"]["delivered"], 0);
}

#[tokio::test]
async fn alerts_go_on_without_their_handle() {
    let (bench, pool) = (bench(), pool());
    let mut endpoint = bench.endpoint(&[Says::Status("200 OK")]).await;
    drop(alerts(&bench, &pool, &[Trigger::LimitReached], endpoint.target()));
    limited(&pool, "sub1");
    assert_eq!(endpoint.next().await.json()["type"], "limit_reached");
}
