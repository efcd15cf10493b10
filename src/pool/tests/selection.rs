//! Who gets a new session, and who is eligible at all.

use std::collections::BTreeMap;

use super::*;

fn spread(served: impl IntoIterator<Item = Arc<str>>) -> Vec<u32> {
    let mut counts = BTreeMap::new();
    for id in served {
        *counts.entry(id).or_insert(0) += 1;
    }
    counts.into_values().collect()
}

#[test]
fn thirty_sessions_at_once_over_three_equal_subscriptions_get_ten_each() {
    let mut world = World::new(3);
    let served: Vec<_> = (0..30).map(|number| world.request(&format!("c{number}")).subscription).collect();
    assert_eq!(spread(served), [10, 10, 10]);
}

#[test]
fn ten_sessions_at_once_over_three_equal_subscriptions_get_three_or_four_each() {
    let three = (0..3).map(|number| SubscriptionSettings { max_clients: Some(4), ..member(&format!("s{number}")) });
    let mut world = World::with(settings(three.collect()));
    let served: Vec<_> = (0..10).map(|number| world.request(&format!("c{number}")).subscription).collect();
    assert_eq!(spread(served), [4, 3, 3]);
}

#[test]
fn one_off_requests_at_once_spread_like_sessions() {
    let mut world = World::new(3);
    let served: Vec<_> = (0..30).map(|_| world.one_off().subscription).collect();
    assert_eq!(spread(served), [10, 10, 10]);
}

#[test]
fn fifty_at_the_same_instant_differ_by_at_most_one() {
    let mut world = World::new(4);
    let expensive = Ask { estimated_cost: MicroUsd::from_usd(0.5), ..ask("") };
    let served = (0..50).map(|number| {
        let session = SessionKey::Explicit(format!("c{number}").into());
        world.acquire(&Ask { session, ..expensive.clone() }).unwrap().subscription
    });
    assert_eq!(spread(served.collect::<Vec<_>>()), [13, 13, 12, 12]);
}

#[test]
fn requests_one_after_the_other_take_turns() {
    let mut world = World::new(3);
    let served: Vec<_> = (0..9)
        .map(|_| {
            let grant = world.one_off();
            world.finish(&grant, Outcome::Abandoned, 0.0);
            grant.subscription.to_string()
        })
        .collect();
    assert_eq!(served, ["s0", "s1", "s2", "s0", "s1", "s2", "s0", "s1", "s2"]);
}

#[test]
fn the_healthiest_is_chosen_and_the_decision_says_why() {
    let mut world = World::new(3);
    world.use_up("s0", 200.0);
    world.use_up("s1", 100.0);
    world.use_up("s2", 300.0);
    world.wait(HOUR * 6);
    let grant = world.request("c");
    assert_eq!(&*grant.subscription, "s1");
    let decision = grant.decision;
    assert_eq!(decision.reason, Reason::Best);
    let order: Vec<_> = decision.candidates.iter().map(|candidate| &*candidate.subscription).collect();
    assert_eq!(order, ["s1", "s0", "s2"]);
    // 100 - 0.5 * 100/456 * 100 + 10
    assert!((decision.candidates[0].score - 99.035_087_719_298).abs() < 1e-9);
    assert!((decision.candidates[1].score - 88.070_175_438_596).abs() < 1e-9);
    assert!((decision.candidates[1].breakdown.weekly + 21.929_824_561_403).abs() < 1e-9);
}

#[test]
fn the_score_counts_sessions_block_and_burn_rate() {
    let mut world = World::new(1);
    world.turn("a", 10.0);
    world.turn("b", 0.0);
    // 100 - 0.5 * 10/456*100 - 0.3 * 40 - 5 * 2 - 2 * (10 - 3)
    let score = world.view("s0").health_score;
    assert!((score - 62.903_508_771_929).abs() < 1e-9, "{score}");
    // An hour later nothing burns; the sessions are stale; five hours later the block is over.
    world.wait(HOUR);
    world.pool.tick(world.now);
    assert!((world.view("s0").health_score - 86.903_508_771_929).abs() < 1e-9);
    world.wait(HOUR * 4);
    assert!((world.view("s0").health_score - 100.0).abs() < 1e-9);
}

#[test]
fn the_providers_figures_count_where_they_are_larger() {
    let mut world = World::new(1);
    world.use_up("s0", 45.6);
    world.wait(HOUR * 2);
    let reset = Some(world.now + HOUR);
    world.observe("s0", &poll(Window::SevenDay, 0.5, reset));
    world.observe("s0", &poll(Window::FiveHour, 0.9, reset));
    let view = world.view("s0");
    assert!((view.weekly_percent - 50.0).abs() < 1e-9);
    // Our own account says that the block is over 25 dollars: full.
    assert!((view.block_percent - 100.0).abs() < 1e-9);
    assert!((view.health_score - (100.0 - 25.0 - 30.0)).abs() < 1e-9);
    world.wait(HOUR);
    assert!((world.view("s0").weekly_percent - 0.0).abs() < 1e-9, "the provider's week began anew");
}

#[test]
fn no_new_session_from_85_percent_of_the_budget_on() {
    let mut world = World::new(1);
    world.use_up("s0", 456.0 * 0.85 - 0.000_001);
    assert!(world.acquire(&ask("just below")).is_ok());
    world.use_up("s0", 0.000_001);
    let refusal = world.acquire(&ask("at the threshold")).unwrap_err();
    assert_eq!(refusal.reason, RefusalReason::BudgetSpent);
    assert_eq!(refusal.retry_at, Some(world.now + DAY * 7));
    assert_eq!(refusal.decision.candidates[0].excluded.map(|exclusion| exclusion.cause), Some(Cause::BudgetSpent));
}

#[test]
fn low_priority_stops_15_points_earlier_and_high_goes_on_to_95() {
    for (priority, share) in [(Priority::Low, 0.70), (Priority::Normal, 0.85), (Priority::High, 0.95)] {
        let mut world = World::with(settings(vec![SubscriptionSettings { priority, ..member("s0") }]));
        world.use_up("s0", 456.0 * share - 0.000_001);
        assert!(world.acquire(&ask("below")).is_ok(), "{priority:?}");
        world.use_up("s0", 0.000_001);
        assert_eq!(reason(world.acquire(&ask("at"))), RefusalReason::BudgetSpent, "{priority:?}");
    }
}

#[test]
fn an_important_request_may_use_the_reserve_and_an_unimportant_one_stops_earlier() {
    for (priority, share) in [(Priority::Low, 0.70), (Priority::Normal, 0.85), (Priority::High, 0.95)] {
        let mut world = World::new(1);
        let ask = |session| Ask { priority, ..ask(session) };
        world.turn("mine", 456.0 * share - 0.000_001);
        assert!(world.acquire(&ask("below")).is_ok(), "{priority:?}");
        world.turn("mine", 0.000_001);
        let refusal = world.acquire(&ask("at")).unwrap_err();
        assert_eq!(refusal.reason, RefusalReason::BudgetSpent, "{priority:?}");
        assert_eq!(refusal.retry_at, Some(world.now + DAY * 7), "{priority:?}");
    }
}

#[test]
fn what_the_owner_keeps_even_important_requests_use_only_in_part() {
    let mut world = World::with(settings(vec![SubscriptionSettings { priority: Priority::Low, ..member("s0") }]));
    world.turn("mine", 456.0 * 0.75);
    assert!(world.acquire(&ask("normal")).is_err());
    assert!(world.acquire(&Ask { priority: Priority::High, ..ask("high") }).is_ok());
    world.turn("mine", 456.0 * 0.05);
    assert!(world.acquire(&Ask { priority: Priority::High, ..ask("higher") }).is_err());
}

#[test]
fn reservations_count_so_that_a_burst_cannot_overshoot() {
    let mut world = World::with(settings(vec![SubscriptionSettings {
        weekly_budget: MicroUsd::from_usd(100.0),
        max_clients: Some(1000),
        ..member("s0")
    }]));
    let granted: Vec<_> = (0..100)
        .filter_map(|number| {
            let session = SessionKey::Fingerprint(number);
            world.acquire(&Ask { session, estimated_cost: MicroUsd::from_usd(10.0), ..ask("") }).ok()
        })
        .collect();
    // 9 * 10 is the first sum beyond 85.
    assert_eq!(granted.len(), 9);
    let refusal = world.acquire(&ask("late")).unwrap_err();
    assert_eq!((refusal.reason, refusal.retry_at), (RefusalReason::Busy, None));
    for grant in &granted {
        world.finish(grant, Outcome::Completed, 1.0);
    }
    assert!(world.acquire(&ask("later")).is_ok());
}

#[test]
fn the_client_limit_sends_the_fourth_elsewhere_and_a_full_pool_is_busy() {
    let mut world = World::with(settings(vec![
        SubscriptionSettings { max_clients: Some(3), ..member("s0") },
        SubscriptionSettings { max_clients: Some(2), ..member("s1") },
    ]));
    let served: Vec<_> = (0..5).map(|number| world.turn(&format!("c{number}"), 0.0)).collect();
    assert_eq!(spread(served), [3, 2]);
    let refusal = world.acquire(&ask("one too many")).unwrap_err();
    assert_eq!(refusal.reason, RefusalReason::Busy);
    // The first of them will be idle in five minutes.
    assert_eq!(refusal.retry_at, Some(world.now + MINUTE * 5));
    assert!(refusal.decision.candidates.iter().all(|candidate| candidate.excluded.is_some()));
}

#[test]
fn requests_at_the_same_time_are_limited_per_subscription() {
    let mut world = World::with(settings(vec![SubscriptionSettings { max_concurrent: 2, ..member("s0") }]));
    let first = world.request("a");
    let _second = world.request("a");
    let refusal = world.acquire(&ask("a")).unwrap_err();
    assert_eq!((refusal.reason, refusal.retry_at), (RefusalReason::Busy, None));
    world.finish(&first, Outcome::Completed, 0.0);
    assert!(world.acquire(&ask("a")).is_ok());
}

#[test]
fn what_was_tried_is_not_tried_again() {
    let mut world = World::new(3);
    let tried: [Arc<str>; 2] = ["s0".into(), "s1".into()];
    let grant = world.acquire(&Ask { exclude: &tried, ..ask("a") }).unwrap();
    assert_eq!(&*grant.subscription, "s2");
    let all: [Arc<str>; 3] = ["s0".into(), "s1".into(), "s2".into()];
    assert_eq!(reason(world.acquire(&Ask { exclude: &all, ..ask("b") })), RefusalReason::NoneHealthy);
}

#[test]
fn an_empty_pool_refuses() {
    let mut world = World::with(settings(Vec::new()));
    let refusal = world.acquire(&ask("a")).unwrap_err();
    assert_eq!((refusal.reason, refusal.retry_at), (RefusalReason::NoneHealthy, None));
}

#[test]
fn a_large_pool_shows_the_best_candidates_and_counts_the_rest() {
    let mut members: Vec<_> = (0..40).map(|number| member(&format!("s{number}"))).collect();
    for member in &mut members[..30] {
        member.enabled = false;
    }
    let mut world = World::with(settings(members));
    let decision = world.request("a").decision;
    assert_eq!(decision.candidates.len(), 8);
    assert_eq!(decision.excluded, [ExcludedCount { cause: Cause::Disabled, count: 30 }]);
    assert_eq!(decision.subscriptions, 40);
}

#[test]
fn the_last_256_decisions_are_kept() {
    let mut world = World::new(1);
    for _ in 0..300 {
        world.turn("a", 0.0);
    }
    assert_eq!(world.pool.decisions().count(), 256);
    assert_eq!(world.pool.decisions().next().unwrap().reason, Reason::Sticky);
}

#[test]
fn a_large_pool_tells_when_it_recovers_without_a_look_at_everybody_each_time() {
    let mut world = World::new(150);
    let all: Vec<Arc<str>> = world.pool.snapshot(world.now).subscriptions.iter().map(|view| view.id.clone()).collect();
    for (hours, id) in (2..).zip(&all) {
        let rejected = LimitReport {
            status: LimitStatus::Rejected,
            window: Some(Window::SevenDay),
            resets_at: Some(world.now + HOUR * hours.min(100)),
            windows: Vec::new(),
        };
        world.pool.observe(world.now, id, &rejected);
    }
    let first = world.now + HOUR * 2;
    for _ in 0..3 {
        let refused = world.acquire(&ask("a")).unwrap_err();
        assert_eq!((refused.reason, refused.retry_at), (RefusalReason::ProviderLimited, Some(first)));
        assert_eq!(refused.decision.excluded, [ExcludedCount { cause: Cause::ProviderLimit, count: 150 }]);
    }
    // Another question has its own answer: this family would not be served then either.
    let opus = LimitReport {
        status: LimitStatus::Rejected,
        window: Some(Window::SevenDayFamily(Family::Opus)),
        resets_at: Some(first + MINUTE),
        windows: Vec::new(),
    };
    world.pool.observe(world.now, &all[0], &opus);
    assert_eq!(world.acquire(&ask("a")).unwrap_err().retry_at, Some(first));
    // What was known holds until its time, and no longer.
    world.now = first - MOMENT;
    assert!(world.acquire(&ask("a")).is_err());
    world.now = first;
    assert_eq!(&*world.acquire(&ask("a")).unwrap().subscription, &*all[0]);
    // A change is noticed at once.
    assert!(world.acquire(&Ask { family: Family::Opus, ..ask("b") }).is_err());
    world.pool.restore(world.now, &all[77]);
    assert_eq!(&*world.acquire(&Ask { family: Family::Opus, ..ask("b") }).unwrap().subscription, &*all[77]);
}

#[test]
fn a_large_pool_that_is_busy_says_so() {
    let mut world = World::with(settings(
        (0..150).map(|at| SubscriptionSettings { max_concurrent: 1, ..member(&format!("s{at}")) }).collect(),
    ));
    let grants: Vec<_> = (0..150).map(|number| world.acquire(&ask(&format!("c{number}"))).unwrap()).collect();
    let refused = world.acquire(&ask("late")).unwrap_err();
    assert_eq!((refused.reason, refused.retry_at), (RefusalReason::Busy, None));
    assert_eq!(refused.decision.excluded, [ExcludedCount { cause: Cause::RequestsFull, count: 150 }]);
    world.finish(&grants[99], Outcome::Completed, 0.1);
    assert_eq!(world.acquire(&ask("late")).unwrap().subscription, grants[99].subscription);
}
