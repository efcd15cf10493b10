//! What becomes of changes: each with its entry in the audit log or not at all, and beside what stands in the file.

use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};

use super::*;

/// A key that stands in the file.
const FILED: &str = "a-key-that-stands-in-the-file";
const FILED_SHA256: &str = "9c8f9d8da1cbe9bfb4d5394594acab4fcce27fb6ea9f834eceaa9e78390f1631";

/// Runs a statement on the file that the program serves from, beside it.
async fn tamper(house: &House, sql: &'static str) {
    let Location::Sqlite { path, .. } = house.store() else { panic!("a file") };
    let options = SqliteConnectOptions::new().filename(path).busy_timeout(PATIENCE);
    let pool = SqlitePoolOptions::new().max_connections(1).connect_with(options).await.unwrap();
    sqlx::raw_sql(sql).execute(&pool).await.unwrap();
    pool.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_change_is_made_that_cannot_be_noted() {
    let house = House::new();
    let mut door = house.open().await;
    let boss = door.post(KEYS, json!({ "name": "boss", "scopes": ["admin"] })).await;
    door.key = Some(boss["key"].as_str().unwrap().to_owned());
    let key = door.post(KEYS, json!({ "name": "app" })).await;
    let account = door.post(ACCOUNTS, max("kept")).await;
    let key_path = format!("{KEYS}/{}", key["id"].as_str().unwrap());
    let account_path = format!("{ACCOUNTS}/{}", account["id"].as_str().unwrap());
    let log = async || door.get("/api/v1/admin/audit").await["items"].as_array().unwrap().len();
    assert_eq!(log().await, 3);

    tamper(
        &house,
        "CREATE TRIGGER full BEFORE INSERT ON audit_log BEGIN SELECT RAISE(ABORT, 'no room for an entry'); END",
    )
    .await;
    for (method, path, body) in [
        (Method::POST, ACCOUNTS.to_owned(), Some(max("another"))),
        (Method::PATCH, account_path.clone(), Some(json!({ "weeklyBudget": 7 }))),
        (Method::POST, format!("{account_path}/disable"), None),
        (Method::DELETE, account_path.clone(), None),
        (Method::POST, KEYS.to_owned(), Some(json!({ "name": "another" }))),
        (Method::PATCH, key_path.clone(), Some(json!({ "requestsPerMinute": 1 }))),
        (Method::DELETE, key_path.clone(), None),
    ] {
        let (status, value) = door.ask(method.clone(), &path, body).await;
        assert!(status.is_server_error(), "{method} {path}: {status} {value}");
    }
    tamper(&house, "DROP TRIGGER full").await;
    assert_eq!(log().await, 3);
    let accounts = door.get(ACCOUNTS).await;
    assert_eq!(accounts["items"].as_array().unwrap().len(), 1, "{accounts}");
    let now = &accounts["items"][0];
    assert_eq!((&now["status"], &now["weeklyBudget"]), (&json!("active"), &account["weeklyBudget"]));
    let keys = door.get(KEYS).await;
    assert_eq!(keys["items"].as_array().unwrap().len(), 2, "{keys}");
    assert_eq!(door.get(&key_path).await["requestsPerMinute"], Value::Null);
    assert_eq!(door.ask(Method::DELETE, &account_path, None).await.0, 200);
    let last = door.get("/api/v1/admin/audit?limit=1").await;
    assert_eq!((&last["items"][0]["action"], &last["items"][0]["actor"]), (&json!("account.delete"), &json!("boss")));
    door.app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_with_the_name_of_one_that_was_revoked_is_the_same_client_s() {
    let house = House::new();
    let mut door = house.open().await;
    let boss = door.post(KEYS, json!({ "name": "boss", "scopes": ["admin"] })).await["key"].clone();
    door.key = boss.as_str().map(str::to_owned);
    let make = async |door: &Door| {
        let key = door.post(KEYS, json!({ "name": "app", "weeklyBudget": 50 })).await;
        let text = |field: &str| key[field].as_str().unwrap().to_owned();
        (text("id"), text("key"))
    };
    let (old_id, old) = make(&door).await;
    assert_eq!(door.chat(Some(&old), "s").await.0, 200);
    let spends = async |door: &Door, id: &str, least: f64| {
        let begun = Instant::now();
        loop {
            let spent = door.get(&format!("{KEYS}/{id}")).await["weeklyUsed"].clone();
            if spent.as_f64().unwrap() > least {
                return spent;
            }
            assert!(begun.elapsed() < PATIENCE, "{spent}: no more than {least} was spent");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let spent = spends(&door, &old_id, 0.0).await;
    assert_eq!(door.ask(Method::DELETE, &format!("{KEYS}/{old_id}"), None).await.0, 200);
    let (id, key) = make(&door).await;
    assert_eq!(door.refused(KEYS, json!({ "name": "app" })).await.0, 409, "it is taken again");
    assert_eq!(spends(&door, &id, 0.0).await, spent, "a new key is no new budget");
    let own = door.key.take();
    door.app.stop().await;

    // Nor is a restart.
    let mut door = house.open().await;
    door.key = own;
    assert_eq!(door.chat(Some(&old), "s").await.0, 401);
    assert_eq!(spends(&door, &id, 0.0).await, spent);
    assert_eq!(door.chat(Some(&key), "s").await.0, 200);
    let all = door.get(&format!("{KEYS}?revoked=true")).await;
    let seen: Vec<_> = all["items"].as_array().unwrap().iter().filter(|key| key["name"] == "app").collect();
    assert_eq!(seen.iter().map(|key| key["id"].as_str().unwrap()).collect::<Vec<_>>(), [&*id, &*old_id]);
    assert_eq!((seen[0]["revokedAt"].is_null(), seen[1]["revokedAt"].is_null()), (true, false));
    let log = door.get("/api/v1/admin/audit?action=client_key.create").await;
    let targets: BTreeSet<_> = log["items"].as_array().unwrap().iter().map(|entry| entry["target"].as_str()).collect();
    assert!(targets.contains(&Some(&*id)) && targets.contains(&Some(&*old_id)), "{log}");
    door.app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_stands_in_the_file_is_changed_there() {
    let house = House::new();
    let path = house.home.path().join("auth-pool.json");
    let mut config = file(&[member("own", "answer")]);
    config["clientKeys"] = json!([{ "name": "filed", "sha256": FILED_SHA256, "scopes": ["chat", "admin"] }]);
    config["backends"] = json!([{ "name": "beside", "type": "openai-api", "baseUrl": "http://127.0.0.1:9/v1" }]);
    fs::write(&path, config.to_string()).unwrap();
    let mut door = house.open().await;
    door.key = Some(FILED.to_owned());

    // A key of the file has no id; by its name one is told where it is.
    for (method, body) in
        [(Method::DELETE, None), (Method::GET, None), (Method::PATCH, Some(json!({ "models": null })))]
    {
        let (status, value) = door.ask(method, &format!("{KEYS}/filed"), body).await;
        let message = value["error"]["message"].as_str().unwrap();
        assert_eq!(status, 409, "{value}");
        assert!(message.contains("`filed`") && message.contains("clientKeys"), "{message}");
    }
    assert_eq!(door.ask(Method::DELETE, &format!("{KEYS}/nobody"), None).await.0, 404);
    assert_eq!(door.refused(KEYS, json!({ "name": "filed" })).await.0, 409);
    assert_eq!(door.chat(Some(FILED), "s").await.0, 200, "it opens what it opened");

    // Nor does an account take the name of a backend: both would be one in what is written down.
    assert_eq!(door.post(ACCOUNTS, max("beside")).await["subscription"], "beside-2");

    // The file comes to name what was registered before it: the file's counts, and it is said.
    let later = door.post(ACCOUNTS, max("later")).await;
    let later_path = format!("{ACCOUNTS}/{}", later["id"].as_str().unwrap());
    config["subscriptions"] = json!([member("own", "answer"), member("later", "answer")]);
    let profile = house.home.path().join(".claude-later");
    fs::create_dir(&profile).unwrap();
    fs::set_permissions(&profile, fs::Permissions::from_mode(0o700)).unwrap();
    config["subscriptions"][1]["weeklyBudget"] = json!(77);
    fs::write(&path, config.to_string()).unwrap();
    let begun = Instant::now();
    while door.get(&later_path).await["status"] != "unusable" {
        assert!(begun.elapsed() < PATIENCE, "the file's is not noticed");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let shadowed = door.get(&later_path).await;
    assert!(shadowed["problem"].as_str().unwrap().contains("of the same name"), "{shadowed}");
    assert_eq!(shadowed["live"], Value::Null, "what the pool says of the file's is not told as its own");
    assert_eq!(door.post(&format!("{later_path}/test"), json!({})).await["ok"], false);
    assert_eq!(door.ask(Method::POST, &format!("{later_path}/reset"), None).await.0, 409);
    let debug = door.get("/debug/auth-pool").await;
    let views: Vec<_> = debug["status"].as_array().unwrap().iter().filter(|view| view["id"] == "later").collect();
    assert_eq!(views.iter().map(|view| &view["weeklyBudget"]).collect::<Vec<_>>(), [&json!(77.0)]);
    // Without the file's it is back, and it can be removed in either case.
    config["subscriptions"] = json!([member("own", "answer")]);
    fs::write(&path, config.to_string()).unwrap();
    let begun = Instant::now();
    while door.get(&later_path).await["live"]["status"] != "available" {
        assert!(begun.elapsed() < PATIENCE, "it is not back");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(door.ask(Method::DELETE, &later_path, None).await.0, 200);
    door.app.stop().await;
}
