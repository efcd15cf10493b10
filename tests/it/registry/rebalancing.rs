//! A changed file makes the running rebalancer run more often, and move for less.

use auth_pool::runtime::clock;
use auth_pool::store::StickySession;

use super::restart::{Books, until, used};
use super::*;

/// Two subscriptions, of which `own` has cost 20 dollars in its block and has idle sessions.
async fn unequal(books: &Books) {
    let profile = books.house.home.path().join(".claude-other");
    fs::create_dir(&profile).unwrap();
    fs::set_permissions(&profile, fs::Permissions::from_mode(0o700)).unwrap();
    configure(books, "first", 3600, 5.0);
    // Sessions have names that only the pool can give.
    let door = books.house.open().await;
    for number in 0..4 {
        assert_eq!(door.chat(None, &format!("s{number}")).await.0, 200);
    }
    door.app.stop().await;
    let first = books.store().await;
    let named = first.sessions(clock::now() - PATIENCE * 60, 100).await.unwrap();
    first.close().await;
    assert_eq!(named.len(), 4);

    configure(books, "second", 3600, 5.0);
    let (second, idle) = (books.store().await, clock::now() - Duration::from_mins(6));
    let idle = |session: StickySession| StickySession {
        subscription: "own".to_owned(),
        since: idle,
        last_used: idle,
        ..session
    };
    second.put_sessions(&named.into_iter().map(idle).collect::<Vec<_>>()).await.unwrap();
    second.add_usage(&[used("own", "anonymous", clock::now() - Duration::from_mins(10), 20.0)]).await.unwrap();
    second.close().await;
}

fn configure(books: &Books, store: &str, interval: u32, gap: f64) {
    let mut config = file(&[member("own", "answer"), member("other", "answer")]);
    config["store"] = json!({ "url": format!("sqlite:{}/{store}.db", books.house.home.path().display()) });
    config["rebalancing"] =
        json!({ "enabled": true, "intervalSeconds": interval, "costGapThreshold": gap, "maxClientsToMovePerCycle": 3 });
    fs::write(books.house.home.path().join("auth-pool.json"), config.to_string()).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_interval_and_gap_take_effect_in_the_running_program() {
    let books = Books::new();
    unequal(&books).await;
    let door = books.house.open().await;
    let at = async |id: &str| {
        let debug = door.get("/debug/auth-pool").await;
        let view = debug["status"].as_array().unwrap().iter().find(|view| view["id"] == id).cloned().unwrap();
        view["assignedClients"].as_u64().unwrap()
    };
    until("the sessions are known again", async || at("own").await == 4).await;
    // Often, but the gap is too wide for these blocks: nothing moves, in however many cycles.
    configure(&books, "second", 1, 21.0);
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!((at("own").await, at("other").await), (4, 0));
    // Wide enough, and now and then: three a cycle until there are none left.
    configure(&books, "second", 1, 5.0);
    until("they have moved", async || at("other").await == 4).await;
    assert_eq!(at("own").await, 0);
    door.app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shorter_interval_alone_takes_effect_too() {
    let books = Books::new();
    unequal(&books).await;
    let door = books.house.open().await;
    let moved = async || {
        let debug = door.get("/debug/auth-pool").await;
        let views = debug["status"].as_array().unwrap();
        views.iter().find(|view| view["id"] == "other").unwrap()["assignedClients"].as_u64().unwrap()
    };
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(moved().await, 0, "the next cycle is in an hour");
    configure(&books, "second", 1, 5.0);
    until("they have moved", async || moved().await == 4).await;
    door.app.stop().await;
}
