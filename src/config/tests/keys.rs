//! Who may come in.

use serde_json::json;

use super::*;

#[test]
fn off_loopback_somebody_must_say_who_may_come_in() {
    // Where nothing is kept no key can be registered: it has to stand in the file.
    let open = json!({"server": {"listen": "0.0.0.0:3000"}});
    let home = Home::new().with("DATABASE_URL", "none");
    let problems = home.problems(&open);
    assert!(problems[0].starts_with("server.listen: 0.0.0.0:3000 can be reached from other machines"), "{problems:?}");
    let problems = Home::new().with("DATABASE_URL", "none").with("HOST", "0.0.0.0").problems(&json!({}));
    assert!(problems[0].starts_with("environment variable HOST: "), "{problems:?}");
    let overrides =
        Overrides { config: Some(home.dir.path().join("auth-pool.json")), listen: Some("0.0.0.0:0".to_owned()) };
    assert!(lines(load(&home.env(), &overrides))[0].starts_with("--listen: "));

    // Where there is a store it may hold one, which is found out at the start.
    let warnings = Home::new().load(&open).unwrap().warnings;
    assert!(warnings.iter().any(|warning| warning.message.contains("`auth-pool keys create`")), "{warnings:?}");

    let mut closed = open;
    closed["clientKeys"] = json!([{"name": "a", "sha256": "0".repeat(64)}]);
    assert_eq!(home.load(&closed).unwrap().server.listen.port(), 3000);
}

#[test]
fn client_keys_come_as_digest_or_by_variable_and_differ() {
    let home = Home::new().with("TEAM_KEY", "a-key-of-decent-length").with("SHORT_KEY", "short");
    let file = json!({"clientKeys": [
        {"name": "team", "env": "TEAM_KEY", "models": ["sonnet"], "admin": true},
        {"name": "weak", "env": "SHORT_KEY"},
    ]});
    let config = home.load(&file).unwrap();
    assert_eq!(config.client_keys[0].models.as_deref(), Some(&["sonnet".to_owned()][..]));
    assert_eq!(config.client_keys[0].scopes, [Scope::Chat, Scope::Admin]);
    assert_eq!(config.client_keys[1].scopes, [Scope::Chat]);
    assert_eq!(config.warnings.len(), 1);
    assert!(config.warnings[0].to_string().starts_with("clientKeys[1].env: "));

    let digest = |byte: char| byte.to_string().repeat(64);
    let bad = json!({"clientKeys": [
        {"name": "a", "sha256": digest('a')},
        {"name": "a", "sha256": digest('b')},
        {"name": "c", "sha256": digest('A')},
        {"name": "d", "env": "UNSET"},
        {"name": "e"},
        {"name": "f", "env": "TEAM_KEY", "sha256": digest('f')},
        {"name": "g", "sha256": "abc"},
        {"name": "h", "key": "sk-plain"},
    ]});
    assert_eq!(
        home.problems(&bad),
        [
            "clientKeys[1].name: `a` is already the name of another key",
            "clientKeys[2]: is the same key as `a`",
            "clientKeys[3].env: names an environment variable that is not set",
            "clientKeys[4]: needs `sha256`, or `env` with the name of the variable that holds the key",
            "clientKeys[5]: has `sha256` and `env`; keep one",
            "clientKeys[6].sha256: must be 64 hexadecimal digits",
            "clientKeys[7]: needs `sha256`, or `env` with the name of the variable that holds the key",
            "clientKeys[7].key: unknown field; give the key's `sha256`, or name in `env` the environment variable that \
             holds it",
        ]
    );
}

#[test]
fn client_keys_may_have_narrower_rights() {
    let home = Home::new();
    let key = |extra: Value| {
        let mut key = json!({"name": "k", "sha256": "a".repeat(64)});
        key.as_object_mut().unwrap().extend(extra.as_object().cloned().unwrap());
        json!({
            "organizations": {"acme": {"accountSelection": {"strategy": "least_loaded"}}, "plain": {}},
            "clientKeys": [key, {"name": "k", "sha256": "b".repeat(64), "organizationId": "plain"}],
        })
    };
    let full = json!({
        "scopes": ["admin", "chat", "admin"], "organizationId": "acme", "subscriptions": ["default"],
        "requestsPerMinute": 60, "weeklyBudget": 12.5, "maxPriority": "low", "expiresAt": "2030-01-01T00:00:00Z",
    });
    let config = home.load(&key(full)).unwrap();
    let first = &config.client_keys[0];
    assert_eq!(first.scopes, [Scope::Chat, Scope::Admin]);
    assert_eq!((first.organization.as_deref(), first.requests_per_minute), (Some("acme"), Some(60)));
    assert_eq!((first.weekly_budget, first.max_priority), (Some(MicroUsd::from_usd(12.5)), Priority::Low));
    assert_eq!(first.expires_at, Timestamp::parse_rfc3339("2030-01-01T00:00:00Z"));
    assert_eq!(config.client_keys[1].max_priority, Priority::High);
    assert_eq!(config.organizations.keys().collect::<Vec<_>>(), ["acme"], "the other decides nothing");
    // A subscription that is registered later may be meant; a key that is over may stay.
    let warned = home.load(&key(json!({"subscriptions": ["later"], "expiresAt": "2020-01-01T00:00:00Z"}))).unwrap();
    assert_eq!(warned.warnings.len(), 2, "{:?}", warned.warnings);

    let bad = json!({
        "admin": true, "scopes": ["chat"], "weeklyBudget": 0.000_000_1, "expiresAt": "tomorrow",
    });
    let problems = home.problems(&key(bad));
    assert_eq!(
        problems,
        [
            "clientKeys[0].admin: is short for both `scopes`, which stand here as well; keep one",
            "clientKeys[0].expiresAt: must be an instant, for example `2027-01-01T00:00:00Z`",
            "clientKeys[0].weeklyBudget: must be at least 0.000001",
        ]
    );
    let problems = home.problems(&json!({"organizations": {"a b": {}}}));
    assert_eq!(
        problems,
        ["organizations[\"a b\"]: must be a name of letters, digits, `.`, `_` and `-`, at most 64 of them"]
    );
    let problems = home.problems(&key(json!({"scopes": ["root"], "maxPriority": "urgent", "requestsPerMinute": 0})));
    assert_eq!(problems.len(), 3, "{problems:?}");
}
