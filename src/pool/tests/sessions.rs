//! Sessions: they stay, they age, they give way, they move when they must, and idle ones are moved.

use super::*;

fn rotations(effects: &[Effect]) -> Vec<(&str, &str, &str)> {
    effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Rotation { from, to, cause, .. } => Some((&**from, &**to, cause.as_str())),
            _ => None,
        })
        .collect()
}

#[test]
fn a_session_stays_although_another_subscription_is_healthier() {
    let mut world = World::new(2);
    let home = world.turn("a", 20.0);
    for _ in 0..10 {
        assert_eq!(world.turn("a", 5.0), home);
    }
    let grant = world.request("a");
    assert_eq!(grant.decision.reason, Reason::Sticky);
    assert!(grant.effects.is_empty());
}

#[test]
fn a_fingerprint_prefers_its_subscription_too() {
    let mut world = World::new(3);
    let soft = Ask { session: SessionKey::Fingerprint(42), ..ask("") };
    let first = world.acquire(&soft).unwrap();
    world.finish(&first, Outcome::Completed, 3.0);
    for _ in 0..5 {
        let again = world.acquire(&soft).unwrap();
        assert_eq!(again.subscription, first.subscription);
        world.finish(&again, Outcome::Completed, 3.0);
    }
}

#[test]
fn a_session_stays_until_98_percent_of_the_budget_then_rotates() {
    let mut world = World::new(2);
    assert_eq!(&*world.turn("a", 456.0 * 0.98 - 0.000_001), "s0");
    assert_eq!(&*world.turn("a", 0.000_001), "s0");
    let grant = world.request("a");
    assert_eq!(&*grant.subscription, "s1");
    assert_eq!(rotations(&grant.effects), [("s0", "s1", "weekly budget spent")]);
    assert_eq!(grant.decision.reason, Reason::Moved(Cause::BudgetSpent));
}

#[test]
fn a_cooldown_rotates_the_session_and_its_slot_goes_with_it() {
    let mut world = World::new(2);
    let until = world.now + HOUR / 2;
    world.turn("a", 0.0);
    let grant = world.request("a");
    world.finish(&grant, rejected(Window::FiveHour, until), 0.0);
    assert_eq!(world.view("s0").assigned_clients, 1);
    let grant = world.request("a");
    assert_eq!(rotations(&grant.effects), [("s0", "s1", "limited by the provider")]);
    assert_eq!((world.view("s0").assigned_clients, world.view("s1").assigned_clients), (0, 1));
    world.finish(&grant, Outcome::Completed, 0.0);
    // It does not jump back when the first has recovered.
    world.wait(HOUR / 2);
    assert_eq!(&*world.turn("a", 0.0), "s1");
}

#[test]
fn a_busy_subscription_overflows_without_losing_its_session() {
    let mut world =
        World::with(settings(vec![SubscriptionSettings { max_concurrent: 1, ..member("s0") }, member("s1")]));
    let first = world.request("a");
    let second = world.request("a");
    assert_eq!((&*first.subscription, &*second.subscription), ("s0", "s1"));
    assert_eq!(second.decision.reason, Reason::Overflow(Cause::RequestsFull));
    assert!(second.effects.is_empty());
    assert_eq!((world.view("s0").assigned_clients, world.view("s1").assigned_clients), (1, 1));
    world.finish(&first, Outcome::Completed, 0.0);
    world.finish(&second, Outcome::Completed, 0.0);
    assert_eq!((world.view("s0").assigned_clients, world.view("s1").assigned_clients), (1, 0));
    assert_eq!(&*world.turn("a", 0.0), "s0");
}

#[test]
fn a_retry_runs_elsewhere_and_the_session_comes_home() {
    let mut world = World::new(2);
    world.turn("a", 0.0);
    let failed = world.request("a");
    world.finish(&failed, Outcome::Unavailable, 0.0);
    let tried = [failed.subscription];
    let retry = world.acquire(&Ask { exclude: &tried, ..ask("a") }).unwrap();
    assert_eq!((&*retry.subscription, retry.decision.reason), ("s1", Reason::Overflow(Cause::AlreadyTried)));
    world.finish(&retry, Outcome::Completed, 0.0);
    assert_eq!(&*world.turn("a", 0.0), "s0");
}

#[test]
fn a_new_session_whose_first_request_fails_settles_where_it_succeeds() {
    let mut world = World::new(2);
    let failed = world.request("a");
    world.finish(&failed, Outcome::Unavailable, 0.0);
    assert_eq!(world.view("s0").assigned_clients, 0);
    let tried = [failed.subscription];
    let retry = world.acquire(&Ask { exclude: &tried, ..ask("a") }).unwrap();
    world.finish(&retry, Outcome::Completed, 0.0);
    assert_eq!(&*world.turn("a", 0.0), "s1");
}

#[test]
fn sessions_idle_after_5_minutes_are_released_after_60() {
    let mut world = World::new(1);
    world.turn("a", 0.0);
    let state = |world: &World| world.view("s0").sessions.first().map(|session| session.state);
    assert_eq!(state(world.wait_nearly(MINUTE * 5)), Some("active"));
    assert_eq!(state(world.wait(MOMENT)), Some("idle"));
    world.wait_nearly(MINUTE * 55);
    world.pool.tick(world.now);
    assert_eq!(world.view("s0").assigned_clients, 1);
    world.wait(MOMENT);
    world.pool.tick(world.now);
    assert_eq!((world.view("s0").assigned_clients, world.pool.snapshot(world.now).totals.sessions), (0, 0));
}

#[test]
fn a_stale_session_is_a_new_one_even_without_a_tick() {
    let mut world = World::new(2);
    world.turn("a", 10.0);
    world.wait(HOUR);
    let grant = world.request("a");
    assert_eq!((&*grant.subscription, grant.decision.reason), ("s1", Reason::Best));
}

#[test]
fn a_long_request_keeps_its_session() {
    let mut world = World::new(1);
    let grant = world.request("a");
    world.wait(HOUR * 3);
    world.pool.tick(world.now);
    assert_eq!(world.view("s0").sessions[0].state, "active");
    world.finish(&grant, Outcome::Completed, 0.0);
    assert_eq!(world.view("s0").assigned_clients, 1);
}

#[test]
fn the_longest_idle_session_gives_way_but_an_active_one_never() {
    let mut world = World::with(settings(vec![SubscriptionSettings { max_clients: Some(2), ..member("s0") }]));
    world.turn("oldest", 0.0);
    world.wait(MINUTE);
    world.turn("older", 0.0);
    world.wait_nearly(MINUTE * 4);
    assert_eq!(reason(world.acquire(&ask("new"))), RefusalReason::Busy);
    world.wait(MOMENT);
    let grant = world.request("new");
    assert_eq!(grant.decision.reason, Reason::GaveWay);
    assert_eq!(world.view("s0").assigned_clients, 2);
    // `older` has kept its place, `oldest` has not.
    assert_eq!(reason(world.acquire(&ask("oldest"))), RefusalReason::Busy);
    assert_eq!(world.request("older").decision.reason, Reason::Sticky);
}

#[test]
fn ten_thousand_one_off_requests_never_fill_the_pool() {
    let mut world = World::with(settings(vec![SubscriptionSettings { max_clients: Some(3), ..member("s0") }]));
    for _ in 0..10_000 {
        let grant = world.one_off();
        world.finish(&grant, Outcome::Completed, 0.000_001);
    }
    assert_eq!(world.view("s0").assigned_clients, 0);
    assert!(world.acquire(&ask("a session")).is_ok());
}

#[test]
fn a_one_off_request_holds_a_slot_while_it_runs() {
    let mut world = World::with(settings(vec![SubscriptionSettings { max_clients: Some(2), ..member("s0") }]));
    let first = world.one_off();
    let _second = world.one_off();
    assert_eq!(world.view("s0").assigned_clients, 2);
    assert_eq!(reason(world.acquire(&ask("a"))), RefusalReason::Busy);
    world.finish(&first, Outcome::Abandoned, 0.0);
    assert!(world.acquire(&ask("a")).is_ok());
}

#[test]
fn remembered_fingerprints_are_bounded() {
    let mut world = World::new(1);
    for _ in 0..70_000 {
        let grant = world.one_off();
        world.finish(&grant, Outcome::Completed, 0.0);
    }
    assert_eq!(world.pool.snapshot(world.now).totals.sessions, 65_536);
}

#[test]
fn two_hundred_disconnects_leave_nothing_behind() {
    let mut world = World::new(3);
    for number in 0..200 {
        let grant = world.request(&format!("c{number}"));
        world.finish(&grant, Outcome::Abandoned, 0.0);
    }
    let snapshot = world.pool.snapshot(world.now);
    assert_eq!((snapshot.totals.in_flight, snapshot.totals.sessions), (0, 0));
    assert!(snapshot.subscriptions.iter().all(|view| view.assigned_clients == 0 && view.in_flight == 0));
}

#[test]
fn a_thousand_cycles_end_at_zero() {
    let mut world = World::new(3);
    for number in 0..1000 {
        let session = format!("c{number}");
        world.turn(&session, 0.001);
        assert!(world.pool.release(world.now, &SessionKey::Explicit(session.into())));
    }
    let snapshot = world.pool.snapshot(world.now);
    assert_eq!((snapshot.totals.in_flight, snapshot.totals.sessions), (0, 0));
    assert!(snapshot.subscriptions.iter().all(|view| view.assigned_clients == 0));
}

// Rebalancing.

/// `s0` with idle sessions `c0..` and this much more in its block than `s1`.
fn unequal(sessions: usize, gap: f64) -> World {
    let mut world = World::new(2);
    world.use_up("s1", 1.0);
    let others: [Arc<str>; 1] = ["s1".into()];
    for number in 0..sessions {
        let grant = world.acquire(&Ask { exclude: &others, ..ask(&format!("c{number}")) }).unwrap();
        world.finish(&grant, Outcome::Completed, 0.0);
    }
    world.use_up("s0", 1.0 + gap);
    world.wait(MINUTE * 5);
    world
}

fn moved(effects: &[Effect]) -> usize {
    effects.iter().filter(|effect| matches!(effect, Effect::Moved { .. })).count()
}

#[test]
fn a_gap_of_25_dollars_moves_three_idle_sessions_a_cycle() {
    let mut world = unequal(5, 25.0);
    assert_eq!(moved(&world.pool.rebalance(world.now)), 3);
    assert_eq!((world.view("s0").assigned_clients, world.view("s1").assigned_clients), (2, 3));
    assert_eq!(moved(&world.pool.rebalance(world.now)), 2);
    assert_eq!(moved(&world.pool.rebalance(world.now)), 0);
    assert_eq!(&*world.turn("c0", 0.0), "s1");
}

#[test]
fn a_gap_of_5_dollars_is_enough_and_less_is_not() {
    let mut world = unequal(5, 5.0);
    assert_eq!(moved(&world.pool.rebalance(world.now)), 3);
    let mut world = unequal(5, 4.999_999);
    assert_eq!(moved(&world.pool.rebalance(world.now)), 0);
}

#[test]
fn active_sessions_never_move() {
    let mut world = unequal(2, 25.0);
    world.turn("c0", 0.0);
    let running = world.request("c1");
    world.wait(MINUTE * 4);
    assert!(world.pool.rebalance(world.now).is_empty());
    world.wait(MINUTE);
    assert_eq!(moved(&world.pool.rebalance(world.now)), 1);
    assert_eq!(&*running.subscription, "s0");
    assert_eq!(world.view("s0").assigned_clients, 1);
}

#[test]
fn nothing_moves_without_idle_sessions_a_second_subscription_or_free_slots() {
    let mut world = unequal(0, 25.0);
    assert!(world.pool.rebalance(world.now).is_empty());

    let mut world = World::new(1);
    world.turn("a", 25.0);
    world.wait(MINUTE * 10);
    assert!(world.pool.rebalance(world.now).is_empty());

    let mut world = unequal(5, 25.0);
    let full = SubscriptionSettings { max_clients: Some(1), ..member("s1") };
    world.pool.apply(world.now, settings(vec![member("s0"), full]));
    assert_eq!(moved(&world.pool.rebalance(world.now)), 1);
    assert_eq!(moved(&world.pool.rebalance(world.now)), 0);
}

#[test]
fn rebalancing_can_be_switched_off() {
    let mut world = unequal(5, 25.0);
    let mut off = settings(vec![member("s0"), member("s1")]);
    off.rebalancing.enabled = false;
    world.pool.apply(world.now, off);
    assert!(world.pool.rebalance(world.now).is_empty());
}

#[test]
fn fingerprints_that_are_idle_move_too() {
    let mut world = World::new(2);
    let grant = world.one_off();
    world.finish(&grant, Outcome::Completed, 20.0);
    world.wait(MINUTE * 5);
    assert_eq!(moved(&world.pool.rebalance(world.now)), 1);
}
