//! A pool to measure.

use std::time::Duration;

use auth_pool::conversation::Family;
use auth_pool::pool::{
    Ask, CapacityLimits, Grant, Outcome, Pool, Priority, SessionKey, Settings, Spent, SubscriptionSettings,
};
use auth_pool::units::{MicroUsd, Timestamp};

const STEP: Duration = Duration::from_millis(1);

/// A pool in use, and its time.
pub(crate) struct World {
    pub(crate) pool: Pool,
    pub(crate) now: Timestamp,
}

impl World {
    /// Nothing has been used yet.
    pub(crate) fn new(subscriptions: u64) -> Self {
        let now = Timestamp::from_secs(1_800_000_000);
        let subscriptions = (0..subscriptions).map(subscription).collect();
        let settings = Settings { subscriptions, max_clients: 100_000, ..Settings::default() };
        Self { pool: Pool::new(settings, now), now }
    }

    /// All subscriptions have been used a little, each differently.
    pub(crate) fn used(subscriptions: u64) -> Self {
        let mut world = Self::new(subscriptions);
        for number in 0..subscriptions * 3 {
            let cost = MicroUsd::from_micros(i64::try_from(1000 + number * 7919 % 50_000).unwrap_or_default());
            let grant = world.acquire(&ask(SessionKey::Fingerprint(number)));
            world.finish(grant, cost);
        }
        world
    }

    /// So many named sessions that have each been served once, a millisecond apart.
    pub(crate) fn with_sessions(subscriptions: u64, sessions: u64) -> Self {
        let mut world = Self::new(subscriptions);
        for number in 0..sessions {
            let grant = world.acquire(&named(number));
            world.finish(grant, MicroUsd::from_micros(10));
        }
        world
    }

    pub(crate) fn acquire(&mut self, ask: &Ask<'_>) -> Option<Grant> {
        self.now = self.now + STEP;
        self.pool.acquire(self.now, ask).ok()
    }

    pub(crate) fn finish(&mut self, grant: Option<Grant>, cost: MicroUsd) {
        if let Some(grant) = grant {
            self.pool.finish(self.now, grant.lease, Outcome::Completed, Spent { cost, ..Spent::default() });
        }
    }
}

fn subscription(number: u64) -> SubscriptionSettings {
    SubscriptionSettings {
        id: format!("subscription-{number}").into(),
        email: None,
        kind: "claude-max".into(),
        weekly_budget: MicroUsd::from_usd(456.0),
        max_clients: None,
        max_concurrent: 1000,
        enabled: true,
        priority: Priority::Normal,
        organization: None,
        capacity: CapacityLimits::default(),
    }
}

/// An ordinary request of a session.
pub(crate) fn ask(session: SessionKey) -> Ask<'static> {
    Ask {
        session,
        family: Family::Sonnet,
        estimated_cost: MicroUsd::from_micros(1000),
        estimated_tokens: 1000,
        priority: Priority::Normal,
        exclude: &[],
        only: None,
        request: None,
    }
}

/// A request of a session that its client names.
pub(crate) fn named(number: u64) -> Ask<'static> {
    ask(SessionKey::Explicit(format!("client/{number:032}").into()))
}
