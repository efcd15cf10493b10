//! What other replicas do with the same subscriptions.

use super::*;

fn limit(until: Timestamp) -> LimitReport {
    report(LimitStatus::Rejected, Some(Window::FiveHour), Some(until))
}

fn out(world: &World, id: &str) -> Option<Exclusion> {
    world.view(id).excluded
}

#[test]
fn a_grant_that_was_taken_back_has_never_been() {
    let mut limited = member("s0");
    limited.capacity.requests_per_minute = Some(1);
    limited.max_concurrent = 1;
    let mut world = World::with(settings(vec![limited]));
    for _ in 0..3 {
        let grant = world.request("a");
        let effects = world.pool.cancel(world.now, grant.lease);
        assert_eq!(effects, []);
    }
    // Its session is gone too, and a second time changes nothing.
    let grant = world.request("b");
    assert_eq!(world.view("s0").session_counts["explicit"], 1);
    world.pool.cancel(world.now, grant.lease);
    world.pool.cancel(world.now, grant.lease);
    assert_eq!((world.pool.in_flight(), world.view("s0").session_counts["explicit"]), (0, 0));
    // One that did run counts.
    world.turn("c", 0.0);
    assert!(world.acquire(&ask("d")).is_err());
}

#[test]
fn what_others_use_up_is_a_reason_of_its_own_that_passes() {
    let mut world = World::new(2);
    let until = world.now + MINUTE;
    world.pool.hold(world.now, "s0", Shortage::Capacity, until);
    let exclusion = out(&world, "s0").unwrap();
    assert_eq!((exclusion.cause, exclusion.source), (Cause::CapacityFull, Source::Replicas));
    assert_eq!((exclusion.since, exclusion.until), (Some(world.now), Some(until)));
    for session in ["a", "b", "c"] {
        assert_eq!(&*world.turn(session, 0.0), "s1");
    }
    world.pool.hold(world.now, "s1", Shortage::Requests, until);
    let refusal = world.acquire(&ask("d")).unwrap_err();
    assert_eq!((refusal.reason, refusal.retry_at), (RefusalReason::Busy, Some(until)));
    world.wait(MINUTE);
    world.turn("d", 0.0);
}

#[test]
fn a_place_that_another_replica_gives_back_is_free_at_once_but_a_window_is_not() {
    let mut world = World::new(1);
    let until = world.now + HOUR;
    for (shortage, lifted) in [(Shortage::Requests, true), (Shortage::Slots, true), (Shortage::Capacity, false)] {
        world.pool.hold(world.now, "s0", shortage, until);
        assert!(out(&world, "s0").is_some());
        world.pool.count_elsewhere(world.now, "s0", &spent(1.0));
        assert_eq!(out(&world, "s0").is_none(), lifted, "{shortage:?}");
    }
    let view = world.view("s0");
    assert!((view.weekly_used - 3.0).abs() < 1e-9, "what others used counts: {}", view.weekly_used);
}

#[test]
fn slots_that_others_hold_keep_only_those_away_who_need_one() {
    let mut world = World::new(2);
    world.turn("a", 0.0);
    let home = world.turn("a", 0.0);
    world.pool.hold(world.now, &home, Shortage::Slots, world.now + HOUR);
    assert_eq!(world.turn("a", 0.0), home);
    // That one has ended: the slots are asked for anew, and found taken.
    world.pool.hold(world.now, &home, Shortage::Slots, world.now + HOUR);
    for session in ["b", "c", "d"] {
        assert_ne!(world.turn(session, 0.0), home);
    }
}

#[test]
fn a_session_follows_where_another_replica_has_bound_it() {
    let mut world = World::new(3);
    let grant = world.request("a");
    assert_eq!(grant.placement, Placement { home: grant.subscription.clone(), standing: Standing::New });
    world.finish(&grant, Outcome::Completed, 0.0);
    let other: Arc<str> = if &*grant.subscription == "s2" { "s1" } else { "s2" }.into();
    world.wait(MINUTE);
    let grant = world.pool.acquire_at(world.now, &ask("a"), &other).unwrap();
    assert_eq!(grant.subscription, other);
    assert_eq!(grant.placement, Placement { home: other.clone(), standing: Standing::Since(world.now) });
    world.finish(&grant, Outcome::Completed, 0.0);
    assert_eq!(world.turn("a", 0.0), other, "it stays there");
    // One never seen before goes there as well, and leaves nothing behind when it cannot be served.
    let grant = world.pool.acquire_at(world.now, &ask("b"), &other).unwrap();
    assert_eq!(grant.subscription, other);
    for id in ["s0", "s1", "s2"] {
        world.pool.hold(world.now, id, Shortage::Requests, world.now + HOUR);
    }
    let sessions = world.pool.snapshot(world.now).totals.sessions;
    world.pool.acquire_at(world.now, &ask("c"), &other).unwrap_err();
    assert_eq!(world.pool.snapshot(world.now).totals.sessions, sessions);
}

#[test]
fn a_session_bound_to_one_that_cannot_serve_moves_and_says_from_where() {
    let mut world = World::new(2);
    let until = world.now + HOUR;
    world.pool.breaker_elsewhere(world.now, "s0", Some(until));
    let grant = world.pool.acquire_at(world.now, &ask("a"), "s0").unwrap();
    assert_eq!(&*grant.subscription, "s1");
    assert_eq!(grant.placement, Placement { home: "s1".into(), standing: Standing::MovedFrom("s0".into()) });
    // Where nobody of that name is known, the request is like any other.
    world.pool.acquire_at(world.now, &ask("b"), "nobody").unwrap();
    // A request that only this once runs elsewhere leaves the session where it is.
    let mut world = World::new(2);
    let home = world.turn("c", 0.0);
    let exclude = [home.clone()];
    let grant = world.acquire(&Ask { exclude: &exclude, ..ask("c") }).unwrap();
    assert_ne!(grant.subscription, home);
    assert_eq!(grant.placement.home, home);
}

#[test]
fn a_limit_that_another_replica_has_met_holds_here_and_is_not_announced_twice() {
    let mut world = World::new(1);
    let until = world.now + HOUR;
    let report = limit(until);
    assert_eq!(world.pool.observe_elsewhere(world.now, "s0", &report), []);
    let view = world.view("s0");
    assert_eq!(view.status, Status::Cooldown);
    assert!(view.status_cause.cause.contains("another replica"), "{}", view.status_cause.cause);
    // Milder news shorten nothing.
    let milder = limit(world.now + MINUTE);
    world.pool.observe_elsewhere(world.now, "s0", &milder);
    world.pool.breaker_elsewhere(world.now, "s0", None);
    assert_eq!(world.view("s0").status_cause.until, Some(until));
    world.wait(HOUR);
    assert_eq!(world.pool.tick(world.now), []);
    assert_eq!(world.view("s0").status, Status::Available);
    // One that was met here is announced here, whatever others say of it afterwards.
    let own = limit(world.now + MINUTE);
    let effects = world.pool.observe(world.now, "s0", &own);
    assert!(matches!(effects[..], [Effect::LimitReached { .. }]), "{effects:?}");
    world.wait(MOMENT);
    world.pool.observe_elsewhere(world.now, "s0", &limit(world.now + HOUR));
    world.wait(HOUR);
    let effects = world.pool.tick(world.now);
    assert!(matches!(effects[..], [Effect::Recovered { .. }]), "{effects:?}");
}

#[test]
fn a_breaker_opens_and_closes_with_that_of_another_replica() {
    let mut world = World::new(1);
    world.pool.breaker_elsewhere(world.now, "s0", Some(world.now + HOUR));
    assert_eq!(out(&world, "s0").unwrap().cause, Cause::BreakerOpen);
    // One that ends sooner does not end ours.
    world.pool.breaker_elsewhere(world.now, "s0", Some(world.now + MINUTE));
    assert_eq!(out(&world, "s0").unwrap().until, Some(world.now + HOUR));
    world.pool.breaker_elsewhere(world.now, "s0", None);
    assert_eq!(out(&world, "s0"), None);
    // It is loaded step by step, as after probes of its own.
    assert_eq!(world.view("s0").max_concurrent, 1);
}
