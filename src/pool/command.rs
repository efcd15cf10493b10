//! What the pool is asked, and what it answers.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::conversation::{Family, LimitReport, Usage};
use crate::units::{MicroUsd, Timestamp};

use super::{CapacityLimits, Decision, Only, Placement};

/// Names one lease; never used twice in a process's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct LeaseId(pub(super) u64);

/// What ties a client's requests together.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SessionKey {
    /// An id the client sent (`session_id`, `X-Session-Id`, `prompt_cache_key`): sticky, and holds a client slot.
    Explicit(Arc<str>),
    /// Derived from client key, system prompt and first user turn: a preference that holds a slot only while a
    /// request runs.
    Fingerprint(u64),
}

/// A request for a subscription.
#[derive(Clone, Debug)]
pub struct Ask<'a> {
    /// The conversation it belongs to.
    pub session: SessionKey,
    /// The family of the model asked for: limits can be scoped to it.
    pub family: Family,
    /// Reserved until the lease is finished.
    pub estimated_cost: MicroUsd,
    /// Input tokens, estimated; counted against capacity windows.
    pub estimated_tokens: u64,
    /// How important the request is: how far it may go into the owners' reserve.
    pub priority: Priority,
    /// Subscriptions that this request has already tried.
    pub exclude: &'a [Arc<str>],
    /// The client's request that asks, by its id: decisions are found by it.
    pub request: Option<Arc<str>>,
    /// Which subscriptions it may use at all; `None` is all.
    pub only: Option<Arc<Only>>,
}

/// The right to run one request on one subscription.
#[derive(Clone, Debug)]
pub struct Grant {
    /// Must be given to [`super::Pool::finish`] exactly once.
    pub lease: LeaseId,
    /// The subscription's id.
    pub subscription: Arc<str>,
    /// Who was considered and why this one won.
    pub decision: Arc<Decision>,
    /// Where the session is now.
    pub placement: Placement,
    /// What else happened on the way, for example a rotation.
    pub effects: Vec<Effect>,
}

/// Why nobody can serve a request now.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// The cause that decides the client's error.
    pub reason: RefusalReason,
    /// The earliest instant at which the pool knows of a change for the better.
    pub retry_at: Option<Timestamp>,
    /// Who was considered and why none won.
    pub decision: Arc<Decision>,
}

/// See [`Refusal`]. Listed from the most to the least informative for a client: when subscriptions are out for
/// different causes, the first in this order that could end soonest without an operator is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalReason {
    /// At least one subscription could serve but all its slots are taken.
    Busy,
    /// All that are otherwise able are limited by the provider.
    ProviderLimited,
    /// All that are otherwise able have spent their weekly budget.
    BudgetSpent,
    /// Every subscription is disabled, unauthenticated, or cut off by its breaker; or there is none.
    NoneHealthy,
}

/// How a lease ended.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// The answer was complete.
    Completed,
    /// The client left, or the pool's own side stopped the work; says nothing about the subscription.
    Abandoned,
    /// The request itself was at fault; says nothing bad about the subscription.
    ClientError,
    /// The provider limited it: with a window until its reset, or (no `resets_at`) a passing throttle.
    Limited(LimitReport),
    /// The provider failed.
    Unavailable,
    /// The provider is overloaded as a whole, or failed once more in the same request: nothing that has not been counted is
    /// said about this subscription, and others would meet the same.
    Overloaded,
    /// The CLI on this machine failed.
    BackendFailed,
    /// The subscription is not logged in, or has no credit; `detail` is shown to the operator.
    Unauthenticated {
        /// What the provider said.
        detail: String,
    },
}

/// What a lease used up; zero when nothing reached the provider.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spent {
    /// Tokens.
    pub usage: Usage,
    /// Cost as the CLI reckons it, or from the price list where the CLI could not say.
    pub cost: MicroUsd,
}

/// Something the pool did that the outside may want to log, count or send.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Effect {
    /// A session moved to another subscription because its own can no longer serve it.
    Rotation {
        /// The session, as shown in `/debug/auth-pool`.
        session: String,
        /// Where it was.
        from: Arc<str>,
        /// Where it is.
        to: Arc<str>,
        /// Why.
        cause: String,
    },
    /// A rebalancing cycle moved an idle session.
    Moved {
        /// The session.
        session: String,
        /// Where it was.
        from: Arc<str>,
        /// Where it is.
        to: Arc<str>,
    },
    /// A subscription may not be used until the provider's reset.
    LimitReached {
        /// The subscription.
        subscription: Arc<str>,
        /// What the provider said.
        cause: String,
        /// When it returns.
        until: Timestamp,
    },
    /// The provider throttled a subscription without naming an end; it rests for a moment.
    Throttled {
        /// The subscription.
        subscription: Arc<str>,
        /// When it is tried again.
        until: Timestamp,
    },
    /// A subscription failed so often in a row that it is left alone for a while.
    BreakerOpened {
        /// The subscription.
        subscription: Arc<str>,
        /// When it is tried again.
        until: Timestamp,
    },
    /// A subscription cannot log in.
    AuthFailed {
        /// The subscription.
        subscription: Arc<str>,
        /// What the provider said.
        cause: String,
    },
    /// A subscription can be used again.
    Recovered {
        /// The subscription.
        subscription: Arc<str>,
        /// What had kept it out.
        cause: String,
    },
    /// A request was served by a backend beside the pool, because the pool could not.
    Failover {
        /// The session it belongs to.
        session: String,
        /// Who served.
        backend: Arc<str>,
        /// Why the pool could not.
        cause: String,
    },
    /// The server that replicas share is out of reach: each counts by itself.
    ReplicasApart {
        /// Why.
        cause: String,
    },
    /// The server that replicas share answers again.
    ReplicasTogether {
        /// How long it was away.
        after_seconds: u64,
    },
    /// The runaway guard stops something that goes in circles.
    RunawayGuard {
        /// What.
        what: Runaway,
        /// The name of its key, if a client does it.
        #[serde(skip_serializing_if = "Option::is_none")]
        client: Option<Arc<str>>,
        /// What was seen.
        cause: String,
    },
    /// What the runaway guard has stopped does not come any more.
    RunawayOver {
        /// What.
        what: Runaway,
        /// The name of its key, if a client did it.
        #[serde(skip_serializing_if = "Option::is_none")]
        client: Option<Arc<str>>,
        /// How long it went on.
        after_seconds: u64,
    },
    /// A subscription's status changed by its own budget.
    StatusChanged {
        /// The subscription.
        subscription: Arc<str>,
        /// The old status.
        from: Status,
        /// The new status.
        to: Status,
        /// Why.
        cause: String,
    },
}

/// What the runaway guard stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Runaway {
    /// The same prompt over and over.
    RepeatedPrompts,
    /// Starts of CLI processes without end.
    Spawns,
    /// Requests of this program that come back to it.
    Loop,
}

impl Runaway {
    /// As written in events.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::RepeatedPrompts => "repeated_prompts",
            Self::Spawns => "spawns",
            Self::Loop => "loop",
        }
    }
}

/// The state of a subscription as the operator sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Below 80 % of its weekly budget.
    Available,
    /// From 80 % on.
    Approaching,
    /// From 95 % on.
    Limited,
    /// Waiting for a provider limit, a throttle or an open breaker to pass.
    Cooldown,
    /// Not logged in, or without credit.
    Unauthenticated,
    /// Switched off by its owner.
    Disabled,
    /// No longer in the configuration; its last requests are still running.
    Draining,
}

impl Effect {
    /// The subscription that it concerns, if it concerns one; where a session moves, the one it moves to.
    pub fn subscription(&self) -> Option<&Arc<str>> {
        Some(match self {
            Self::Failover { .. }
            | Self::ReplicasApart { .. }
            | Self::ReplicasTogether { .. }
            | Self::RunawayGuard { .. }
            | Self::RunawayOver { .. } => return None,
            Self::Rotation { to, .. } | Self::Moved { to, .. } => to,
            Self::LimitReached { subscription, .. }
            | Self::Throttled { subscription, .. }
            | Self::BreakerOpened { subscription, .. }
            | Self::AuthFailed { subscription, .. }
            | Self::Recovered { subscription, .. }
            | Self::StatusChanged { subscription, .. } => subscription,
        })
    }
}

/// The pool's rules, checked by whoever builds them.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The members, in the order of the configuration.
    pub subscriptions: Vec<SubscriptionSettings>,
    /// Sessions a subscription takes unless it says otherwise.
    pub max_clients: u32,
    /// Share of the weekly budget from which on no new session is given to a subscription (0.85).
    pub weekly_budget_threshold: f64,
    /// How a subscription is chosen for a new session.
    pub selection: SelectionSettings,
    /// The same for requests of an organisation that decides otherwise, by its id. The seed is the pool's.
    pub organizations: HashMap<Arc<str>, SelectionSettings>,
    /// The rebalancer's rules.
    pub rebalancing: RebalanceSettings,
    /// The breaker's rules.
    pub breaker: BreakerSettings,
    /// A session without a request for this long is idle (5 min).
    pub session_idle_after: Duration,
    /// A session without a request for this long is released (60 min).
    pub session_stale_after: Duration,
}

impl Default for Settings {
    /// No members, and the values that each field's description names.
    fn default() -> Self {
        Self {
            subscriptions: Vec::new(),
            max_clients: 15,
            weekly_budget_threshold: 0.85,
            selection: SelectionSettings::default(),
            organizations: HashMap::new(),
            rebalancing: RebalanceSettings { enabled: true, cost_gap: MicroUsd::from_micros(5_000_000), max_moves: 3 },
            breaker: BreakerSettings {
                failure_threshold: 5,
                success_threshold: 2,
                reset_after: Duration::from_mins(5),
            },
            session_idle_after: Duration::from_mins(5),
            session_stale_after: Duration::from_hours(1),
        }
    }
}

/// One member's rules.
#[derive(Clone, Debug, PartialEq)]
pub struct SubscriptionSettings {
    /// Unique name.
    pub id: Arc<str>,
    /// The owner's address, shown to the operator.
    pub email: Option<Arc<str>>,
    /// `claude-pro`, `claude-max` or `api`, shown to the operator.
    pub kind: Arc<str>,
    /// What may be spent in seven days.
    pub weekly_budget: MicroUsd,
    /// Sessions at the same time, where it differs from the pool's.
    pub max_clients: Option<u32>,
    /// Requests at the same time.
    pub max_concurrent: u32,
    /// Whether it takes part.
    pub enabled: bool,
    /// How much of the owner's reserve the pool may use.
    pub priority: Priority,
    /// The organisation it belongs to, if any: only requests on that organisation's behalf may use it.
    pub organization: Option<Arc<str>>,
    /// What it may use in a minute and in a day.
    pub capacity: CapacityLimits,
}

/// How much of the owner's reserve may be used: by the pool, for [`SubscriptionSettings::priority`], and by one request,
/// for [`Ask::priority`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// New sessions stop 0.15 before the threshold.
    Low,
    /// New sessions stop at the threshold.
    #[default]
    Normal,
    /// New sessions go on to 0.95.
    High,
}

/// See [`Settings::selection`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SelectionSettings {
    /// What decides.
    pub strategy: Strategy,
    /// What decides where the strategy sees no difference, in this order. Last come, always: fewest requests in flight,
    /// least recently used, order of the configuration.
    pub fallbacks: [Option<Strategy>; 2],
    /// Where the random strategy starts: the same seed makes the same choices.
    pub seed: u64,
}

/// A rule for choosing among the subscriptions that can take a new session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// The best health score.
    #[default]
    Health,
    /// The smallest share of client slots and request places in use.
    LeastLoaded,
    /// One after the other.
    RoundRobin,
    /// Any, each as likely.
    Random,
    /// By priority, then by the order of the configuration: the first one that can.
    Priority,
    /// What would expire soonest unused is used first.
    Pace,
}

/// See [`Settings::rebalancing`].
#[derive(Clone, Copy, Debug)]
pub struct RebalanceSettings {
    /// Whether idle sessions are moved at all.
    pub enabled: bool,
    /// The least difference of block cost between the dearest and the cheapest subscription ($5).
    pub cost_gap: MicroUsd,
    /// The most sessions one cycle moves (3).
    pub max_moves: u32,
}

/// See [`Settings::breaker`].
#[derive(Clone, Copy, Debug)]
pub struct BreakerSettings {
    /// Consecutive failures that open it (5).
    pub failure_threshold: u32,
    /// Successes that close it again (2).
    pub success_threshold: u32,
    /// How long it stays open before one request may probe (300 s).
    pub reset_after: Duration,
}
