//! kill -9 of the whole program at random instants under load. What the store has kept is compared with what the
//! stand-in has served, what clients were answered, and what the program itself had announced.
//!
//! `AUTH_POOL_TEST_KILLS` says how often (50 for a thorough run). `cargo test --test it store::kill_program --
//! --nocapture` shows what was measured: for each kill the age of the oldest record that was lost.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use auth_pool::config::Env;
use auth_pool::runtime::tasks::Tasks;
use auth_pool::standin::{Options, Standin};
use auth_pool::store::{Store, UsageRecord};
use auth_pool::units::{MicroUsd, Timestamp};
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::{Bench, on_both};
use crate::program::Program;

on_both!(kill_9_of_the_program_loses_what_was_just_made_and_counts_nothing_twice);

/// Clients at the same time.
const CLIENTS: usize = 4;

/// The oldest record that a kill loses is usually younger than this, on a machine that has nothing else to do.
const BOUND: Duration = Duration::from_millis(100);

/// And never older than this: a connection may have to be opened first.
const HARD_BOUND: Duration = Duration::from_secs(1);

/// A program that is kept from running cannot keep anything either: for each moment that this process was kept waiting
/// for the processor, the program may have been as often as it has to run for one record.
const STEPS: u32 = 10;

/// Tokens that every prompt has more than its number says. Less than the number of any prompt's own tokens.
const SPARE: usize = 100;

/// A prompt whose number of tokens says which it is: four characters are one token.
fn prompt(number: usize) -> String {
    format!("{number:06} {}", "x".repeat(4 * (SPARE + number) - 7))
}

/// What one life of the program looked like from outside.
#[derive(Default)]
struct Seen {
    /// Prompts that were answered: number, tokens, and when the answer was there.
    answered: Mutex<Vec<(usize, u64, Instant)>>,
    /// Tokens of uses that the program announced to those who follow it, and when that was heard.
    announced: Mutex<Vec<(u64, Instant)>>,
    asked: AtomicUsize,
    over: AtomicBool,
}

async fn client(program: &Program, seen: &Seen) {
    while !seen.over.load(Ordering::SeqCst) {
        let number = seen.asked.fetch_add(1, Ordering::SeqCst);
        let body = json!({ "model": "claude-sonnet-4-5", "messages": [{ "role": "user", "content": prompt(number) }] });
        match program.chat(&body).await {
            Ok((status, answer)) => {
                assert_eq!(status, 200, "{answer}\n{}", program.log());
                let tokens = answer["usage"]["prompt_tokens"].as_u64().expect("a number");
                seen.answered.lock().unwrap().push((number, tokens, Instant::now()));
            }
            // The program is gone, or about to be.
            Err(_) => return,
        }
    }
}

/// Follows what the program announces until it is gone.
async fn follow(program: &Program, seen: &Seen) {
    let url = format!("{}/api/events/stream?types=usage", program.url);
    let mut events = program.client.get(url).send().await.unwrap().bytes_stream();
    let mut text = String::new();
    while let Some(Ok(piece)) = events.next().await {
        let at = Instant::now();
        text.push_str(&String::from_utf8_lossy(&piece));
        while let Some((line, rest)) = text.split_once('\n') {
            let data = line.strip_prefix("data:").and_then(|data| serde_json::from_str::<Value>(data).ok());
            if let Some(tokens) = data.and_then(|data| tokens_of(&data)) {
                seen.announced.lock().unwrap().push((tokens, at));
            }
            text = rest.to_owned();
        }
    }
}

/// The tokens of the prompt whose use is announced.
fn tokens_of(told: &Value) -> Option<u64> {
    let parts = ["inputTokens", "cacheCreationTokens", "cacheReadTokens"].map(|name| told[name].as_u64());
    parts.into_iter().sum()
}

/// Ages of what was lost in one life.
struct Lost {
    answered: Vec<Duration>,
    announced: Vec<Duration>,
    /// The longest that this process waited for the processor meanwhile.
    lag: Duration,
}

impl Lost {
    fn oldest(ages: &[Duration]) -> Duration {
        ages.iter().max().copied().unwrap_or_default()
    }
}

/// One life: started, under load, killed. What it had kept before, it knows.
async fn live_and_die(
    url: &str,
    standin: &Standin,
    store: &Store,
    before: &mut HashMap<String, UsageRecord>,
    offset: &mut Option<u64>,
) -> (Lost, usize) {
    let members: Vec<Value> = ["a", "b"].map(|name| member(name, &standin.base_url())).into();
    let vars = [("DATABASE_URL", url), ("KEY_a", "sk-ant-api03-fake-a"), ("KEY_b", "sk-ant-api03-fake-b")];
    let file = json!({ "subscriptions": members, "runawayGuard": { "enabled": false } });
    let program = Program::serve(&file, &vars);
    // What the life before this one kept is known again, to the cent.
    assert_eq!(used(&program).await, before.values().map(|record| record.cost).sum::<MicroUsd>(), "{}", program.log());
    standin.forget_requests();

    let (seen, lag) = (Seen::default(), Lag::start());
    let random = u64::from_str_radix(&auth_pool::store::new_id()[33..], 16).unwrap();
    let (killed_at, ()) = tokio::join!(
        async {
            while seen.answered.lock().unwrap().len() < 3 * CLIENTS {
                sleep(Duration::from_millis(1)).await;
            }
            sleep(Duration::from_millis(random % 700)).await;
            program.kill()
        },
        async {
            let clients = join_all((0..CLIENTS).map(|_| client(&program, &seen)));
            tokio::join!(clients, follow(&program, &seen));
        }
    );
    drop(program);
    let kept = kept(store).await;
    let new: Vec<&UsageRecord> = kept.values().filter(|record| !before.contains_key(&record.id)).collect();
    let answered = seen.answered.into_inner().unwrap();

    // A number of tokens names one prompt of this life.
    let offset = *offset.get_or_insert_with(|| answered[0].1 - answered[0].0 as u64);
    assert!(answered.iter().all(|(number, tokens, _)| tokens - *number as u64 == offset));
    let numbers: Vec<u64> = new.iter().map(|record| record.usage.total_input() - offset).collect();
    let distinct: HashSet<u64> = numbers.iter().copied().collect();
    assert_eq!(distinct.len(), numbers.len(), "nothing is kept twice");
    let activities: HashSet<_> = new.iter().map(|record| &record.activity_id).collect();
    assert_eq!(activities.len(), new.len());
    // Nothing is kept that was not served: at most one attempt of each prompt, and all of them completed or cut off.
    let served: HashSet<u64> = standin.requests().iter().filter(|it| it.status == Some(200)).map(number_of).collect();
    assert!(distinct.is_subset(&served), "{:?}", distinct.difference(&served));
    let told: HashSet<u64> = answered.iter().map(|(number, ..)| *number as u64).collect();
    assert!(told.is_subset(&served));
    let unknown = distinct.difference(&told).count();
    assert!(unknown <= CLIENTS, "{unknown} records of which no client knows");

    let lag = lag.end();
    let age = |at: Instant| killed_at.saturating_duration_since(at);
    let announced = seen.announced.into_inner().unwrap();
    assert!(!announced.is_empty(), "nothing was announced");
    let lost = Lost {
        answered: answered.iter().filter(|it| !distinct.contains(&(it.0 as u64))).map(|it| age(it.2)).collect(),
        announced: announced.iter().filter(|it| !distinct.contains(&(it.0 - offset))).map(|it| age(it.1)).collect(),
        lag,
    };
    *before = kept;
    (lost, answered.len())
}

/// How busy the machine is: the longest that a thread which wants to run each millisecond had to wait.
struct Lag {
    over: Arc<AtomicBool>,
    thread: JoinHandle<Duration>,
}

impl Lag {
    fn start() -> Self {
        let over = Arc::<AtomicBool>::default();
        let is_over = Arc::clone(&over);
        let thread = std::thread::spawn(move || {
            let mut longest = Duration::ZERO;
            while !is_over.load(Ordering::SeqCst) {
                let begun = Instant::now();
                std::thread::sleep(Duration::from_millis(1));
                longest = longest.max(begun.elapsed());
            }
            longest
        });
        Self { over, thread }
    }

    fn end(self) -> Duration {
        self.over.store(true, Ordering::SeqCst);
        self.thread.join().unwrap()
    }
}

fn member(name: &str, base_url: &str) -> Value {
    json!({
        "id": name, "type": "api", "apiKeyEnv": format!("KEY_{name}"), "baseUrl": base_url, "weeklyBudget": 1_000_000,
        "maxConcurrent": 50,
    })
}

/// Which prompt the stand-in was asked.
fn number_of(request: &auth_pool::standin::Recorded) -> u64 {
    let body = request.body.to_string();
    let at = body.find(" xxxx").expect("a prompt");
    body[at - 6..at].parse().expect("a number")
}

/// The week's use of all subscriptions, as the program reckons it.
async fn used(program: &Program) -> MicroUsd {
    let view = program.get("/debug/auth-pool").await;
    let used = view["status"].as_array().unwrap().iter().map(|one| one["weeklyUsed"].as_f64().unwrap());
    MicroUsd::from_usd(used.sum())
}

/// Everything that is kept, by id.
async fn kept(store: &Store) -> HashMap<String, UsageRecord> {
    let (mut kept, mut after) = (HashMap::new(), None);
    loop {
        let part = store.usage_since(Timestamp::from_millis(0), after.as_ref(), 10_000).await.unwrap();
        let Some(last) = part.last() else { return kept };
        after = Some((last.at, last.id.clone()));
        kept.extend(part.into_iter().map(|record| (record.id.clone(), record)));
    }
}

#[expect(clippy::print_stdout, reason = "shown by --nocapture")]
async fn kill_9_of_the_program_loses_what_was_just_made_and_counts_nothing_twice(bench: Bench) {
    let kills: usize = Env::from_process().var("AUTH_POOL_TEST_KILLS").map_or(3, |text| text.parse().unwrap());
    let tasks = Tasks::default();
    let options = Options { keep: 100_000, ..Options::default() };
    let standin = Standin::start(&tasks, options).await.unwrap();
    let (mut before, mut offset) = (HashMap::new(), None);
    let (mut answers, mut lost) = (0, Vec::new());
    for _ in 0..kills {
        let (life, answered) = live_and_die(&bench.url(), &standin, &bench.store, &mut before, &mut offset).await;
        for age in life.answered.iter().chain(&life.announced) {
            let bound = HARD_BOUND + life.lag * STEPS;
            assert!(*age < bound, "a record is lost that was {age:?} old, at a lag of {:?}", life.lag);
        }
        answers += answered;
        lost.push(life);
    }
    println!("{kills} kills of the program, {answers} answers, {} records", before.len());
    let lag = lost.iter().map(|life| life.lag).max().unwrap_or_default();
    println!("  this process waited for the processor for up to {lag:.1?}");
    show("since the client had its answer", lost.iter().map(|life| &life.answered[..]));
    show("since the use was announced", lost.iter().map(|life| &life.announced[..]));
    // How much longer than the machine let it wait.
    let beyond = |life: &Lost| Lost::oldest(&life.announced).saturating_sub(life.lag * STEPS);
    let mut usual: Vec<Duration> = lost.iter().map(beyond).collect();
    usual.sort_unstable();
    let share = if kills < 20 { 50 } else { 90 };
    let usual = usual[(kills - 1) * share / 100];
    assert!(usual < BOUND, "{share} % of the kills lose nothing older than {usual:?}, at a lag of up to {lag:?}");
}

/// The distribution over all kills: how many were lost, and how old the oldest was.
#[expect(clippy::print_stdout, reason = "shown by --nocapture")]
fn show<'a>(since: &str, lives: impl Iterator<Item = &'a [Duration]>) {
    let lives: Vec<&[Duration]> = lives.collect();
    let mut oldest: Vec<f64> = lives.iter().map(|ages| Lost::oldest(ages).as_secs_f64() * 1e3).collect();
    oldest.sort_by(f64::total_cmp);
    let at = |share: usize| oldest[(oldest.len() - 1) * share / 100];
    let count: usize = lives.iter().map(|ages| ages.len()).sum();
    println!(
        "  age {since}: {count} lost; the oldest of each kill: median {:.1} ms, 90 % {:.1} ms, all {:.1} ms",
        at(50),
        at(90),
        at(100)
    );
    println!("    {}", oldest.iter().map(|age| format!("{age:.0}")).collect::<Vec<_>>().join(" "));
}
