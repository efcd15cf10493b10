//! Every case in `tests/corpus/limits`: what the CLI wrote, what that means, and what the pool makes of it.
//!
//! A line is a case; files and lines are added without touching this. Fields: `now`; `zone`, the machine's time zone
//! (UTC); `lines`, what the CLI wrote in a turn; `usage`, its answer to a poll, after the lines; `expect` and `pool`, see
//! [`Expect`] and [`InPool`].

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use jiff::tz::TimeZone;
use serde::Deserialize;
use serde_json::Value;

use super::attempt;
use crate::backend::claude_cli::replay;
use crate::backend::{Failure, FailureKind};
use crate::conversation::{Family, Window};
use crate::pool::{Ask, CapacityLimits, Outcome, Pool, Priority, SessionKey, Settings, Spent, SubscriptionSettings};
use crate::units::{MicroUsd, Timestamp};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    now: String,
    zone: Option<String>,
    #[serde(default)]
    lines: Vec<Value>,
    usage: Option<Value>,
    expect: Expect,
    pool: InPool,
}

/// The verdict on the turn.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Expect {
    /// `answered`, `polled`, or the kind of the failure.
    kind: String,
    /// The window that is spent, as the provider names it.
    window: Option<String>,
    /// When it resets.
    until: Option<String>,
    /// Whether the request may be tried on another subscription.
    retry: Option<bool>,
}

/// What the pool then says of the subscription.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct InPool {
    status: String,
    /// When it is over: of the status, or of the family that is limited.
    until: Option<String>,
    /// The families whose new sessions it does not take, of Opus, Sonnet and Haiku.
    refuses: Vec<String>,
    /// How full windows are by the provider's word.
    #[serde(default, rename = "use")]
    used: BTreeMap<String, f64>,
    /// Whether it is served beyond its limits.
    beyond: Option<bool>,
}

fn instant(text: &str) -> Timestamp {
    Timestamp::parse_rfc3339(text).unwrap_or_else(|| panic!("`{text}` is no instant"))
}

fn window_name(window: Window) -> String {
    match window {
        Window::FiveHour => "five_hour".to_owned(),
        Window::SevenDay => "seven_day".to_owned(),
        Window::SevenDayFamily(family) => format!("seven_day_{family}"),
    }
}

fn kind(failure: &Failure) -> &'static str {
    match failure.kind {
        FailureKind::Limited(_) => "limited",
        FailureKind::Unavailable { .. } => "unavailable",
        FailureKind::Unauthenticated => "unauthenticated",
        FailureKind::Billing => "billing",
        FailureKind::ModelNotFound => "model_not_found",
        FailureKind::PromptTooLong => "prompt_too_long",
        FailureKind::TooLarge => "too_large",
        FailureKind::InvalidRequest => "invalid_request",
        _ => "other",
    }
}

fn ask(number: u64, family: Family) -> Ask<'static> {
    Ask {
        session: SessionKey::Fingerprint(number),
        family,
        estimated_cost: MicroUsd::from_micros(1000),
        estimated_tokens: 1000,
        priority: Priority::Normal,
        exclude: &[],
        only: None,
        request: None,
    }
}

fn pool(now: Timestamp) -> Pool {
    let subscription = SubscriptionSettings {
        id: "sub1".into(),
        email: None,
        kind: "claude-max".into(),
        weekly_budget: MicroUsd::from_usd(456.0),
        max_clients: None,
        max_concurrent: 10,
        enabled: true,
        priority: Priority::Normal,
        capacity: CapacityLimits::default(),
        organization: None,
    };
    Pool::new(Settings { subscriptions: vec![subscription], ..Settings::default() }, now)
}

/// The turn as the pool meets it: a lease, what came with the answer, the end, then the poll.
fn lived(case: &Case, now: Timestamp, heard: &replay::Told) -> Pool {
    let mut pool = pool(now);
    if !case.lines.is_empty() {
        let grant = pool.acquire(now, &ask(0, Family::Opus)).unwrap();
        for report in &heard.reports {
            pool.observe(now, &grant.subscription, report);
        }
        if let Some(overage) = &heard.overage {
            pool.note_overage(now, &grant.subscription, overage);
        }
        let outcome = heard.failure.as_ref().map_or(Outcome::Completed, attempt::outcome);
        pool.finish(now, grant.lease, outcome, Spent::default());
    }
    if let Some(report) = case.usage.as_ref().and_then(replay::poll) {
        pool.observe(now, "sub1", &report);
    }
    pool
}

/// What is wrong with a case, if anything.
fn check(case: &Case) -> Vec<String> {
    let now = instant(&case.now);
    let zone = TimeZone::get(case.zone.as_deref().unwrap_or("UTC")).unwrap();
    let heard = replay::turn(&case.lines, now, &zone);
    let failure = &heard.failure;
    let mut wrong = Vec::new();
    let mut same = |what: &str, is: String, expected: String| {
        if is != expected {
            wrong.push(format!("{what} is {is}, not {expected}"));
        }
    };
    let told = if case.lines.is_empty() { "polled" } else { failure.as_ref().map_or("answered", kind) };
    same("the verdict", told.to_owned(), case.expect.kind.clone());
    if let Some(Failure { kind: FailureKind::Limited(report), .. }) = failure {
        same("the window", format!("{:?}", report.window.map(window_name)), format!("{:?}", case.expect.window));
        let until = case.expect.until.as_deref().map(instant);
        same("the reset", format!("{:?}", report.resets_at), format!("{until:?}"));
    }
    if let (Some(failure), Some(retry)) = (failure, case.expect.retry) {
        same("retry elsewhere", failure.may_retry_elsewhere().to_string(), retry.to_string());
    }

    let mut pool = lived(case, now, &heard);
    let view = pool.snapshot(now).subscriptions.remove(0);
    let status = serde_json::to_value(view.status).unwrap();
    same("the status", status.as_str().unwrap_or_default().to_owned(), case.pool.status.clone());
    if let Some(until) = case.pool.until.as_deref().map(instant) {
        let of_family = view.family_limits.first().map(|limit| limit.until);
        same("the end", format!("{:?}", of_family.or(view.status_cause.until)), format!("{:?}", Some(until)));
    }
    if let Some(beyond) = case.pool.beyond {
        same(
            "use beyond the limits",
            format!("{:?}", view.overage.map(|told| told.is_used)),
            format!("{:?}", Some(beyond)),
        );
    }
    for (window, share) in &case.pool.used {
        let told = view.limits.iter().find(|told| &told.window == window).and_then(|told| told.utilization);
        same(&format!("the use of {window}"), format!("{:.6}", told.unwrap_or(f64::NAN)), format!("{share:.6}"));
    }
    let families = [("opus", Family::Opus), ("sonnet", Family::Sonnet), ("haiku", Family::Haiku)];
    let refused = families.into_iter().filter(|(_, family)| pool.clone().acquire(now, &ask(1, *family)).is_err());
    let refused: Vec<String> = refused.map(|(name, _)| name.to_owned()).collect();
    same("refused families", format!("{refused:?}"), format!("{:?}", case.pool.refuses));
    // Time alone brings it back.
    if let (Some(until), false) = (&case.pool.until, refused.is_empty() || case.pool.status == "limited") {
        let family = families.into_iter().find(|(name, _)| refused.first().is_some_and(|first| first == name));
        let after = instant(until);
        let back = family.is_some_and(|(_, family)| pool.acquire(after, &ask(2, family)).is_ok());
        same("back at its end", back.to_string(), "true".to_owned());
    }
    wrong
}

#[test]
fn every_case_of_the_corpus() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/limits");
    let mut cases = 0;
    let mut wrong = Vec::new();
    for file in fs::read_dir(&folder).unwrap() {
        let path = file.unwrap().path();
        for (line, text) in fs::read_to_string(&path).unwrap().lines().enumerate() {
            let place = format!("{}:{}", path.display(), line + 1);
            let case: Case = serde_json::from_str(text).unwrap_or_else(|error| panic!("{place}: {error}"));
            cases += 1;
            wrong.extend(check(&case).iter().map(|problem| format!("{place}: {}: {problem}", case.name)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(cases >= 70, "{cases} cases");
}
