//! What the provider says: cooldowns, throttles, model families, and the way back.

use super::*;

fn recovered(effects: &[Effect]) -> Vec<&str> {
    effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Recovered { subscription, .. } => Some(&**subscription),
            _ => None,
        })
        .collect()
}

#[test]
fn a_limit_with_a_reset_cools_down_until_then_and_time_alone_recovers() {
    let mut world = World::new(1);
    let until = world.now + HOUR * 3;
    let grant = world.request("a");
    let effects = world.finish(&grant, rejected(Window::FiveHour, until), 0.0);
    let cause = "five_hour limit of the provider".to_owned();
    assert_eq!(effects, [Effect::LimitReached { subscription: "s0".into(), cause: cause.clone(), until }]);
    let view = world.view("s0");
    assert_eq!(view.status, Status::Cooldown);
    assert_eq!(
        view.status_cause,
        StatusCause { cause, source: Source::Provider, since: world.now, until: Some(until) }
    );

    let refusal = world.acquire(&ask("b")).unwrap_err();
    assert_eq!((refusal.reason, refusal.retry_at), (RefusalReason::ProviderLimited, Some(until)));
    world.now = until - Duration::from_millis(1);
    assert!(world.acquire(&ask("b")).is_err());
    world.now = until;
    assert_eq!(world.view("s0").status, Status::Available);
    let grant = world.request("b");
    assert_eq!(recovered(&grant.effects), ["s0"]);
}

#[test]
fn a_tick_announces_the_recovery() {
    let mut world = World::new(1);
    let until = world.now + HOUR;
    let grant = world.request("a");
    world.finish(&grant, rejected(Window::SevenDay, until), 0.0);
    assert!(world.pool.tick(until - Duration::from_millis(1)).is_empty());
    assert_eq!(recovered(&world.pool.tick(until)), ["s0"]);
    assert!(world.pool.tick(until).is_empty());
}

#[test]
fn an_optimistic_poll_does_not_shorten_a_lock() {
    let mut world = World::new(1);
    let until = world.now + HOUR * 3;
    let grant = world.request("a");
    world.finish(&grant, rejected(Window::FiveHour, until), 0.0);
    world.observe("s0", &poll(Window::FiveHour, 0.03, Some(world.now + HOUR)));
    world.observe("s0", &report(LimitStatus::Allowed, Some(Window::FiveHour), Some(world.now + HOUR)));
    assert_eq!(reason(world.acquire(&ask("a"))), RefusalReason::ProviderLimited);
    world.now = until - Duration::from_millis(1);
    assert!(world.acquire(&ask("a")).is_err());
}

#[test]
fn an_answer_to_an_earlier_request_does_not_unlock() {
    let mut world = World::new(1);
    let early = world.request("a");
    let limited = world.request("b");
    world.finish(&limited, rejected(Window::FiveHour, world.now + HOUR), 0.0);
    world.finish(&early, Outcome::Completed, 1.0);
    assert_eq!(reason(world.acquire(&ask("a"))), RefusalReason::ProviderLimited);
}

#[test]
fn many_requests_into_one_limit_are_one_event() {
    let mut world = World::new(1);
    let until = world.now + HOUR;
    let grants: Vec<_> = (0..10).map(|_| world.one_off()).collect();
    let effects: Vec<_> =
        grants.iter().flat_map(|grant| world.finish(grant, rejected(Window::FiveHour, until), 0.0)).collect();
    assert_eq!(effects.len(), 1);
}

#[test]
fn a_limit_on_one_family_leaves_the_others() {
    let mut world = World::new(2);
    let until = world.now + DAY;
    let opus = Ask { family: Family::Opus, ..ask("a") };
    let grant = world.acquire(&opus).unwrap();
    world.finish(&grant, Outcome::Completed, 0.0);
    let grant = world.acquire(&opus).unwrap();
    let effects = world.finish(&grant, rejected(Window::SevenDayFamily(Family::Opus), until), 0.0);
    assert!(matches!(&effects[..], [Effect::LimitReached { cause, .. }] if cause.contains("seven_day_opus")));
    assert_eq!(world.view("s0").status, Status::Available);
    // The session moves, because it asks for what its subscription cannot serve.
    let grant = world.acquire(&opus).unwrap();
    assert_eq!((&*grant.subscription, grant.decision.reason), ("s1", Reason::Moved(Cause::FamilyLimit)));
    world.finish(&grant, rejected(Window::SevenDayFamily(Family::Opus), until + HOUR), 0.0);
    let refusal = world.acquire(&Ask { family: Family::Opus, ..ask("new") }).unwrap_err();
    assert_eq!((refusal.reason, refusal.retry_at), (RefusalReason::ProviderLimited, Some(until)));
    // Other families go on.
    assert!(world.acquire(&ask("sonnet")).is_ok());
    world.now = until;
    assert!(world.acquire(&Ask { family: Family::Opus, ..ask("new") }).is_ok());
}

#[test]
fn a_throttle_rests_briefly_and_longer_each_time() {
    let mut world = World::new(1);
    for seconds in [5, 10, 20, 40, 80, 160, 300, 300] {
        let grant = world.one_off();
        let effects = world.finish(&grant, throttled(), 0.0);
        let until = world.now + Duration::from_secs(seconds);
        assert_eq!(effects, [Effect::Throttled { subscription: "s0".into(), until }]);
        let refusal = world.acquire(&ask("a")).unwrap_err();
        assert_eq!((refusal.reason, refusal.retry_at), (RefusalReason::ProviderLimited, Some(until)));
        assert_eq!(excluded(&world.view("s0")), Some(Cause::Throttled));
        world.now = until;
    }
    let grant = world.one_off();
    world.finish(&grant, Outcome::Completed, 0.0);
    let grant = world.one_off();
    world.finish(&grant, throttled(), 0.0);
    assert!(world.acquire(&ask("a")).is_err());
    world.wait(Duration::from_secs(5));
    assert!(world.acquire(&ask("a")).is_ok(), "an answer has started the count afresh");
}

#[test]
fn after_a_cooldown_one_two_four() {
    let mut world = World::new(1);
    let until = world.now + HOUR;
    let before = world.one_off();
    let limited = world.one_off();
    world.finish(&limited, rejected(Window::FiveHour, until), 0.0);
    world.now = until;
    for allowed in [1, 2, 4, 8] {
        let grants: Vec<_> = (0..allowed).map(|_| world.one_off()).collect();
        let refusal = world.acquire(&ask("too many")).unwrap_err();
        assert_eq!((refusal.reason, refusal.retry_at), (RefusalReason::Busy, None));
        assert_eq!(world.view("s0").max_concurrent, allowed);
        for grant in &grants {
            world.finish(grant, Outcome::Completed, 0.0);
        }
    }
    // A request from before the limit is not part of the way back.
    world.finish(&before, Outcome::Completed, 0.0);
}

#[test]
fn a_failed_probe_leads_back_into_the_cooldown() {
    let mut world = World::new(1);
    let until = world.now + HOUR;
    let grant = world.one_off();
    world.finish(&grant, rejected(Window::FiveHour, until), 0.0);
    world.now = until;
    let probe = world.one_off();
    world.finish(&probe, rejected(Window::FiveHour, until + HOUR), 0.0);
    assert_eq!(world.acquire(&ask("a")).unwrap_err().retry_at, Some(until + HOUR));
}

#[test]
fn a_waiting_crowd_does_not_fall_on_the_next_subscription_at_once() {
    let mut world = World::new(2);
    for number in 0..14 {
        let others: [Arc<str>; 1] = ["s1".into()];
        let grant = world.acquire(&Ask { exclude: &others, ..ask(&format!("c{number}")) }).unwrap();
        world.finish(&grant, Outcome::Completed, 0.0);
    }
    let until = world.now + HOUR / 2;
    for subscription in ["s0", "s1"] {
        world.observe(subscription, &report(LimitStatus::Rejected, Some(Window::FiveHour), Some(until)));
    }
    world.now = until;
    let granted = (0..14).filter(|number| world.acquire(&ask(&format!("c{number}"))).is_ok()).count();
    assert_eq!(granted, 2, "one probe for each");
}

#[test]
fn the_refusal_says_what_ends_first() {
    let mut world = World::new(3);
    world.use_up("s0", 400.0);
    world.observe("s1", &report(LimitStatus::Rejected, Some(Window::SevenDay), Some(world.now + DAY)));
    world.observe("s2", &report(LimitStatus::Rejected, Some(Window::FiveHour), Some(world.now + HOUR)));
    let refusal = world.acquire(&ask("a")).unwrap_err();
    assert_eq!((refusal.reason, refusal.retry_at), (RefusalReason::ProviderLimited, Some(world.now + HOUR)));
    assert_eq!(world.pool.recovery_in_part(world.now, 0), (Some(world.now + HOUR), None));
}

#[test]
fn the_budget_recovers_as_use_ages_out_without_traffic() {
    let mut world = World::new(1);
    world.use_up("s0", 300.0);
    world.wait(DAY);
    world.use_up("s0", 140.0);
    assert_eq!(world.view("s0").status, Status::Limited);
    let refusal = world.acquire(&ask("a")).unwrap_err();
    assert_eq!((refusal.reason, refusal.retry_at), (RefusalReason::BudgetSpent, Some(world.now + DAY * 6)));
    world.wait(DAY * 6);
    assert_eq!(world.view("s0").status, Status::Available);
    assert!(world.acquire(&ask("a")).is_ok());
}

#[test]
fn the_status_follows_the_budget_at_80_and_95_percent() {
    let mut world = World::new(1);
    let mut changes = Vec::new();
    for share in [0.8 - 1e-8, 0.8, 0.95 - 1e-8, 0.95] {
        let used = world.view("s0").weekly_used;
        let others: [Arc<str>; 0] = [];
        // An own session: new ones are not taken any more above 85 %.
        let grant = world.acquire(&Ask { exclude: &others, ..ask("a") }).unwrap();
        let effects = world.finish(&grant, Outcome::Completed, 456.0 * share - used);
        changes.extend(effects.into_iter().filter_map(|effect| match effect {
            Effect::StatusChanged { from, to, cause, .. } => Some((share, from, to, cause)),
            _ => None,
        }));
    }
    let expected = [
        (0.8, Status::Available, Status::Approaching, "80.0 % of the weekly budget used by our own account".to_owned()),
        (0.95, Status::Approaching, Status::Limited, "95.0 % of the weekly budget used by our own account".to_owned()),
    ];
    assert_eq!(changes, expected);
}

#[test]
fn a_poll_that_says_full_closes_the_subscription_for_new_sessions_until_the_reset() {
    let mut world = World::new(1);
    let reset = world.now + DAY * 2;
    world.observe("s0", &poll(Window::SevenDay, 1.0, Some(reset)));
    assert_eq!(world.view("s0").status, Status::Limited);
    assert_eq!(world.view("s0").status_cause.source, Source::Provider);
    let refusal = world.acquire(&ask("a")).unwrap_err();
    assert_eq!((refusal.reason, refusal.retry_at), (RefusalReason::BudgetSpent, Some(reset)));
    world.now = reset;
    assert!(world.acquire(&ask("a")).is_ok());
}

#[test]
fn unknown_subscriptions_and_leases_change_nothing() {
    let mut world = World::new(1);
    assert!(world.observe("nobody", &poll(Window::SevenDay, 1.0, None)).is_empty());
    let grant = world.request("a");
    world.finish(&grant, Outcome::Completed, 1.0);
    assert!(world.finish(&grant, Outcome::Completed, 1.0).is_empty());
    assert!((world.view("s0").weekly_used - 1.0).abs() < 1e-9);
}
