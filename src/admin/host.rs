//! The running process, as far as changes concern it.

use futures_util::future::{BoxFuture, FutureExt as _, ready};
use serde::Serialize;
use serde_json::Value;

use crate::units::{MicroUsd, Timestamp};

/// What the running process does about registered accounts and keys.
pub trait Host: Send + Sync {
    /// Takes what is registered over from the store. Resolves when it is in use.
    fn changed(&self) -> BoxFuture<'_, Result<(), String>>;

    /// Whether a subscription with this id stands in the configuration, or a backend beside the pool with this name.
    fn is_configured(&self, subscription: &str) -> bool;

    /// Whether a key of this name stands in the configuration; that of an organisation is `ORGANISATION/NAME`.
    fn is_configured_key(&self, name: &str) -> bool;

    /// How many keys of the configuration open the operator's views of the whole pool, and how many there are.
    fn configured_keys(&self) -> ConfiguredKeys;

    /// What the pool knows of a subscription.
    fn live(&self, subscription: &str) -> Option<Value>;

    /// What keeps a registered account out of the pool, by its id.
    fn problem(&self, account: &str) -> Option<String>;

    /// Forgets a subscription's failures, limits and quarantine. Whether there is such a subscription; `None` where no pool
    /// runs.
    fn reset(&self, subscription: &str) -> Option<bool>;

    /// Looks whether a subscription could serve, and tells how that went; `None` where no pool runs.
    fn test<'a>(&'a self, subscription: &'a str) -> BoxFuture<'a, Option<Value>>;

    /// What the provider has counted for the organisation's keys in the last `days` days, or why that is not known.
    fn organization_usage(&self, days: u32) -> BoxFuture<'_, Result<ProviderUsage, String>>;

    /// Whether the server can be reached from other machines, so that nobody gets in without a key.
    fn is_exposed(&self) -> bool;

    /// What a client has spent in seven days, in dollars.
    fn spent(&self, client: &str) -> Option<f64>;

    /// Tells those who follow that something was changed.
    fn tell_change(&self, organization: Option<&str>, action: &str, target: &str);
}

/// See [`Host::configured_keys`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConfiguredKeys {
    /// With the scope `admin` and without an organisation.
    pub admins: usize,
    /// All.
    pub all: usize,
}

/// What the provider has counted.
#[derive(Clone, Debug)]
pub struct ProviderUsage {
    /// From when on.
    pub from: Timestamp,
    /// Until when.
    pub until: Timestamp,
    /// What it says that all of it cost.
    pub cost: MicroUsd,
    /// By key.
    pub keys: Vec<ProviderKey>,
}

/// What one key has used, as the provider counts it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProviderKey {
    /// As its owner calls it.
    pub key: String,
    /// The subscription that has it, or the backend beside the pool.
    pub subscription: Option<String>,
    /// Tokens.
    pub usage: Value,
    /// What they cost by the list of prices.
    pub cost: MicroUsd,
}

/// No process runs: changes are found when one starts.
#[derive(Clone, Debug, Default)]
pub struct Alone {
    /// The keys of the configuration.
    pub keys: ConfiguredKeys,
    /// Their names; that of an organisation's is `ORGANISATION/NAME`.
    pub key_names: Vec<String>,
    /// The ids of the configuration's subscriptions, and the names of its backends beside the pool.
    pub subscriptions: Vec<String>,
}

impl Host for Alone {
    fn changed(&self) -> BoxFuture<'_, Result<(), String>> {
        ready(Ok(())).boxed()
    }

    fn is_configured(&self, subscription: &str) -> bool {
        self.subscriptions.iter().any(|id| id == subscription)
    }

    fn is_configured_key(&self, name: &str) -> bool {
        self.key_names.iter().any(|known| known == name)
    }

    fn configured_keys(&self) -> ConfiguredKeys {
        self.keys
    }

    fn live(&self, _: &str) -> Option<Value> {
        None
    }

    fn problem(&self, _: &str) -> Option<String> {
        None
    }

    fn reset(&self, _: &str) -> Option<bool> {
        None
    }

    fn test<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Option<Value>> {
        ready(None).boxed()
    }

    fn organization_usage(&self, _: u32) -> BoxFuture<'_, Result<ProviderUsage, String>> {
        ready(Err("no pool runs here; `auth-pool usage --organization` tells it".to_owned())).boxed()
    }

    fn is_exposed(&self) -> bool {
        false
    }

    fn spent(&self, _: &str) -> Option<f64> {
        None
    }

    fn tell_change(&self, _: Option<&str>, _: &str, _: &str) {}
}
