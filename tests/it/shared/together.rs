//! Whole replicas on one Redis and one PostgreSQL: what several of them do is bounded, served and counted as if they were
//! one, also when one starts late, is cut off or is killed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use auth_pool::runtime::tasks::Tasks;
use auth_pool::standin::{Action, HangPoint, Options, Rule, Standin};
use auth_pool::store::{AlertFilter, Page, Store, UsageFilter, UsageGroup};
use auth_pool::units::MicroUsd;
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::server::{PASSWORD, RedisServer};
use crate::cut::Line;
use crate::program::{KEY_SHA256, Program};
use crate::store::Bench;

/// A fleet's surroundings.
struct World {
    redis: RedisServer,
    postgres: Bench,
    standin: Standin,
    file: Value,
    tasks: Tasks,
}

impl World {
    /// Two accounts, and a configuration changed by `adjust`. `None` where there is no PostgreSQL and none is asked for.
    async fn new(adjust: impl FnOnce(&mut Value)) -> Option<Self> {
        let postgres = Bench::postgres().await?;
        let tasks = Tasks::default();
        let standin = Standin::start(&tasks, Options { keep: 100_000, ..Options::default() }).await.unwrap();
        let members = ["a", "b"].map(|name| {
            json!({
                "id": name, "type": "api", "apiKeyEnv": format!("KEY_{name}"), "baseUrl": standin.base_url(),
                "weeklyBudget": 1_000_000,
            })
        });
        let mut file = json!({
            "subscriptions": members, "runawayGuard": { "enabled": false }, "server": { "queue": { "maxWaiting": 0 } },
            // Nobody is called away for being slow: the machine may be busy.
            "capacityTracking": { "redisTimeout": "20s" },
            "notifications": { "rules": [{ "type": "replicas_apart", "channels": ["log"] }] },
            // Who may come in is known without the database.
            "clientKeys": [{ "name": "all", "sha256": KEY_SHA256, "scopes": ["chat", "admin"] }],
        });
        adjust(&mut file);
        Some(Self { redis: RedisServer::start(), postgres, standin, file, tasks })
    }

    /// A replica that has joined the others.
    async fn replica(&self) -> Program {
        let replica = self.replica_at(self.redis.port(), &self.postgres.url());
        replica.until("it joins", "/health/redis", |health| health["state"] == "together").await;
        replica
    }

    fn replica_at(&self, redis: u16, database: &str) -> Program {
        let redis = format!("redis://:{PASSWORD}@127.0.0.1:{redis}");
        let vars = [
            ("REDIS_URL", &*redis),
            ("DATABASE_URL", database),
            ("KEY_a", "sk-ant-api03-fake-a"),
            ("KEY_b", "sk-ant-api03-fake-b"),
        ];
        Program::serve(&self.file, &vars)
    }

    async fn replicas(&self, count: usize) -> Vec<Program> {
        join_all((0..count).map(|_| self.replica())).await
    }

    fn store(&self) -> &Store {
        &self.postgres.store
    }

    /// Everything that is kept: how many records, and what they cost.
    async fn kept(&self) -> (u64, MicroUsd) {
        let totals = self.store().usage_totals(&UsageFilter::default(), UsageGroup::All).await.unwrap();
        totals.first().map_or((0, MicroUsd::ZERO), |all| (all.requests, all.cost))
    }

    /// Waits until so many records are kept; what they cost.
    async fn kept_all(&self, count: u64) -> MicroUsd {
        let begun = Instant::now();
        loop {
            let (kept, cost) = self.kept().await;
            if kept == count {
                // Nothing comes twice, nor late.
                sleep(Duration::from_millis(200)).await;
                assert_eq!(self.kept().await, (count, cost));
                return cost;
            }
            assert!(kept < count && begun.elapsed() < Duration::from_secs(60), "{kept} of {count} are kept");
            sleep(Duration::from_millis(20)).await;
        }
    }

    fn served(&self) -> usize {
        self.standin.requests().iter().filter(|request| request.status == Some(200)).count()
    }
}

fn question(session: &str) -> Value {
    json!({
        "model": "claude-sonnet-4-5", "session_id": session,
        "messages": [{ "role": "user", "content": format!("Hello from {session}") }],
    })
}

async fn status(replica: &Program, session: &str) -> u16 {
    replica.chat(&question(session)).await.expect("an answer").0
}

/// Who serves a session.
async fn served_by(replica: &Program, session: &str) -> String {
    let url = format!("{}/v1/chat/completions", replica.url);
    let response = replica.client.post(url).json(&question(session)).send().await.unwrap();
    assert_eq!(response.status(), 200, "{}", replica.log());
    response.headers()["x-auth-pool-subscription"].to_str().unwrap().to_owned()
}

/// The week's use of all subscriptions, as a replica reckons it.
fn used(view: &Value) -> MicroUsd {
    let used = view["status"].as_array().unwrap().iter().map(|one| one["weeklyUsed"].as_f64().unwrap());
    MicroUsd::from_usd(used.sum())
}

/// Waits until a replica reckons with exactly this, and sees to it that this does not change.
async fn reckons(replica: &Program, cost: MicroUsd) {
    let path = "/debug/auth-pool";
    replica.until(&format!("{cost} are used"), path, |view| used(view) == cost).await;
    sleep(Duration::from_millis(200)).await;
    assert_eq!(used(&replica.get(path).await), cost);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_and_three_replicas_keep_limits_and_sessions_and_count_everything_once() {
    for count in [2, 3] {
        let Some(world) = World::new(|file| {
            file["rateLimits"] = json!({ "small": { "requestsPerMinute": 7 } });
            for member in file["subscriptions"].as_array_mut().unwrap() {
                member["tier"] = json!("small");
            }
        })
        .await
        else {
            return;
        };
        let replicas = world.replicas(count).await;
        let begun = Instant::now();
        let home = served_by(&replicas[0], "sticky").await;
        for replica in replicas.iter().rev() {
            assert_eq!(served_by(replica, "sticky").await, home);
        }
        let asked = (0..30).map(|number| {
            let replica = &replicas[number % count];
            async move { status(replica, &format!("s{number}")).await }
        });
        let answers = join_all(asked).await;
        assert!(answers.iter().all(|status| [200, 503].contains(status)), "{answers:?}");
        let good = 1 + count + answers.iter().filter(|status| **status == 200).count();
        // A machine on which this takes a minute sees the next window.
        if begun.elapsed() < Duration::from_secs(55) {
            assert_eq!(good, 2 * 7, "{answers:?}");
        }
        assert_eq!(world.served(), good);
        let cost = world.kept_all(good as u64).await;
        for replica in &replicas {
            reckons(replica, cost).await;
            assert!(!replica.log().contains(PASSWORD));
        }
        // One is killed, and another one begins: it knows what was used, from the store, and where the session is.
        replicas[0].kill();
        let another = world.replica().await;
        assert_eq!(used(&another.get("/debug/auth-pool").await), cost);
        if begun.elapsed() < Duration::from_secs(40) {
            assert_eq!(status(&another, "more").await, 503);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn those_who_start_amid_traffic_count_nothing_twice_and_miss_nothing() {
    let Some(world) = World::new(|_| {}).await else { return };
    let replicas = world.replicas(2).await;
    let over = CancellationToken::new();
    let load = |replica: usize| {
        let (replica, over) = (&replicas[replica], over.clone());
        async move {
            let mut answered = 0;
            while !over.is_cancelled() {
                assert_eq!(status(replica, &format!("{}-{}", replica.url, answered % 5)).await, 200);
                answered += 1;
            }
            answered
        }
    };
    let (one, other, late) = tokio::join!(load(0), load(1), async {
        let mut late = Vec::new();
        for _ in 0..3 {
            late.push(world.replica().await);
        }
        over.cancel();
        late
    });
    let cost = world.kept_all(one + other).await;
    assert_eq!(world.served() as u64, one + other);
    for replica in replicas.iter().chain(&late) {
        reckons(replica, cost).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_from_the_store_and_from_another_replica_counts_once_in_either_order() {
    let Some(world) = World::new(|_| {}).await else { return };
    let (server, name) =
        world.postgres.url().rsplit_once('/').map(|(server, name)| (server.to_owned(), name.to_owned())).unwrap();
    let (credentials, port) = server.rsplit_once(':').unwrap();
    let database = Line::to(port.parse().unwrap(), &world.tasks).await;
    let through_the_line = format!("{credentials}:{}/{name}", database.port());
    let one = world.replica().await;
    assert_eq!(status(&one, "before").await, 200);
    world.kept_all(1).await;

    // One that starts without its database hears of what is used, and reads the same in the database later.
    database.cut();
    let late = world.replica_at(world.redis.port(), &through_the_line);
    late.until("it joins", "/health/redis", |health| health["state"] == "together").await;
    for number in 0..3 {
        assert_eq!(status(&one, &format!("s{number}")).await, 200);
    }
    assert_eq!(status(&late, "own").await, 200);
    let heard = |view: &Value| used(view) > MicroUsd::ZERO && view["store"]["ok"] == false;
    late.until("it hears of it", "/debug/auth-pool", heard).await;
    database.mend();
    late.until("its database is there", "/debug/auth-pool", |view| view["store"]["ok"] == true).await;
    let cost = world.kept_all(5).await;
    for replica in [&one, &late] {
        reckons(replica, cost).await;
    }

    // One that is cut off from Redis tells late what the database has told long before.
    let redis = Line::to(world.redis.port(), &world.tasks).await;
    let apart = world.replica_at(redis.port(), &world.postgres.url());
    apart.until("it joins", "/health/redis", |health| health["state"] == "together").await;
    redis.cut();
    apart.until("it notices", "/health/redis", |health| health["state"] == "apart").await;
    for number in 0..3 {
        assert_eq!(status(&apart, &format!("t{number}")).await, 200);
    }
    let cost = world.kept_all(8).await;
    let newcomer = world.replica().await;
    assert_eq!(used(&newcomer.get("/debug/auth-pool").await), cost);
    redis.mend();
    apart.until("it is back", "/health/redis", |health| health["state"] == "together").await;
    for replica in [&one, &late, &apart, &newcomer] {
        reckons(replica, cost).await;
    }
}

/// A request whose answer never comes, until it is dropped.
fn hang(replica: &Arc<Program>, session: &str, tasks: &Tasks) -> CancellationToken {
    let (replica, body, gone) = (Arc::clone(replica), question(session), CancellationToken::new());
    let left = gone.clone();
    tasks.spawn("client", async move {
        gone.run_until_cancelled(replica.chat(&body)).await;
    });
    left
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_cut_off_counts_alone_within_the_limit_and_both_sides_never_use_more_than_twice() {
    let Some(world) = World::new(|file| {
        let mut only = file["subscriptions"][0].clone();
        only["maxConcurrent"] = json!(2);
        file["subscriptions"] = json!([only]);
    })
    .await
    else {
        return;
    };
    let redis = Line::to(world.redis.port(), &world.tasks).await;
    let cut_off = Arc::new(world.replica_at(redis.port(), &world.postgres.url()));
    cut_off.until("it joins", "/health/redis", |health| health["state"] == "together").await;
    let other = Arc::new(world.replica().await);
    world.standin.script(Rule::always(Action::Hang { before: HangPoint::Headers }).contains("held"));
    let running = async |count: usize| {
        let begun = Instant::now();
        while world.standin.requests().iter().filter(|it| it.body.to_string().contains("held")).count() < count {
            assert!(begun.elapsed() < Duration::from_secs(60), "{count} requests should run");
            sleep(Duration::from_millis(20)).await;
        }
    };

    // Together they run two, and no third.
    let mut held = vec![hang(&cut_off, "held-1", &world.tasks), hang(&other, "held-2", &world.tasks)];
    running(2).await;
    assert_eq!((status(&cut_off, "third").await, status(&other, "third").await), (503, 503));

    redis.cut();
    let cut_at = Instant::now();
    let apart = |health: &Value| health["state"] == "apart" && health["status"] == "down";
    cut_off.until("it notices", "/health/redis", apart).await;
    // It knows of its own request only, so it may run another one: at most as many as there may be in all.
    held.push(hang(&cut_off, "held-3", &world.tasks));
    running(3).await;
    assert_eq!(status(&cut_off, "fourth").await, 503);
    // The other side counts what the lost one ran for as long as that may be alive, and then not any more.
    if cut_at.elapsed() + auth_pool::shared::BEAT < auth_pool::shared::ALIVE {
        assert_eq!(status(&other, "early").await, 503);
    }
    other.until("it is alone", "/health/redis", |health| health["replicas"] == 1).await;
    held.push(hang(&other, "held-4", &world.tasks));
    running(4).await;
    assert_eq!(status(&other, "fifth").await, 503);
    assert_eq!(other.get("/health/redis").await["state"], "together");
    assert_eq!(cut_off.get("/health/ready").await["checks"]["redis"]["status"], "down");

    redis.mend();
    cut_off.until("it is back", "/health/redis", |health| health["state"] == "together").await;
    other.until("both are there", "/health/redis", |health| health["replicas"] == 2).await;
    // What runs is known to both again, and is more than there may be: nobody gets in before it is less.
    for (index, leaving) in held[..3].iter().enumerate() {
        assert_eq!((status(&cut_off, "next").await, status(&other, "next").await), (503, 503));
        leaving.cancel();
        let all = |view: &Value| view["totals"]["inFlight"].as_u64().unwrap();
        let begun = Instant::now();
        let left = (held.len() - 1 - index) as u64;
        while all(&cut_off.get("/debug/auth-pool").await) + all(&other.get("/debug/auth-pool").await) > left {
            assert!(begun.elapsed() < Duration::from_secs(60));
            sleep(Duration::from_millis(20)).await;
        }
    }
    let begun = Instant::now();
    while status(&other, "next").await != 200 {
        assert!(begun.elapsed() < Duration::from_secs(60), "there is a place again");
        sleep(Duration::from_millis(50)).await;
    }

    // The operator was told, and told that it was over; the alert is kept.
    let begun = Instant::now();
    loop {
        let filter = AlertFilter { kind: Some("replicas_apart".to_owned()), ..AlertFilter::default() };
        let alerts = world.store().alerts(&filter, &Page::default()).await.unwrap().items;
        if alerts.len() == 1 && alerts[0].resolved_at.is_some() {
            break;
        }
        assert!(alerts.len() <= 1 && begun.elapsed() < Duration::from_secs(60), "{alerts:?}");
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_places_of_one_that_is_killed_come_back() {
    let Some(world) = World::new(|file| {
        let mut only = file["subscriptions"][0].clone();
        only["maxConcurrent"] = json!(1);
        file["subscriptions"] = json!([only]);
    })
    .await
    else {
        return;
    };
    let (one, other) = (Arc::new(world.replica().await), world.replica().await);
    world.standin.script(Rule::once(Action::Hang { before: HangPoint::Headers }));
    let _held = hang(&one, "held", &world.tasks);
    let begun = Instant::now();
    while world.standin.requests().is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(60));
        sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(status(&other, "next").await, 503);
    one.kill();
    let begun = Instant::now();
    while status(&other, "next").await != 200 {
        assert!(begun.elapsed() < auth_pool::shared::ALIVE * 4, "it does not come back");
        sleep(Duration::from_millis(100)).await;
    }
}
