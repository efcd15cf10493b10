//! Much that becomes due in one moment is done a little at a time, and no decision is the worse for it.

use super::*;
use crate::pool::upkeep::DUE_A_CALL;

const MANY: usize = DUE_A_CALL * 10;

/// A pool whose members have all been limited until the same moment, which has come.
fn limits_have_ended() -> World {
    let mut world = World::new(MANY);
    let until = world.now + HOUR;
    for number in 0..MANY {
        world.observe(&format!("s{number}"), &report(LimitStatus::Rejected, Some(Window::FiveHour), Some(until)));
    }
    assert_eq!(reason(world.acquire(&ask("early"))), RefusalReason::ProviderLimited);
    world.wait(HOUR);
    world
}

fn recovered(effects: &[Effect]) -> usize {
    effects.iter().filter(|effect| matches!(effect, Effect::Recovered { .. })).count()
}

#[test]
fn each_call_looks_at_some_of_those_that_are_due_until_all_are() {
    let mut world = limits_have_ended();
    let mut steps = Vec::new();
    while world.pool.is_behind(world.now) {
        steps.push(recovered(&world.pool.tick(world.now)));
    }
    assert_eq!(steps, [DUE_A_CALL; 10]);
    assert_eq!(world.pool.tick(world.now), []);
}

#[test]
fn nobody_is_refused_while_one_that_is_free_again_was_not_looked_at() {
    // The others are due too, but none of them is free: their blocks have ended, their budgets are spent.
    let mut world = World::new(MANY);
    for number in 0..MANY {
        world.use_up(&format!("s{number}"), if number == MANY - 1 { 300.0 } else { 440.0 });
    }
    let last = format!("s{}", MANY - 1);
    // It is the last to become due.
    world.observe(&last, &report(LimitStatus::Rejected, Some(Window::FiveHour), Some(world.now + HOUR * 6)));
    world.wait(HOUR * 6);
    let grant = world.request("a");
    assert_eq!(*grant.subscription, *last);
    assert!(!world.pool.is_behind(world.now), "it took a look at everybody");
}

#[test]
fn a_session_whose_home_has_just_recovered_is_its_first_step() {
    let mut world = World::new(MANY);
    let homes: Vec<Arc<str>> = (0..MANY).map(|number| world.turn(&format!("c{number}"), 0.0)).collect();
    let until = world.now + MINUTE;
    for home in &homes {
        world.observe(home, &report(LimitStatus::Rejected, Some(Window::FiveHour), Some(until)));
    }
    world.wait(MINUTE);
    // Whoever's turn it is to be looked at: one request probes the home, and the next does not fall on it as well.
    let session = format!("c{}", MANY - 1);
    let (first, second) = (world.request(&session), world.request(&session));
    assert_eq!(first.subscription, homes[MANY - 1]);
    assert_ne!(second.subscription, homes[MANY - 1]);
    assert_eq!(second.decision.reason, Reason::Overflow(Cause::RampingUp));
}

#[test]
fn sessions_that_are_stale_go_in_small_steps() {
    let mut world = World::new(10);
    for number in 0..100 {
        world.turn(&format!("c{number}"), 0.0);
    }
    world.wait(HOUR);
    let mut left = vec![100];
    while world.pool.is_behind(world.now) {
        world.pool.tick(world.now);
        left.push(world.pool.snapshot(world.now).totals.sessions);
    }
    assert!(left.is_sorted_by(|before, after| before > after) && left.last() == Some(&0), "{left:?}");
    assert!(left.windows(2).all(|step| step[0] - step[1] <= 32), "{left:?}");
}
