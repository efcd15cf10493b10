//! What both databases must do alike: what people register and change.

use auth_pool::store::{
    Account, Alert, AlertFilter, AuditEntry, AuditFilter, ClientKey, Page, Scope, StoreError, new_id,
};
use auth_pool::units::{MicroUsd, Timestamp};
use serde_json::{Value, json};

use super::{Bench, on_both};

on_both!(
    accounts_are_kept_changed_and_removed,
    names_are_taken_once,
    organisations_do_not_see_each_other,
    lists_come_in_pages_and_new_entries_move_nothing,
    client_keys_are_kept_without_the_key,
    alerts_are_resolved_once,
    the_audit_log_is_found_again_by_every_filter,
    a_second_program_on_the_same_database_sees_everything,
    values_are_only_ever_values,
);

fn second(second: i64) -> Timestamp {
    Timestamp::from_secs(1_800_000_000 + second)
}

fn organisation(name: &str) -> Scope {
    Scope::Organization(name.to_owned())
}

fn account(name: &str, organization_id: Option<&str>) -> Account {
    Account {
        id: new_id(),
        organization_id: organization_id.map(str::to_owned),
        name: name.to_owned(),
        kind: "api".to_owned(),
        enabled: true,
        settings: json!({"tier": "tier2", "weeklyBudget": 456.5, "models": ["sonnet"]}),
        sealed_secret: Some("v1:key1:AAAA".to_owned()),
        metadata: json!({"note": "für \"Anna\" 🦀"}),
        created_at: second(0),
        updated_at: second(0),
    }
}

fn client_key(name: &str, organization_id: Option<&str>) -> ClientKey {
    ClientKey {
        id: new_id(),
        organization_id: organization_id.map(str::to_owned),
        name: name.to_owned(),
        digest: format!("{:0>64}", name.len()) + name,
        hint: "ap-1234".to_owned(),
        scopes: vec!["chat".to_owned(), "admin".to_owned()],
        models: Some(vec!["sonnet".to_owned()]),
        subscriptions: None,
        requests_per_minute: Some(60),
        weekly_budget: Some(MicroUsd::from_usd(12.5)),
        priority: "normal".to_owned(),
        created_at: second(0),
        expires_at: Some(second(1000)),
        revoked_at: None,
        last_used_at: None,
    }
}

fn alert(account: Option<&str>, kind: &str, at: i64) -> Alert {
    Alert {
        id: new_id(),
        organization_id: None,
        account: account.map(str::to_owned),
        kind: kind.to_owned(),
        severity: "warning".to_owned(),
        message: "80 % used".to_owned(),
        current_value: Some(365_000_000),
        limit_value: Some(456_000_000),
        percentage: Some(80.04),
        quota_type: Some("weekly_budget".to_owned()),
        threshold: None,
        created_at: second(at),
        resolved_at: None,
    }
}

async fn accounts_are_kept_changed_and_removed(bench: Bench) {
    let (store, all) = (&bench.store, Scope::Everything);
    let mut account = account("api-1", None);
    store.create_account(&account).await.unwrap();
    assert_eq!(store.account(&all, &account.id).await.unwrap().as_ref(), Some(&account));
    assert_eq!(store.account_by_name(&all, "api-1").await.unwrap().as_ref(), Some(&account));

    let before = account.clone();
    account.enabled = false;
    account.name = "api-one".into();
    account.settings = json!({});
    account.sealed_secret = None;
    account.updated_at = second(9);
    assert!(store.update_account(&all, &before, &account).await.unwrap());
    assert_eq!(store.account(&all, &account.id).await.unwrap().as_ref(), Some(&account));
    assert!(!store.update_account(&all, &before, &before).await.unwrap(), "somebody else was first");
    let sealed = Account { sealed_secret: Some("other".to_owned()), ..account.clone() };
    assert!(!store.update_account(&all, &sealed, &sealed).await.unwrap(), "its secret was another one");
    assert_eq!(store.account(&all, &account.id).await.unwrap().as_ref(), Some(&account));
    assert_eq!(store.account_by_name(&all, "api-1").await.unwrap(), None);
    assert_eq!(store.accounts(&all, Some(true), &Page::default()).await.unwrap().items, []);
    assert_eq!(store.accounts(&all, Some(false), &Page::default()).await.unwrap().items.len(), 1);

    assert!(store.delete_account(&all, &account.id).await.unwrap());
    assert!(!store.delete_account(&all, &account.id).await.unwrap());
    assert!(!store.update_account(&all, &account, &account).await.unwrap());
    assert_eq!(store.account(&all, &account.id).await.unwrap(), None);
}

async fn names_are_taken_once(bench: Bench) {
    let store = &bench.store;
    store.create_account(&account("api-1", None)).await.unwrap();
    let taken = store.create_account(&account("api-1", Some("other"))).await;
    assert!(matches!(taken, Err(StoreError::Conflict("name"))), "{taken:?}");
    let second = account("api-2", None);
    store.create_account(&second).await.unwrap();
    let renamed = store
        .update_account(&Scope::Everything, &second, &Account { name: "api-1".to_owned(), ..second.clone() })
        .await;
    assert!(matches!(renamed, Err(StoreError::Conflict("name"))), "{renamed:?}");

    let key = client_key("me", None);
    store.create_client_key(&key).await.unwrap();
    let same_name = ClientKey { id: new_id(), digest: "f".repeat(64), ..key.clone() };
    assert!(matches!(store.create_client_key(&same_name).await, Err(StoreError::Conflict("name"))));
    let same_key = ClientKey { id: new_id(), name: "you".to_owned(), ..key };
    assert!(matches!(store.create_client_key(&same_key).await, Err(StoreError::Conflict("digest"))));
}

async fn organisations_do_not_see_each_other(bench: Bench) {
    let store = &bench.store;
    let (mine, yours) = (organisation("mine"), organisation("yours"));
    let account = account("api-1", Some("mine"));
    let key = client_key("key-1", Some("mine"));
    store.create_account(&account).await.unwrap();
    store.create_client_key(&key).await.unwrap();
    store.add_alerts(&[Alert { organization_id: Some("mine".to_owned()), ..alert(None, "x", 0) }]).await.unwrap();

    assert!(store.account(&mine, &account.id).await.unwrap().is_some());
    assert_eq!(store.account(&yours, &account.id).await.unwrap(), None);
    assert_eq!(store.accounts(&yours, None, &Page::default()).await.unwrap().items, []);
    assert!(!store.update_account(&yours, &account, &account).await.unwrap());
    assert!(!store.delete_account(&yours, &account.id).await.unwrap());
    assert_eq!(store.client_key(&yours, &key.id).await.unwrap(), None);
    assert!(!store.update_client_key(&yours, &key).await.unwrap());
    assert!(!store.revoke_client_key(&yours, &key.id, second(1)).await.unwrap());
    assert_eq!(store.client_keys(&yours, true, &Page::default()).await.unwrap().items, []);
    let of = |scope: &Scope| AlertFilter { scope: scope.clone(), ..AlertFilter::default() };
    assert_eq!(store.alerts(&of(&yours), &Page::default()).await.unwrap().items, []);
    assert_eq!(store.alerts(&of(&mine), &Page::default()).await.unwrap().items.len(), 1);
    assert!(store.delete_account(&mine, &account.id).await.unwrap());
}

async fn lists_come_in_pages_and_new_entries_move_nothing(bench: Bench) {
    let (store, all) = (&bench.store, Scope::Everything);
    for number in 0..5 {
        store.create_account(&account(&format!("api-{number}"), None)).await.unwrap();
    }
    let names = |items: &[Account]| items.iter().map(|account| account.name.clone()).collect::<Vec<_>>();
    let first = store.accounts(&all, None, &Page { limit: 2, after: None }).await.unwrap();
    assert_eq!(names(&first.items), ["api-4", "api-3"]);
    store.create_account(&account("api-5", None)).await.unwrap();
    let second = store.accounts(&all, None, &Page { limit: 2, after: first.next }).await.unwrap();
    assert_eq!(names(&second.items), ["api-2", "api-1"]);
    let third = store.accounts(&all, None, &Page { limit: 2, after: second.next }).await.unwrap();
    assert_eq!((names(&third.items), third.next), (vec!["api-0".to_owned()], None));
    // As many as there are is not a page too few, and a limit of nothing is one.
    let exact = store.accounts(&all, None, &Page { limit: 6, after: None }).await.unwrap();
    assert_eq!((exact.items.len(), exact.next), (6, None));
    assert_eq!(store.accounts(&all, None, &Page { limit: 0, after: None }).await.unwrap().items.len(), 1);
}

async fn client_keys_are_kept_without_the_key(bench: Bench) {
    let (store, all) = (&bench.store, Scope::Everything);
    let mut key = client_key("me", None);
    store.create_client_key(&key).await.unwrap();
    assert_eq!(store.client_key(&all, &key.id).await.unwrap().as_ref(), Some(&key));
    assert_eq!(store.client_key_by_digest(&key.digest).await.unwrap().as_ref(), Some(&key));
    assert_eq!(store.client_key_by_digest("no such").await.unwrap(), None);

    key.models = None;
    key.subscriptions = Some(vec!["sub1".to_owned(), "sub2".to_owned()]);
    key.requests_per_minute = None;
    key.weekly_budget = None;
    key.expires_at = None;
    assert!(store.update_client_key(&all, &key).await.unwrap());
    assert_eq!(store.client_key(&all, &key.id).await.unwrap().as_ref(), Some(&key));

    store.touch_client_keys(&[(key.id.clone(), second(20)), ("nobody".to_owned(), second(20))]).await.unwrap();
    store.touch_client_keys(&[(key.id.clone(), second(10))]).await.unwrap();
    assert!(store.revoke_client_key(&all, &key.id, second(30)).await.unwrap());
    assert!(store.revoke_client_key(&all, &key.id, second(40)).await.unwrap());
    let read = store.client_key(&all, &key.id).await.unwrap().unwrap();
    assert_eq!((read.last_used_at, read.revoked_at), (Some(second(20)), Some(second(30))));
    assert_eq!(store.client_keys(&all, false, &Page::default()).await.unwrap().items, []);
    let listed = store.client_keys(&all, true, &Page::default()).await.unwrap().items;
    let shown = serde_json::to_value(&listed).unwrap();
    assert_eq!(shown[0]["name"], "me");
    assert_eq!(shown[0].get("digest"), None::<&Value>, "the digest is not shown");
}

async fn alerts_are_resolved_once(bench: Bench) {
    let store = &bench.store;
    let (first, second_one, other) =
        (alert(Some("sub1"), "limit_reached", 0), alert(Some("sub1"), "rotation", 1), alert(None, "limit_reached", 2));
    let alerts = [first.clone(), second_one, other];
    store.add_alerts(&alerts).await.unwrap();
    store.add_alerts(&alerts).await.unwrap();
    let list = async |filter: AlertFilter| store.alerts(&filter, &Page::default()).await.unwrap().items;
    assert_eq!(list(AlertFilter::default()).await.len(), 3);
    assert_eq!(
        list(AlertFilter { from: Some(second(1)), until: Some(second(2)), ..AlertFilter::default() }).await.len(),
        1
    );

    assert_eq!(store.resolve_alerts(Some("sub1"), "limit_reached", None, second(9)).await.unwrap(), 1);
    assert_eq!(store.resolve_alerts(Some("sub1"), "limit_reached", None, second(10)).await.unwrap(), 0);
    // One that was raised later is another one.
    store.add_alerts(&[alert(Some("sub1"), "limit_reached", 20)]).await.unwrap();
    assert_eq!(store.resolve_alerts(Some("sub1"), "limit_reached", None, second(15)).await.unwrap(), 0);
    let over = list(AlertFilter { resolved: Some(true), ..AlertFilter::default() }).await;
    assert_eq!(over, [Alert { resolved_at: Some(second(9)), ..first.clone() }]);
    assert_eq!(
        list(AlertFilter { resolved: Some(false), account: Some("sub1".into()), ..AlertFilter::default() }).await.len(),
        2
    );
    assert_eq!(
        list(AlertFilter { kind: Some("rotation".into()), severity: Some("warning".into()), ..AlertFilter::default() })
            .await
            .len(),
        1
    );

    assert!(store.resolve_alert(&Scope::Everything, &first.id, second(99)).await.unwrap());
    assert!(!store.resolve_alert(&organisation("mine"), &first.id, second(99)).await.unwrap());
    assert_eq!(
        list(AlertFilter { resolved: Some(true), ..AlertFilter::default() }).await[0].resolved_at,
        Some(second(9))
    );

    // The end of one share of a week says nothing of another.
    let share = |threshold, at| Alert { threshold: Some(threshold), ..alert(Some("sub2"), "quota_alert", at) };
    store.add_alerts(&[share(80.0, 30), share(95.0, 31)]).await.unwrap();
    assert_eq!(store.resolve_alerts(Some("sub2"), "quota_alert", Some(95.0), second(40)).await.unwrap(), 1);
    let open = AlertFilter { resolved: Some(false), account: Some("sub2".into()), ..AlertFilter::default() };
    let left = list(open.clone()).await;
    assert_eq!(left.iter().map(|alert| alert.threshold).collect::<Vec<_>>(), [Some(80.0)]);
    assert_eq!(store.close_alerts(&[left[0].id.clone(), new_id()], second(41)).await.unwrap(), 1);
    assert_eq!(store.close_alerts(&[left[0].id.clone()], second(42)).await.unwrap(), 0);
    assert_eq!(list(open.clone()).await, []);
    let ended: Vec<_> = list(AlertFilter { resolved: Some(true), ..open }).await;
    assert_eq!(ended.iter().map(|alert| alert.resolved_at).collect::<Vec<_>>(), [Some(second(40)), Some(second(41))]);
}

async fn the_audit_log_is_found_again_by_every_filter(bench: Bench) {
    let store = &bench.store;
    let entry = |actor: &str, action: &str, at| AuditEntry {
        id: new_id(),
        organization_id: None,
        at: second(at),
        actor: actor.to_owned(),
        action: action.to_owned(),
        target: "api-1".to_owned(),
        detail: json!({"enabled": [true, false]}),
    };
    let created = entry("local", "account.create", 0);
    store.add_audit(&created).await.unwrap();
    store.add_audit(&created).await.unwrap();
    store.add_audit(&entry("boss", "account.disable", 5)).await.unwrap();
    let list = async |filter: AuditFilter| store.audit(&filter, &Page::default()).await.unwrap().items;
    assert_eq!(list(AuditFilter::default()).await.len(), 2);
    assert_eq!(list(AuditFilter { actor: Some("local".into()), ..AuditFilter::default() }).await, [created]);
    assert_eq!(list(AuditFilter { action: Some("account.disable".into()), ..AuditFilter::default() }).await.len(), 1);
    assert_eq!(list(AuditFilter { target: Some("api-2".into()), ..AuditFilter::default() }).await.len(), 0);
    assert_eq!(
        list(AuditFilter { from: Some(second(1)), until: Some(second(6)), ..AuditFilter::default() }).await.len(),
        1
    );
}

async fn a_second_program_on_the_same_database_sees_everything(bench: Bench) {
    let (one, other) = (bench.reopen(), bench.reopen());
    let (one, other) = tokio::join!(one, other);
    let account = account("api-1", None);
    one.create_account(&account).await.unwrap();
    assert_eq!(other.account(&Scope::Everything, &account.id).await.unwrap(), Some(account));
    other.ping().await.unwrap();
    one.close().await;
    other.close().await;
}

async fn values_are_only_ever_values(bench: Bench) {
    let (store, all) = (&bench.store, Scope::Everything);
    let nasty = "'; DROP TABLE claude_accounts; -- $1 ? \u{202e}";
    let account = Account { metadata: json!(nasty), ..account(nasty, Some(nasty)) };
    store.create_account(&account).await.unwrap();
    assert_eq!(store.account_by_name(&organisation(nasty), nasty).await.unwrap(), Some(account.clone()));
    let page = Page { limit: 1, after: Some("z' OR '1'='1".to_owned()) };
    assert_eq!(store.accounts(&all, None, &page).await.unwrap().items, [account]);
}
