//! What Anthropic counts, beside what the pool counts.

use std::time::Duration;

use auth_pool::backend::anthropic_api::organization::Organization;
use auth_pool::backend::http::{HttpClient, Key, Proxy as Way, Timers};
use auth_pool::runtime::{clock, tasks::Tasks};
use secrecy::SecretString;

use super::{Proxy, account, ask, good, pool, standin};

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
