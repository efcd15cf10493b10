//! What runs beside the requests: the pool's clock ticks, the rebalancer, and the log of what the pool did.

use std::time::Duration;

use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::rebalancer::Rebalancer;
use crate::config::Config;
use crate::gateway::{PooledGateway, SharedPool};
use crate::pool::Effect;
use crate::runtime::tasks::Tasks;

/// How often sessions age and recoveries are announced. Decisions do not wait for it: the pool looks at the time itself.
const TICK: Duration = Duration::from_secs(5);

/// How often the runaway guard is asked what it has stopped.
const GUARD_TICK: Duration = Duration::from_secs(1);

pub(super) fn start(
    gateway: &PooledGateway,
    pool: &SharedPool,
    config: &Config,
    tasks: &Tasks,
    stop: &CancellationToken,
) -> Rebalancer {
    tasks.spawn(
        "runaway-guard",
        every(GUARD_TICK, stop.clone(), {
            let gateway = gateway.clone();
            async move || gateway.look_for_runaways(Instant::now())
        }),
    );
    tasks.spawn("effects", log_effects(pool.clone(), stop.clone()));
    tasks.spawn(
        "tick",
        every(TICK, stop.clone(), {
            let pool = pool.clone();
            async move || keep_up(&pool).await
        }),
    );
    Rebalancer::start(pool, config, tasks, stop)
}

/// Lets the pool catch up with the time, step by step: in between requests have their turn.
pub(super) async fn keep_up(pool: &SharedPool) {
    while pool.with(|pool, now| {
        let effects = pool.tick(now);
        (pool.is_behind(now), effects)
    }) {
        tokio::task::yield_now().await;
    }
}

async fn every(period: Duration, stop: CancellationToken, action: impl AsyncFn()) {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first tick comes at once.
    ticks.tick().await;
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        action().await;
    }
}

async fn log_effects(pool: SharedPool, stop: CancellationToken) {
    let mut effects = pool.effects();
    while let Some(effect) = stop.run_until_cancelled(effects.recv()).await {
        match effect {
            Ok((_, effects)) => effects.iter().for_each(log),
            Err(RecvError::Lagged(missed)) => warn!(missed, "too many pool events at once: some are not logged"),
            Err(RecvError::Closed) => return,
        }
    }
}

fn log(effect: &Effect) {
    let details = serde_json::to_string(effect).unwrap_or_default();
    match effect {
        Effect::LimitReached { .. }
        | Effect::AuthFailed { .. }
        | Effect::ReplicasApart { .. }
        | Effect::RunawayGuard { .. } => {
            warn!(event = details, "pool");
        }
        _ => info!(event = details, "pool"),
    }
}
