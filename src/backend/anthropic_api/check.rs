//! Whether an account's key is taken, asked by the list of models: that is free, and uses nothing of any limit on tokens.

use http::StatusCode;

use super::classify;
use super::turn::VERSION;
use crate::backend::http::{Deadlines, Endpoint, read_body, unreachable};
use crate::backend::{Failure, FailureKind};
use crate::runtime::clock;

/// Asks for one model. Says what a key that is taken means.
pub(super) async fn key(endpoint: Endpoint) -> Result<String, Failure> {
    let deadlines = Deadlines::start(endpoint.timers);
    let mut request = endpoint.get("/v1/models", &[("limit", "1".to_owned())]).header("anthropic-version", VERSION);
    if let Some(key) = endpoint.credential("")? {
        request = request.header("x-api-key", key);
    }
    let response = deadlines.wait(request.send()).await?.map_err(unreachable)?;
    let (status, headers) = (response.status(), response.headers().clone());
    match status {
        StatusCode::OK => Ok("the API takes the key".to_owned()),
        StatusCode::NOT_FOUND => {
            let detail = "the address answers, but has no list of models: whether it takes the key is not known";
            Err(Failure::new(FailureKind::InvalidRequest, detail))
        }
        _ => Err(classify::refused(status, &headers, &read_body(response, &deadlines).await, clock::now())),
    }
}
