//! Limits by the minute and by the day.

use super::*;

fn world(capacity: CapacityLimits) -> World {
    World::with(settings(vec![SubscriptionSettings { capacity, ..member("s0") }]))
}

fn refused_until(world: &mut World) -> Option<Timestamp> {
    let refusal = world.acquire(&ask("late")).unwrap_err();
    assert_eq!(refusal.reason, RefusalReason::Busy);
    assert_eq!(excluded(&world.view("s0")), Some(Cause::CapacityFull));
    refusal.retry_at
}

#[test]
fn requests_in_any_minute() {
    let mut world = world(CapacityLimits { requests_per_minute: Some(3), ..CapacityLimits::default() });
    let first = world.now;
    for _ in 0..3 {
        let grant = world.one_off();
        world.finish(&grant, Outcome::ClientError, 0.0);
        world.wait(Duration::from_secs(10));
    }
    assert_eq!(refused_until(&mut world), Some(first + MINUTE));
    world.now = first + MINUTE - MOMENT;
    assert!(world.acquire(&ask("a")).is_err());
    world.now = first + MINUTE;
    assert!(world.acquire(&ask("a")).is_ok());
    assert_eq!(refused_until(&mut world), Some(first + MINUTE + Duration::from_secs(10)));
}

#[test]
fn tokens_in_any_minute_with_estimates_of_what_runs() {
    let mut world = world(CapacityLimits { tokens_per_minute: Some(250), ..CapacityLimits::default() });
    world.use_up("s0", 0.1);
    world.wait(Duration::from_secs(20));
    let grant = world.acquire(&Ask { estimated_tokens: 150, ..ask("big") }).unwrap();
    assert_eq!(refused_until(&mut world), None, "the running request may turn out smaller");
    world.finish(&grant, Outcome::Completed, 0.1);
    assert!(world.acquire(&ask("a")).is_ok(), "it used 100");
    world.use_up("s0", 0.1);
    assert_eq!(refused_until(&mut world), Some(world.now + Duration::from_secs(40)));
}

#[test]
fn input_tokens_in_any_minute() {
    let mut world = world(CapacityLimits { input_tokens_per_minute: Some(120), ..CapacityLimits::default() });
    world.use_up("s0", 0.1);
    world.use_up("s0", 0.1);
    assert_eq!(refused_until(&mut world), Some(world.now + MINUTE));
}

#[test]
fn tokens_and_cost_in_any_day() {
    let tokens = CapacityLimits { tokens_per_day: Some(200), ..CapacityLimits::default() };
    let cost = CapacityLimits { cost_per_day: Some(MicroUsd::from_usd(2.0)), ..CapacityLimits::default() };
    for capacity in [tokens, cost] {
        let mut world = world(capacity);
        world.use_up("s0", 1.0);
        world.wait(HOUR);
        world.use_up("s0", 1.0);
        assert_eq!(refused_until(&mut world), Some(world.now + HOUR * 23));
        world.wait(HOUR * 23);
        assert!(world.acquire(&ask("a")).is_ok());
    }
}

#[test]
fn a_session_overflows_for_a_moment_instead_of_moving() {
    let capacity = CapacityLimits { requests_per_minute: Some(1), ..CapacityLimits::default() };
    let tight = SubscriptionSettings { capacity, ..member("s0") };
    let mut world = World::with(settings(vec![tight, member("s1")]));
    world.turn("a", 0.0);
    let grant = world.request("a");
    assert_eq!((&*grant.subscription, grant.decision.reason), ("s1", Reason::Overflow(Cause::CapacityFull)));
    world.finish(&grant, Outcome::Completed, 0.0);
    world.wait(MINUTE);
    assert_eq!(&*world.turn("a", 0.0), "s0");
}

#[test]
fn without_limits_nothing_is_kept() {
    let mut world = World::new(1);
    for _ in 0..100 {
        world.turn("a", 0.0);
    }
    assert_eq!(excluded(&world.view("s0")), None);
}
