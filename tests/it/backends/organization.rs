//! What Anthropic counts, beside what the pool counts.

use std::time::Duration;

use auth_pool::backend::anthropic_api::organization::Organization;
use auth_pool::backend::http::{HttpClient, Key, Proxy as Way, Timers};
use auth_pool::conversation::Usage;
use auth_pool::runtime::{clock, tasks::Tasks};
use auth_pool::store::{UsageFilter, UsageGroup, UsageRecord, new_id};
use auth_pool::units::MicroUsd;
use secrecy::SecretString;
use serde_json::{Value, json};

use super::{Proxy, account, ask, good, pool, standin, until};

fn organization(base: &str, key: &str) -> Organization {
    let limit = Duration::from_secs(20);
    let timers = Timers { first_event: limit, idle: limit, total: limit };
    let key = Key::new(SecretString::from(key));
    Organization::new(HttpClient::new(&Way::default()).unwrap(), Some(base), key, timers)
}

#[tokio::test]
async fn the_reports_say_what_the_pool_has_counted() {
    let tasks = Tasks::default();
    let standin = standin(&tasks).await;
    let members = [account("a", &standin.base_url()), account("b", &standin.base_url())];
    let proxy = Proxy::start(&pool(&members)).await;
    for question in ["one", "two", "three", "four", "five", "six"] {
        good(proxy.chat(&ask(question)).await).await;
    }
    let admin = organization(&standin.base_url(), "sk-ant-admin01-x");
    let (from, to) = (clock::now() - Duration::from_secs(3600), clock::now());
    let keys = admin.keys().await.unwrap();
    let usage = admin.usage(from, to).await.unwrap();
    assert_eq!(keys.len(), 2, "every page was read: {keys:?}");
    for id in ["a", "b"] {
        let key = keys.iter().find(|key| key.is(&format!("sk-ant-api03-fake-{id}"))).expect("known by its hint");
        let reported = usage[&Some(key.id.clone())].cost.as_usd();
        let own = proxy.view(id).await["weeklyUsed"].as_f64().unwrap();
        assert!(own > 0.0 && (reported - own).abs() < 1e-5, "{id}: {reported} {own}");
    }
    assert!(admin.cost(from, to).await.unwrap().as_usd() > 0.0);
    let refused = organization(&standin.base_url(), "sk-ant-api03-fake-a").keys().await.unwrap_err();
    assert_eq!(refused.kind, auth_pool::backend::FailureKind::Unauthenticated);
    proxy.app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_terminal_compares_the_same_days_and_knows_every_key() {
    const SEAL: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
    let tasks = Tasks::default();
    let standin = standin(&tasks).await;
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("auth-pool.json");
    std::fs::write(&path, pool(&[account("a", &standin.base_url())]).to_string()).unwrap();
    let (path_text, home_text) = (path.display().to_string(), home.path().display().to_string());
    let vars = [("KEY_A".to_owned(), "sk-ant-api03-fake-a".to_owned()), ("ENCRYPTION_KEY".to_owned(), SEAL.to_owned())];
    let proxy = Proxy::serve(home, path, vars.into()).await;
    let stored = json!({
        "name": "stored", "type": "api", "apiKey": "sk-ant-api03-fake-b", "baseUrl": standin.base_url(),
        "weeklyBudget": 1_000_000,
    });
    assert!(proxy.post("/api/v1/admin/claude-accounts", &stored).await.status().is_success());
    for question in ["one", "two", "three", "four", "five", "six"] {
        good(proxy.chat(&ask(question)).await).await;
    }
    // Three days ago more was used, of which the reports of today say nothing.
    let store = proxy.store().await;
    let today = async || store.usage_totals(&UsageFilter::default(), UsageGroup::Subscription).await.unwrap();
    until(async || today().await.iter().map(|sum| sum.requests).sum::<u64>() == 6).await;
    assert_eq!(today().await.len(), 2, "both have served");
    let old = UsageRecord {
        id: new_id(),
        organization_id: None,
        subscription: "a".to_owned(),
        client: "anonymous".to_owned(),
        session: "s".to_owned(),
        model: "claude-sonnet-4-5".to_owned(),
        activity_id: None,
        at: clock::now() - Duration::from_secs(3 * 24 * 3600),
        cost: MicroUsd::from_usd(50.0),
        usage: Usage::default(),
        duration_ms: 1,
        outcome: "completed".to_owned(),
    };
    store.add_usage(&[old]).await.unwrap();
    store.close().await;

    let (address, base) = (proxy.url(""), standin.base_url());
    let ask_terminal = async |days: &str, url: &str| {
        let args = [
            "usage",
            "--organization",
            "--json",
            "--days",
            days,
            "--url",
            url,
            "--config",
            &path_text,
            "--base-url",
            &base,
        ]
        .map(str::to_owned);
        let vars = [
            ("HOME", home_text.clone()),
            ("KEY_A", "sk-ant-api03-fake-a".to_owned()),
            ("ENCRYPTION_KEY", SEAL.to_owned()),
            ("ANTHROPIC_ADMIN_API_KEY", "sk-ant-admin01-x".to_owned()),
        ];
        let run = move || {
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            let vars = vars.each_ref().map(|(name, value)| (*name, value.as_str()));
            crate::program::run(&args, &vars)
        };
        let (code, out, err) = tokio::task::spawn_blocking(run).await.unwrap();
        assert_eq!(code, Some(0), "{err}");
        let told: Value = serde_json::from_str(&out).unwrap();
        told["keys"].as_array().unwrap().clone()
    };
    let own = |keys: &[Value], id: &str| {
        let row = keys.iter().find(|row| row["subscription"] == id).unwrap_or_else(|| panic!("no {id} in {keys:?}"));
        let number = |field: &str| row[field].as_f64().unwrap_or_else(|| panic!("no {field}: {row}"));
        (number("costByListPrice"), number("ownCost"), number("difference"))
    };
    let keys = ask_terminal("1", &address).await;
    for id in ["a", "stored"] {
        let (reported, own, difference) = own(&keys, id);
        assert!(own > 0.0 && (reported - own).abs() < 1e-5 && difference.abs() < 1e-5, "{id}: {keys:?}");
    }
    let (reported, more, difference) = own(&ask_terminal("7", &address).await, "a");
    assert!((more - reported - 50.0).abs() < 1e-5 && (difference + 50.0).abs() < 1e-5, "{reported} {more}");
    // Where no pool runs, the store tells the same.
    proxy.app.stop().await;
    assert_eq!(own(&ask_terminal("1", &address).await, "stored"), own(&keys, "stored"));
}
