//! Joins the other replicas, where `REDIS_URL` names the server that they share.

use std::time::Duration;

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::parts;
use crate::config::env::REDIS_URL;
use crate::config::{Config, Env};
use crate::gateway::{PartHealth, PooledGateway, SharedPool};
use crate::runtime::tasks::Tasks;
use crate::shared::{Address, Settings, Shared, State};

/// How long the start waits for the server, so that the first requests are counted by it already.
const PATIENCE: Duration = Duration::from_secs(2);

/// Where the server is, if there is one. The error names the variable and does not repeat what it holds.
pub fn address(env: &Env) -> anyhow::Result<Option<Address>> {
    let parse = |url| Address::parse(url).with_context(|| format!("environment variable {REDIS_URL}"));
    env.var(REDIS_URL).map(parse).transpose()
}

/// Joins, if there is anything to join. A server that is away is no reason not to start.
pub(super) async fn start(
    pool: &SharedPool,
    gateway: &PooledGateway,
    config: &Config,
    address: Option<&Address>,
    tasks: &Tasks,
    stop: &CancellationToken,
) {
    let Some(address) = address else {
        gateway.show_in_health("redis", || PartHealth::absent("REDIS_URL is not set: this replica counts for itself"));
        return;
    };
    let hear = {
        let gateway = gateway.clone();
        move |heard| gateway.hear(heard)
    };
    let shared = Shared::start(address, settings(config), hear, tasks, stop);
    if !shared.joined(PATIENCE).await {
        warn!("Redis does not answer yet: this replica counts by itself until it does");
    }
    pool.share(shared.clone());
    gateway.show_in_debug("replicas", {
        let shared = shared.clone();
        move || serde_json::to_value(shared.status()).unwrap_or_default()
    });
    gateway.show_in_health("redis", move || {
        let status = shared.status();
        PartHealth::new(status.state == State::Together, &status)
    });
}

fn settings(config: &Config) -> Settings {
    let tracking = &config.capacity_tracking;
    Settings {
        prefix: tracking.redis_key_prefix.clone(),
        life: tracking.redis_ttl,
        sync_interval: tracking.sync_interval,
        timeout: tracking.redis_timeout,
        session_idle_after: parts::SESSION_IDLE_AFTER,
        session_life: parts::SESSION_STALE_AFTER,
        ..Settings::default()
    }
}
