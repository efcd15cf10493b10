//! What was before counts after a restart: also for what is registered, also when the store comes up late, and also
//! for alerts.

use std::path::PathBuf;

use auth_pool::conversation::{Usage, Window};
use auth_pool::pool::{Learned, LearnedLock, Source};
use auth_pool::runtime::clock;
use auth_pool::store::{
    Activity, ActivityStatus, Alert, AlertFilter, Page, Scope, SubscriptionState, UsageRecord, new_id,
};
use auth_pool::units::{MicroUsd, Timestamp};
use tokio::time::sleep;

use super::*;

const HOUR: Duration = Duration::from_hours(1);

/// A house whose store is in a folder that can go away.
pub(super) struct Books {
    pub(super) house: House,
    folder: PathBuf,
}

impl Books {
    pub(super) fn new() -> Self {
        let house = House::new();
        let folder = house.home.path().join("books");
        let this = Self { house, folder };
        this.configure(&format!("sqlite:{}/pool.db", this.folder.display()), 1_000_000.0);
        this
    }

    fn configure(&self, url: &str, weekly_budget: f64) {
        let mut config = file(&[member("own", "answer")]);
        config["store"] = json!({ "url": url });
        config["subscriptions"][0]["weeklyBudget"] = json!(weekly_budget);
        fs::write(self.house.home.path().join("auth-pool.json"), config.to_string()).unwrap();
    }

    pub(super) async fn store(&self) -> Store {
        Store::open(self.house.store()).await.unwrap()
    }

    /// Something else is where the folder was.
    fn take_away(&self) {
        fs::rename(&self.folder, self.folder.with_extension("aside")).unwrap();
        fs::write(&self.folder, "no folder").unwrap();
    }

    fn give_back(&self) {
        fs::remove_file(&self.folder).unwrap();
        fs::rename(self.folder.with_extension("aside"), &self.folder).unwrap();
    }
}

pub(super) fn used(subscription: &str, client: &str, at: Timestamp, dollars: f64) -> UsageRecord {
    UsageRecord {
        id: new_id(),
        organization_id: None,
        subscription: subscription.to_owned(),
        client: client.to_owned(),
        session: "s".to_owned(),
        model: "claude-sonnet-5".to_owned(),
        activity_id: None,
        at,
        cost: MicroUsd::from_usd(dollars),
        usage: Usage { input: 10, ..Usage::default() },
        duration_ms: 1,
        outcome: "completed".to_owned(),
    }
}

pub(super) async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !is_so().await {
        assert!(begun.elapsed() < PATIENCE * 3, "{what}");
        sleep(Duration::from_millis(50)).await;
    }
}

impl Door {
    async fn member(&self, id: &str) -> Option<Value> {
        let debug = self.get("/debug/auth-pool").await;
        debug["status"].as_array().unwrap().iter().find(|view| view["id"] == id).cloned()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_comes_up_late_takes_nothing_from_what_is_registered_in_it() {
    let books = Books::new();
    let mut door = books.house.open().await;
    door.post(ACCOUNTS, max("late")).await;
    let boss = door.post(KEYS, json!({ "name": "boss", "scopes": ["admin", "chat"] })).await;
    let boss = boss["key"].as_str().unwrap().to_owned();
    door.key = Some(boss.clone());
    let app = door.post(KEYS, json!({ "name": "app", "weeklyBudget": 100 })).await;
    let app = format!("{KEYS}/{}", app["id"].as_str().unwrap());
    door.app.stop().await;

    let (store, now) = (books.store().await, clock::now());
    let records = [used("late", "app", now - HOUR * 30, 12.5), used("late", "app", now - Duration::from_mins(10), 2.0)];
    store.add_usage(&records).await.unwrap();
    let limited = Learned {
        locks: vec![LearnedLock {
            cause: "5-hour limit".to_owned(),
            source: Source::Provider,
            since: now,
            until: now + HOUR * 2,
            window: Some(Window::FiveHour),
            throttle: false,
            heard: false,
        }],
        ..Learned::default()
    };
    let state = |learned: &Learned| SubscriptionState {
        subscription: "late".to_owned(),
        state: serde_json::to_value(learned).unwrap(),
        updated_at: now,
    };
    store.put_subscription_states(&[state(&limited)]).await.unwrap();
    store.close().await;

    books.take_away();
    let mut door = books.house.open().await;
    assert_eq!(door.ask(Method::GET, "/debug/auth-pool", None).await.0, 503, "nobody can know who may look");
    books.give_back();
    door.key = Some(boss);
    until("it joins", async || door.ask(Method::GET, ACCOUNTS, None).await.0 == 200).await;
    until("it is limited as it was", async || {
        door.member("late").await.is_some_and(|view| view["status"] == "cooldown" && view["weeklyUsed"] == 14.5)
    })
    .await;
    until("what the client spent is known", async || door.get(&app).await["weeklyUsed"] == 14.5).await;
    // What is learned from now on is kept, so let it be written once more.
    sleep(Duration::from_millis(1500)).await;
    door.app.stop().await;
    let states = books.store().await.subscription_states().await.unwrap();
    let kept = states.iter().find(|kept| kept.subscription == "late").expect("it was there");
    let kept: Learned = serde_json::from_value(kept.state.clone()).unwrap();
    assert_eq!(kept.locks.len(), 1, "it was not written over by nothing: {kept:?}");
}

fn alert(account: Option<&str>, kind: &str, threshold: Option<f64>) -> Alert {
    Alert {
        id: new_id(),
        organization_id: None,
        account: account.map(str::to_owned),
        kind: kind.to_owned(),
        severity: "warning".to_owned(),
        message: kind.to_owned(),
        current_value: None,
        limit_value: None,
        percentage: None,
        quota_type: None,
        threshold,
        created_at: clock::now() - HOUR,
        resolved_at: None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_repeats_no_alert_and_closes_those_that_hold_no_more() {
    let books = Books::new();
    books.configure(&format!("sqlite:{}/pool.db", books.folder.display()), 100.0);
    let store = books.store().await;
    // 85 of 100 dollars: above the first level of the quota alerts, below the others.
    store.add_usage(&[used("own", "anonymous", clock::now() - HOUR, 85.0)]).await.unwrap();
    let holds = alert(Some("own"), "quota_alert", Some(80.0));
    let over = [
        alert(Some("own"), "quota_alert", Some(95.0)),
        alert(Some("own"), "quota_alert", Some(77.0)),
        alert(Some("own"), "limit_reached", None),
        alert(Some("own"), "auth_failed", None),
        alert(None, "store_failed", None),
    ];
    store.add_alerts(std::slice::from_ref(&holds)).await.unwrap();
    store.add_alerts(&over).await.unwrap();
    let open = AlertFilter { resolved: Some(false), ..AlertFilter::default() };
    for start in 1..=2 {
        let door = books.house.open().await;
        until("the use is known", async || door.member("own").await.is_some_and(|view| view["weeklyUsed"] == 85.0))
            .await;
        until("what is over is closed", async || store.alerts(&open, &Page::default()).await.unwrap().items.len() == 1)
            .await;
        // The weeks are looked at every second.
        sleep(Duration::from_millis(2500)).await;
        door.app.stop().await;
        let left: Vec<_> = store.alerts(&open, &Page::default()).await.unwrap().items;
        assert_eq!(left.iter().map(|alert| &alert.id).collect::<Vec<_>>(), [&holds.id], "start {start}");
        // One is told besides: that the week is below 95 % again is an end, and no row.
        let all = store.alerts(&AlertFilter::default(), &Page::default()).await.unwrap().items;
        assert_eq!(all.len(), 1 + over.len(), "start {start}: nothing is told twice: {all:#?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_closes_no_alert_that_another_replica_holds() {
    let Some(bench) = crate::store::Bench::postgres().await else { return };
    let books = Books::new();
    books.configure(&bench.url(), 1_000_000.0);
    // Both were raised an hour ago; one is another replica's that lives, the other's replica was killed.
    let (held, lost) = (alert(None, "replicas_apart", None), alert(None, "runaway", None));
    bench.store.add_alerts(&[held.clone(), lost.clone()]).await.unwrap();
    bench.store.hold_alerts(std::slice::from_ref(&held.id), clock::now()).await.unwrap();
    let open = AlertFilter { resolved: Some(false), ..AlertFilter::default() };
    let open = async || {
        let open = bench.store.alerts(&open, &Page::default()).await.unwrap().items;
        open.into_iter().map(|alert| alert.id).collect::<Vec<_>>()
    };
    let door = books.house.open().await;
    until("what nobody holds is closed", async || !open().await.contains(&lost.id)).await;
    assert_eq!(door.chat(None, "s").await.0, 200);
    door.app.stop().await;
    assert_eq!(open().await, [held.id]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_program_serves_from_a_file_and_commands_work_beside_it() {
    let books = Books::new();
    let door = books.house.open().await;
    let (config, overrides) = books.house.config();
    let refused = App::start(config, books.house.env(), overrides).await.err().expect("two would fight").to_string();
    assert!(refused.contains("books/pool.db") && refused.contains("another program"), "{refused}");
    let beside = books.store().await;
    assert_eq!(beside.account(&Scope::Everything, "nobody").await.unwrap(), None);
    assert!(beside.close_alerts(&[new_id()], clock::now()).await.is_ok(), "it may also write");
    assert_eq!(door.chat(None, "s").await.0, 200);
    door.app.stop().await;
    books.house.open().await.app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_ran_in_a_replica_that_was_killed_does_not_run_for_ever() {
    let Some(bench) = crate::store::Bench::postgres().await else { return };
    let books = Books::new();
    books.configure(&bench.url(), 1_000_000.0);
    let activity = |silent: Duration| Activity {
        id: new_id(),
        organization_id: None,
        client: "anonymous".to_owned(),
        session: "s".to_owned(),
        model: "claude-sonnet-5".to_owned(),
        subscription: Some("own".to_owned()),
        status: ActivityStatus::Running,
        attempts: 1,
        started_at: clock::now() - HOUR,
        updated_at: clock::now() - silent,
        completed_at: None,
        input_tokens: 0,
        output_tokens: 0,
        cost: MicroUsd::ZERO,
        duration_ms: None,
        error: None,
        revision: 2,
    };
    // Another replica says every few seconds that it is there.
    let (lost, runs) = (activity(Duration::from_mins(4)), activity(Duration::ZERO));
    bench.store.put_activities(&[lost.clone(), runs.clone()]).await.unwrap();
    let door = books.house.open().await;
    let status = async |id: &str| bench.store.activity(&Scope::Everything, id).await.unwrap().unwrap().status;
    until("it is over", async || status(&lost.id).await == ActivityStatus::Interrupted).await;
    assert_eq!(status(&runs.id).await, ActivityStatus::Running);
    door.app.stop().await;
}
