//! What both databases must do alike: what people register and change.

use auth_pool::store::{
    Account, Alert, AlertFilter, AuditEntry, AuditFilter, ClientKey, Page, Scope, StoreError, new_id,
};
use auth_pool::units::{MicroUsd, Timestamp};
use serde_json::{Value, json};

use super::{Bench, noted, on_both};

on_both!(
    accounts_are_kept_changed_and_removed,
    names_are_taken_once,
    a_change_and_its_entry_in_the_audit_log_are_written_together,
    the_name_of_a_key_that_was_revoked_is_free,
    alerts_of_the_whole_program_are_closed_when_nobody_holds_them,
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
    store.create_account(&account, &noted()).await.unwrap();
    assert_eq!(store.account(&all, &account.id).await.unwrap().as_ref(), Some(&account));
    assert_eq!(store.account_by_name(&all, "api-1").await.unwrap().as_ref(), Some(&account));

    let before = account.clone();
    account.enabled = false;
    account.name = "api-one".into();
    account.settings = json!({});
    account.sealed_secret = None;
    account.updated_at = second(9);
    assert!(store.update_account(&all, &before, &account, &noted()).await.unwrap());
    assert_eq!(store.account(&all, &account.id).await.unwrap().as_ref(), Some(&account));
    assert!(!store.update_account(&all, &before, &before, &noted()).await.unwrap(), "somebody else was first");
    let sealed = Account { sealed_secret: Some("other".to_owned()), ..account.clone() };
    assert!(!store.update_account(&all, &sealed, &sealed, &noted()).await.unwrap(), "its secret was another one");
    assert_eq!(store.account(&all, &account.id).await.unwrap().as_ref(), Some(&account));
    assert_eq!(store.account_by_name(&all, "api-1").await.unwrap(), None);
    assert_eq!(store.accounts(&all, Some(true), &Page::default()).await.unwrap().items, []);
    assert_eq!(store.accounts(&all, Some(false), &Page::default()).await.unwrap().items.len(), 1);

    assert!(store.delete_account(&all, &account.id, &noted()).await.unwrap());
    assert!(!store.delete_account(&all, &account.id, &noted()).await.unwrap());
    assert!(!store.update_account(&all, &account, &account, &noted()).await.unwrap());
    assert_eq!(store.account(&all, &account.id).await.unwrap(), None);
}

async fn names_are_taken_once(bench: Bench) {
    let store = &bench.store;
    store.create_account(&account("api-1", None), &noted()).await.unwrap();
    let taken = store.create_account(&account("api-1", Some("other")), &noted()).await;
    assert!(matches!(taken, Err(StoreError::Conflict("name"))), "{taken:?}");
    let second = account("api-2", None);
    store.create_account(&second, &noted()).await.unwrap();
    let renamed = store
        .update_account(&Scope::Everything, &second, &Account { name: "api-1".to_owned(), ..second.clone() }, &noted())
        .await;
    assert!(matches!(renamed, Err(StoreError::Conflict("name"))), "{renamed:?}");

    let key = client_key("me", None);
    store.create_client_key(&key, &noted()).await.unwrap();
    let same_name = ClientKey { id: new_id(), digest: "f".repeat(64), ..key.clone() };
    assert!(matches!(store.create_client_key(&same_name, &noted()).await, Err(StoreError::Conflict("name"))));
    let same_key = ClientKey { id: new_id(), name: "you".to_owned(), ..key };
    assert!(matches!(store.create_client_key(&same_key, &noted()).await, Err(StoreError::Conflict("digest"))));
}

async fn a_change_and_its_entry_in_the_audit_log_are_written_together(bench: Bench) {
    let (store, all) = (&bench.store, Scope::Everything);
    let (kept, key, raised) = (account("api-1", None), client_key("me", None), alert(None, "x", 0));
    let first = noted();
    store.create_account(&kept, &first).await.unwrap();
    store.create_client_key(&key, &noted()).await.unwrap();
    store.add_alerts(std::slice::from_ref(&raised)).await.unwrap();
    let log = async || store.audit(&AuditFilter::default(), &Page::default()).await.unwrap().items;
    assert_eq!(log().await.len(), 2);

    // An entry that cannot be written: there is one with its id. No change is made without it.
    let another = client_key("another", None);
    let changed = Account { enabled: false, updated_at: second(1), ..kept.clone() };
    let secret = (kept.id.clone(), kept.sealed_secret.clone().unwrap(), "v1:key2:BBBB".to_owned());
    for outcome in [
        store.create_account(&account("api-2", None), &first).await.err(),
        store.update_account(&all, &kept, &changed, &first).await.err(),
        store.replace_secrets(&[secret], &first).await.err(),
        store.delete_account(&all, &kept.id, &first).await.err(),
        store.create_client_key(&another, &first).await.err(),
        store.update_client_key(&all, &ClientKey { models: None, ..key.clone() }, &first).await.err(),
        store.revoke_client_key(&all, &key.id, second(1), &first).await.err(),
        store.resolve_alert(&all, &raised.id, second(1), &first).await.err(),
    ] {
        assert!(matches!(outcome, Some(StoreError::Conflict("id"))), "{outcome:?}");
    }
    assert_eq!(store.accounts(&all, None, &Page::default()).await.unwrap().items, std::slice::from_ref(&kept));
    assert_eq!(store.client_keys(&all, true, &Page::default()).await.unwrap().items, [key]);
    assert_eq!(store.alerts(&AlertFilter::default(), &Page::default()).await.unwrap().items, [raised]);

    // And nothing is noted that was no change.
    assert!(!store.delete_account(&all, "nobody", &noted()).await.unwrap());
    assert!(!store.update_account(&organisation("yours"), &kept, &changed, &noted()).await.unwrap());
    assert!(store.create_account(&account("api-1", None), &noted()).await.is_err());
    assert_eq!(log().await.len(), 2);
    assert!(store.delete_account(&all, &kept.id, &noted()).await.unwrap());
    assert_eq!(log().await.len(), 3);
}

async fn the_name_of_a_key_that_was_revoked_is_free(bench: Bench) {
    let (store, all) = (&bench.store, Scope::Everything);
    let old = client_key("me", None);
    let new = ClientKey { id: new_id(), digest: "f".repeat(64), created_at: second(50), ..old.clone() };
    store.create_client_key(&old, &noted()).await.unwrap();
    assert!(matches!(store.create_client_key(&new, &noted()).await, Err(StoreError::Conflict("name"))));

    assert!(store.revoke_client_key(&all, &old.id, second(30), &noted()).await.unwrap());
    store.create_client_key(&new, &noted()).await.unwrap();
    let third = ClientKey { id: new_id(), digest: "e".repeat(64), ..new.clone() };
    assert!(matches!(store.create_client_key(&third, &noted()).await, Err(StoreError::Conflict("name"))));
    // Each has its own history.
    let listed = store.client_keys(&all, true, &Page::default()).await.unwrap().items;
    assert_eq!(listed, [new.clone(), ClientKey { revoked_at: Some(second(30)), ..old.clone() }]);
    assert_eq!(store.client_keys(&all, false, &Page::default()).await.unwrap().items, [new]);
}

async fn alerts_of_the_whole_program_are_closed_when_nobody_holds_them(bench: Bench) {
    let store = &bench.store;
    let (held, lost, young) = (alert(None, "runaway", 0), alert(None, "runaway", 1), alert(None, "runaway", 100));
    let (subscriptions, over) = (alert(Some("sub1"), "limit_reached", 2), alert(None, "store_failed", 3));
    let all = [held.clone(), lost.clone(), young.clone(), subscriptions.clone(), over.clone()];
    store.add_alerts(&all).await.unwrap();
    store.close_alerts(std::slice::from_ref(&over.id), second(4)).await.unwrap();
    store.hold_alerts(&[held.id.clone(), over.id.clone(), new_id()], second(100)).await.unwrap();
    store.hold_alerts(&[], second(100)).await.unwrap();
    assert_eq!(store.close_lost_alerts(second(60), second(120)).await.unwrap(), 1);
    let resolved = async |alert: &Alert| {
        let all = store.alerts(&AlertFilter::default(), &Page::default()).await.unwrap().items;
        all.into_iter().find(|one| one.id == alert.id).unwrap().resolved_at
    };
    assert_eq!(resolved(&lost).await, Some(second(120)));
    assert_eq!(resolved(&over).await, Some(second(4)));
    for open in [&held, &young, &subscriptions] {
        assert_eq!(resolved(open).await, None, "{open:?}");
    }
    assert_eq!(store.close_lost_alerts(second(101), second(200)).await.unwrap(), 2, "nobody held them any more");
    // Who could not say so for a while says so again; what somebody has ended stays so.
    store.hold_alerts(&[held.id.clone(), over.id.clone()], second(210)).await.unwrap();
    assert_eq!((resolved(&held).await, resolved(&over).await), (None, Some(second(4))));
    assert_eq!(resolved(&young).await, Some(second(200)));
}

async fn organisations_do_not_see_each_other(bench: Bench) {
    let store = &bench.store;
    let (mine, yours) = (organisation("mine"), organisation("yours"));
    let account = account("api-1", Some("mine"));
    let key = client_key("key-1", Some("mine"));
    store.create_account(&account, &noted()).await.unwrap();
    store.create_client_key(&key, &noted()).await.unwrap();
    store.add_alerts(&[Alert { organization_id: Some("mine".to_owned()), ..alert(None, "x", 0) }]).await.unwrap();

    assert!(store.account(&mine, &account.id).await.unwrap().is_some());
    assert_eq!(store.account(&yours, &account.id).await.unwrap(), None);
    assert_eq!(store.accounts(&yours, None, &Page::default()).await.unwrap().items, []);
    assert!(!store.update_account(&yours, &account, &account, &noted()).await.unwrap());
    assert!(!store.delete_account(&yours, &account.id, &noted()).await.unwrap());
    assert_eq!(store.client_key(&yours, &key.id).await.unwrap(), None);
    assert!(!store.update_client_key(&yours, &key, &noted()).await.unwrap());
    assert!(!store.revoke_client_key(&yours, &key.id, second(1), &noted()).await.unwrap());
    assert_eq!(store.client_keys(&yours, true, &Page::default()).await.unwrap().items, []);
    let of = |scope: &Scope| AlertFilter { scope: scope.clone(), ..AlertFilter::default() };
    assert_eq!(store.alerts(&of(&yours), &Page::default()).await.unwrap().items, []);
    assert_eq!(store.alerts(&of(&mine), &Page::default()).await.unwrap().items.len(), 1);
    assert!(store.delete_account(&mine, &account.id, &noted()).await.unwrap());
}

async fn lists_come_in_pages_and_new_entries_move_nothing(bench: Bench) {
    let (store, all) = (&bench.store, Scope::Everything);
    for number in 0..5 {
        store.create_account(&account(&format!("api-{number}"), None), &noted()).await.unwrap();
    }
    let names = |items: &[Account]| items.iter().map(|account| account.name.clone()).collect::<Vec<_>>();
    let first = store.accounts(&all, None, &Page { limit: 2, after: None }).await.unwrap();
    assert_eq!(names(&first.items), ["api-4", "api-3"]);
    store.create_account(&account("api-5", None), &noted()).await.unwrap();
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
    store.create_client_key(&key, &noted()).await.unwrap();
    assert_eq!(store.client_key(&all, &key.id).await.unwrap().as_ref(), Some(&key));
    assert_eq!(store.client_key_by_digest(&key.digest).await.unwrap().as_ref(), Some(&key));
    assert_eq!(store.client_key_by_digest("no such").await.unwrap(), None);

    key.models = None;
    key.subscriptions = Some(vec!["sub1".to_owned(), "sub2".to_owned()]);
    key.requests_per_minute = None;
    key.weekly_budget = None;
    key.expires_at = None;
    assert!(store.update_client_key(&all, &key, &noted()).await.unwrap());
    assert_eq!(store.client_key(&all, &key.id).await.unwrap().as_ref(), Some(&key));

    store.touch_client_keys(&[(key.id.clone(), second(20)), ("nobody".to_owned(), second(20))]).await.unwrap();
    store.touch_client_keys(&[(key.id.clone(), second(10))]).await.unwrap();
    assert!(store.revoke_client_key(&all, &key.id, second(30), &noted()).await.unwrap());
    assert!(store.revoke_client_key(&all, &key.id, second(40), &noted()).await.unwrap());
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

    assert_eq!(store.resolve_alerts("sub1", "limit_reached", None, second(9)).await.unwrap(), 1);
    assert_eq!(store.resolve_alerts("sub1", "limit_reached", None, second(10)).await.unwrap(), 0);
    // One that was raised later is another one.
    store.add_alerts(&[alert(Some("sub1"), "limit_reached", 20)]).await.unwrap();
    assert_eq!(store.resolve_alerts("sub1", "limit_reached", None, second(15)).await.unwrap(), 0);
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

    assert!(store.resolve_alert(&Scope::Everything, &first.id, second(99), &noted()).await.unwrap());
    assert!(!store.resolve_alert(&organisation("mine"), &first.id, second(99), &noted()).await.unwrap());
    assert_eq!(
        list(AlertFilter { resolved: Some(true), ..AlertFilter::default() }).await[0].resolved_at,
        Some(second(9))
    );

    // The end of one share of a week says nothing of another.
    let share = |threshold, at| Alert { threshold: Some(threshold), ..alert(Some("sub2"), "quota_alert", at) };
    store.add_alerts(&[share(80.0, 30), share(95.0, 31)]).await.unwrap();
    assert_eq!(store.resolve_alerts("sub2", "quota_alert", Some(95.0), second(40)).await.unwrap(), 1);
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
    one.create_account(&account, &noted()).await.unwrap();
    assert_eq!(other.account(&Scope::Everything, &account.id).await.unwrap(), Some(account));
    other.ping().await.unwrap();
    one.close().await;
    other.close().await;
}

async fn values_are_only_ever_values(bench: Bench) {
    let (store, all) = (&bench.store, Scope::Everything);
    let nasty = "'; DROP TABLE claude_accounts; -- $1 ? \u{202e}";
    let account = Account { metadata: json!(nasty), ..account(nasty, Some(nasty)) };
    store.create_account(&account, &noted()).await.unwrap();
    assert_eq!(store.account_by_name(&organisation(nasty), nasty).await.unwrap(), Some(account.clone()));
    let page = Page { limit: 1, after: Some("z' OR '1'='1".to_owned()) };
    assert_eq!(store.accounts(&all, None, &page).await.unwrap().items, [account]);
}
