//! Failures that are no limits: overload, crashes, lost logins, and requests that say nothing.

use super::*;

fn fail(world: &mut World, times: usize, outcome: &Outcome) -> Vec<Effect> {
    (0..times)
        .flat_map(|_| {
            let grant = world.one_off();
            world.finish(&grant, outcome.clone(), 0.0)
        })
        .collect()
}

#[test]
fn an_overloaded_provider_cools_nothing_down_but_five_failures_in_a_row_open_the_breaker() {
    let mut world = World::new(1);
    assert!(fail(&mut world, 20, &Outcome::Overloaded).is_empty());
    assert_eq!(world.view("s0").breaker, BreakerView::Closed { failures: 0 });
    assert!(fail(&mut world, 4, &Outcome::Unavailable).is_empty());
    assert_eq!(world.view("s0").status, Status::Available);
    let until = world.now + MINUTE * 5;
    let effects = fail(&mut world, 1, &Outcome::BackendFailed);
    assert_eq!(effects, [Effect::BreakerOpened { subscription: "s0".into(), until }]);
    let view = world.view("s0");
    assert_eq!((view.status, view.status_cause.until), (Status::Cooldown, Some(until)));
    assert_eq!(view.status_cause.cause, "breaker open after failures in a row");
    let refusal = world.acquire(&ask("a")).unwrap_err();
    assert_eq!((refusal.reason, refusal.retry_at), (RefusalReason::NoneHealthy, Some(until)));
}

#[test]
fn the_breaker_lets_one_probe_pass_after_300_seconds_and_two_close_it() {
    let mut world = World::new(1);
    fail(&mut world, 5, &Outcome::Unavailable);
    world.wait(Duration::from_millis(299_999));
    assert!(world.acquire(&ask("a")).is_err());
    world.wait(Duration::from_millis(1));
    let probe = world.one_off();
    let refusal = world.acquire(&ask("a")).unwrap_err();
    assert_eq!((refusal.reason, excluded(&world.view("s0"))), (RefusalReason::Busy, Some(Cause::Probing)));
    assert!(world.finish(&probe, Outcome::Completed, 0.0).is_empty());
    let probe = world.one_off();
    let effects = world.finish(&probe, Outcome::Completed, 0.0);
    assert!(matches!(&effects[..], [Effect::Recovered { .. }]));
    assert_eq!(world.view("s0").breaker, BreakerView::Closed { failures: 0 });
    // It then takes its load step by step.
    let _two = (world.one_off(), world.one_off());
    assert!(world.acquire(&ask("a")).is_err());
}

#[test]
fn what_is_replaced_is_not_blamed_for_what_was_there_before() {
    let mut world = World::new(2);
    for _ in 0..2 {
        // The other one is chosen when one is cut off.
        fail(&mut world, 5, &Outcome::BackendFailed);
    }
    let open = world.view("s1").breaker;
    assert!(world.acquire(&ask("a")).is_err());
    let (closed, effects) = world.pool.forget_failures(world.now, ["s0", "unknown"]);
    assert_eq!(closed, ["s0"]);
    let cause = "breaker open after failures in a row".to_owned();
    assert_eq!(effects, [Effect::Recovered { subscription: "s0".into(), cause }]);
    assert_eq!((world.view("s0").breaker, world.view("s1").breaker), (BreakerView::Closed { failures: 0 }, open));
    // It serves at once, and takes its load step by step.
    let grant = world.one_off();
    assert!(world.acquire(&ask("a")).is_err());
    world.finish(&grant, Outcome::Completed, 0.0);
    fail(&mut world, 4, &Outcome::BackendFailed);
    assert_eq!(world.pool.forget_failures(world.now, ["s0"]), (Vec::new(), Vec::new()));
    assert_eq!(world.view("s0").breaker, BreakerView::Closed { failures: 0 });
    // What else keeps it away is not the doing of what was replaced.
    fail(&mut world, 1, &Outcome::Unauthenticated { detail: "login".to_owned() });
    world.pool.forget_failures(world.now, ["s0"]);
    assert_eq!(excluded(&world.view("s0")), Some(Cause::Unauthenticated));
}

#[test]
fn a_failed_probe_keeps_it_open_and_an_abandoned_one_lets_the_next_try() {
    let mut world = World::new(1);
    fail(&mut world, 5, &Outcome::Unavailable);
    world.wait(MINUTE * 5);
    fail(&mut world, 1, &Outcome::Abandoned);
    fail(&mut world, 1, &Outcome::ClientError);
    let effects = fail(&mut world, 1, &Outcome::Unavailable);
    let until = world.now + MINUTE * 5;
    assert_eq!(effects, [Effect::BreakerOpened { subscription: "s0".into(), until }]);
    assert!(world.acquire(&ask("a")).is_err());
}

#[test]
fn a_session_leaves_a_subscription_whose_breaker_opened() {
    let mut world = World::new(2);
    world.turn("a", 0.0);
    for _ in 0..5 {
        let grant = world.request("a");
        world.finish(&grant, Outcome::Unavailable, 0.0);
    }
    let grant = world.request("a");
    assert_eq!((&*grant.subscription, grant.decision.reason), ("s1", Reason::Moved(Cause::BreakerOpen)));
}

#[test]
fn abandoned_requests_and_client_errors_say_nothing() {
    let mut world = World::new(1);
    fail(&mut world, 20, &Outcome::Abandoned);
    fail(&mut world, 20, &Outcome::ClientError);
    assert_eq!(world.view("s0").breaker, BreakerView::Closed { failures: 0 });
    fail(&mut world, 4, &Outcome::Unavailable);
    fail(&mut world, 3, &Outcome::Abandoned);
    assert_eq!(world.view("s0").breaker, BreakerView::Closed { failures: 4 }, "neither good nor bad");
}

#[test]
fn what_was_used_counts_whatever_the_outcome() {
    let mut world = World::new(1);
    let outcomes = [
        Outcome::Completed,
        Outcome::Abandoned,
        Outcome::ClientError,
        Outcome::Unavailable,
        Outcome::BackendFailed,
        Outcome::Unauthenticated { detail: "expired".to_owned() },
    ];
    let grants: Vec<_> = outcomes.iter().map(|_| world.one_off()).collect();
    for (grant, outcome) in grants.iter().zip(outcomes) {
        world.finish(grant, outcome, 1.25);
    }
    assert!((world.view("s0").weekly_used - 7.5).abs() < 1e-9);
    assert_eq!(world.view("s0").last_usage_update, Some(world.now));
    assert_eq!(world.pool.in_flight(), 0);
}

fn log_out(world: &mut World) -> Vec<Effect> {
    fail(world, 1, &Outcome::Unauthenticated { detail: "OAuth token revoked".to_owned() })
}

#[test]
fn a_lost_login_is_tried_again_by_one_request_at_growing_intervals() {
    let mut world = World::new(1);
    let effects = log_out(&mut world);
    let cause = "OAuth token revoked".to_owned();
    assert_eq!(effects, [Effect::AuthFailed { subscription: "s0".into(), cause: cause.clone() }]);
    let view = world.view("s0");
    assert_eq!((view.status, view.status_cause.cause), (Status::Unauthenticated, cause));
    for pause in [300, 600, 1200, 2400, 3600, 3600] {
        let pause = Duration::from_secs(pause);
        let refusal = world.acquire(&ask("a")).unwrap_err();
        assert_eq!((refusal.reason, refusal.retry_at), (RefusalReason::NoneHealthy, Some(world.now + pause)));
        world.wait(pause);
        let probe = world.one_off();
        assert_eq!(reason(world.acquire(&ask("a"))), RefusalReason::Busy, "one at a time");
        let detail = "revoked".to_owned();
        assert_eq!(world.finish(&probe, Outcome::Unauthenticated { detail }, 0.0), [], "told once");
    }
    world.wait(Duration::from_secs(3600));
    let probe = world.one_off();
    let effects = world.finish(&probe, Outcome::Completed, 0.1);
    assert!(matches!(&effects[..], [Effect::Recovered { .. }]), "{effects:?}");
    assert_eq!(world.view("s0").status, Status::Available);
}

#[test]
fn the_operator_can_end_a_quarantine_at_once() {
    let mut world = World::new(1);
    log_out(&mut world);
    let (found, effects) = world.pool.restore(world.now, "s0");
    assert!(found && matches!(&effects[..], [Effect::Recovered { .. }]));
    let _probe = world.one_off();
    assert_eq!(reason(world.acquire(&ask("a"))), RefusalReason::Busy, "one at a time first");
    assert!(!world.pool.restore(world.now, "nobody").0);
}

#[test]
fn many_requests_with_a_lost_login_are_one_event() {
    let mut world = World::new(1);
    let grants: Vec<_> = (0..5).map(|_| world.one_off()).collect();
    let effects: Vec<_> = grants
        .iter()
        .flat_map(|grant| world.finish(grant, Outcome::Unauthenticated { detail: "revoked".to_owned() }, 0.0))
        .collect();
    assert_eq!(effects.len(), 1);
}

#[test]
fn a_reload_lets_one_request_try_a_lost_login_and_claims_nothing() {
    let mut world = World::new(1);
    log_out(&mut world);
    let effects = world.pool.apply(world.now, settings(vec![member("s0")]));
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Recovered { .. })), "{effects:?}");
    let probe = world.one_off();
    assert_eq!(reason(world.acquire(&ask("a"))), RefusalReason::Busy, "one at a time");
    let effects = world.finish(&probe, Outcome::Completed, 0.1);
    assert!(matches!(&effects[..], [Effect::Recovered { .. }]), "{effects:?}");
}
