//! Trying a subscription out for its operator.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use super::PooledGateway;

/// The longest that the operator waits.
const LIMIT: Duration = Duration::from_mins(1);

impl PooledGateway {
    /// Looks whether a subscription could serve, whatever the pool thinks of it, and tells how that went. Nothing of the
    /// subscription is used. `None` if it has no backend.
    pub async fn try_out(&self, subscription: &str) -> Option<Value> {
        let backend = self.backend(subscription)?;
        let begun = Instant::now();
        let outcome = timeout(LIMIT, backend.check()).await;
        let latency_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mut told = json!({ "ok": false, "subscription": subscription, "latencyMs": latency_ms });
        match outcome {
            Ok(Ok(seen)) => (told["ok"], told["seen"]) = (true.into(), seen.into()),
            Ok(Err(failure)) => told["error"] = failure.to_string().into(),
            Err(_) => told["error"] = format!("there was no answer within {} s", LIMIT.as_secs()).into(),
        }
        Some(told)
    }
}
