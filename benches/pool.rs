//! What the pool's decisions cost: a request of a known session, a new session among 10 to 10,000 subscriptions, and
//! both and rebalancing with a million sessions. Goals: a new session in about a microsecond, and at most three times as
//! long among 10,000 subscriptions as among 10. How long single calls hold the pool at worst is in `holds`.
//!
//! `cargo bench --bench pool`

use std::hint::black_box;
use std::time::{Duration, Instant};

use auth_pool::pool::Ask;
use auth_pool::units::MicroUsd;
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};

mod world;

use world::{World, named};

/// Requests in flight at the same time.
const BATCH: u64 = 100;
const SESSIONS: u64 = 1_000_000;

/// The time of `turns` acquisitions of new sessions alone, in batches.
fn new_sessions(world: &mut World, turns: u64) -> Duration {
    let mut spent = Duration::ZERO;
    for batch in 0..turns.div_ceil(BATCH) {
        let asks: Vec<_> = (0..BATCH).map(|number| named(SESSIONS + batch * BATCH + number)).collect();
        let begun = Instant::now();
        let grants: Vec<_> = asks.iter().map(|ask| black_box(world.acquire(ask))).collect();
        spent += begun.elapsed();
        for (ask, grant) in asks.iter().zip(grants) {
            world.finish(grant, MicroUsd::from_micros(500));
            world.pool.release(world.now, &ask.session);
        }
    }
    spent
}

fn acquire(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("acquire");
    for subscriptions in [10, 1_000, 10_000] {
        let mut world = World::used(subscriptions);
        group.bench_function(BenchmarkId::new("new session", subscriptions), |bencher| {
            bencher.iter_custom(|turns| new_sessions(&mut world, turns));
        });
        let known = named(0);
        group.bench_function(BenchmarkId::new("known session", subscriptions), |bencher| {
            bencher.iter_custom(|turns| known_sessions(&mut world, turns, |_| known.clone()));
        });
        group.bench_function(BenchmarkId::new("known session, with its finish", subscriptions), |bencher| {
            bencher.iter(|| {
                let grant = world.acquire(&known);
                world.finish(grant, MicroUsd::ZERO);
            });
        });
    }
    group.finish();
}

/// The time of `turns` acquisitions of known sessions alone.
fn known_sessions(world: &mut World, turns: u64, ask: impl Fn(u64) -> Ask<'static>) -> Duration {
    let mut spent = Duration::ZERO;
    for turn in 0..turns {
        let ask = ask(turn);
        let begun = Instant::now();
        let grant = black_box(world.acquire(&ask));
        spent += begun.elapsed();
        world.finish(grant, MicroUsd::ZERO);
    }
    spent
}

fn million(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("10,000 subscriptions with 1,000,000 sessions");
    let mut world = World::with_sessions(10_000, SESSIONS);
    group.bench_function("new session", |bencher| {
        bencher.iter_custom(|turns| new_sessions(&mut world, turns));
    });
    group.bench_function("known session, any of them", |bencher| {
        // A prime, so that neighbours in time are far apart in memory.
        bencher.iter_custom(|turns| known_sessions(&mut world, turns, |turn| named(turn * 104_729 % SESSIONS)));
    });
    let dear = world.acquire(&named(0));
    world.finish(dear, MicroUsd::from_usd(20.0));
    world.now = world.now + Duration::from_mins(5);
    group.bench_function("rebalance", |bencher| {
        bencher.iter(|| black_box(world.pool.rebalance(world.now)));
    });
    group.finish();
}

criterion_group!(benches, acquire, million);
criterion_main!(benches);
