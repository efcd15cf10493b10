//! What operators and their monitors read.

use http::StatusCode;
use percent_encoding::percent_decode_str;
use serde_json::json;

use super::openai::error::Error;
use super::{Invalid, InvalidKind, Reply};
use crate::gateway::{DecisionFilter, Gateway};

/// Decisions that are shown unless the operator asks for another number.
const DEFAULT_DECISIONS: usize = 20;

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

/// `GET /debug/auth-pool/decisions?limit=N&session=ID&client=NAME&request=ID`: why the pool decided as it did. For the operator only.
pub fn decisions(gateway: &dyn Gateway, query: Option<&str>) -> Reply {
    match filter(query.unwrap_or_default()) {
        Ok(filter) => Reply::json(StatusCode::OK, &gateway.decisions(&filter)),
        Err(invalid) => Error::from(invalid).into(),
    }
}

/// `POST /debug/auth-pool/rebalance`: moves idle sessions now. For the operator only.
pub fn rebalance(gateway: &dyn Gateway) -> Reply {
    Reply::json(StatusCode::OK, &gateway.rebalance())
}

/// Reads the query of [`decisions`]. What it does not know is an error: a mistyped filter would show too much.
fn filter(query: &str) -> Result<DecisionFilter, Invalid> {
    let invalid = |name: &str, why: &str| Invalid {
        kind: InvalidKind::Value,
        param: Some(name.to_owned()),
        message: format!("'{name}' {why}"),
    };
    let mut filter = DecisionFilter { limit: DEFAULT_DECISIONS, ..DecisionFilter::default() };
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = percent_decode_str(&value.replace('+', " ")).decode_utf8_lossy().into_owned();
        match name {
            "limit" => {
                let limit = value.parse().ok().filter(|limit| *limit > 0);
                filter.limit = limit.ok_or_else(|| invalid(name, "must be a number of at least 1"))?;
            }
            "session" | "request" if value.is_empty() => return Err(invalid(name, "must not be empty")),
            "session" => filter.session = Some(value),
            "client" => filter.client = Some(value),
            "request" => filter.request = Some(value),
            _ => return Err(invalid(name, "is not known; there are limit, session, request and client")),
        }
    }
    Ok(filter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_read_whole_or_refused() {
        let of = |limit, session: Option<&str>, client: Option<&str>| DecisionFilter {
            limit,
            session: session.map(str::to_owned),
            client: client.map(str::to_owned),
            request: None,
        };
        assert_eq!(filter(""), Ok(of(20, None, None)));
        assert_eq!(filter("limit=5&session=a%2Fb+c&client=ann"), Ok(of(5, Some("a/b c"), Some("ann"))));
        assert_eq!(filter("request=r-1"), Ok(DecisionFilter { request: Some("r-1".to_owned()), ..of(20, None, None) }));
        for (query, param) in [
            ("request=", "request"),
            ("limit=0", "limit"),
            ("limit=-1", "limit"),
            ("limit", "limit"),
            ("session=", "session"),
            ("sesion=a", "sesion"),
        ] {
            assert_eq!(filter(query).unwrap_err().param.as_deref(), Some(param), "{query}");
        }
    }
}
