//! What operators and their monitors read.

use http::StatusCode;
use serde_json::json;

use super::Reply;
use crate::gateway::Gateway;

/// `GET /health`: is it up, since when, and how busy. Answers 200 as long as the process can answer at all.
pub fn health(gateway: &dyn Gateway) -> Reply {
    Reply::json(StatusCode::OK, &gateway.health())
}

/// `GET /health/live`: the process runs.
pub fn live() -> Reply {
    Reply::json(StatusCode::OK, &json!({ "status": "ok" }))
}

/// `GET /health/ready`: new requests can be served, or why not.
pub fn ready(gateway: &dyn Gateway) -> Reply {
    match gateway.ready() {
        Ok(()) => Reply::json(StatusCode::OK, &json!({ "status": "ready" })),
        Err(reason) => {
            Reply::json(StatusCode::SERVICE_UNAVAILABLE, &json!({ "status": "not_ready", "reason": reason }))
        }
    }
}

/// `GET /debug/auth-pool`: everything the pool knows. For the operator only.
pub fn debug(gateway: &dyn Gateway) -> Reply {
    Reply::json(StatusCode::OK, &gateway.debug())
}
