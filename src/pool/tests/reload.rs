//! Changing the rules and the members while requests run.

use super::*;

#[test]
fn who_stays_keeps_use_and_sessions() {
    let mut world = World::new(2);
    let home = world.turn("a", 20.0);
    world.pool.apply(world.now, settings(vec![member("s2"), member("s1"), member("s0")]));
    assert_eq!(world.turn("a", 1.0), home);
    assert!((world.view("s0").weekly_used - 21.0).abs() < 1e-9);
    let ids: Vec<_> = world.pool.snapshot(world.now).subscriptions.iter().map(|view| view.id.to_string()).collect();
    assert_eq!(ids, ["s2", "s1", "s0"]);
}

#[test]
fn who_is_removed_finishes_what_runs_and_its_sessions_rotate() {
    let mut world = World::new(2);
    world.turn("a", 0.0);
    let running = world.request("a");
    world.pool.apply(world.now, settings(vec![member("s1")]));
    assert_eq!(world.pool.in_flight(), 1);
    let view = world.view("s0");
    assert_eq!((view.status, view.status_cause.source), (Status::Draining, Source::Configuration));
    let grant = world.request("a");
    let rotated = |effect: &Effect| matches!(effect, Effect::Rotation { cause, .. } if cause.contains("removed"));
    assert!(grant.effects.iter().any(rotated));
    assert_eq!(&*grant.subscription, "s1");
    world.finish(&running, Outcome::Completed, 2.0);
    assert!((world.view("s0").weekly_used - 2.0).abs() < 1e-9);
    // With its last request it is out of sight.
    world.pool.tick(world.now);
    assert_eq!(world.pool.snapshot(world.now).totals.subscriptions, 1);
    let refused = world.acquire(&Ask { exclude: &[Arc::from("s1")], ..ask("b") }).unwrap_err();
    assert_eq!(refused.decision.candidates.len(), 1);
    // It is remembered as long as what it used would count.
    world.pool.apply(world.now, settings(vec![member("s0"), member("s1")]));
    assert!((world.view("s0").weekly_used - 2.0).abs() < 1e-9);
    world.pool.apply(world.now, settings(vec![member("s1")]));
    world.wait(DAY * 7);
    world.pool.tick(world.now);
    world.pool.tick(world.now);
    assert_eq!(world.pool.snapshot(world.now).totals.subscriptions, 1);
}

#[test]
fn who_comes_back_has_not_forgotten_what_it_used() {
    let mut world = World::new(1);
    world.turn("a", 100.0);
    world.pool.apply(world.now, settings(Vec::new()));
    world.pool.tick(world.now);
    assert_eq!(reason(world.acquire(&ask("b"))), RefusalReason::NoneHealthy);
    world.pool.apply(world.now, settings(vec![member("s0")]));
    assert!((world.view("s0").weekly_used - 100.0).abs() < 1e-9);
    assert_eq!(world.request("a").decision.reason, Reason::Sticky);
}

#[test]
fn a_place_that_became_vacant_starts_clean() {
    let mut world = World::new(2);
    world.pool.apply(world.now, settings(vec![member("s1")]));
    world.pool.tick(world.now);
    world.pool.apply(world.now, settings(vec![member("s1"), member("s9")]));
    assert_eq!(world.view("s9").assigned_clients, 0);
    world.use_up("s9", 3.0);
    assert_eq!(world.pool.snapshot(world.now).totals.eligible, 2);
}

#[test]
fn a_disabled_one_takes_nothing_new_and_its_sessions_move() {
    let mut world = World::new(2);
    world.turn("a", 0.0);
    let off = SubscriptionSettings { enabled: false, ..member("s0") };
    world.wait(MINUTE);
    world.pool.apply(world.now, settings(vec![off, member("s1")]));
    let view = world.view("s0");
    assert_eq!((view.status, view.status_cause.since), (Status::Disabled, world.now));
    let grant = world.request("a");
    assert_eq!((&*grant.subscription, grant.decision.reason), ("s1", Reason::Moved(Cause::Disabled)));
    world.pool.apply(world.now, settings(vec![member("s0"), member("s1")]));
    assert_eq!(world.view("s0").status, Status::Available);
}

#[test]
fn new_budgets_thresholds_and_limits_count_at_once() {
    let mut world = World::new(1);
    world.use_up("s0", 90.0);
    let mut rules = settings(vec![SubscriptionSettings { weekly_budget: MicroUsd::from_usd(100.0), ..member("s0") }]);
    let effects = world.pool.apply(world.now, rules.clone());
    assert!(matches!(&effects[..], [Effect::StatusChanged { to: Status::Approaching, .. }]));
    assert_eq!(reason(world.acquire(&ask("a"))), RefusalReason::BudgetSpent);
    rules.weekly_budget_threshold = 0.94;
    world.pool.apply(world.now, rules.clone());
    assert!(world.acquire(&ask("a")).is_ok());
    rules.max_clients = 1;
    world.pool.apply(world.now, rules);
    assert_eq!(reason(world.acquire(&ask("b"))), RefusalReason::Busy);
    assert!(world.acquire(&ask("a")).is_ok(), "who has a slot keeps it");
}
