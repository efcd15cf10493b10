//! What the pool's decisions cost: a request of a known session, a new session among 10 to 10,000 subscriptions, and
//! rebalancing with a million sessions. Goals: a new session in about a microsecond, and at most three times as long
//! among 10,000 subscriptions as among 10.
//!
//! `cargo bench --bench pool`

use std::hint::black_box;
use std::time::{Duration, Instant};

use auth_pool::conversation::Family;
use auth_pool::pool::{
    Ask, CapacityLimits, Grant, Outcome, Pool, Priority, SessionKey, Settings, Spent, SubscriptionSettings,
};
use auth_pool::units::{MicroUsd, Timestamp};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};

/// Requests in flight at the same time.
const BATCH: u64 = 100;
const STEP: Duration = Duration::from_millis(1);

/// A pool in use, and its time.
struct World {
    pool: Pool,
    now: Timestamp,
}

impl World {
    fn new(subscriptions: u64) -> Self {
        let now = Timestamp::from_secs(1_800_000_000);
        let subscriptions = (0..subscriptions).map(subscription).collect();
        let settings = Settings { subscriptions, max_clients: 100_000, ..Settings::default() };
        Self { pool: Pool::new(settings, now), now }
    }

    /// Every subscription has been used a little, each differently.
    fn used(subscriptions: u64) -> Self {
        let mut world = Self::new(subscriptions);
        for number in 0..subscriptions * 3 {
            let cost = MicroUsd::from_micros(i64::try_from(1000 + number * 7919 % 50_000).unwrap_or_default());
            let grant = world.acquire(&ask(SessionKey::Fingerprint(number)));
            world.finish(grant, cost);
        }
        world
    }

    fn acquire(&mut self, ask: &Ask<'_>) -> Option<Grant> {
        self.now = self.now + STEP;
        self.pool.acquire(self.now, ask).ok()
    }

    fn finish(&mut self, grant: Option<Grant>, cost: MicroUsd) {
        if let Some(grant) = grant {
            self.pool.finish(self.now, grant.lease, Outcome::Completed, Spent { cost, ..Spent::default() });
        }
    }
}

fn subscription(number: u64) -> SubscriptionSettings {
    SubscriptionSettings {
        id: format!("subscription-{number}").into(),
        email: None,
        kind: "claude-max".into(),
        weekly_budget: MicroUsd::from_usd(456.0),
        max_clients: None,
        max_concurrent: 1000,
        enabled: true,
        priority: Priority::Normal,
        capacity: CapacityLimits::default(),
    }
}

fn ask(session: SessionKey) -> Ask<'static> {
    Ask {
        session,
        family: Family::Sonnet,
        estimated_cost: MicroUsd::from_micros(1000),
        estimated_tokens: 1000,
        priority: Priority::Normal,
        exclude: &[],
    }
}

fn named(number: u64) -> Ask<'static> {
    ask(SessionKey::Explicit(format!("client/{number:032}").into()))
}

/// The time of `turns` acquisitions of new sessions alone, in batches.
fn new_sessions(world: &mut World, turns: u64) -> Duration {
    let mut spent = Duration::ZERO;
    for batch in 0..turns.div_ceil(BATCH) {
        let asks: Vec<_> = (0..BATCH).map(|number| named(batch * BATCH + number)).collect();
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
        group.bench_function(BenchmarkId::new("known session, with its finish", subscriptions), |bencher| {
            bencher.iter(|| {
                let grant = world.acquire(&known);
                world.finish(grant, MicroUsd::ZERO);
            });
        });
    }
    group.finish();
}

fn rebalance(criterion: &mut Criterion) {
    let mut world = World::new(10_000);
    for number in 0..1_000_000 {
        let grant = world.acquire(&named(number));
        world.finish(grant, MicroUsd::ZERO);
    }
    let dear = world.acquire(&named(0));
    world.finish(dear, MicroUsd::from_usd(20.0));
    world.now = world.now + Duration::from_mins(5);
    criterion.bench_function("rebalance 10,000 subscriptions with 1,000,000 sessions", |bencher| {
        bencher.iter(|| black_box(world.pool.rebalance(world.now)));
    });
}

criterion_group!(benches, acquire, rebalance);
criterion_main!(benches);
