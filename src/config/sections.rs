//! Sections whose form in the file is already the form the program uses.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

/// How a subscription is chosen for a new session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct AccountSelection {
    /// The first rule tried.
    pub strategy: Strategy,
    /// What decides, in this order, where the first rule sees no difference.
    #[serde(deserialize_with = "without_holes")]
    #[schemars(length(max = 2))]
    pub fallback_strategies: Vec<Strategy>,
    /// Whether a request that fails before its first byte is tried on another subscription.
    pub retry_on_failure: bool,
    /// The most subscriptions one request tries.
    #[schemars(range(min = 1, max = 100))]
    pub max_retries: u32,
}

impl Default for AccountSelection {
    fn default() -> Self {
        Self { strategy: Strategy::Health, fallback_strategies: Vec::new(), retry_on_failure: true, max_retries: 3 }
    }
}

/// What stops programs that have run away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct RunawayGuard {
    /// Whether anything is stopped.
    pub enabled: bool,
    /// CLI processes that may be started within a minute; 120 for each core when left out.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub spawns_per_minute: Option<u32>,
    /// How often a client may send the very same prompt within a minute; 0 is without a bound.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub repeated_prompts: u32,
}

impl Default for RunawayGuard {
    fn default() -> Self {
        Self { enabled: true, spawns_per_minute: None, repeated_prompts: 120 }
    }
}

/// A rule for choosing a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// The best health score: budget, block, clients and burn rate.
    Health,
    /// The fewest requests in flight.
    LeastLoaded,
    /// One after the other.
    RoundRobin,
    /// Any.
    Random,
    /// By the subscriptions' `priority`.
    Priority,
    /// What would expire unused is used first.
    Pace,
}

/// Alerts on the share of a budget that is used.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct QuotaAlerts {
    /// Whether they are sent.
    pub enabled: bool,
    /// From which share of the budget on, in percent; each above the one before.
    pub thresholds: QuotaThresholds,
    /// Where they go besides the log.
    pub channels: QuotaChannels,
}

impl Default for QuotaAlerts {
    fn default() -> Self {
        Self { enabled: true, thresholds: QuotaThresholds::default(), channels: QuotaChannels::default() }
    }
}

/// From which share of the budget on alerts are sent, in percent; each above the one before.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct QuotaThresholds {
    /// Percent of the budget.
    #[schemars(range(max = 100), extend("exclusiveMinimum" = 0))]
    pub warning: f64,
    /// Percent of the budget.
    #[schemars(range(max = 100), extend("exclusiveMinimum" = 0))]
    pub critical: f64,
    /// Percent of the budget.
    #[schemars(range(max = 100), extend("exclusiveMinimum" = 0))]
    pub emergency: f64,
}

impl Default for QuotaThresholds {
    fn default() -> Self {
        Self { warning: 80.0, critical: 95.0, emergency: 100.0 }
    }
}

/// Where quota alerts go besides the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct QuotaChannels {
    /// The Slack incoming webhook.
    pub slack: bool,
    /// The webhook of `notifications`.
    pub webhook: bool,
    /// Mail. Refused when it is on: nothing here sends mail.
    pub email: bool,
}

/// What a subscription of one tier may use; a limit that is left out does not exist.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct RateLimit {
    /// Requests in any minute.
    #[schemars(range(min = 1, max = MAX_COUNT))]
    pub requests_per_minute: Option<u64>,
    /// Tokens of all kinds in any minute.
    #[schemars(range(min = 1, max = MAX_COUNT))]
    pub tokens_per_minute: Option<u64>,
    /// Input tokens in any minute.
    #[schemars(range(min = 1, max = MAX_COUNT))]
    pub input_tokens_per_minute: Option<u64>,
    /// Tokens of all kinds in any day.
    #[schemars(range(min = 1, max = MAX_COUNT))]
    pub tokens_per_day: Option<u64>,
    /// US dollars in any day.
    #[schemars(range(max = 1_000_000_000), extend("exclusiveMinimum" = 0))]
    pub cost_per_day: Option<f64>,
}

/// Beyond any real count, and exact in every JSON reader.
const MAX_COUNT: u64 = 1_000_000_000_000;

/// Reads a list in which elements that were already reported have been replaced by `null`.
pub(super) fn without_holes<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    Ok(Vec::<Option<T>>::deserialize(deserializer)?.into_iter().flatten().collect())
}
