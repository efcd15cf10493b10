//! The control endpoints, for tests that run in another process.

use hyper::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::limits::{Limits, WindowLevel};
use super::reply::Reply;
use super::script::Rule;
use super::server::State;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SetLimits {
    bearer: String,
    #[serde(default)]
    five_hour: WindowLevel,
    #[serde(default)]
    seven_day: WindowLevel,
}

/// Answers a request to `/standin/<what>`.
pub(super) fn reply(state: &State, method: &Method, what: &str, query: &str, body: Option<Value>) -> Reply {
    let body = body.unwrap_or_default();
    match (method.as_str(), what) {
        ("GET", "requests") => {
            let since = query.split('&').find_map(|pair| pair.strip_prefix("since="));
            let since = since.and_then(|number| number.parse().ok()).unwrap_or(0);
            return Reply::json(StatusCode::OK, &json!({"requests": state.log.since(since)}));
        }
        ("GET", "script") => return Reply::json(StatusCode::OK, &json!({"rules": state.script.all()})),
        ("DELETE", "requests") => state.log.clear(),
        ("DELETE", "script") => state.script.clear(),
        ("DELETE", "limits") => state.limits.clear(),
        ("POST", "script") => match rules(body) {
            Ok(rules) => state.script.add(rules),
            Err(error) => return Reply::error(StatusCode::BAD_REQUEST, &error.to_string()),
        },
        ("POST", "limits") => match serde_json::from_value::<SetLimits>(body) {
            Ok(SetLimits { bearer, five_hour, seven_day }) => {
                state.limits.set(&bearer, Limits { five_hour, seven_day });
            }
            Err(error) => return Reply::error(StatusCode::BAD_REQUEST, &error.to_string()),
        },
        _ => return Reply::error(StatusCode::NOT_FOUND, "no such control endpoint"),
    }
    Reply::empty(StatusCode::NO_CONTENT)
}

fn rules(body: Value) -> serde_json::Result<Vec<Rule>> {
    if body.is_array() { serde_json::from_value(body) } else { serde_json::from_value(body).map(|rule| vec![rule]) }
}
