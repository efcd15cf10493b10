//! What operators and their monitors read.

use std::iter;

use http::StatusCode;
use percent_encoding::percent_decode_str;
use serde_json::{Map, Value, json};

use super::openai::error::Error;
use super::{Invalid, InvalidKind, Reply};
use crate::gateway::{DecisionFilter, Gateway, PartHealth};
use crate::runtime::clock;

/// Decisions that are shown unless the operator asks for another number.
const DEFAULT_DECISIONS: usize = 20;

/// `GET /health`: is it up, since when, and how busy. Answers 200 as long as the process can answer at all.
pub fn health(gateway: &dyn Gateway) -> Reply {
    Reply::json(StatusCode::OK, &gateway.health())
}

/// `GET /health/live`: the process runs.
pub fn live() -> Reply {
    Reply::json(StatusCode::OK, &json!({ "status": "ok", "timestamp": clock::now().to_string() }))
}

/// `GET /health/ready`: new requests can be served, or why not; and how everything is doing.
pub fn ready(gateway: &dyn Gateway) -> Reply {
    let ready = gateway.ready();
    let checks = checks(gateway, ready.is_ok());
    match ready {
        Ok(()) => Reply::json(StatusCode::OK, &json!({ "status": "ready", "checks": checks })),
        Err(reason) => {
            let answer = json!({ "status": "not_ready", "reason": reason, "checks": checks });
            Reply::json(StatusCode::SERVICE_UNAVAILABLE, &answer)
        }
    }
}

/// The pool and everything that it stands on. None of the services is needed to serve: who goes on without one is ready.
fn checks(gateway: &dyn Gateway, serves: bool) -> Map<String, Value> {
    let pool = gateway.health().pool;
    let pool = json!({
        "status": if serves { "ok" } else { "down" },
        "subscriptions": pool.subscriptions,
        "eligible": pool.eligible,
    });
    let services = gateway.services().into_iter().map(|(name, health)| (name.to_owned(), json!(health)));
    iter::once(("pool".to_owned(), pool)).chain(services).collect()
}

/// `GET /health/redis`, `GET /health/db`: one service that the program stands on. 503 when it is down; one that nobody
/// configured is not down.
pub fn service(gateway: &dyn Gateway, name: &str) -> Reply {
    let services = gateway.services();
    let Some((_, health)) = services.into_iter().find(|(known, _)| *known == name) else {
        return Reply::json(StatusCode::OK, &PartHealth::absent("this server has none"));
    };
    let status = if health.is_well() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    Reply::json(status, &health)
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
