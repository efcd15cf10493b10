//! What the operator sees.

use serde_json::json;

use super::*;

#[test]
fn the_snapshot_has_every_field_of_the_original_and_no_secret() {
    let mut world = World::new(1);
    world.turn("my-private-session", 2.5);
    let snapshot = serde_json::to_value(world.pool.snapshot(world.now)).unwrap();
    let view = &snapshot["status"][0];
    assert_eq!(view["id"], json!("s0"));
    assert_eq!(view["email"], json!("s0@example.com"));
    assert_eq!(view["type"], json!("claude-pro"));
    assert_eq!(view["weeklyUsed"], json!(2.5));
    assert_eq!(view["weeklyBudget"], json!(456.0));
    assert_eq!(view["currentBlockCost"], json!(2.5));
    assert_eq!(view["assignedClients"], json!(1));
    assert_eq!(view["burnRate"], json!(2.5));
    assert_eq!(view["status"], json!("available"));
    assert_eq!(view["lastUsageUpdate"], json!(world.now.as_millis()));
    assert_eq!(view["tokensPerMinute"], json!(20.0));
    assert_eq!(view["projectedBlockCost"], json!(15.0));
    assert_eq!(view["statusCause"]["source"], json!("account"));
    assert_eq!(view["sessions"][0]["state"], json!("active"));
    assert_eq!(view["breaker"], json!({ "state": "closed", "failures": 0 }));
    assert!(view["healthScore"].is_number() && view["health"]["freshBlock"].is_number());
    assert!(view["exhaustionAt"].is_number());
    assert_eq!(snapshot["totals"], json!({ "subscriptions": 1, "eligible": 1, "inFlight": 0, "sessions": 1 }));
    assert!(!snapshot.to_string().contains("my-private-session"));
}

#[test]
fn windows_and_locks_are_shown_with_their_reset() {
    let mut world = World::new(1);
    let reset = world.now + HOUR;
    world.observe("s0", &poll(Window::FiveHour, 0.42, Some(reset)));
    world.observe("s0", &report(LimitStatus::Rejected, Some(Window::SevenDayFamily(Family::Opus)), Some(reset)));
    let view = world.view("s0");
    assert_eq!(view.limits.len(), 2);
    assert_eq!((&*view.limits[0].window, view.limits[0].locked), ("five_hour", false));
    assert_eq!((&*view.limits[1].window, view.limits[1].locked), ("seven_day_opus", true));
    assert_eq!(view.family_limits[0].until, reset);
}

#[test]
fn a_decision_reads_well() {
    let mut world = World::new(2);
    let off = SubscriptionSettings { enabled: false, ..member("s1") };
    world.pool.apply(world.now, settings(vec![member("s0"), off]));
    let decision = serde_json::to_value(&*world.request("secret-id").decision).unwrap();
    assert_eq!(decision["chosen"], json!("s0"));
    assert_eq!(decision["kind"], json!("new"));
    assert_eq!(decision["candidates"][0]["breakdown"]["score"], json!(100.0));
    assert_eq!(decision["candidates"][1]["excluded"]["cause"], json!("disabled"));
    assert_eq!(decision["candidates"][1]["excluded"]["source"], json!("configuration"));
    assert_eq!(decision["excluded"], json!([{ "cause": "disabled", "count": 1 }]));
    assert!(!decision.to_string().contains("secret-id"));
}

#[test]
fn health_counts_who_can_serve() {
    let mut world = World::new(3);
    world.observe("s0", &report(LimitStatus::Rejected, Some(Window::FiveHour), Some(world.now + HOUR)));
    let grant = world.request("a");
    assert_eq!(world.pool.health(world.now), PoolHealth { subscriptions: 3, eligible: 2, in_flight: 1, sessions: 1 });
    world.finish(&grant, Outcome::Completed, 0.0);
    world.wait(HOUR);
    assert_eq!(world.pool.health(world.now).eligible, 3);
}

#[test]
fn weeks_are_seen_in_parts_and_as_the_snapshot_shows_them() {
    let mut world = World::new(7);
    world.use_up("s1", 388.0);
    world.observe("s2", &poll(Window::SevenDay, 0.9, Some(world.now + DAY)));
    world.pool.apply(world.now, settings(["s0", "s1", "s2", "s4", "s5", "s6"].map(member).into()));
    let (mut weeks, mut next, mut parts) = (Vec::new(), Some(0), 0);
    while let Some(from) = next {
        let (part, rest) = world.pool.usage_views(world.now, from, 3);
        weeks.extend(part);
        next = rest;
        parts += 1;
    }
    let ids: Vec<&str> = weeks.iter().map(|week| &*week.id).collect();
    assert_eq!((ids, parts), (vec!["s0", "s1", "s2", "s4", "s5", "s6"], 3), "those that were removed are left out");
    for week in &weeks {
        let view = world.view(&week.id);
        assert!((week.weekly_share * 100.0 - view.weekly_percent).abs() < 1e-9);
        assert!((week.weekly_used.as_usd() - view.weekly_used).abs() < 1e-9);
        assert_eq!(week.exhaustion_at, view.exhaustion_at);
    }
    assert_eq!((weeks[1].week_ends, weeks[2].week_ends), (None, Some(world.now + DAY)));
    assert_eq!(world.pool.usage_views(world.now, 100, 3), (Vec::new(), None));
}

#[test]
fn a_request_that_waits_leaves_one_decision() {
    let mut world = World::with(settings(vec![SubscriptionSettings { max_concurrent: 1, ..member("s0") }]));
    let waits = Ask { request: Some("r2".into()), ..ask("b") };
    let first = world.acquire(&Ask { request: Some("r1".into()), ..ask("a") }).unwrap();
    for _ in 0..3 {
        assert_eq!(reason(world.acquire(&waits)), RefusalReason::Busy);
    }
    let of_request = |world: &World| {
        let all = world.pool.decisions().filter(|decision| decision.request.as_deref() == Some("r2"));
        all.map(|decision| decision.reason).collect::<Vec<_>>()
    };
    assert_eq!(of_request(&world), [Reason::Refused]);
    world.finish(&first, Outcome::Completed, 0.0);
    world.acquire(&waits).unwrap();
    assert_eq!(of_request(&world), [Reason::Best]);
    assert_eq!(world.pool.decisions().count(), 2);
}

#[test]
fn parts_are_the_whole() {
    let mut world = World::new(150);
    world.turn("a", 20.0);
    let whole = world.pool.snapshot(world.now);
    assert_eq!(whole.subscriptions.len(), 150);
    let (mut views, mut next, mut parts) = (0, Some(0), 0);
    while let Some(from) = next {
        let (part, rest) = world.pool.views(world.now, from);
        let ids: Vec<_> = part.iter().map(|view| Arc::clone(&view.id)).collect();
        let expected: Vec<_> = whole.subscriptions[from..].iter().take(ids.len()).map(|view| view.id.clone()).collect();
        assert_eq!(ids, expected);
        (views, next, parts) = (views + part.len(), rest, parts + 1);
    }
    assert!(views == 150 && parts >= 19, "{views} in {parts}");
    let (mut subscriptions, mut eligible, mut next) = (0, 0, Some(0));
    while let Some(from) = next {
        let (part, rest) = world.pool.totals_in_part(world.now, from);
        assert_eq!(part.sessions, 1);
        (subscriptions, eligible, next) = (subscriptions + part.subscriptions, eligible + part.eligible, rest);
    }
    assert_eq!((subscriptions, eligible), (whole.totals.subscriptions, whole.totals.eligible));
}
