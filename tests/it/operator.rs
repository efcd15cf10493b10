//! What the operator asks of a running pool: why it decided as it did, and to even out the blocks now.

use std::sync::Arc;
use std::time::Duration;

use auth_pool::backend::Backend;
use auth_pool::gateway::{DecisionFilter, Gateway as _, RebalanceSettings, Settings};
use auth_pool::units::MicroUsd;
use serde_json::Value;

use super::gateway::{Bench, REBALANCING, Scripted, bench_with, call, gateway_settings, limited, read};

fn bench(backends: &[Arc<Scripted>], adjust: impl FnOnce(&mut auth_pool::pool::Settings)) -> Bench {
    let backends: Vec<_> = backends.iter().map(|backend| Arc::clone(backend) as Arc<dyn Backend>).collect();
    bench_with(&backends, gateway_settings(), adjust)
}

fn decisions(bench: &Bench, limit: usize, session: Option<&str>, client: Option<&str>) -> Vec<Value> {
    let filter =
        DecisionFilter { limit, session: session.map(str::to_owned), client: client.map(str::to_owned), request: None };
    let answer = bench.gateway.decisions(&filter);
    assert!(answer["at"].is_i64(), "{answer}");
    answer["decisions"].as_array().expect("a list").clone()
}

#[tokio::test]
async fn a_decision_shows_everybody_who_was_considered() {
    let bench = bench(&[Scripted::failing(limited(3600)), Scripted::good()], |_| {});
    for session in ["a", "b", "a"] {
        read(bench.chat(session).await.expect("an answer")).await;
    }
    let all = decisions(&bench, 100, None, None);
    assert_eq!(all.len(), 4, "three requests, one of them twice");
    assert_eq!(decisions(&bench, 2, None, None), all[..2], "the newest first");
    let new = &all[1];
    assert_eq!((&new["kind"], &new["chosen"]), (&"new".into(), &"sub2".into()));
    let candidates = new["candidates"].as_array().expect("a list");
    assert_eq!(candidates.len(), 2);
    assert!(candidates[0]["breakdown"].is_object() && candidates[0]["excluded"].is_null(), "{candidates:?}");
    let excluded = &candidates[1]["excluded"];
    assert_eq!((&excluded["cause"], &excluded["source"]), (&"provider_limit".into(), &"provider".into()));
    assert!(excluded["until"].as_i64() > excluded["since"].as_i64(), "{excluded}");
}

#[tokio::test]
async fn decisions_are_found_by_a_session_as_shown_or_as_the_client_calls_it() {
    let bench = bench(&[Scripted::good()], |_| {});
    let mut other = call("a");
    other.client = "ann".into();
    for call in [call("a"), call("b"), other] {
        read(bench.gateway.chat(call).await.expect("an answer")).await;
    }
    let mine = decisions(&bench, 100, Some("a"), None);
    assert_eq!(mine.len(), 1);
    let label = mine[0]["session"].as_str().expect("a label");
    assert_eq!(decisions(&bench, 100, Some(label), None), mine);
    assert_eq!(decisions(&bench, 100, Some(&label[..label.len() - 4]), None), mine, "its beginning will do");
    let hers = decisions(&bench, 100, Some("a"), Some("ann"));
    assert_eq!(hers.len(), 1);
    assert_ne!(hers, mine);
    assert!(decisions(&bench, 100, Some("nobody's"), None).is_empty());

    let of_request = |id: &str| {
        let filter = DecisionFilter { limit: 100, request: Some(id.to_owned()), ..DecisionFilter::default() };
        bench.gateway.decisions(&filter)["decisions"].as_array().expect("a list").clone()
    };
    let found = of_request("request-of-b");
    assert_eq!((found.len(), &found[0]["request"]), (1, &"request-of-b".into()));
    assert_eq!(of_request("request-of-a").len(), 2, "two clients may send the same id");
    assert!(of_request("request-of-c").is_empty());
}

#[tokio::test]
async fn rebalancing_on_demand_says_what_moved_and_why() {
    // Every answer costs $0.50.
    let backends: [Arc<dyn Backend>; 2] = [Scripted::good(), Scripted::good()];
    let rules = RebalanceSettings { cost_gap: MicroUsd::from_usd(1.0), max_moves: 2, ..REBALANCING };
    let mut rules_of_pool = None;
    let bench = bench_with(&backends, Settings { rebalancing: rules, ..gateway_settings() }, |settings| {
        settings.session_idle_after = Duration::from_millis(1);
        settings.rebalancing = rules;
        rules_of_pool = Some(settings.clone());
    });
    let second_is_enabled = |enabled| {
        let mut settings = rules_of_pool.clone().expect("kept above");
        settings.subscriptions[1].enabled = enabled;
        bench.pool.with(|pool, now| ((), pool.apply(now, settings)));
    };
    let cycle = || {
        let answer = bench.gateway.rebalance();
        let text = |name: &str| answer[name].as_str().expect("text").to_owned();
        (text("outcome"), text("reason"), answer["moved"].as_array().expect("a list").clone())
    };
    let reason = "no block costs $1.00 more than that of sub1 ($0.00)";
    assert_eq!(cycle(), ("even".to_owned(), reason.to_owned(), Vec::new()));

    second_is_enabled(false);
    for session in ["a", "b", "c"] {
        read(bench.chat(session).await.expect("an answer")).await;
    }
    let reason =
        "no block costs $1.00 more than that of sub1 ($1.50); sub2 is cheaper, but disabled in the configuration";
    assert_eq!(cycle(), ("even".to_owned(), reason.to_owned(), Vec::new()));

    second_is_enabled(true);
    tokio::time::sleep(Duration::from_millis(5)).await;
    let (outcome, reason, moved) = cycle();
    assert_eq!(outcome, "moved");
    assert_eq!(
        reason,
        "the current block of sub1 costs $1.50 and that of sub2 $0.00, at least $1.00 apart: the longest idle sessions \
         moved, 2 a cycle at most"
    );
    assert_eq!(moved.len(), 2);
    let first = decisions(&bench, 100, Some("a"), None);
    assert_eq!(moved[0]["session"], first[0]["session"], "the longest idle");
    assert_eq!((&moved[0]["from"], &moved[0]["to"]), (&"sub1".into(), &"sub2".into()));
    assert_eq!(cycle().2.len(), 1);
    let reason = "no subscription whose block costs $1.00 more than that of sub2 ($0.00) has an idle session; sessions in \
                  use never move";
    assert_eq!(cycle(), ("no_idle_session".to_owned(), reason.to_owned(), Vec::new()));
}

#[test]
fn rebalancing_that_cannot_move_anything_says_so() {
    let outcome = |backends: usize, enabled: bool| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let _entered = runtime.enter();
        let backends: Vec<_> = (0..backends).map(|_| Scripted::good() as Arc<dyn Backend>).collect();
        let rules = RebalanceSettings { enabled, ..REBALANCING };
        let settings = Settings { rebalancing: rules, ..gateway_settings() };
        let bench = bench_with(&backends, settings, |settings| settings.rebalancing = rules);
        bench.gateway.rebalance()["outcome"].as_str().expect("one word").to_owned()
    };
    assert_eq!(outcome(2, false), "switched_off");
    assert_eq!(outcome(1, true), "one_subscription");
}
