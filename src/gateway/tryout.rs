//! Trying a subscription out for its operator.

use std::time::Duration;

use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use super::PooledGateway;
use crate::backend::Caller;
use crate::conversation::{Block, Event, Options, Request, Role, Turn, Usage};

/// The model that is asked: the smallest.
const MODEL: &str = "haiku";

/// The longest that the operator waits.
const LIMIT: Duration = Duration::from_mins(1);

impl PooledGateway {
    /// Asks a subscription for a very short answer, whatever the pool thinks of it, and tells how that went. `None` if it
    /// has no backend.
    pub async fn try_out(&self, subscription: &str) -> Option<Value> {
        let backend = self.backend(subscription)?;
        let catalog = self.0.catalog.load_full();
        let Some(model) = catalog.resolve(MODEL) else { return Some(json!({ "ok": false, "error": "no model" })) };
        let request = Request {
            model: model.clone(),
            system: Vec::new(),
            turns: vec![Turn { role: Role::User, blocks: vec![Block::Text("Reply with the one word: ok".to_owned())] }],
            tools: Vec::new(),
            tool_choice: None,
            options: Options { max_tokens: Some(16), ..Options::default() },
        };
        let begun = Instant::now();
        let mut events = backend.run(&request, &Caller { client: "operator".into() });
        let mut usage = Usage::default();
        let read = async {
            while let Some(event) = events.next().await.transpose()? {
                if let Event::Finished { usage: used, .. } = event {
                    usage = used;
                    break;
                }
            }
            Ok(())
        };
        let outcome = timeout(LIMIT, read).await;
        let latency_ms = begun.elapsed().as_millis();
        Some(match outcome {
            Ok(Ok(())) => json!({
                "ok": true, "subscription": subscription, "model": model.id, "latencyMs": latency_ms,
                "inputTokens": usage.total_input(), "outputTokens": usage.output,
            }),
            Ok(Err(failure)) => failed(subscription, latency_ms, &failure),
            Err(_) => json!({
                "ok": false, "subscription": subscription, "latencyMs": latency_ms,
                "error": format!("there was no answer within {} s", LIMIT.as_secs()),
            }),
        })
    }
}

fn failed(subscription: &str, latency_ms: u128, failure: &crate::backend::Failure) -> Value {
    json!({
        "ok": false, "subscription": subscription, "latencyMs": latency_ms,
        "error": failure.to_string(),
    })
}
