//! What both databases must do alike when there is much of everything: sums, pruning in parts, many who read.

use std::time::Duration;

use auth_pool::store::{
    ActivityStatus, Bounds, Page, Scope, Store, SumOf, UsageFilter, UsageGroup, UsageRecord, UsageSum, Writer,
};
use auth_pool::units::{MicroUsd, Timestamp};
use futures_util::future::join_all;
use sqlx::{Connection as _, Executor as _, PgConnection, SqliteConnection};
use tokio::time::{Instant, sleep};

use super::books::{DAY, activity, noon, record, retention, total};
use super::{Bench, on_both};

on_both!(
    sums_are_exact_whatever_their_steps,
    what_runs_is_not_interrupted,
    a_database_that_goes_while_nothing_is_written_is_noticed,
    statements_are_not_logged,
);

const PATIENCE: Duration = Duration::from_secs(60);

async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !is_so().await {
        assert!(begun.elapsed() < PATIENCE, "{what}");
        sleep(Duration::from_millis(20)).await;
    }
}

async fn sums_are_exact_whatever_their_steps(bench: Bench) {
    let store = &bench.store;
    let records: Vec<UsageRecord> = (0..2000_u32)
        .map(|number| {
            let at = noon() + Duration::from_millis(u64::from(number) * 777);
            record(["one", "two", "three"][number as usize % 3], ["me", "you"][number as usize % 2], at, number.into())
        })
        .collect();
    store.add_usage(&records).await.unwrap();
    let (from, until) = (noon() + Duration::from_mins(1), noon() + Duration::from_mins(20));
    let cost = |sums: &[UsageSum], name: &str| {
        sums.iter().filter(|sum| sum.name == name).map(|sum| sum.cost).sum::<MicroUsd>()
    };
    for step in [Duration::from_secs(1), Duration::from_mins(1), Duration::from_hours(1)] {
        let sums = store.usage_sums(SumOf::Subscription, &[], from, until, step).await.unwrap();
        for name in ["one", "two", "three"] {
            let meant = |record: &&UsageRecord| record.subscription == name && record.at >= from && record.at < until;
            let expected: Vec<&UsageRecord> = records.iter().filter(meant).collect();
            assert_eq!(cost(&sums, name), expected.iter().map(|record| record.cost).sum::<MicroUsd>(), "{step:?}");
            let tokens: u64 = sums.iter().filter(|sum| sum.name == name).map(|sum| sum.usage.cache_read).sum();
            assert_eq!(tokens, 40 * expected.len() as u64);
            let last = sums.iter().filter(|sum| sum.name == name).map(|sum| sum.at).max();
            assert_eq!(last, expected.iter().map(|record| record.at).max(), "as long as its last record it counts");
        }
        let most = 3 * (19 * 60 / step.as_secs() + 2);
        assert!(sums.len() as u64 <= most, "{} sums by {step:?}", sums.len());
        assert!(sums.is_sorted_by_key(|sum| sum.at));
    }
    let mine = store.usage_sums(SumOf::Client, &["me".to_owned()], from, until, DAY).await.unwrap();
    assert_eq!(mine.iter().map(|sum| sum.name.as_str()).collect::<Vec<_>>(), ["me"]);
    let many: Vec<String> = (0..500).map(|number| format!("nobody-{number}")).collect();
    assert_eq!(store.usage_sums(SumOf::Client, &many, from, until, DAY).await.unwrap().len(), 2, "everybody's");
    assert_eq!(store.newest_usage(1).await.unwrap(), records.last().map(|record| record.at));
    assert_eq!(store.newest_usage(2000).await.unwrap(), Some(noon()));
    assert_eq!(store.newest_usage(2001).await.unwrap(), None);
}

async fn what_runs_is_not_interrupted(bench: Bench) {
    let store = &bench.store;
    let (runs, thought_lost, done) = (
        activity("me"),
        activity("me"),
        auth_pool::store::Activity { status: ActivityStatus::Completed, ..activity("me") },
    );
    store.put_activities(std::slice::from_ref(&thought_lost)).await.unwrap();
    store.interrupt_activities(noon() + DAY, noon() + DAY).await.unwrap();
    store.put_activities(&[runs.clone(), done.clone()]).await.unwrap();
    let ids = [&runs, &thought_lost, &done].map(|activity| activity.id.clone());
    store.touch_activities(&ids, noon() + DAY * 2).await.unwrap();
    assert_eq!(store.interrupt_activities(noon() + DAY * 2, noon() + DAY * 2).await.unwrap(), 0);
    let read = async |id: &str| store.activity(&Scope::Everything, id).await.unwrap().unwrap();
    for id in &ids[..2] {
        let now = read(id).await;
        assert_eq!((now.status, now.completed_at, now.updated_at), (ActivityStatus::Running, None, noon() + DAY * 2));
    }
    assert_eq!(read(&done.id).await, done, "what is over stays so");
}

/// Runs a statement beside the store.
async fn beside(bench: &Bench, statement: &'static str) {
    if let Some(path) = bench.url().strip_prefix("sqlite:") {
        let mut other = SqliteConnection::connect(path).await.unwrap();
        other.execute(statement).await.unwrap();
        other.close().await.unwrap();
    } else {
        let mut other = PgConnection::connect(&bench.url()).await.unwrap();
        other.execute(statement).await.unwrap();
        other.close().await.unwrap();
    }
}

async fn a_database_that_goes_while_nothing_is_written_is_noticed(bench: Bench) {
    let writer = Writer::new(bench.store.clone(), Bounds::default());
    tokio::join!(writer.run(), async {
        assert!(writer.health().ok);
        beside(&bench, "ALTER TABLE claude_accounts RENAME TO gone").await;
        until("it is noticed", async || !writer.health().ok).await;
        beside(&bench, "ALTER TABLE gone RENAME TO claude_accounts").await;
        until("it is well again", async || writer.health().ok).await;
        writer.finish();
    });
}

/// Collects who logs.
#[derive(Clone, Default)]
struct Ears(std::sync::Arc<std::sync::Mutex<Vec<String>>>);

impl tracing::Subscriber for Ears {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        self.0.lock().unwrap().push(event.metadata().target().to_owned());
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

async fn statements_are_not_logged(bench: Bench) {
    let ears = Ears::default();
    // A batch is 50 kB of text.
    let logged = tokio::task::spawn_blocking({
        let (ears, location) = (ears.clone(), bench.empty().await);
        move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            tracing::subscriber::with_default(ears, || {
                runtime.block_on(async {
                    let store = Store::open(location).await.unwrap();
                    store.add_usage(&[record("sub1", "me", noon(), 1)]).await.unwrap();
                    assert_eq!(total(&store, UsageFilter::default()).await.requests, 1);
                    store.close().await;
                });
            });
        }
    });
    logged.await.unwrap();
    let heard = ears.0.lock().unwrap();
    assert!(!heard.iter().any(|target| target == "sqlx::query"), "{heard:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pruning_that_is_stopped_keeps_what_it_has_done() {
    let bench = Bench::sqlite().await;
    let old = noon() - DAY * 50;
    let mut records: Vec<_> =
        (0..7000_u32).map(|number| record("sub1", "me", old + Duration::from_millis(number.into()), 1)).collect();
    records.push(record("sub1", "me", old + Duration::from_secs(60), 1));
    "poison".clone_into(&mut records.last_mut().unwrap().id);
    for part in records.chunks(1000) {
        bench.store.add_usage(part).await.unwrap();
    }
    beside(
        &bench,
        "CREATE TRIGGER stop BEFORE DELETE ON usage_records WHEN OLD.id = 'poison' BEGIN SELECT RAISE(ABORT, 'stop'); END",
    )
    .await;
    assert!(bench.store.prune(noon(), &retention()).await.is_err());
    let left = bench.store.usage_since(Timestamp::from_millis(0), None, 10_000).await.unwrap();
    assert_eq!(left.len(), 2001, "the first turn is done, the second is not");
    assert_eq!(total(&bench.store, UsageFilter::default()).await.requests, 7001);
    beside(&bench, "DROP TRIGGER stop").await;
    assert_eq!(bench.store.prune(noon(), &retention()).await.unwrap().usage, 2001);
    let everything = total(&bench.store, UsageFilter::default()).await;
    assert_eq!((everything.requests, everything.cost.as_micros()), (7001, 7001));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_who_read_what_does_not_come_keep_nobody_from_writing() {
    let Some(bench) = Bench::postgres().await else { return };
    let mut other = PgConnection::connect(&bench.url()).await.unwrap();
    other.execute("BEGIN; LOCK TABLE usage_records IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let store = bench.reopen().await;
    let (everything, writer) = (UsageFilter::default(), Writer::new(store.clone(), Bounds::default()));
    let readers = join_all((0..20).map(|_| store.usage_totals(&everything, UsageGroup::All)));
    let activity = activity("me");
    let (sums, ()) = tokio::join!(readers, async {
        sleep(Duration::from_millis(500)).await;
        writer.put_activity(activity.clone());
        writer.finish();
        let begun = Instant::now();
        writer.run().await;
        assert!(store.accounts(&Scope::Everything, None, &Page::default()).await.is_ok(), "lists of people come");
        assert!(begun.elapsed() < Store::CALL_LIMIT / 2, "nobody waited for them to give up");
    });
    assert!(sums.iter().all(Result::is_err), "what does not come ends");
    assert!(store.activity(&Scope::Everything, &activity.id).await.unwrap().is_some());
    // At the server, too, nothing goes on for nobody.
    let waiting =
        "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    let begun = Instant::now();
    while sqlx::query_scalar::<_, i64>(waiting).fetch_one(&mut other).await.unwrap() > 0 {
        assert!(begun.elapsed() < PATIENCE, "statements are left behind");
        sleep(Duration::from_millis(200)).await;
    }
}
