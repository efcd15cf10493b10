//! kill -9 at random instants while records come in by the thousand: what is lost was just made, and nothing counts
//! twice.
//!
//! The victim is this very program, run anew with one ignored test. `AUTH_POOL_TEST_KILLS` says how often (50 for a
//! thorough run); `cargo test --test it store::kill -- --nocapture` shows what was measured.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use auth_pool::config::Env;
use auth_pool::conversation::Usage;
use auth_pool::runtime::clock;
use auth_pool::store::{Bounds, Location, Store, UsageFilter, UsageGroup, UsageRecord, Writer, new_id};
use auth_pool::units::MicroUsd;
use tokio::time::sleep;

use super::{Bench, on_both};

on_both!(kill_9_loses_only_what_was_just_made_and_counts_nothing_twice);

/// Names the victim's database.
const DATABASE: &str = "AUTH_POOL_TEST_VICTIM_DATABASE";

/// What is older than this must not be lost, however busy the machine is. What was measured is far less.
const HARD_BOUND: Duration = Duration::from_secs(5);

fn record() -> UsageRecord {
    UsageRecord {
        id: new_id(),
        organization_id: None,
        subscription: "sub1".to_owned(),
        client: "me".to_owned(),
        session: "s".to_owned(),
        model: "claude-sonnet-5".to_owned(),
        activity_id: None,
        at: clock::now(),
        cost: MicroUsd::from_micros(1),
        usage: Usage::default(),
        duration_ms: 1,
        outcome: "completed".to_owned(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs in a process of its own, and is killed"]
async fn victim() {
    let env = Env::from_process();
    let Some(url) = env.var(DATABASE) else { return };
    let store = Store::open(Location::from_url(url).unwrap()).await.unwrap();
    let writer = Writer::new(store, Bounds::default());
    tokio::join!(writer.run(), async {
        // It is killed long before that.
        for _ in 0..1_000_000 {
            let mut lines = String::new();
            for _ in 0..5 {
                let record = record();
                lines.extend(["made ", &record.id, "\n"]);
                writer.add_usage(record);
            }
            std::io::stdout().write_all(lines.as_bytes()).unwrap();
            sleep(Duration::from_millis(1)).await;
        }
        writer.finish();
    });
}

#[expect(clippy::disallowed_methods, reason = "a second copy of this program, which is killed and waited for below")]
fn start(url: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "store::kill::victim", "--ignored", "--nocapture", "--test-threads=1"])
        .env(DATABASE, url)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Runs the victim, kills it `after` its first record, and tells what it had made and when that was known.
fn run_and_kill(url: &str, after: Duration) -> (Vec<(String, Instant)>, Instant) {
    let mut child = start(url);
    let stdout = child.stdout.take().unwrap();
    let reader = std::thread::spawn(move || {
        let lines = BufReader::new(stdout).lines().map_while(Result::ok);
        let made = lines.filter_map(|line| Some((line.rsplit_once("made ")?.1.to_owned(), Instant::now())));
        // The last line may be cut.
        made.filter(|(id, _)| id.len() == 36).collect::<Vec<_>>()
    });
    // Long enough for a busy machine to have begun.
    std::thread::sleep(Duration::from_millis(300) + after);
    let killed_at = Instant::now();
    child.kill().unwrap();
    child.wait().unwrap();
    (reader.join().unwrap(), killed_at)
}

#[expect(clippy::print_stdout, reason = "shown by --nocapture")]
async fn kill_9_loses_only_what_was_just_made_and_counts_nothing_twice(bench: Bench) {
    let kills: u64 = Env::from_process().var("AUTH_POOL_TEST_KILLS").map_or(3, |text| text.parse().unwrap());
    let url = bench.url();
    let (mut made, mut lost, mut oldest) = (0, 0, Duration::ZERO);
    for _ in 0..kills {
        let after = Duration::from_millis(u64::from(new_id().as_bytes()[35]) * 37 % 700);
        let victim = url.clone();
        let (ids, killed_at) = tokio::task::spawn_blocking(move || run_and_kill(&victim, after)).await.unwrap();
        made += ids.len();
        let kept = kept(&bench.store).await;
        for (id, at) in ids.iter().filter(|(id, _)| !kept.contains_key(id)) {
            let age = killed_at.saturating_duration_since(*at);
            assert!(age < HARD_BOUND, "{id} is lost though it was {age:?} old");
            (lost, oldest) = (lost + 1, oldest.max(age));
        }
    }
    // Each is there once, and the sum is theirs; what was killed between making and telling is there as well.
    let kept = kept(&bench.store).await;
    let sums = bench.store.usage_totals(&UsageFilter::default(), UsageGroup::All).await.unwrap();
    let sum = sums.first().map_or(0, |sum| sum.requests);
    assert_eq!(sum, kept.len() as u64);
    assert!(kept.values().all(|times| *times == 1));
    assert!(kept.len() >= made - lost, "{} of {made}, {lost} lost", kept.len());
    println!("kill -9: {kills} kills, {made} records, {lost} lost, the oldest of them {oldest:?} old");
}

/// Every record, and how often it is there.
async fn kept(store: &Store) -> HashMap<String, u32> {
    let (mut kept, mut after) = (HashMap::new(), None);
    loop {
        let part =
            store.usage_since(auth_pool::units::Timestamp::from_millis(0), after.as_ref(), 10_000).await.unwrap();
        let Some(last) = part.last() else { return kept };
        after = Some((last.at, last.id.clone()));
        for record in part {
            *kept.entry(record.id).or_default() += 1;
        }
    }
}
