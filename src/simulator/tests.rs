//! What holds for every strategy and every trace.

use super::random::real;
use super::*;

fn options() -> Options {
    Options { subscriptions: 6, sessions_per_subscription: 30.0, turns: 20.0, days: 7, ..Options::default() }
}

fn run(options: &Options) -> Report {
    synthetic(options, &mut |_| {})
}

#[track_caller]
fn check(report: &Report) {
    assert!(!report.strategies.is_empty());
    for strategy in &report.strategies {
        let name = strategy.strategy;
        assert_eq!(strategy.requests, report.setup.requests, "{name}");
        assert_eq!(strategy.served + strategy.refused + strategy.failed, strategy.requests, "{name}");
        assert_eq!(strategy.leaked, 0, "{name}");
        assert!(strategy.served <= report.bound.served, "{name}: {} of {}", strategy.served, report.bound.served);
        assert!(strategy.work_served <= report.bound.work_served, "{name}");
        let cold = strategy.cold_cache_cost / report.setup.paid;
        assert!(strategy.budget_used - cold <= report.bound.budget_used + 1e-9, "{name}");
        assert!(strategy.gini >= 0.0 && strategy.gini < 1.0 && strategy.max_over_mean >= 1.0 - 1e-9, "{name}");
    }
}

#[test]
fn what_is_asked_is_served_or_refused_and_no_strategy_beats_the_bound() {
    for load in [0.3, 0.9, 1.6] {
        check(&run(&Options { load, ..options() }));
    }
    check(&run(&Options { load: 5.0, subscriptions: 2, days: 15, troubles: false, ..options() }));
}

#[test]
fn the_same_seed_gives_the_same_report() {
    let text = |options: &Options| {
        let report = run(options);
        (report.to_string(), plot(&report), serde_json::to_string(&report).unwrap())
    };
    assert_eq!(text(&options()), text(&options()));
    assert_ne!(text(&options()).0, text(&Options { seed: 2, ..options() }).0);
}

#[test]
fn a_provider_without_troubles_and_with_room_serves_everything() {
    let report = run(&Options { load: 0.1, troubles: false, ..options() });
    check(&report);
    for strategy in report.strategies.iter().filter(|strategy| strategy.strategy != "not_sticky") {
        assert_eq!(strategy.refused + strategy.failed, 0, "{}", strategy.strategy);
    }
    assert_eq!(report.bound.served, report.bound.requests);
}

#[test]
fn sessions_that_stay_save_their_caches() {
    let report = run(&Options { rebalancing: false, load: 0.6, ..options() });
    let cost = |name| report.strategies.iter().find(|strategy| strategy.strategy == name).unwrap().cold_cache_cost;
    assert!(cost("not_sticky") > 10.0 * cost("health"), "{} {}", cost("not_sticky"), cost("health"));
}

/// On weeks that nothing was tuned on, with room and without. `auth-pool simulate --seeds` shows more of them.
#[test]
fn pace_beats_every_other_strategy() {
    for load in [0.9, 1.2] {
        let options = Options {
            seed: 5001,
            load,
            subscriptions: 10,
            sessions_per_subscription: 50.0,
            contenders: Contender::ALL.into_iter().filter(|contender| contender.sticky).collect(),
            ..options()
        };
        let reports = weeks(&options, 2, &mut |_| {});
        let mean = |contender: usize, figure: fn(&StrategyReport) -> f64| {
            reports.iter().map(|report| figure(&report.strategies[contender])).sum::<f64>() / real(reports.len() as u64)
        };
        for other in 1..options.contenders.len() {
            let case = format!("{} at {load}", options.contenders[other].name);
            let compared = |figure: fn(&StrategyReport) -> f64| (mean(0, figure), mean(other, figure));
            let (pace, served) = compared(|report| report.work_served);
            // With room, everybody serves what the provider's failures let pass.
            let margin = if load > 1.0 { 0.02 } else { -0.0005 };
            assert!(pace >= served + margin, "{case}: served {pace} and {served}");
            let (pace, cold) = compared(|report| report.cold_cache_cost);
            assert!(pace < 0.6 * cold, "{case}: cold caches {pace} and {cold} dollars");
            let (pace, moved) = compared(|report| real(report.rotations + report.rebalanced));
            assert!(pace < 0.4 * moved, "{case}: moved {pace} and {moved}");
            let (pace, spread) = compared(|report| report.gini);
            assert!(pace < spread, "{case}: Gini {pace} and {spread}");
        }
    }
}

#[test]
fn a_recorded_log_is_simulated_as_it_is() {
    let mut log = String::new();
    for turn in 0..40 {
        for session in ["a", "b", "c"] {
            let at = 1_767_600_000_000_i64 + turn * 60_000;
            let line = format!(r#"{{"at": {at}, "session": "{session}", "cost": 0.5, "tokens": 50000}}"#);
            log.push_str(&line);
            log.push('\n');
        }
    }
    let log = Recorded::parse(&log).unwrap();
    let report = recorded(
        log,
        &Options {
            subscriptions: 3,
            troubles: false,
            load: 0.0,
            weekly_budget: Some(MicroUsd::from_usd(912.0)),
            ..options()
        },
        &mut |_| {},
    );
    check(&report);
    assert_eq!((report.setup.sessions, report.setup.requests), (3, 120));
    assert!((report.setup.work - 60.0).abs() < 1e-6);
    let pace = &report.strategies[0];
    assert_eq!((pace.served, pace.cold_caches), (120, 0));
}

#[test]
fn the_plot_names_every_line() {
    let report = run(&Options { subscriptions: 3, sessions_per_subscription: 5.0, ..options() });
    let svg = plot(&report);
    for contender in Contender::ALL {
        assert!(svg.contains(&format!(">{}</text>", contender.name)), "{}", contender.name);
    }
    assert!(svg.contains("optimum") && !svg.contains("NaN") && !svg.contains("inf"));
}
