//! What both databases must do alike: what requests leave behind.

use std::time::{Duration, Instant};

use auth_pool::conversation::Usage;
use auth_pool::store::{
    Activity, ActivityFilter, ActivityStatus, Alert, Page, Retention, Scope, StickySession, Store, StoreError,
    SubscriptionState, UsageFilter, UsageGroup, UsageRecord, UsageTotals, new_id,
};
use auth_pool::units::{MicroUsd, Timestamp};
use serde_json::json;

use super::{Bench, on_both};

on_both!(
    a_record_counts_once_however_often_it_is_written,
    usage_is_found_and_summed_by_every_filter,
    usage_is_read_in_order_and_in_parts,
    a_large_batch_is_written_whole,
    activities_go_forward_only,
    activities_that_nobody_ended_are_interrupted,
    states_and_sessions_are_remembered,
    old_usage_becomes_a_sum_and_no_cent_is_lost,
    two_that_prune_at_the_same_time_count_everything_once,
);

pub(super) const DAY: Duration = Duration::from_hours(24);

/// Noon, UTC.
pub(super) fn noon() -> Timestamp {
    Timestamp::parse_rfc3339("2026-11-20T12:00:00Z").unwrap()
}

pub(super) fn record(subscription: &str, client: &str, at: Timestamp, micros: i64) -> UsageRecord {
    UsageRecord {
        id: new_id(),
        organization_id: Some("mine".to_owned()),
        subscription: subscription.to_owned(),
        client: client.to_owned(),
        session: "s-1".to_owned(),
        model: "claude-sonnet-5".to_owned(),
        activity_id: Some(new_id()),
        at,
        cost: MicroUsd::from_micros(micros),
        usage: Usage { input: 10, output: 20, cache_creation: 30, cache_read: 40, reasoning: 5 },
        duration_ms: 1500,
        outcome: "completed".to_owned(),
    }
}

pub(super) async fn total(store: &Store, filter: UsageFilter) -> UsageTotals {
    store.usage_totals(&filter, UsageGroup::All).await.unwrap().pop().unwrap_or_default()
}

async fn a_record_counts_once_however_often_it_is_written(bench: Bench) {
    let records: Vec<_> = (1..=3).map(|micros| record("sub1", "me", noon(), micros)).collect();
    bench.store.add_usage(&records).await.unwrap();
    // A batch of which nobody knows whether it arrived, with something new behind it.
    let mut again = records;
    again.push(record("sub1", "me", noon(), 4));
    bench.store.add_usage(&again).await.unwrap();
    bench.store.add_usage(&again).await.unwrap();
    bench.store.add_usage(&[]).await.unwrap();
    let total = total(&bench.store, UsageFilter::default()).await;
    assert_eq!((total.requests, total.cost), (4, MicroUsd::from_micros(10)));
}

async fn usage_is_found_and_summed_by_every_filter(bench: Bench) {
    let store = &bench.store;
    let records = [
        record("sub1", "me", noon(), 100),
        record("sub2", "me", noon() + Duration::from_hours(1), 20),
        record("sub2", "you", noon() + DAY, 3),
    ];
    store.add_usage(&records).await.unwrap();
    let all = store.usage(&UsageFilter::default(), &Page::default()).await.unwrap().items;
    assert_eq!(all, records.iter().rev().cloned().collect::<Vec<_>>());

    let filters = [
        (UsageFilter { subscription: Some("sub2".into()), ..UsageFilter::default() }, 23),
        (UsageFilter { client: Some("me".into()), ..UsageFilter::default() }, 120),
        (UsageFilter { model: Some("other".into()), ..UsageFilter::default() }, 0),
        (UsageFilter { scope: Scope::Organization("yours".into()), ..UsageFilter::default() }, 0),
        (UsageFilter { scope: Scope::Organization("mine".into()), ..UsageFilter::default() }, 123),
        (UsageFilter { from: Some(noon() + Duration::from_millis(1)), ..UsageFilter::default() }, 23),
        (UsageFilter { until: Some(noon() + DAY), ..UsageFilter::default() }, 120),
    ];
    for (filter, micros) in filters {
        assert_eq!(total(store, filter.clone()).await.cost, MicroUsd::from_micros(micros), "{filter:?}");
        let listed = store.usage(&filter, &Page::default()).await.unwrap().items;
        assert_eq!(listed.iter().map(|record| record.cost).sum::<MicroUsd>(), MicroUsd::from_micros(micros));
    }

    let by = async |group| {
        let totals = store.usage_totals(&UsageFilter::default(), group).await.unwrap();
        totals.into_iter().map(|total| (total.key, total.cost.as_micros())).collect::<Vec<_>>()
    };
    assert_eq!(by(UsageGroup::Subscription).await, [("sub1".to_owned(), 100), ("sub2".to_owned(), 23)]);
    assert_eq!(by(UsageGroup::Client).await, [("me".to_owned(), 120), ("you".to_owned(), 3)]);
    assert_eq!(by(UsageGroup::Model).await, [("claude-sonnet-5".to_owned(), 123)]);
    let midnight = (noon() - Duration::from_hours(12)).as_millis();
    assert_eq!(by(UsageGroup::Day).await, [(midnight.to_string(), 120), ((midnight + 86_400_000).to_string(), 3)]);
    let all = total(store, UsageFilter::default()).await;
    assert_eq!(all.usage, Usage { input: 30, output: 60, cache_creation: 90, cache_read: 120, reasoning: 15 });
    assert_eq!(all.duration_ms, 4500);
}

async fn usage_is_read_in_order_and_in_parts(bench: Bench) {
    let store = &bench.store;
    // Written out of order, and three at the same instant.
    let seconds = [30, 10, 20, 20, 20, 0];
    let records: Vec<_> =
        seconds.iter().map(|second| record("sub1", "me", noon() + Duration::from_secs(*second), 1)).collect();
    store.add_usage(&records).await.unwrap();
    let (mut read, mut after) = (Vec::new(), None);
    loop {
        let part = store.usage_since(noon() + Duration::from_secs(10), after.as_ref(), 2).await.unwrap();
        let Some(last) = part.last() else { break };
        after = Some((last.at, last.id.clone()));
        read.extend(part);
    }
    let seconds: Vec<_> = read.iter().map(|record| record.at.since(noon()).as_secs()).collect();
    assert_eq!(seconds, [10, 20, 20, 20, 30]);
    let ids: std::collections::BTreeSet<_> = read.iter().map(|record| &record.id).collect();
    assert_eq!(ids.len(), 5);
}

async fn a_large_batch_is_written_whole(bench: Bench) {
    let records: Vec<_> = (0..2345).map(|_| record("sub1", "me", noon(), 1)).collect();
    // Where a busy machine needs longer than a call may take, nothing of it is there, and it may be written again.
    let begun = Instant::now();
    while let Err(error) = bench.store.add_usage(&records).await {
        assert!(matches!(error, StoreError::TimedOut) && begun.elapsed() < Duration::from_secs(120), "{error}");
    }
    assert_eq!(total(&bench.store, UsageFilter::default()).await.requests, 2345);
}

pub(super) fn activity(client: &str) -> Activity {
    Activity {
        id: new_id(),
        organization_id: None,
        client: client.to_owned(),
        session: "s-1".to_owned(),
        model: "claude-sonnet-5".to_owned(),
        subscription: None,
        status: ActivityStatus::Running,
        attempts: 0,
        started_at: noon(),
        updated_at: noon(),
        completed_at: None,
        input_tokens: 0,
        output_tokens: 0,
        cost: MicroUsd::ZERO,
        duration_ms: None,
        error: None,
        revision: 1,
    }
}

async fn activities_go_forward_only(bench: Bench) {
    let store = &bench.store;
    let started = activity("me");
    let done = Activity {
        subscription: Some("sub1".to_owned()),
        status: ActivityStatus::Completed,
        attempts: 2,
        completed_at: Some(noon() + Duration::from_secs(3)),
        updated_at: noon() + Duration::from_secs(3),
        input_tokens: 7,
        output_tokens: 9,
        cost: MicroUsd::from_micros(42),
        duration_ms: Some(3000),
        error: Some("the first one failed".to_owned()),
        revision: 3,
        ..started.clone()
    };
    store.put_activities(std::slice::from_ref(&started)).await.unwrap();
    assert_eq!(store.activity(&Scope::Everything, &started.id).await.unwrap().as_ref(), Some(&started));
    store.put_activities(&[done.clone(), activity("you")]).await.unwrap();
    // What comes late, or again, changes nothing.
    store.put_activities(&[Activity { revision: 2, ..started }]).await.unwrap();
    assert_eq!(store.activity(&Scope::Everything, &done.id).await.unwrap().as_ref(), Some(&done));

    let list = async |filter: ActivityFilter| store.activities(&filter, &Page::default()).await.unwrap().items;
    assert_eq!(list(ActivityFilter::default()).await.len(), 2);
    assert_eq!(
        list(ActivityFilter { status: Some(ActivityStatus::Completed), ..ActivityFilter::default() }).await,
        [done]
    );
    assert_eq!(list(ActivityFilter { client: Some("you".into()), ..ActivityFilter::default() }).await.len(), 1);
    assert_eq!(list(ActivityFilter { subscription: Some("sub1".into()), ..ActivityFilter::default() }).await.len(), 1);
    assert_eq!(list(ActivityFilter { until: Some(noon()), ..ActivityFilter::default() }).await.len(), 0);
    assert_eq!(list(ActivityFilter { from: Some(noon()), ..ActivityFilter::default() }).await.len(), 2);
}

async fn activities_that_nobody_ended_are_interrupted(bench: Bench) {
    let store = &bench.store;
    let (lost, running) = (activity("me"), Activity { updated_at: noon() + DAY, ..activity("you") });
    store.put_activities(&[lost.clone(), running.clone()]).await.unwrap();
    assert_eq!(store.interrupt_activities(noon() + DAY, noon() + DAY).await.unwrap(), 1);
    let status = async |id: &str| store.activity(&Scope::Everything, id).await.unwrap().map(|found| found.status);
    assert_eq!(status(&lost.id).await, Some(ActivityStatus::Interrupted));
    assert_eq!(status(&running.id).await, Some(ActivityStatus::Running));
}

async fn states_and_sessions_are_remembered(bench: Bench) {
    let store = &bench.store;
    let state = |subscription: &str, failures, at| SubscriptionState {
        subscription: subscription.to_owned(),
        state: json!({"breaker": {"failures": failures}}),
        updated_at: at,
    };
    let later = noon() + DAY;
    store.put_subscription_states(&[state("sub2", 1, noon()), state("sub1", 2, later)]).await.unwrap();
    store.put_subscription_states(&[state("sub2", 3, later), state("sub1", 9, noon())]).await.unwrap();
    assert_eq!(store.subscription_states().await.unwrap(), [state("sub1", 2, later), state("sub2", 3, later)]);

    let session = |id: &str, subscription: &str, since, last_used| StickySession {
        id: id.to_owned(),
        subscription: subscription.to_owned(),
        since,
        last_used,
    };
    store.put_sessions(&[session("a", "sub1", noon(), noon()), session("b", "sub1", noon(), later)]).await.unwrap();
    // A move is no use, and an older word of the last use does not undo a newer one.
    store.put_sessions(&[session("b", "sub2", later, noon())]).await.unwrap();
    assert_eq!(store.sessions(noon() + DAY / 2, 10).await.unwrap(), [session("b", "sub2", later, later)]);
    assert_eq!(store.sessions(noon(), 1).await.unwrap().len(), 1);
    store.put_sessions(&[session("a", "sub1", noon(), later)]).await.unwrap();
    assert_eq!(store.sessions(noon(), 10).await.unwrap().len(), 2);
    let again = bench.reopen().await;
    assert_eq!(again.sessions(noon(), 10).await.unwrap().len(), 2);
}

pub(super) fn retention() -> Retention {
    Retention {
        usage: DAY * 30,
        usage_days: DAY * 400,
        activities: DAY * 30,
        alerts: DAY * 90,
        audit: DAY * 365,
        sessions: DAY,
    }
}

async fn old_usage_becomes_a_sum_and_no_cent_is_lost(bench: Bench) {
    let store = &bench.store;
    for days in 0..100 {
        let at = noon() - DAY * days;
        store
            .add_usage(&[record("sub1", "me", at, 1), record("sub1", "me", at, 2), record("sub2", "you", at, 4)])
            .await
            .unwrap();
    }
    store
        .put_activities(&[Activity { started_at: noon() - DAY * 31, ..activity("me") }, activity("me")])
        .await
        .unwrap();
    let old = StickySession {
        id: "a".into(),
        subscription: "sub1".into(),
        since: noon() - DAY * 2,
        last_used: noon() - DAY * 2,
    };
    store.put_sessions(&[old]).await.unwrap();
    let alert = Alert {
        id: new_id(),
        organization_id: None,
        account: None,
        kind: "x".into(),
        severity: "info".into(),
        message: String::new(),
        current_value: None,
        limit_value: None,
        percentage: None,
        quota_type: None,
        threshold: None,
        created_at: noon() - DAY * 91,
        resolved_at: None,
    };
    store.add_alerts(&[alert]).await.unwrap();

    let pruned = store.prune(noon(), &retention()).await.unwrap();
    // Days -31 to -99: of the day 30 days ago a part is young enough, so it stays whole.
    assert_eq!((pruned.usage, pruned.others), (69 * 3, 3));
    let everything = total(store, UsageFilter::default()).await;
    assert_eq!((everything.requests, everything.cost.as_micros()), (300, 700));
    assert_eq!(everything.usage.cache_read, 300 * 40);
    let mine =
        UsageFilter { client: Some("me".into()), scope: Scope::Organization("mine".into()), ..UsageFilter::default() };
    assert_eq!(total(store, mine).await.cost.as_micros(), 300);
    let page = Page { limit: 1000, after: None };
    assert_eq!(store.usage(&UsageFilter::default(), &page).await.unwrap().items.len(), 93);
    assert_eq!(store.usage_totals(&UsageFilter::default(), UsageGroup::Day).await.unwrap().len(), 100);
    // Another run finds nothing; a late record of a summed day is added to its sum.
    assert_eq!(store.prune(noon(), &retention()).await.unwrap(), auth_pool::store::Pruned::default());
    store.add_usage(&[record("sub1", "me", noon() - DAY * 50, 1000)]).await.unwrap();
    assert_eq!(store.prune(noon(), &retention()).await.unwrap().usage, 1);
    assert_eq!(total(store, UsageFilter::default()).await.cost.as_micros(), 1700);
    // However little is to be kept, the budgets' week is.
    let nothing = Retention { usage: Duration::ZERO, ..retention() };
    store.prune(noon(), &nothing).await.unwrap();
    assert_eq!(store.usage_since(noon() - DAY * 7, None, 1000).await.unwrap().len(), 24);
}

async fn two_that_prune_at_the_same_time_count_everything_once(bench: Bench) {
    let records: Vec<_> = (0..600).map(|number| record("sub1", "me", noon() - DAY * (40 + number % 30), 1)).collect();
    bench.store.add_usage(&records).await.unwrap();
    let other = bench.reopen().await;
    let rules = retention();
    let (one, two) = tokio::join!(bench.store.prune(noon(), &rules), other.prune(noon(), &rules));
    assert_eq!(one.unwrap().usage + two.unwrap().usage, 600);
    let everything = total(&bench.store, UsageFilter::default()).await;
    assert_eq!((everything.requests, everything.cost.as_micros()), (600, 600));
}
