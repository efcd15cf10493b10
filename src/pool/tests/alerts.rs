//! Thresholds that are crossed are told once, and once more when they are behind.

use super::*;

const QUOTA: QuotaThresholds = QuotaThresholds { warning: 0.80, critical: 0.95, emergency: 1.0 };

fn rules(thresholds: &[f64], quota: Option<QuotaThresholds>) -> Settings {
    let alerts = AlertSettings { thresholds: thresholds.to_vec(), quota };
    Settings { alerts, ..settings(vec![SubscriptionSettings { weekly_budget: dollars(100.0), ..member("s0") }]) }
}

fn dollars(dollars: f64) -> MicroUsd {
    MicroUsd::from_usd(dollars)
}

/// What was told: percent, and whether it is behind.
fn told(effects: Vec<Effect>) -> Vec<(f64, bool)> {
    let told = effects.into_iter().filter_map(|effect| match effect {
        Effect::UsageThreshold { threshold, resolved, .. } | Effect::Quota { threshold, resolved, .. } => {
            Some(((threshold * 100.0).round(), resolved))
        }
        _ => None,
    });
    told.collect()
}

/// A session's own request, which runs whatever the threshold for new sessions.
fn use_more(world: &mut World, dollars: f64) -> Vec<(f64, bool)> {
    let grant = world.request("a");
    told(world.finish(&grant, Outcome::Completed, dollars))
}

#[test]
fn crossing_80_percent_is_told_once_and_90_once_more() {
    let mut world = World::with(rules(&[0.8, 0.9], None));
    assert_eq!(use_more(&mut world, 79.0), []);
    assert_eq!(use_more(&mut world, 1.0), [(80.0, false)]);
    assert_eq!(use_more(&mut world, 5.0), []);
    assert_eq!(use_more(&mut world, 5.0), [(90.0, false)]);
    assert_eq!(use_more(&mut world, 5.0), []);
}

#[test]
fn quota_alerts_have_their_severities() {
    let mut world = World::with(rules(&[], Some(QUOTA)));
    let severities = |effects: Vec<Effect>| -> Vec<(Severity, f64)> {
        let quota = effects.into_iter().filter_map(|effect| match effect {
            Effect::Quota { severity, usage, .. } => Some((severity, usage.weekly_percent.round())),
            _ => None,
        });
        quota.collect()
    };
    for (dollars, expected) in
        [(80.0, (Severity::Warning, 80.0)), (15.0, (Severity::Critical, 95.0)), (5.0, (Severity::Emergency, 100.0))]
    {
        let grant = world.request("a");
        let effects = world.finish(&grant, Outcome::Completed, dollars);
        assert_eq!(severities(effects), [expected]);
    }
}

#[test]
fn a_new_week_resolves_and_the_next_crossing_is_told_again() {
    let mut world = World::with(rules(&[0.8], None));
    let reset = world.now + DAY;
    assert_eq!(told(world.observe("s0", &poll(Window::SevenDay, 0.85, Some(reset)))), [(80.0, false)]);
    assert_eq!(told(world.observe("s0", &poll(Window::SevenDay, 0.9, Some(reset)))), []);
    world.now = reset;
    assert_eq!(told(world.pool.tick(world.now)), [(80.0, true)]);
    assert_eq!(told(world.pool.tick(world.now)), []);
    assert_eq!(told(world.observe("s0", &poll(Window::SevenDay, 0.81, Some(reset + DAY * 7)))), [(80.0, false)]);
}

#[test]
fn use_that_ages_out_little_by_little_does_not_flutter() {
    let mut world = World::with(rules(&[0.8], None));
    use_more(&mut world, 3.0);
    world.wait(MINUTE);
    assert_eq!(use_more(&mut world, 78.0), [(80.0, false)]);
    // The 3 dollars age out: 78 % is not clearly below.
    world.wait_nearly(DAY * 7);
    assert_eq!(told(world.pool.tick(world.now)), []);
    assert_eq!(use_more(&mut world, 3.0), []);
    world.wait(MINUTE);
    assert_eq!(told(world.pool.tick(world.now)), [(80.0, true)]);
}

#[test]
fn a_reload_tells_new_thresholds_only() {
    let mut world = World::with(rules(&[0.8], None));
    use_more(&mut world, 84.0);
    assert_eq!(told(world.pool.apply(world.now, rules(&[0.8, 0.5], None))), [(50.0, false)]);
    assert_eq!(told(world.pool.apply(world.now, rules(&[0.5], None))), []);
    assert_eq!(told(world.pool.apply(world.now, rules(&[0.5, 0.8], None))), [(80.0, false)]);
}

#[test]
fn the_fact_carries_what_an_operator_asks_next() {
    let mut world = World::with(rules(&[0.8], None));
    let grant = world.request("a");
    let effects = world.finish(&grant, Outcome::Completed, 85.0);
    let fact = effects.iter().find(|effect| matches!(effect, Effect::UsageThreshold { .. })).unwrap();
    let fact = serde_json::to_value(fact).unwrap();
    assert_eq!(fact["type"], "usage_threshold");
    assert_eq!(fact["usage"]["weekly_used"], 85.0);
    assert_eq!(fact["usage"]["weekly_budget"], 100.0);
    assert_eq!(fact["usage"]["burn_rate"], 85.0);
    assert!(fact["usage"]["exhaustion_at"].is_number());
}
