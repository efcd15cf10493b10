//! Sections in files beside.

use std::fs;

use serde_json::json;

use super::*;

const BACKENDS: &str = r#"{"backends": [
    {"name": "claude-cli-sub1", "type": "claude-cli", "configDir": "~/.claude-sub1", "accountId": "sub1",
     "maxConcurrent": 10, "supportsTools": true},
    {"name": "local", "type": "openai-api", "baseUrl": "http://127.0.0.1:8080/v1"}
], "routing": {"fallbackChain": ["local"]}}"#;

const ACCOUNTS: &str = r#"{
    "accountSelection": {"strategy": "least_loaded", "fallbackStrategies": ["random", "round_robin"],
                         "retryOnFailure": true, "maxRetries": 3},
    "capacityTracking": {"enabled": true, "syncIntervalSeconds": 60, "redisKeyPrefix": "claude:capacity:",
                         "redisTTLSeconds": 300},
    "circuitBreaker": {"enabled": true, "failureThreshold": 5, "successThreshold": 2, "timeout": 60000,
                       "resetTimeoutSeconds": 300},
    "quotaAlerts": {"enabled": true, "thresholds": {"warning": 80, "critical": 95, "emergency": 100}}
}"#;

fn member() -> Value {
    json!({"id": "sub1", "type": "claude-pro", "configDir": "~/.claude-sub1", "weeklyBudget": 456})
}

fn home(backends: &str, accounts: &str) -> Home {
    let home = Home::new();
    fs::write(home.dir.path().join("backends.json"), backends).unwrap();
    fs::write(home.dir.path().join("multi-account.json"), accounts).unwrap();
    home
}

#[test]
fn the_files_of_the_setup_guides_are_read_beside() {
    let config = home(BACKENDS, ACCOUNTS).load(&json!({"subscriptions": [member()]})).unwrap();
    assert_eq!(config.beside, ["backends.json", "multi-account.json"]);
    let names: Vec<&str> = config.backends.iter().map(|backend| backend.name.as_str()).collect();
    assert_eq!(names, ["claude-cli-sub1", "local"]);
    assert_eq!(config.routing.fallback_chain, ["local"]);
    assert_eq!(config.account_selection.strategy, Strategy::LeastLoaded);
    assert!(Home::new().load(&json!({"subscriptions": [member()]})).unwrap().beside.is_empty());
}

#[test]
fn what_is_wrong_in_them_is_told_with_the_file() {
    let main = json!({"subscriptions": [member()], "circuitBreaker": {}, "fallbackWhenExhausted": true});
    let backends = r#"{"backends": [{"name": "a", "type": "openai"}, {"name": "pool", "type": "claude-cli"}],
                       "routing": {"fallbackAfter": "soon"}, "clientKeys": []}"#;
    let accounts = r#"{"circuitBreaker": {}, "quotaAlerts": {"thresholds": {"warning": 99}}}"#;
    let problems = home(backends, accounts).problems(&main);
    for (number, start) in [
        "backends.json: backends[0].type: must be one of",
        "backends.json: backends[1].name: `pool` is a name of its own",
        "backends.json: clientKeys: unknown field; known here are `backends`, `routing`",
        "backends.json: routing.fallbackAfter: expected a length of time",
        "multi-account.json: circuitBreaker: stands in auth-pool.json as well; keep one",
        "multi-account.json: quotaAlerts.thresholds.critical: must be greater than `warning`",
    ]
    .into_iter()
    .enumerate()
    {
        assert!(problems.get(number).is_some_and(|problem| problem.starts_with(start)), "{start}: {problems:#?}");
    }
    assert_eq!(problems.len(), 6, "{problems:#?}");
    let problems = home("{\n,", "[]").problems(&main);
    assert!(problems[0].starts_with("backends.json: line 2, column 1: "), "{problems:?}");
    assert_eq!(problems[1], "multi-account.json: expected an object");
}
