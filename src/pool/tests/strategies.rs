//! Each strategy over a whole pool, and what decides when it sees no difference.

use std::collections::BTreeMap;

use super::*;

fn world(strategy: Strategy, fallbacks: [Option<Strategy>; 2], members: Vec<SubscriptionSettings>) -> World {
    let selection = SelectionSettings { strategy, fallbacks, seed: 42 };
    World::with(Settings { selection, ..settings(members) })
}

fn members(number: usize) -> Vec<SubscriptionSettings> {
    (0..number).map(|number| member(&format!("s{number}"))).collect()
}

/// Who serves these many requests, each ended before the next begins.
fn served(world: &mut World, requests: usize) -> Vec<String> {
    (0..requests)
        .map(|_| {
            let grant = world.one_off();
            world.finish(&grant, Outcome::Abandoned, 0.0);
            grant.subscription.to_string()
        })
        .collect()
}

#[test]
fn round_robin_takes_turns_whatever_the_load() {
    let mut world = world(Strategy::RoundRobin, [None, None], members(3));
    world.use_up("s1", 300.0);
    assert_eq!(served(&mut world, 6), ["s0", "s2", "s1", "s0", "s2", "s1"]);
}

#[test]
fn a_sticky_request_is_no_turn() {
    let mut world = world(Strategy::RoundRobin, [None, None], members(2));
    world.turn("a", 0.0);
    world.turn("a", 0.0);
    world.turn("b", 0.0);
    world.turn("b", 0.0);
    assert_eq!(served(&mut world, 2), ["s0", "s1"]);
}

#[test]
fn least_loaded_looks_at_shares_of_the_slots() {
    let small = SubscriptionSettings { max_clients: Some(2), ..member("small") };
    let large = SubscriptionSettings { max_clients: Some(8), ..member("large") };
    let mut world = world(Strategy::LeastLoaded, [None, None], vec![small, large]);
    let served: Vec<_> = (0..5).map(|number| world.turn(&format!("c{number}"), 0.0).to_string()).collect();
    assert_eq!(served.iter().filter(|id| *id == "small").count(), 1);
}

#[test]
fn priority_fills_the_first_before_the_next() {
    let first = SubscriptionSettings { priority: Priority::High, max_clients: Some(2), ..member("first") };
    let mut world = world(Strategy::Priority, [None, None], vec![member("second"), first, member("third")]);
    let served: Vec<_> = (0..5).map(|number| world.turn(&format!("c{number}"), 0.0).to_string()).collect();
    assert_eq!(served, ["first", "first", "second", "second", "second"]);
}

#[test]
fn random_is_even_and_the_same_for_the_same_seed() {
    let mut world = world(Strategy::Random, [None, None], members(3));
    let mut again = world.pool.clone();
    let chosen = served(&mut world, 9000);
    let mut counts = BTreeMap::new();
    for id in &chosen {
        *counts.entry(id.clone()).or_insert(0_u32) += 1;
    }
    assert!(counts.values().all(|count| (2700..3300).contains(count)), "{counts:?}");
    let soft = Ask { session: SessionKey::Fingerprint(1), ..ask("") };
    assert_eq!(*again.acquire(world.now, &soft).unwrap().subscription, *chosen[0]);
}

#[test]
fn random_leaves_out_who_cannot() {
    let mut list = members(4);
    list[2].enabled = false;
    let mut world = world(Strategy::Random, [None, None], list);
    assert!(!served(&mut world, 200).contains(&"s2".to_owned()));
}

#[test]
fn pace_uses_first_what_expires_first() {
    let mut world = world(Strategy::Pace, [None, None], members(3));
    world.observe("s0", &poll(Window::SevenDay, 0.4, Some(world.now + DAY * 5)));
    world.observe("s1", &poll(Window::SevenDay, 0.4, Some(world.now + DAY)));
    world.observe("s2", &poll(Window::SevenDay, 0.4, Some(world.now + DAY * 3)));
    assert_eq!(served(&mut world, 3), ["s1", "s1", "s1"]);
    // What is nearly empty is spared, in the week and in the block.
    world.observe("s1", &poll(Window::FiveHour, 0.99, Some(world.now + HOUR)));
    assert_eq!(served(&mut world, 1), ["s2"]);
}

#[test]
fn a_fallback_decides_where_the_strategy_sees_no_difference() {
    let mut world = world(Strategy::LeastLoaded, [Some(Strategy::Health), None], members(3));
    world.use_up("s0", 50.0);
    world.use_up("s1", 10.0);
    world.use_up("s2", 30.0);
    assert_eq!(served(&mut world, 3), ["s1", "s1", "s1"]);
}

#[test]
fn a_reload_changes_the_strategy() {
    let mut world = world(Strategy::Priority, [None, None], members(2));
    assert_eq!(served(&mut world, 2), ["s0", "s0"]);
    world.pool.apply(world.now, settings(members(2)));
    assert_eq!(served(&mut world, 2), ["s1", "s0"]);
}
