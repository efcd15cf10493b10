//! The pool as a whole: its rules, each with its number, and what holds under any sequence of commands.

mod capacity;
mod elsewhere;
mod failure;
mod limits;
mod organizations;
mod properties;
mod reload;
mod restore;
mod selection;
mod sessions;
mod strategies;
mod view;
mod waves;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::conversation::{Family, LimitReport, LimitStatus, Usage, Window, WindowUse};
use crate::units::{MicroUsd, Timestamp};

use super::*;

const MINUTE: Duration = Duration::from_mins(1);
const MOMENT: Duration = Duration::from_millis(1);
const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);

/// A pool and its time.
struct World {
    pool: Pool,
    now: Timestamp,
    fingerprints: u64,
}

impl World {
    /// Equal members with a budget of 456 dollars, `s0`, `s1`, ...
    fn new(members: usize) -> Self {
        Self::with(settings((0..members).map(|number| member(&format!("s{number}"))).collect()))
    }

    fn with(settings: Settings) -> Self {
        let now = Timestamp::from_secs(1_800_000_000);
        Self { pool: Pool::new(settings, now), now, fingerprints: 0 }
    }

    /// Waits until just before `time` has passed.
    fn wait_nearly(&mut self, time: Duration) -> &mut Self {
        self.now = self.now + time - MOMENT;
        self
    }

    fn wait(&mut self, time: Duration) -> &mut Self {
        self.now = self.now + time;
        self
    }

    fn acquire(&mut self, ask: &Ask<'_>) -> Result<Grant, Refusal> {
        self.pool.acquire(self.now, ask)
    }

    /// A request of an explicit session.
    fn request(&mut self, session: &str) -> Grant {
        self.acquire(&ask(session)).unwrap()
    }

    /// A request that belongs to no conversation seen before.
    fn one_off(&mut self) -> Grant {
        self.fingerprints += 1;
        self.acquire(&Ask { session: SessionKey::Fingerprint(self.fingerprints), ..ask("") }).unwrap()
    }

    fn finish(&mut self, grant: &Grant, outcome: Outcome, dollars: f64) -> Vec<Effect> {
        self.pool.finish(self.now, grant.lease, outcome, spent(dollars))
    }

    /// A whole request of an explicit session; returns who served it.
    fn turn(&mut self, session: &str, dollars: f64) -> Arc<str> {
        let grant = self.request(session);
        self.finish(&grant, Outcome::Completed, dollars);
        grant.subscription
    }

    /// Makes `subscription` use this much, by a request that only it can get.
    fn use_up(&mut self, subscription: &str, dollars: f64) {
        let others: Vec<Arc<str>> =
            self.pool.snapshot(self.now).subscriptions.iter().map(|view| view.id.clone()).collect();
        let others: Vec<Arc<str>> = others.into_iter().filter(|id| &**id != subscription).collect();
        self.fingerprints += 1;
        let session = SessionKey::Fingerprint(self.fingerprints);
        let grant = self.acquire(&Ask { session: session.clone(), exclude: &others, ..ask("") }).unwrap();
        self.finish(&grant, Outcome::Completed, dollars);
        self.pool.release(self.now, &session);
    }

    fn view(&self, subscription: &str) -> SubscriptionView {
        self.pool.snapshot(self.now).subscriptions.into_iter().find(|view| &*view.id == subscription).unwrap()
    }

    fn observe(&mut self, subscription: &str, report: &LimitReport) -> Vec<Effect> {
        self.pool.observe(self.now, subscription, report)
    }
}

fn settings(subscriptions: Vec<SubscriptionSettings>) -> Settings {
    Settings {
        subscriptions,
        max_clients: 15,
        weekly_budget_threshold: 0.85,
        selection: SelectionSettings::default(),
        organizations: HashMap::new(),
        rebalancing: RebalanceSettings { enabled: true, cost_gap: MicroUsd::from_usd(5.0), max_moves: 3 },
        breaker: BreakerSettings { failure_threshold: 5, success_threshold: 2, reset_after: MINUTE * 5 },
        session_idle_after: MINUTE * 5,
        session_stale_after: MINUTE * 60,
    }
}

fn member(id: &str) -> SubscriptionSettings {
    SubscriptionSettings {
        id: id.into(),
        email: Some(format!("{id}@example.com").into()),
        kind: "claude-pro".into(),
        weekly_budget: MicroUsd::from_usd(456.0),
        max_clients: None,
        max_concurrent: 100,
        enabled: true,
        priority: Priority::Normal,
        organization: None,
        capacity: CapacityLimits::default(),
    }
}

fn ask(session: &str) -> Ask<'static> {
    Ask {
        session: SessionKey::Explicit(session.into()),
        family: Family::Sonnet,
        estimated_cost: MicroUsd::ZERO,
        estimated_tokens: 0,
        priority: Priority::Normal,
        exclude: &[],
        only: None,
        request: None,
    }
}

fn spent(dollars: f64) -> Spent {
    Spent { usage: Usage { input: 60, output: 40, ..Usage::default() }, cost: MicroUsd::from_usd(dollars) }
}

fn report(status: LimitStatus, window: Option<Window>, resets_at: Option<Timestamp>) -> LimitReport {
    LimitReport { status, window, resets_at, windows: Vec::new() }
}

fn rejected(window: Window, resets_at: Timestamp) -> Outcome {
    Outcome::Limited(report(LimitStatus::Rejected, Some(window), Some(resets_at)))
}

fn throttled() -> Outcome {
    Outcome::Limited(report(LimitStatus::Rejected, None, None))
}

/// What a poll says of one window.
fn poll(window: Window, utilization: f64, resets_at: Option<Timestamp>) -> LimitReport {
    LimitReport {
        windows: vec![WindowUse { window, utilization, resets_at }],
        ..report(LimitStatus::Allowed, None, None)
    }
}

fn reason(refusal: Result<Grant, Refusal>) -> RefusalReason {
    refusal.unwrap_err().reason
}

fn excluded(view: &SubscriptionView) -> Option<Cause> {
    view.excluded.map(|exclusion| exclusion.cause)
}
