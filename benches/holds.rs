//! How long single calls hold the pool at worst, and what sessions and usage records weigh. The pool lives behind one
//! lock: while a call runs, every allocation waits. Goal: nothing holds it for more than 50 us; a session takes at most
//! 128 bytes and a usage record at most 32.
//!
//! `cargo bench --bench holds`

use std::hint::black_box;
use std::io::Write as _;
use std::time::{Duration, Instant};

use auth_pool::pool::{Ask, SessionKey};
use auth_pool::units::MicroUsd;

mod world;

use world::{World, ask, named};

const SUBSCRIPTIONS: u64 = 10_000;
const SESSIONS: u64 = 1_000_000;
/// A page of memory, as `/proc/self/statm` counts them.
const PAGE: u64 = 4096;

fn main() {
    weights();
    quiet();
    rebalancing();
    waves();
    refusals();
}

fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Times of single calls: the median, the 99th percentile and the longest.
#[derive(Default)]
struct Times(Vec<Duration>);

impl Times {
    fn of<T>(&mut self, call: impl FnOnce() -> T) -> T {
        let begun = Instant::now();
        let result = black_box(call());
        self.0.push(begun.elapsed());
        result
    }

    fn say(mut self, what: &str) {
        self.0.sort_unstable();
        let at = |percent: usize| self.0.get((self.0.len() * percent / 100).min(self.0.len() - 1)).copied();
        let (median, high, longest) =
            (at(50).unwrap_or_default(), at(99).unwrap_or_default(), at(100).unwrap_or_default());
        let calls = self.0.len();
        say(&format!(
            "{what:<66} {calls:>8} calls  median {median:>10.2?}  99 % {high:>10.2?}  longest {longest:>10.2?}"
        ));
    }
}

/// Bytes that this process has in memory.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or_default() * PAGE
}

fn weights() {
    let mut world = World::new(SUBSCRIPTIONS);
    let before = resident();
    for number in 0..SESSIONS {
        let grant = world.acquire(&named(number));
        world.finish(grant, MicroUsd::ZERO);
    }
    let bytes = (resident() - before) / SESSIONS;
    say(&format!("bytes a session, {SESSIONS} of them: {bytes} (at most 128)"));
    drop(world);

    for each in [100, 129, 200] {
        let mut world = World::new(SUBSCRIPTIONS);
        let mut records = 0;
        let before = resident();
        while records < SUBSCRIPTIONS * each {
            // New sessions go round, so that everybody has as many records.
            let request = ask(SessionKey::Fingerprint(records));
            let grant = world.acquire(&request);
            world.finish(grant, MicroUsd::from_micros(500));
            world.pool.release(world.now, &request.session);
            records += 1;
        }
        let bytes = (resident() - before) / records;
        say(&format!("bytes a usage record, {each} a subscription: {bytes} (at most 32)"));
    }
}

fn quiet() {
    let mut world = World::with_sessions(SUBSCRIPTIONS, SESSIONS);
    let (mut new, mut known, mut finish) = (Times::default(), Times::default(), Times::default());
    for number in 0..200_000 {
        let request = named(SESSIONS + number);
        let grant = new.of(|| world.acquire(&request));
        finish.of(|| world.finish(grant, MicroUsd::from_micros(500)));
        let request = named(number * 104_729 % SESSIONS);
        let grant = known.of(|| world.acquire(&request));
        world.finish(grant, MicroUsd::from_micros(500));
    }
    new.say("acquire: new session, 1 M sessions");
    known.say("acquire: known session, 1 M sessions");
    finish.say("finish");
    let mut views = Times::default();
    for _ in 0..20 {
        views.of(|| world.pool.health(world.now));
    }
    views.say("health");
    let mut views = Times::default();
    for _ in 0..5 {
        views.of(|| world.pool.snapshot(world.now));
    }
    views.say("snapshot");
}

fn rebalancing() {
    let mut world = World::with_sessions(SUBSCRIPTIONS, SESSIONS);
    for number in 0..1_000 {
        let dear = world.acquire(&named(number));
        world.finish(dear, MicroUsd::from_usd(20.0));
    }
    world.now = world.now + Duration::from_mins(6);
    let mut moving = Times::default();
    let mut moved = 0;
    for _ in 0..1_000 {
        moved += moving.of(|| world.pool.rebalance(world.now)).len();
    }
    moving.say(&format!("rebalance: {moved} sessions moved, 1 M idle"));

    // All but one have dear blocks, and nobody has an idle session: every one of them is looked at.
    let mut world = World::new(SUBSCRIPTIONS);
    for number in 0..SUBSCRIPTIONS - 1 {
        let request = named(number);
        let grant = world.acquire(&request);
        world.finish(grant, MicroUsd::from_usd(10.0));
    }
    let mut in_vain = Times::default();
    for _ in 0..1_000 {
        in_vain.of(|| world.pool.rebalance(world.now));
    }
    in_vain.say("rebalance: 9,999 dear blocks, no idle session");
}

/// Many things that become due in one moment.
fn waves() {
    let mut world = World::with_sessions(SUBSCRIPTIONS, SESSIONS);
    // By now all sessions are stale.
    world.now = world.now + Duration::from_hours(2);
    let mut ticks = Times::default();
    while world.pool.is_behind(world.now) {
        ticks.of(|| world.pool.tick(world.now));
    }
    ticks.say("tick: 1 M sessions are stale");

    let mut world = World::used(SUBSCRIPTIONS);
    world.now = world.now + Duration::from_hours(5);
    let mut calls = Times::default();
    for number in 0..1_000 {
        let request = named(number);
        let grant = calls.of(|| world.acquire(&request));
        world.finish(grant, MicroUsd::from_micros(500));
    }
    calls.say("acquire: 10,000 blocks have ended since the last call");
}

fn refusals() {
    let mut world = World::new(SUBSCRIPTIONS);
    for number in 0..SUBSCRIPTIONS {
        for part in 0..20 {
            let request = ask(SessionKey::Fingerprint(number * 20 + part));
            let grant = world.acquire(&request);
            world.finish(grant, MicroUsd::from_usd(22.0));
        }
    }
    let mut refused = Times::default();
    for number in 0..200 {
        let request: Ask<'_> = named(number);
        world.now = world.now + Duration::from_millis(1);
        let answer = refused.of(|| world.pool.acquire(world.now, &request));
        assert!(answer.is_err(), "somebody has budget left");
    }
    refused.say("acquire: refused, all 10,000 budgets spent");
}
