//! Write-behind: everything once, also when the database goes away and comes back.

use std::fs;
use std::time::Duration;

use auth_pool::conversation::Usage;
use auth_pool::store::{
    Bounds, Location, Scope, Store, UsageFilter, UsageGroup, UsageRecord, UsageTotals, Writer, new_id,
};
use auth_pool::units::{MicroUsd, Timestamp};
use sqlx::{Connection as _, SqliteConnection};
use tokio::time::{Instant, sleep};

use super::books::activity;
use super::{Bench, on_both};

on_both!(everything_is_written_once, what_changes_often_is_written_as_it_last_was);

/// Generous: the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(60);

fn record(micros: i64) -> UsageRecord {
    UsageRecord {
        id: new_id(),
        organization_id: None,
        subscription: "sub1".to_owned(),
        client: "me".to_owned(),
        session: "a\0b".to_owned(),
        model: "claude-sonnet-5".to_owned(),
        activity_id: None,
        at: Timestamp::from_secs(1_800_000_000),
        cost: MicroUsd::from_micros(micros),
        usage: Usage::default(),
        duration_ms: 1,
        outcome: "completed".to_owned(),
    }
}

async fn total(store: &Store) -> UsageTotals {
    store.usage_totals(&UsageFilter::default(), UsageGroup::All).await.unwrap().pop().unwrap_or_default()
}

async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !is_so().await {
        assert!(begun.elapsed() < PATIENCE, "{what}");
        sleep(Duration::from_millis(10)).await;
    }
}

async fn everything_is_written_once(bench: Bench) {
    let writer = Writer::new(bench.store.clone(), Bounds::default());
    // What comes before it runs waits.
    for _ in 0..3000 {
        writer.add_usage(record(1));
    }
    assert_eq!(writer.health().buffered, 3000);
    let ((), ()) = tokio::join!(writer.run(), async {
        for _ in 0..50 {
            writer.add_usage(record(1));
            sleep(Duration::from_millis(1)).await;
        }
        until("it is written without an end", async || total(&bench.store).await.requests == 3050).await;
        for _ in 0..500 {
            writer.add_usage(record(1));
        }
        writer.finish();
    });
    assert_eq!(total(&bench.reopen().await).await.cost, MicroUsd::from_micros(3550));
    let health = writer.health();
    assert_eq!((health.buffered, health.lag_ms, health.written), (0, 0, 3550));
    // A machine so busy that the last batch took seconds says just that.
    assert!(health.ok || health.error.as_ref().is_some_and(|error| error.contains("longer than")), "{health:?}");
    assert!(!format!("{health:?}").contains("auth_pool:"), "no password: {health:?}");
}

async fn what_changes_often_is_written_as_it_last_was(bench: Bench) {
    let writer = Writer::new(bench.store.clone(), Bounds::default());
    let mut activity = activity("me");
    for revision in 1..=100 {
        activity.revision = revision;
        activity.attempts = revision;
        writer.put_activity(activity.clone());
    }
    assert_eq!(writer.health().buffered, 1);
    writer.finish();
    writer.run().await;
    let read = bench.store.activity(&Scope::Everything, &activity.id).await.unwrap();
    assert_eq!(read.map(|read| read.attempts), Some(100));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_another_program_locks_for_longer_than_anybody_waits_is_caught_up_with() {
    let bench = Bench::sqlite().await;
    let writer = Writer::new(bench.store.clone(), Bounds::default());
    let mut other = SqliteConnection::connect(&bench.url()).await.unwrap();
    sqlx::query("BEGIN IMMEDIATE").execute(&mut other).await.unwrap();
    let ((), ()) = tokio::join!(writer.run(), async {
        writer.add_usage(record(1));
        let is_locked = |said: &String| said.contains("locked");
        until("it says why", async || writer.health().error.as_ref().is_some_and(is_locked)).await;
        for _ in 0..100 {
            writer.add_usage(record(1));
        }
        // Who reads is not in its way.
        assert_eq!(total(&bench.store).await.requests, 0);
        sqlx::query("ROLLBACK").execute(&mut other).await.unwrap();
        until("everything is there", async || total(&bench.store).await.requests == 101).await;
        writer.finish();
    });
    assert_eq!((writer.health().buffered, total(&bench.store).await.cost), (0, MicroUsd::from_micros(101)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_gone_loses_nothing_within_bounds_and_is_caught_up_with() {
    let folder = tempfile::tempdir().unwrap();
    // A file where the database's folder should be.
    let place = folder.path().join("state");
    fs::write(&place, "in the way").unwrap();
    let store = Store::new(Location::file(place.join("pool.db")));
    assert!(store.prepare().await.is_err());
    let writer = Writer::new(store.clone(), Bounds { usage: 100, others: 10 });
    let ((), ()) = tokio::join!(writer.run(), async {
        let mut watch = writer.watch();
        writer.add_usage(record(1));
        let said = watch.changed().await.expect("it fails");
        assert!(said.contains("state"), "{said}");
        for _ in 0..150 {
            writer.add_usage(record(1));
        }
        let health = writer.health();
        // One is in the batch that is tried again and again.
        assert_eq!((health.ok, health.buffered, health.dropped.usage), (false, 101, 50));
        assert!(health.failing_since.is_some() && health.lag_ms > 0, "{health:?}");

        fs::remove_file(&place).unwrap();
        assert_eq!(watch.changed().await, None, "it is well again");
        until("everything is there", async || total(&store).await.requests == 101).await;
        writer.finish();
    });
    let health = writer.health();
    assert_eq!((health.ok, health.buffered, health.failing_since), (true, 0, None));
    assert_eq!(total(&store).await.cost, MicroUsd::from_micros(101));
}
