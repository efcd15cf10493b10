//! Every goal of the pool in one table: what was measured, the goal, and how much of it is used up.
//!
//! `cargo bench --bench goals`; the distributions behind it are in `pool` (criterion) and `holds`. Times of single calls
//! are medians of rounds; what is compared with each other is measured in turn, round by round, so that a machine that
//! slows down slows both.

use std::hint::black_box;
use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use auth_pool::pool::SessionKey;
use auth_pool::units::MicroUsd;

mod world;

use world::{World, ask, named};

const SUBSCRIPTIONS: u64 = 10_000;
const SESSIONS: u64 = 1_000_000;
const ROUNDS: u64 = 30;
const BATCH: u64 = 200;
/// No call may hold the pool for longer.
const HOLD: Duration = Duration::from_micros(50);
/// A page of memory, as `/proc/self/statm` counts them.
const PAGE: u64 = 4096;

fn main() {
    let mut missed = 0;
    let mut goal = |what: &str, measured: f64, limit: f64, unit: &str| {
        let met = measured <= limit;
        missed += u32::from(!met);
        let verdict = if met { "met" } else { "MISSED" };
        let line =
            format!("{what:<64} {measured:>10.2} {unit:<3} of {limit:>8.2}  {:>6.2}x  {verdict}", measured / limit);
        let _ = writeln!(std::io::stdout(), "{line}");
    };
    choosing(&mut goal);
    weights(&mut goal);
    holding(&mut goal);
    let _ = writeln!(std::io::stdout(), "{missed} missed");
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Microseconds of one new session, from a batch that runs at the same time.
fn new_session(world: &mut World, round: u64) -> f64 {
    let asks: Vec<_> = (0..BATCH).map(|number| named(SESSIONS + round * BATCH + number)).collect();
    let begun = Instant::now();
    let grants: Vec<_> = asks.iter().map(|ask| black_box(world.acquire(ask))).collect();
    let time = micros(begun.elapsed()) / f64::from(u32::try_from(BATCH).unwrap_or(1));
    for (ask, grant) in asks.iter().zip(grants) {
        world.finish(grant, MicroUsd::from_micros(500));
        world.pool.release(world.now, &ask.session);
    }
    time
}

fn choosing(goal: &mut impl FnMut(&str, f64, f64, &str)) {
    let mut few = World::used(10);
    let mut many = World::used(SUBSCRIPTIONS);
    let mut times = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let (of_few, of_many) = (new_session(&mut few, round), new_session(&mut many, round));
        times.0.push(of_few);
        times.1.push(of_many);
        times.2.push(of_many / of_few);
    }
    goal("new session, 10 subscriptions", median(times.0), 1.0, "us");
    goal("new session, 10,000 subscriptions", median(times.1), 3.0, "us");
    goal("new session, 10,000 against 10 subscriptions, in pairs", median(times.2), 3.0, "x");

    let mut world = World::with_sessions(SUBSCRIPTIONS, SESSIONS);
    let mut known = Vec::new();
    for round in 0..ROUNDS {
        let asks: Vec<_> = (0..BATCH).map(|number| named((round * BATCH + number) * 104_729 % SESSIONS)).collect();
        let begun = Instant::now();
        let grants: Vec<_> = asks.iter().map(|ask| black_box(world.acquire(ask))).collect();
        known.push(micros(begun.elapsed()) / f64::from(u32::try_from(BATCH).unwrap_or(1)));
        for grant in grants {
            world.finish(grant, MicroUsd::ZERO);
        }
    }
    goal("known session, any of 1,000,000", median(known), 1.0, "us");
}

/// Bytes that this process has in memory.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or_default() * PAGE
}

fn each(bytes: u64, count: u64) -> f64 {
    f64::from(u32::try_from(bytes * 100 / count).unwrap_or(u32::MAX)) / 100.0
}

fn weights(goal: &mut impl FnMut(&str, f64, f64, &str)) {
    let mut world = World::new(SUBSCRIPTIONS);
    let before = resident();
    for number in 0..SESSIONS {
        let grant = world.acquire(&named(number));
        world.finish(grant, MicroUsd::ZERO);
    }
    goal("a session, 1,000,000 of them", each(resident().saturating_sub(before), SESSIONS), 128.0, "B");
    drop(world);
    let mut world = World::new(SUBSCRIPTIONS);
    let records = SUBSCRIPTIONS * 200;
    let before = resident();
    for number in 0..records {
        let request = ask(SessionKey::Fingerprint(number));
        let grant = world.acquire(&request);
        world.finish(grant, MicroUsd::from_micros(500));
        world.pool.release(world.now, &request.session);
    }
    goal("a usage record, 200 a subscription", each(resident().saturating_sub(before), records), 32.0, "B");
}

/// Allocations while another thread rebalances, as in service: the pool is behind one lock. What the machine itself
/// holds up is told by the same calls without it, in turn.
fn rebalancing(goal: &mut impl FnMut(&str, f64, f64, &str)) -> World {
    let mut world = World::with_sessions(SUBSCRIPTIONS, SESSIONS);
    for number in 0..1_000 {
        let dear = world.acquire(&named(number));
        world.finish(dear, MicroUsd::from_usd(20.0));
    }
    world.now = world.now + Duration::from_mins(6);
    let (world, stage, over) = (Mutex::new(world), AtomicBool::new(false), AtomicBool::new(false));
    let lock = || world.lock().unwrap_or_else(PoisonError::into_inner);
    let (mut late, calls) = ([0_u32; 2], 20_000_u64);
    let rebalances = thread::scope(|scope| {
        let rebalancer = scope.spawn(|| {
            let mut times = Vec::new();
            while !over.load(Ordering::Relaxed) {
                if stage.load(Ordering::Relaxed) {
                    let mut world = lock();
                    let (now, begun) = (world.now, Instant::now());
                    black_box(world.pool.rebalance(now));
                    times.push(micros(begun.elapsed()));
                }
                thread::sleep(Duration::from_micros(200));
            }
            times
        });
        for round in 0..2 * ROUNDS {
            let is_on = round % 2 == 1;
            stage.store(is_on, Ordering::Relaxed);
            for number in 0..calls {
                let request = named((round * calls + number) * 104_729 % SESSIONS);
                let begun = Instant::now();
                let grant = black_box(lock().acquire(&request));
                late[usize::from(is_on)] += u32::from(begun.elapsed() > HOLD);
                lock().finish(grant, MicroUsd::from_micros(10));
            }
        }
        over.store(true, Ordering::Relaxed);
        rebalancer.join().unwrap_or_default()
    });
    let [without, with] = late.map(f64::from);
    let cycles = f64::from(u32::try_from(rebalances.len()).unwrap_or(u32::MAX).max(1));
    let longest = rebalances.iter().copied().fold(0.0, f64::max);
    goal("rebalance, 1,000,000 sessions: the longest", longest, 5_000.0, "us");
    goal("rebalance: the median hold", median(rebalances), micros(HOLD), "us");
    // Cycles follow each other thousands of times as fast as in service, so that some meet an allocation at all.
    goal("allocations above 50 us for one cycle, less the machine's own", (with - without) / cycles, 0.01, "");
    world.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// What else may hold the pool for long.
fn holding(goal: &mut impl FnMut(&str, f64, f64, &str)) {
    let world = rebalancing(goal);
    let mut parts = Vec::new();
    let mut next = Some(0);
    while let Some(from) = next {
        let begun = Instant::now();
        next = black_box(world.pool.views(world.now, from)).1;
        parts.push(micros(begun.elapsed()));
    }
    goal("snapshot of 10,000: the median part", median(parts), micros(HOLD), "us");
    let begun = Instant::now();
    black_box(world.pool.totals_in_part(world.now, 0));
    goal("totals of 10,000: a part", micros(begun.elapsed()), micros(HOLD), "us");

    let mut world = World::used(SUBSCRIPTIONS);
    world.now = world.now + Duration::from_hours(5);
    let after = (0..500).map(|number| {
        let request = named(number);
        let begun = Instant::now();
        let grant = black_box(world.acquire(&request));
        let time = micros(begun.elapsed());
        world.finish(grant, MicroUsd::from_micros(500));
        time
    });
    goal("a new session when 10,000 blocks have just ended: the median", median(after.collect()), micros(HOLD), "us");

    let mut world = World::new(SUBSCRIPTIONS);
    for number in 0..SUBSCRIPTIONS * 20 {
        let grant = world.acquire(&ask(SessionKey::Fingerprint(number)));
        world.finish(grant, MicroUsd::from_usd(22.0));
    }
    let refused = (0..200).map(|number| {
        world.now = world.now + Duration::from_millis(1);
        let begun = Instant::now();
        assert!(black_box(world.pool.acquire(world.now, &named(number))).is_err(), "somebody has budget left");
        micros(begun.elapsed())
    });
    goal("refused, all 10,000 budgets spent: the median", median(refused.collect()), micros(HOLD), "us");
}
