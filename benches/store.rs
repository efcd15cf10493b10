//! What the store costs on a request's path: the same request through two gateways, one with a store and one without,
//! in turns. Goal: half of all requests take at most 20 us longer.
//!
//! `cargo bench --bench store`; with `AUTH_POOL_TEST_POSTGRES` (see `scripts/services.sh`) also over PostgreSQL.
//!
//! The backend answers at once, so that nothing hides the difference. Records are written meanwhile, as in service.

use std::collections::HashMap;
use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use auth_pool::app::Keeper;
use auth_pool::backend::claude_cli::{ClaudeCli, SpareSettings};
use auth_pool::backend::{Backend, Caller, EventStream};
use auth_pool::config::Env;
use auth_pool::conversation::{Block, Catalog, Event, Model, Options, Request, Role, StopReason, Turn, Usage};
use auth_pool::gateway::{self, Call, Gateway as _, PooledGateway, Priority, QueueSettings, SessionHint, SharedPool};
use auth_pool::pool::{CapacityLimits, Pool, RebalanceSettings, Settings, SubscriptionSettings};
use auth_pool::runtime::{clock, tasks::Tasks};
use auth_pool::store::{Bounds, Location, Store, Writer};
use auth_pool::units::MicroUsd;
use futures_util::{StreamExt as _, stream};

const ROUNDS: usize = 11;
const REQUESTS: usize = 1500;
/// As many sessions as a pool of this size has in use.
const SESSIONS: usize = 40;

fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

struct Instantly;

impl Backend for Instantly {
    fn run(&self, _: &Request, _: &Caller) -> EventStream {
        let usage = Usage { input: 100, output: 10, ..Usage::default() };
        let events = [
            Event::Started(usage),
            Event::Text("hello".to_owned()),
            Event::Finished { stop: StopReason::EndTurn, usage },
            Event::Settled(MicroUsd::from_micros(1)),
        ];
        stream::iter(events.map(Ok)).boxed()
    }
}

fn gateway() -> PooledGateway {
    let names: Vec<Arc<str>> = (1..=5).map(|number| format!("sub{number}").into()).collect();
    let member = |id: &Arc<str>| SubscriptionSettings {
        id: Arc::clone(id),
        email: None,
        kind: "claude-max".into(),
        weekly_budget: MicroUsd::from_usd(456.0),
        max_clients: None,
        max_concurrent: 10,
        enabled: true,
        priority: auth_pool::pool::Priority::Normal,
        organization: None,
        capacity: CapacityLimits::default(),
    };
    let settings = Settings { subscriptions: names.iter().map(member).collect(), ..Settings::default() };
    let tasks = Tasks::default();
    let spares = SpareSettings {
        max_processes: 1,
        max_memory: u64::MAX,
        max_spares: 0,
        spares_per_kind: 0,
        idle_timeout: Duration::from_secs(60),
        max_line_bytes: 1024,
    };
    let claude = ClaudeCli::new(spares, &tasks);
    let backend: Arc<dyn Backend> = Arc::new(Instantly);
    let backends: HashMap<_, _> = names.into_iter().map(|name| (name, Arc::clone(&backend))).collect();
    let gateway = gateway::Settings {
        max_repeats: None,
        max_attempts: 3,
        deadline: Duration::from_secs(600),
        rebalancing: RebalanceSettings { enabled: false, cost_gap: MicroUsd::ZERO, max_moves: 0 },
        queue: QueueSettings { max_waiting: 100, timeout: Duration::from_secs(30) },
    };
    let pool = SharedPool::new(Pool::new(settings, clock::now()));
    PooledGateway::new(pool, backends, Catalog::new([], []), claude, gateway, tasks)
}

fn call(number: usize) -> Call {
    Call {
        id: "request".into(),
        request: Request {
            model: Arc::new(Model::named("claude-sonnet-4-5")),
            system: Vec::new(),
            turns: vec![Turn { role: Role::User, blocks: vec![Block::Text("hi".to_owned())] }],
            tools: Vec::new(),
            tool_choice: None,
            options: Options::default(),
        },
        session: SessionHint::Session(format!("session-{}", number % SESSIONS).into()),
        client: "anonymous".into(),
        stream: true,
        priority: Priority::Normal,
        backend: None,
    }
}

/// One request from its arrival to the end of its bookkeeping.
async fn request(gateway: &PooledGateway, number: usize) -> Duration {
    let call = call(number);
    let begun = Instant::now();
    if let Ok(answer) = gateway.chat(call).await {
        answer.events.count().await;
    }
    begun.elapsed()
}

fn median(times: &mut [Duration]) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1e6
}

async fn compare(name: &str, location: Location) {
    let store = match Store::open(location).await {
        Ok(store) => store,
        Err(error) => return say(&format!("{name}: NOT RUN: {error}")),
    };
    let writer = Writer::new(store, Bounds::default());
    let (without, with) = (gateway(), gateway());
    with.record_with(Arc::new(Keeper::new(writer.clone())));
    let writing = Tasks::default();
    writing.spawn("writer", {
        let writer = writer.clone();
        async move { writer.run().await }
    });
    let mut added = Vec::with_capacity(ROUNDS);
    let mut bases = Vec::with_capacity(ROUNDS);
    for round in 0..ROUNDS {
        let (mut bare, mut kept) = (Vec::with_capacity(REQUESTS), Vec::with_capacity(REQUESTS));
        for number in 0..REQUESTS {
            // In turns, and each first half of the time.
            if (number + round) % 2 == 0 {
                bare.push(request(&without, number).await);
                kept.push(request(&with, number).await);
            } else {
                kept.push(request(&with, number).await);
                bare.push(request(&without, number).await);
            }
        }
        let usual = median(&mut bare);
        added.push(median(&mut kept) - usual);
        bases.push(usual);
    }
    writer.finish();
    writing.finished().await;
    added.sort_by(f64::total_cmp);
    bases.sort_by(f64::total_cmp);
    let health = writer.health();
    say(&format!(
        "{name:<10} p50 without {:6.1} us; added {:5.1} us (rounds from {:.1} to {:.1}); {} entries written, {} dropped",
        bases[ROUNDS / 2],
        added[ROUNDS / 2],
        added[0],
        added[ROUNDS - 1],
        health.written,
        health.dropped.usage,
    ));
}

fn main() {
    let Ok(runtime) = tokio::runtime::Runtime::new() else { return say("there is no runtime") };
    runtime.block_on(async {
        let Ok(folder) = tempfile::tempdir() else { return say("there is no room for a file") };
        say(&format!("{ROUNDS} rounds of {REQUESTS} pairs of requests"));
        compare("sqlite", Location::file(folder.path().join("pool.db"))).await;
        match Env::from_process().var("AUTH_POOL_TEST_POSTGRES").map(Location::from_url) {
            Some(Ok(location)) => compare("postgres", location).await,
            Some(Err(error)) => say(&format!("postgres: NOT RUN: {error}")),
            None => say("postgres: NOT RUN: there is no AUTH_POOL_TEST_POSTGRES"),
        }
    });
}
