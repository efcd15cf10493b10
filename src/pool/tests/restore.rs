//! A pool that starts again knows what the one before it knew.

use super::*;

impl World {
    /// What a store would have kept, and a new pool that took it in after `pause`.
    fn restarted(&self, used: &[PastUse], sessions: &[&str], pause: Duration) -> Self {
        let learned: Vec<_> = self.pool.learned(self.now);
        let text = serde_json::to_string(&learned).unwrap();
        let sessions: Vec<_> = sessions.iter().filter_map(|name| self.pool.session(&key(name))).collect();
        let members = || settings(learned.iter().map(|(id, _)| member(id)).collect());
        let mut world = Self::with(members());
        world.now = self.now + pause;
        world.pool = Pool::new(members(), world.now);
        let learned: Vec<(Arc<str>, Learned)> = serde_json::from_str(&text).unwrap();
        for (id, learned) in &learned {
            assert!(world.pool.recall_learned(world.now, id, learned));
        }
        world.pool.recall_usage(world.now, used.iter().cloned());
        world.pool.recall_sessions(world.now, sessions);
        world
    }
}

fn key(name: &str) -> SessionKey {
    SessionKey::Explicit(name.into())
}

fn limit(window: Window, resets_at: Timestamp) -> LimitReport {
    report(LimitStatus::Rejected, Some(window), Some(resets_at))
}

fn used(subscription: &str, at: Timestamp, dollars: f64) -> PastUse {
    PastUse { subscription: subscription.into(), at, spent: spent(dollars) }
}

#[test]
fn budgets_are_what_they_were() {
    let mut world = World::new(2);
    let mut past = Vec::new();
    for dollars in [100.0, 200.0, 75.0] {
        world.use_up("s0", dollars);
        past.push(used("s0", world.now, dollars));
        world.wait(HOUR);
    }
    let before = world.view("s0");
    let mut after = world.restarted(&past, &[], Duration::ZERO);
    let view = after.view("s0");
    assert_eq!((view.weekly_used, view.status), (375.0, Status::Approaching));
    assert_eq!(
        (view.current_block_cost, view.block_ends_at, view.burn_rate, view.last_usage_update),
        (before.current_block_cost, before.block_ends_at, before.burn_rate, before.last_usage_update)
    );
    assert!((view.health_score - before.health_score).abs() < 1e-9);
    // What becomes old falls out as if nothing had happened, and nothing is announced twice.
    assert_eq!(after.pool.tick(after.now), []);
    after.wait(HOUR * 167);
    after.pool.tick(after.now);
    assert!(after.view("s0").weekly_used.abs() < 1e-9);
    assert_eq!(after.turn("a", 1.0).as_ref(), "s0");
}

#[test]
fn what_is_older_than_a_week_or_of_nobody_here_counts_for_nothing() {
    let mut world = World::new(1);
    let now = world.now;
    let past = [
        used("s0", now - DAY * 7, 9.0),
        used("gone", now, 9.0),
        used("s0", now - DAY, 1.0),
        used("s0", now + HOUR, 2.0),
    ];
    assert_eq!(world.pool.recall_usage(now, past), 2);
    assert!((world.view("s0").weekly_used - 3.0).abs() < 1e-9);
}

#[test]
fn what_comes_late_is_put_where_it_belongs() {
    let mut world = World::new(1);
    world.turn("a", 5.0);
    let past = [used("s0", world.now - DAY * 6, 10.0), used("s0", world.now - HOUR * 4, 20.0)];
    assert_eq!(world.pool.recall_usage(world.now, past), 2);
    let view = world.view("s0");
    assert_eq!((view.weekly_used, view.current_block_cost), (35.0, 25.0));
    assert_eq!(view.block_ends_at, Some(world.now + HOUR));
    world.wait(DAY * 2);
    assert!((world.view("s0").weekly_used - 25.0).abs() < 1e-9);
}

#[test]
fn limits_hold_on_and_end_by_themselves() {
    let mut world = World::new(2);
    let grant = world.request("a");
    assert_eq!(&*grant.subscription, "s0");
    let until = world.now + HOUR * 3;
    world.finish(&grant, rejected(Window::FiveHour, until), 1.0);
    world.observe("s1", &limit(Window::SevenDayFamily(Family::Opus), world.now + DAY));
    let before = (world.view("s0"), world.view("s1"));

    let mut after = world.restarted(&[], &[], MINUTE);
    let view = after.view("s0");
    assert_eq!(view.status, Status::Cooldown);
    assert_eq!(view.status_cause, before.0.status_cause);
    assert_eq!(view.limits, before.0.limits);
    assert_eq!(after.view("s1").family_limits, before.1.family_limits);
    assert_eq!(&*after.request("b").subscription, "s1");
    after.now = until;
    let effects = after.pool.tick(after.now);
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Recovered { .. })), "{effects:?}");
    assert_eq!(after.view("s0").status, Status::Available);
}

#[test]
fn throttles_go_on_backing_off() {
    let mut world = World::new(1);
    let throttle = report(LimitStatus::Rejected, None, None);
    for _ in 0..3 {
        let effects = world.observe("s0", &throttle);
        let Some(Effect::Throttled { until, .. }) = effects.last() else { panic!("{effects:?}") };
        world.now = *until;
    }
    let mut after = world.restarted(&[], &[], Duration::ZERO);
    let effects = after.observe("s0", &throttle);
    // 5, 10, 20, and then 40 seconds.
    assert!(
        matches!(effects.last(), Some(Effect::Throttled { until, .. }) if *until == after.now + Duration::from_secs(40)),
        "{effects:?}"
    );
}

#[test]
fn an_open_breaker_stays_open_and_then_probes() {
    let mut world = World::new(1);
    for _ in 0..5 {
        let grant = world.one_off();
        world.finish(&grant, Outcome::Unavailable, 0.0);
    }
    let mut after = world.restarted(&[], &[], MINUTE);
    assert_eq!(after.view("s0").breaker, world.view("s0").breaker);
    assert!(after.acquire(&ask("a")).is_err());
    after.wait(MINUTE * 4);
    let probe = after.request("a");
    assert!(after.acquire(&ask("b")).is_err(), "one at a time");
    after.finish(&probe, Outcome::Completed, 0.1);
    assert!(after.acquire(&ask("b")).is_ok());
}

#[test]
fn what_was_learned_since_is_newer() {
    let mut world = World::new(1);
    let later = limit(Window::FiveHour, world.now + HOUR * 4);
    world.observe("s0", &later);
    let mut old = World::new(1);
    old.observe("s0", &limit(Window::FiveHour, old.now + HOUR));
    for (id, learned) in old.pool.learned(old.now) {
        assert!(world.pool.recall_learned(world.now, &id, &learned));
    }
    assert_eq!(world.view("s0").status_cause.until, Some(world.now + HOUR * 4));
    assert!(!world.pool.recall_learned(world.now, "gone", &Learned::default()));
}

#[test]
fn sessions_stay_where_they_were() {
    let mut world = World::new(3);
    let names = ["a", "b", "c", "d"];
    let homes: Vec<_> = names.iter().map(|name| world.turn(name, 1.0)).collect();
    let mut after = world.restarted(&[], &names, MINUTE * 30);
    for (name, home) in names.iter().zip(&homes) {
        assert_eq!(&after.turn(name, 1.0), home, "{name}");
    }
    let clients: u32 = (0..3).map(|number| after.view(&format!("s{number}")).assigned_clients).sum();
    assert_eq!(clients, 4);
    // Once more changes nothing, stale ones do not come back, and nonsense is none.
    let known = after.pool.session(&key("a")).unwrap();
    assert_eq!(after.pool.recall_sessions(after.now, [known.clone()]), 0);
    let stale = PastSession { last_used: after.now - HOUR, id: format!("s{:032x}", 7), ..known.clone() };
    let nonsense = ["", "s", "x00", "s+0000000000000000000000000000000", "sé"]
        .map(|id| PastSession { id: id.into(), ..known.clone() });
    assert_eq!(after.pool.recall_sessions(after.now, [stale].into_iter().chain(nonsense)), 0);
    assert_eq!(world.restarted(&[], &names, HOUR).pool.session(&key("a")), None);
}
