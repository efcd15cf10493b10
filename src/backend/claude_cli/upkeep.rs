//! Keeps the processes within their memory: measures now and then, and lets go what is worth least.
//!
//! A request never measures. Reading what one process takes costs the kernel some milliseconds, so it is done where much
//! has changed only, and the pauses grow with what it took: measuring never keeps a core busy for more than a hundredth
//! of the time.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use super::spares::Spares;
use crate::runtime::{memory, tasks};

/// The pause between two measurements, at least.
const INTERVAL: Duration = Duration::from_secs(3);

/// The pause in terms of what the measurement took.
const PAUSE_FACTOR: u32 = 100;

/// How long a killed process may take to be gone.
const GONE_LIMIT: Duration = Duration::from_secs(2);

/// Measures for ever.
pub(super) async fn run(spares: Spares) {
    loop {
        let begun = Instant::now();
        let places = spares.places().clone();
        if tasks::blocking(move || places.measure(memory::resident, memory::proportional)).await.is_none() {
            warn!("the memory of CLI processes could not be measured");
        }
        let took = begun.elapsed();
        while spares.places().is_over() {
            let freed = spares.places().freed();
            let Some(what) = spares.let_go() else { break };
            let memory = spares.places().memory();
            info!(what, used = memory.used_bytes, max = memory.max_bytes, "a CLI process gives way: memory is short");
            // Its memory counts until it is gone.
            let _ = timeout(GONE_LIMIT, freed).await;
        }
        sleep(INTERVAL.max(took * PAUSE_FACTOR)).await;
    }
}
