use super::*;
use crate::units::MicroUsd;

const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);
const DAY: Duration = Duration::from_hours(24);

fn rule(trigger: Trigger) -> Rule {
    Rule { trigger, channels: BTreeSet::from([Channel::Webhook]) }
}

fn threshold(share: f64) -> Rule {
    rule(Trigger::UsageThreshold { share })
}

fn quota() -> Vec<Rule> {
    [(0.8, Severity::Warning), (0.95, Severity::Critical), (1.0, Severity::Emergency)]
        .map(|(share, severity)| rule(Trigger::Quota { share, severity }))
        .into()
}

fn week_of(id: &str, percent: f64, week_ends: Option<Timestamp>) -> UsageView {
    UsageView {
        id: id.into(),
        weekly_used: MicroUsd::from_usd(456.0 * percent / 100.0),
        weekly_budget: MicroUsd::from_usd(456.0),
        weekly_share: percent / 100.0,
        week_ends,
        burn_rate: 5.2,
        exhaustion_at: None,
    }
}

fn week(percent: f64) -> Vec<UsageView> {
    vec![week_of("sub1", percent, None)]
}

/// Threshold, whether it is over, and the severity.
fn told(notices: &[Notice]) -> Vec<(f64, bool, Severity)> {
    notices
        .iter()
        .map(|Notice { alert, .. }| (alert.data["threshold"].as_f64().unwrap(), alert.resolved, alert.severity))
        .collect()
}

const WARNING: (bool, Severity) = (false, Severity::Warning);
const CRITICAL: (bool, Severity) = (false, Severity::Critical);
const EMERGENCY: (bool, Severity) = (false, Severity::Emergency);
const OVER: (bool, Severity) = (true, Severity::Info);

/// When, percent, the week's end, and what is expected: threshold and what is said of it.
type Step<'a> = (Duration, f64, Option<Timestamp>, &'a [(f64, (bool, Severity))]);

fn walk(book: &mut Rulebook, steps: &[Step<'_>]) {
    for (after, percent, week_ends, expected) in steps {
        let notices = book.look(NOW + *after, vec![week_of("sub1", *percent, *week_ends)]);
        let expected: Vec<_> = expected.iter().map(|(share, (over, severity))| (*share, *over, *severity)).collect();
        assert_eq!(told(&notices), expected, "at {percent} % after {after:?}");
    }
}

#[test]
fn a_threshold_is_told_once_in_a_week_of_the_providers() {
    let mut book = Rulebook::new(&[threshold(0.9), threshold(0.8)]);
    let (first, second) = (Some(NOW + DAY * 3), Some(NOW + DAY * 10));
    walk(
        &mut book,
        &[
            (Duration::ZERO, 79.9, first, &[]),
            (DAY, 80.0, first, &[(80.0, WARNING)]),
            (DAY, 80.0, first, &[]),
            (DAY, 85.0, first, &[]),
            (DAY * 2, 90.0, first, &[(90.0, WARNING)]),
            (DAY * 2, 99.0, first, &[]),
            // The next week.
            (DAY * 3, 0.0, second, &[(80.0, OVER), (90.0, OVER)]),
            (DAY * 3, 0.0, second, &[]),
            (DAY * 4, 79.99, second, &[]),
            (DAY * 5, 91.0, second, &[(80.0, WARNING), (90.0, WARNING)]),
            (DAY * 6, 91.0, second, &[]),
        ],
    );
}

#[test]
fn a_new_week_that_begins_above_the_threshold_is_told_again() {
    let mut book = Rulebook::new(&[threshold(0.8)]);
    let (first, second) = (Some(NOW + DAY), Some(NOW + DAY * 8));
    walk(
        &mut book,
        &[
            (Duration::ZERO, 85.0, first, &[(80.0, WARNING)]),
            (DAY, 82.0, second, &[(80.0, WARNING)]),
            (DAY * 2, 83.0, second, &[]),
        ],
    );
}

#[test]
fn a_rolling_week_that_wavers_says_nothing_new_until_it_has_fallen_clearly() {
    let mut book = Rulebook::new(&[threshold(0.8)]);
    walk(
        &mut book,
        &[
            (DAY, 80.0, None, &[(80.0, WARNING)]),
            (DAY * 2, 79.5, None, &[]),
            (DAY * 3, 80.5, None, &[]),
            (DAY * 9, 76.0, None, &[]),
            (DAY * 10, 74.9, None, &[(80.0, OVER)]),
            (DAY * 11, 76.0, None, &[]),
            (DAY * 12, 80.0, None, &[(80.0, WARNING)]),
        ],
    );
}

#[test]
fn the_providers_week_counts_as_soon_as_it_is_known() {
    let mut book = Rulebook::new(&[threshold(0.8)]);
    let (first, second) = (Some(NOW + DAY * 2), Some(NOW + DAY * 9));
    walk(
        &mut book,
        &[
            (Duration::ZERO, 81.0, None, &[(80.0, WARNING)]),
            (DAY, 81.0, first, &[]),
            (DAY * 2, 79.0, second, &[(80.0, OVER)]),
        ],
    );
}

#[test]
fn quota_alerts_rise_in_severity_and_a_leap_is_told_once() {
    let mut book = Rulebook::new(&quota());
    walk(
        &mut book,
        &[
            (Duration::ZERO, 80.0, None, &[(80.0, WARNING)]),
            (Duration::ZERO, 100.0, None, &[(100.0, EMERGENCY)]),
            (DAY, 96.0, None, &[]),
            // 95 was not told, so its end is not either.
            (DAY * 7, 10.0, None, &[(80.0, OVER), (100.0, OVER)]),
            (DAY * 8, 95.0, None, &[(95.0, CRITICAL)]),
        ],
    );
}

#[test]
fn a_leap_over_a_rule_and_quota_levels_tells_the_rule_too() {
    let rules = [quota(), vec![threshold(0.8)]].concat();
    let notices = Rulebook::new(&rules).look(NOW, week(97.0));
    let kinds: Vec<_> = notices.iter().map(|notice| notice.alert.kind).collect();
    assert_eq!(kinds, [Kind::UsageThreshold, Kind::QuotaAlert]);
    assert_eq!(notices[0].alert.message, "Subscription sub1 at 97% weekly budget");
}

#[test]
fn a_reload_repeats_nothing_and_tells_what_is_new() {
    let mut book = Rulebook::new(&[threshold(0.8)]);
    assert_eq!(book.look(NOW, week(85.0)).len(), 1);
    // The same rule elsewhere, a new one that is exceeded, one that is not.
    let elsewhere = Rule { channels: BTreeSet::from([Channel::Log]), ..threshold(0.8) };
    book.replace(&[elsewhere.clone(), threshold(0.5), threshold(0.9)]);
    assert_eq!(told(&book.look(NOW, week(85.0))), [(50.0, false, Severity::Warning)]);
    // Switched off and on again.
    book.replace(&[]);
    assert_eq!(book.look(NOW, week(85.0)), []);
    book.replace(&[elsewhere]);
    assert_eq!(book.look(NOW, week(85.0)), []);
    let over = book.look(NOW, week(1.0));
    assert_eq!(told(&over), [(80.0, true, Severity::Info)]);
    assert_eq!(over[0].channels, BTreeSet::from([Channel::Log]));
    assert_eq!(over[0].alert.message, "Subscription sub1 back at 1% weekly budget, below 80%");
}

#[test]
fn subscriptions_are_apart_and_one_that_comes_back_is_remembered() {
    let mut book = Rulebook::new(&[threshold(0.8)]);
    let both = vec![week_of("a", 85.0, None), week_of("b", 20.0, None)];
    assert_eq!(book.look(NOW, both).len(), 1);
    assert_eq!(book.look(NOW, vec![week_of("b", 81.0, None)]).len(), 1);
    let both = vec![week_of("a", 85.0, None), week_of("b", 81.0, None)];
    assert_eq!(book.look(NOW + DAY, both), []);
    assert_eq!(book.look(NOW + DAY * 8, Vec::new()), []);
    assert!(book.told.is_empty(), "what is long gone takes no memory");
}

#[test]
fn two_rules_for_one_threshold_are_one_message_to_both_channels() {
    let log = Rule { channels: BTreeSet::from([Channel::Log]), ..threshold(0.8) };
    let notices = Rulebook::new(&[threshold(0.8), log]).look(NOW, week(80.0));
    assert_eq!(notices.len(), 1);
    assert_eq!(notices[0].channels, BTreeSet::from([Channel::Log, Channel::Webhook]));
}

#[test]
fn what_the_guard_stops_is_told_for_each_client_and_so_is_its_end() {
    let mut book = Rulebook::new(&[rule(Trigger::Runaway)]);
    let begun = |what, client: Option<&str>| Effect::RunawayGuard {
        what,
        client: client.map(Into::into),
        cause: "why".to_owned(),
    };
    let over = Effect::RunawayOver { what: Runaway::RepeatedPrompts, client: Some("alice".into()), after_seconds: 75 };
    let steps = [
        (begun(Runaway::RepeatedPrompts, Some("alice")), "critical: The runaway guard stops the client alice: why"),
        (begun(Runaway::RepeatedPrompts, Some("bob")), "critical: The runaway guard stops the client bob: why"),
        (begun(Runaway::Spawns, None), "critical: The runaway guard stops the start of CLI processes: why"),
        (
            begun(Runaway::Loop, None),
            "critical: The runaway guard stops requests of this server that come back to it: why",
        ),
        (over, "resolved: The runaway guard need not stop the client alice any more"),
    ];
    for (effect, text) in steps {
        let notices = book.hear(NOW, &effect);
        let [Notice { alert, .. }] = &notices[..] else { panic!("{text}: {notices:?}") };
        assert_eq!(alert.to_text(), format!("[auth-pool] {text}"));
    }
}

fn rotation(number: u32) -> Effect {
    Effect::Rotation { session: format!("s{number}"), from: "a".into(), to: "b".into(), cause: "cooldown".to_owned() }
}

fn limit(cause: &str) -> Effect {
    Effect::LimitReached { subscription: "a".into(), cause: cause.to_owned(), until: NOW + DAY }
}

#[test]
fn each_event_has_its_rule_and_its_data() {
    let subscription: Arc<str> = "a".into();
    let cause = "why".to_owned();
    let limited_to_available = Effect::StatusChanged {
        subscription: Arc::clone(&subscription),
        from: Status::Limited,
        to: Status::Approaching,
        cause: cause.clone(),
    };
    let cases = [
        (rotation(1), Trigger::Rotation, Severity::Info, "Session s1 moved from a to b: cooldown"),
        (
            limit("five_hour limit of the provider"),
            Trigger::LimitReached,
            Severity::Warning,
            "Subscription a is limited until 2027-01-16T08:00:00Z: five_hour limit of the provider",
        ),
        (
            Effect::AuthFailed { subscription: Arc::clone(&subscription), cause: cause.clone() },
            Trigger::AuthFailed,
            Severity::Critical,
            "Subscription a cannot log in: why",
        ),
        (
            Effect::Recovered { subscription, cause },
            Trigger::Recovered,
            Severity::Info,
            "Subscription a can be used again; over is: why",
        ),
        (limited_to_available, Trigger::Recovered, Severity::Info, "Subscription a can be used again: why"),
    ];
    for (effect, trigger, severity, message) in cases {
        let mut book = Rulebook::new(&[rule(trigger)]);
        book.look(NOW, vec![week_of("a", 50.0, None)]);
        let notices = book.hear(NOW, &effect);
        let [Notice { alert, .. }] = notices.as_slice() else { panic!("{effect:?}: {notices:?}") };
        assert_eq!((alert.kind, alert.severity), (trigger.kind(), severity));
        assert_eq!(alert.message, message);
        assert_eq!(alert.subscription.as_deref(), Some("a"));
        assert_eq!(alert.data["weeklyPercent"], "50.0", "facts of the week are always there");
        assert!(alert.data["cause"].is_string());

        let others = [Trigger::Failover, threshold(0.8).trigger].map(rule);
        assert_eq!(Rulebook::new(&others).hear(NOW, &effect), [], "no rule, no alert");
    }
}

#[test]
fn many_events_at_once_are_two_messages() {
    let mut book = Rulebook::new(&[rule(Trigger::Rotation)]);
    assert_eq!(book.hear(NOW, &rotation(0)).len(), 1);
    for number in 1..=1000 {
        assert_eq!(book.hear(NOW, &rotation(number)), []);
    }
    assert_eq!(book.unfold(NOW + FOLD - Duration::from_millis(1)), []);
    let notices = book.unfold(NOW + FOLD);
    let [Notice { alert, .. }] = notices.as_slice() else { panic!("{notices:?}") };
    assert_eq!(alert.message, "Session s1000 moved from a to b: cooldown (and 999 more in the last minute)");
    assert_eq!(alert.data["count"], 1000);
    // A quiet minute later the next one is told at once.
    assert_eq!(book.unfold(NOW + FOLD * 2), []);
    assert!(book.folded.is_empty());
    assert_eq!(book.hear(NOW + FOLD * 2, &rotation(0)).len(), 1);
}

#[test]
fn different_limits_of_one_subscription_are_different_events() {
    let mut book = Rulebook::new(&[rule(Trigger::LimitReached)]);
    assert_eq!(book.hear(NOW, &limit("five_hour limit of the provider")).len(), 1);
    assert_eq!(book.hear(NOW, &limit("seven_day limit of the provider")).len(), 1);
    assert_eq!(book.hear(NOW, &limit("five_hour limit of the provider")), []);
    let notices = book.unfold(NOW + FOLD);
    assert_eq!(notices.len(), 1);
    assert!(!notices[0].alert.message.contains("more in the last minute"), "one is no more than one");
}

#[test]
fn what_waits_for_a_rule_that_is_gone_is_not_told() {
    let mut book = Rulebook::new(&[rule(Trigger::Rotation)]);
    book.hear(NOW, &rotation(0));
    book.hear(NOW, &rotation(1));
    book.replace(&[]);
    assert_eq!(book.unfold(NOW + FOLD), []);
}

#[test]
fn a_sample_is_what_the_rule_would_send() {
    let triggers = [
        Trigger::UsageThreshold { share: 0.8 },
        Trigger::Quota { share: 1.0, severity: Severity::Emergency },
        Trigger::Failover,
        Trigger::Rotation,
        Trigger::LimitReached,
        Trigger::AuthFailed,
        Trigger::Recovered,
    ];
    for trigger in triggers {
        let alert = super::super::sample::of(&rule(trigger), Some("sub1"), NOW).alert;
        assert_eq!(alert.kind, trigger.kind());
        assert!(alert.message.starts_with("Test: ") && alert.data["test"] == true, "{alert:?}");
        if let Trigger::Quota { severity, .. } = trigger {
            assert_eq!(alert.severity, severity);
        }
    }
}

mod properties {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// However use goes, alerts and ends of one threshold alternate, an alert says at least its threshold, and an
        /// end less.
        #[test]
        fn alerts_and_ends_alternate(shares in prop::collection::vec(0_u32..120, 1..60)) {
            let mut book = Rulebook::new(&[threshold(0.8), threshold(0.9)]);
            let mut open = BTreeMap::from([(80, false), (90, false)]);
            for (hour, share) in shares.into_iter().enumerate() {
                let at = NOW + Duration::from_hours(hour as u64);
                for (level, over, _) in told(&book.look(at, week(f64::from(share)))) {
                    #[expect(clippy::cast_possible_truncation, reason = "80 or 90")]
                    let level = level as i32;
                    prop_assert_eq!(open[&level], over, "an end follows an alert, and an alert an end");
                    prop_assert_eq!(f64::from(share) < f64::from(level), over);
                    open.insert(level, !over);
                }
            }
        }
    }
}

fn open(kind: Kind, threshold: f64, at: Timestamp) -> Open {
    Open { subscription: "sub1".into(), kind, threshold, at }
}

#[test]
fn what_was_told_before_a_restart_is_not_repeated_and_its_end_is_told() {
    let mut book = Rulebook::new(&quota());
    // The emergency was told when the week jumped there; what lies below it was not told, and is not told now.
    let before = [open(Kind::QuotaAlert, 100.0, NOW - DAY), open(Kind::QuotaAlert, 42.0, NOW - DAY)];
    let strangers = book.recall(before.clone());
    assert_eq!(strangers, [before[1].clone()], "no rule is about it");
    walk(
        &mut book,
        &[
            (Duration::ZERO, 101.0, None, &[]),
            (DAY, 96.0, None, &[]),
            (DAY, 94.0, None, &[(100.0, OVER)]),
            (DAY, 101.0, None, &[(100.0, EMERGENCY)]),
        ],
    );
}

#[test]
fn what_was_told_in_a_week_that_ended_meanwhile_is_over() {
    let mut book = Rulebook::new(&quota());
    let told_at = NOW - DAY * 5;
    book.recall([open(Kind::QuotaAlert, 80.0, told_at), open(Kind::QuotaAlert, 95.0, told_at)]);
    // The week that now runs began yesterday, and has come above the first level again.
    walk(&mut book, &[(Duration::ZERO, 85.0, Some(NOW + DAY * 6), &[(95.0, OVER), (80.0, WARNING)])]);
}
