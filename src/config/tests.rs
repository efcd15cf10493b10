mod alerts;
mod beside;
mod store;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::units::{MicroUsd, Timestamp};

mod keys;

/// A home directory with three CLI profiles and room for a file.
struct Home {
    dir: TempDir,
    vars: Vec<(String, String)>,
}

impl Home {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in [".claude-sub1", ".claude-sub2", ".claude-sub3", ".claude"] {
            let path = dir.path().join(name);
            fs::create_dir(&path).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(0o700)).unwrap();
        }
        let bin = dir.path().join("claude");
        fs::write(&bin, "").unwrap();
        let home = dir.path().to_string_lossy().into_owned();
        Self { dir, vars: vec![("HOME".into(), home.clone()), ("PATH".into(), home)] }
    }

    fn with(mut self, name: &str, value: &str) -> Self {
        self.vars.push((name.to_owned(), value.to_owned()));
        self
    }

    fn env(&self) -> Env {
        self.vars.iter().cloned().collect()
    }

    fn load_text(&self, text: &str) -> Result<Config, Problems> {
        let path = self.dir.path().join("auth-pool.json");
        fs::write(&path, text).unwrap();
        load(&self.env(), &Overrides { config: Some(path), listen: None })
    }

    fn load(&self, value: &Value) -> Result<Config, Problems> {
        self.load_text(&value.to_string())
    }

    /// What is wrong, one `path: message` each.
    fn problems(&self, value: &Value) -> Vec<String> {
        lines(self.load(value))
    }
}

fn lines(loaded: Result<Config, Problems>) -> Vec<String> {
    loaded.map_or_else(|problems| problems.problems.iter().map(ToString::to_string).collect(), |_| Vec::new())
}

/// A file with one good subscription, changed by `fields`.
fn subscription(fields: &Value) -> Value {
    let mut value = json!({"id": "sub1", "type": "claude-pro", "configDir": "~/.claude-sub1", "weeklyBudget": 456});
    for (name, field) in fields.as_object().unwrap() {
        value[name] = field.clone();
    }
    json!({"subscriptions": [value]})
}

#[test]
fn the_shipped_sample_loads_and_means_what_it_says() {
    let home = Home::new();
    let config = home.load_text(include_str!("../../config/auth-pool.json")).unwrap();
    assert_eq!(config.warnings, []);
    assert!(config.enabled);
    let ids: Vec<&str> = config.subscriptions.iter().map(|subscription| subscription.id.as_str()).collect();
    assert_eq!(ids, ["sub1", "sub2", "sub3"]);
    let first = &config.subscriptions[0];
    assert_eq!(first.email.as_deref(), Some("user1@example.com"));
    assert_eq!(first.kind, Kind::ClaudePro);
    assert_eq!(first.config_dir, Some(home.dir.path().join(".claude-sub1")));
    assert_eq!(first.weekly_budget, MicroUsd::from_usd(456.0));
    assert_eq!((first.max_clients, first.max_concurrent, first.enabled), (None, 10, true));
    assert_eq!(first.priority, Priority::Normal);
    assert_eq!(config.max_clients_per_subscription, 15);
    assert!((config.weekly_budget_threshold - 0.85).abs() < 1e-12);
    assert!(config.fallback_when_exhausted);
    assert_eq!(
        config.rebalancing,
        Rebalancing {
            enabled: true,
            interval: Duration::from_mins(5),
            cost_gap: MicroUsd::from_usd(5.0),
            max_moves: 3
        }
    );
    assert_eq!(config.notifications.webhook_url.as_deref(), Some("https://your-webhook-endpoint.com/notify"));
    assert_eq!(
        config.notifications.rules,
        [
            Rule {
                kind: RuleKind::UsageThreshold { threshold: 0.8 },
                channels: vec![Channel::Webhook, Channel::Log],
                enabled: true
            },
            Rule { kind: RuleKind::Failover, channels: vec![Channel::Webhook], enabled: true },
        ]
    );
    assert_eq!(config.server.listen.to_string(), "127.0.0.1:3000");
    assert_eq!(config.claude.command, PathBuf::from("claude"));
}

#[test]
fn the_second_designs_sections_load_unchanged() {
    let mut file = subscription(&json!({"tier": "pro"}));
    let sections = json!({
        "accountSelection": {
            "strategy": "least_loaded", "fallbackStrategies": ["random", "round_robin"],
            "retryOnFailure": true, "maxRetries": 3
        },
        "capacityTracking": {
            "enabled": true, "syncIntervalSeconds": 60, "redisKeyPrefix": "claude:capacity:", "redisTTLSeconds": 300
        },
        "circuitBreaker": {
            "enabled": true, "failureThreshold": 5, "successThreshold": 2, "timeout": 60000, "resetTimeoutSeconds": 300
        },
        "quotaAlerts": {"enabled": true, "thresholds": {"warning": 80, "critical": 95, "emergency": 100}},
        "rateLimits": {"pro": {"requestsPerMinute": 50, "tokensPerMinute": 40000, "costPerDay": 12.5}}
    });
    for (name, section) in sections.as_object().unwrap() {
        file[name] = section.clone();
    }
    let config = Home::new().load(&file).unwrap();
    assert_eq!(config.account_selection.strategy, Strategy::LeastLoaded);
    assert_eq!(config.account_selection.fallback_strategies, [Strategy::Random, Strategy::RoundRobin]);
    assert_eq!(config.circuit_breaker.timeout, Duration::from_mins(1));
    assert_eq!(config.circuit_breaker.reset_timeout, Duration::from_mins(5));
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    // Nothing says what this one would mean; whoever changes it is told that it does nothing.
    file["circuitBreaker"]["timeout"] = json!(5000);
    let warnings = Home::new().load(&file).unwrap().warnings;
    let warnings: Vec<_> = warnings.iter().map(ToString::to_string).collect();
    assert!(warnings.len() == 1 && warnings[0].contains("circuitBreaker.timeout"), "{warnings:?}");
    assert_eq!(config.capacity_tracking.redis_ttl, Duration::from_mins(5));
    assert_eq!(config.rate_limits["pro"].requests_per_minute, Some(50));
}

#[test]
fn everything_wrong_is_said_at_once_in_the_order_of_the_file() {
    let file = json!({
        "subscriptions": [
            {"id": "sub1", "type": "claude-pro", "configDir": "~/.claude-sub1", "weeklyBuget": 456},
            {"id": "sub1", "type": "claude-pr", "configDir": "/etc/../.claude", "weeklyBudget": 0},
            {"type": "claude-max", "configDir": "~/.claude-none", "weeklyBudget": "456"},
        ],
        "weeklyBudgetThreshold": 85,
        "rebalancing": {"intervalSeconds": "often"},
        "notifications": {"rules": [{"type": "usage_threshold", "channels": ["webhook", "pager"]}]},
        "subscription": [],
    });
    let home = Home::new().with("WEEKLY_BUDGET", "lots");
    let none = home.dir.path().join(".claude-none");
    let none = none.display();
    assert_eq!(
        home.problems(&file),
        [
            "notifications.rules[0].channels: names `webhook`, but there is no `webhookUrl`".to_owned(),
            "notifications.rules[0].channels[1]: must be one of `webhook`, `log`, `slack`, `email`".to_owned(),
            "notifications.rules[0].threshold: is missing: `usage_threshold` needs one, for example 0.8".to_owned(),
            "rebalancing.intervalSeconds: expected a length of time: a number, or text such as `30s`, `5m` or `1h 30m`"
                .to_owned(),
            "subscription: unknown field; did you mean `subscriptions`?".to_owned(),
            "subscriptions[0].weeklyBuget: unknown field; did you mean `weeklyBudget`?".to_owned(),
            "subscriptions[1].configDir: must not contain `..` (subscription `sub1`)".to_owned(),
            "subscriptions[1].id: `sub1` is already the id of subscriptions[0]".to_owned(),
            "subscriptions[1].type: must be one of `claude-pro`, `claude-max`, `api`; did you mean `claude-pro`?"
                .to_owned(),
            "subscriptions[1].weeklyBudget: must be greater than 0".to_owned(),
            format!(
                "subscriptions[2].configDir: {none} does not exist; log in with `CLAUDE_CONFIG_DIR={none} claude` to \
                 create it"
            ),
            "subscriptions[2].id: is missing".to_owned(),
            "subscriptions[2].weeklyBudget: expected a number, found text".to_owned(),
            "weeklyBudgetThreshold: must be at most 1".to_owned(),
            "environment variable WEEKLY_BUDGET: must be a number of US dollars greater than 0".to_owned(),
        ]
    );
}

#[test]
fn a_wrong_value_is_told_by_kind_and_never_quoted() {
    let home = Home::new();
    for (fields, expected) in [
        (json!({"weeklyBudget": 0}), "weeklyBudget: must be greater than 0"),
        (json!({"weeklyBudget": -1}), "weeklyBudget: must be greater than 0"),
        (json!({"weeklyBudget": "x"}), "weeklyBudget: expected a number, found text"),
        (json!({"weeklyBudget": null}), "weeklyBudget: expected a number, found null"),
        (json!({"weeklyBudget": 1e-9}), "weeklyBudget: must be at least 0.000001"),
        (json!({"maxConcurrent": 1.5}), "maxConcurrent: expected a whole number, found a fraction"),
        (json!({"maxClients": 0}), "maxClients: must be at least 1"),
        (json!({"enabled": "yes"}), "enabled: expected true or false, found text"),
        (json!({"priority": "hihg"}), "priority: must be one of `low`, `normal`, `high`; did you mean `high`?"),
        (json!({"email": ""}), "email: must not be empty"),
        (
            json!({"id": "a b"}),
            "id: must be 1 to 64 letters, digits, `.`, `_` or `-`, and begin with a letter or digit",
        ),
        (
            json!({"apiKey": "sk-ant"}),
            "apiKey: unknown field; name in `apiKeyEnv` the environment variable that holds the key",
        ),
        (
            json!({"apiKeyEnv": "K"}),
            "apiKeyEnv: belongs to subscriptions of type `api`; this one is driven through the CLI",
        ),
        (json!({"oauthTokenEnv": "sk-ant-oat01-x"}), "oauthTokenEnv: must be the name of an environment variable"),
        (json!({"oauthTokenEnv": "sk_secret"}), "oauthTokenEnv: names an environment variable that is not set"),
        (
            json!({"oauthToken": "sk-ant"}),
            "oauthToken: unknown field; name in `oauthTokenEnv` the environment variable that holds the token",
        ),
        (json!({"tier": "pro"}), "tier: `pro` is not a tier of `rateLimits`"),
        (json!({"env": {"A": 1}}), "env.A: expected text, found a number"),
    ] {
        assert_eq!(home.problems(&subscription(&fields)), [format!("subscriptions[0].{expected}")]);
    }
    assert_eq!(home.problems(&json!([])), ["the file: expected an object, found a list"]);
    assert_eq!(home.problems(&json!({"subscriptions": []})), ["subscriptions: needs at least one element"]);
    assert_eq!(
        home.problems(&json!({"accountSelection": {"strategy": "least_busy"}})),
        ["accountSelection.strategy: must be one of `health`, `least_loaded`, `round_robin`, `random`, `priority`, \
             `pace`"]
    );
}

#[test]
fn every_rule_for_a_profile_directory_names_the_subscription() {
    let home = Home::new();
    fs::write(home.dir.path().join(".claude-file"), "").unwrap();
    for (dir, rule) in [
        ("~/.claude-sub1/../.claude-sub2", "must not contain `..`"),
        ("~//.claude-sub1", "must not contain `//`"),
        ("~/.claude-sub1\0", "must not contain a NUL character"),
        ("/etc", "must be a CLI profile: a part of the path has to begin with `.claude`"),
    ] {
        assert_eq!(
            home.problems(&subscription(&json!({"configDir": dir}))),
            [format!("subscriptions[0].configDir: {rule} (subscription `sub1`)")]
        );
    }
    for (dir, rule) in [("~/.claude-none", "does not exist"), ("~/.claude-file", "is not a directory")] {
        let problems = home.problems(&subscription(&json!({"configDir": dir})));
        assert!(problems[0].contains(rule) && problems[0].contains("`sub1`"), "{problems:?}");
        // Switched off, it may be absent.
        assert_eq!(home.problems(&subscription(&json!({"configDir": dir, "enabled": false}))), [""; 0]);
    }
}

#[test]
fn one_profile_cannot_serve_two_subscriptions_even_by_another_name() {
    let home = Home::new();
    std::os::unix::fs::symlink(home.dir.path().join(".claude-sub1"), home.dir.path().join(".claude-alias")).unwrap();
    let mut file = subscription(&json!({}));
    let mut second = file["subscriptions"][0].clone();
    second["id"] = json!("sub2");
    second["configDir"] = json!("~/.claude-alias/");
    file["subscriptions"].as_array_mut().unwrap().push(second);
    assert_eq!(
        home.problems(&file),
        ["subscriptions[1].configDir: is already that of subscriptions[0]: the same account would be counted twice"]
    );
}

#[test]
fn a_profile_open_to_others_is_a_warning() {
    let home = Home::new();
    fs::set_permissions(home.dir.path().join(".claude-sub1"), fs::Permissions::from_mode(0o755)).unwrap();
    let config = home.load(&subscription(&json!({}))).unwrap();
    let [warning] = config.warnings.as_slice() else { panic!("{:?}", config.warnings) };
    assert!(warning.to_string().starts_with("subscriptions[0].configDir: "), "{warning}");
    assert!(warning.message.contains("(mode 755)") && warning.message.contains("`sub1`"), "{warning}");
}

#[test]
fn variables_that_would_break_isolation_are_refused_with_a_reason() {
    let home = Home::new();
    for name in [
        "CLAUDE_CONFIG_DIR",
        "CLAUDE_CODE_ENTRYPOINT",
        "ANTHROPIC_API_KEY",
        "ANTHROPIC_AUTH_TOKEN",
        "LD_PRELOAD",
        "NODE_OPTIONS",
    ] {
        let problems = home.problems(&subscription(&json!({"env": {name: "s3cret"}})));
        assert_eq!(problems.len(), 1);
        assert!(problems[0].starts_with(&format!("subscriptions[0].env.{name}: may not be set here: ")));
        assert!(!problems[0].contains("s3cret"));
    }
    let allowed = json!({"env": {"ANTHROPIC_BASE_URL": "http://127.0.0.1:9", "PATH": "/bin"}});
    assert_eq!(home.load(&subscription(&allowed)).unwrap().warnings, []);
    let token = json!({"env": {"CLAUDE_CODE_OAUTH_TOKEN": "s3cret"}});
    let config = home.load(&subscription(&token)).unwrap();
    assert_eq!(config.warnings.len(), 1);
    assert!(!format!("{config:?}").contains("s3cret"));
}

#[test]
fn the_environment_wins_over_the_file() {
    let home = Home::new()
        .with("WEEKLY_BUDGET", "500")
        .with("AUTH_POOL_REBALANCING_ENABLED", "false")
        .with("HOST", "::1")
        .with("PORT", "8080")
        .with("LOG_LEVEL", "debug");
    let config = home.load_text(include_str!("../../config/auth-pool.json")).unwrap();
    assert!(config.subscriptions.iter().all(|member| member.weekly_budget == MicroUsd::from_usd(500.0)));
    assert!(!config.rebalancing.enabled);
    assert_eq!(config.server.listen.to_string(), "[::1]:8080");
    assert_eq!(config.log_filter, "debug");
    let overrides =
        Overrides { config: Some(home.dir.path().join("auth-pool.json")), listen: Some("localhost:0".to_owned()) };
    assert_eq!(load(&home.env(), &overrides).unwrap().server.listen.to_string(), "127.0.0.1:0");
}

#[test]
fn with_the_pool_off_the_users_own_profile_serves_and_client_keys_still_hold() {
    let home = Home::new().with("AUTH_POOL_ENABLED", "false");
    let mut file = subscription(&json!({"configDir": "~/.claude-none"}));
    file["clientKeys"] = json!([{"name": "a", "sha256": "0".repeat(64)}]);
    let config = home.load(&file).unwrap();
    assert!(!config.enabled);
    assert_eq!(config.subscriptions.len(), 1);
    assert_eq!(config.subscriptions[0].id, "default");
    assert_eq!(config.subscriptions[0].config_dir, Some(home.dir.path().join(".claude")));
    assert_eq!(config.subscriptions[0].weekly_budget, MicroUsd::from_usd(456.0));
    assert_eq!(config.client_keys.len(), 1);
}

#[test]
fn without_a_file_or_without_members_the_users_own_profile_is_the_pool() {
    let home = Home::new().with("WEEKLY_BUDGET", "7");
    let config = read_and_check(&home.env(), &Overrides::default(), &home.dir.path().join("none.json")).unwrap();
    assert_eq!(config.source, Source::DefaultProfile);
    let same = home.load(&json!({})).unwrap();
    assert!(matches!(same.source, Source::File(_)));
    for config in [config, same] {
        assert!(config.enabled);
        let [only] = config.subscriptions.as_slice() else { panic!("{config:?}") };
        assert_eq!((only.id.as_str(), only.weekly_budget), ("default", MicroUsd::from_usd(7.0)));
        assert_eq!(only.config_dir, Some(home.dir.path().join(".claude")));
    }

    let other = Home::new().with("CLAUDE_CONFIG_DIR", "/nowhere/profile");
    let problems = other.problems(&json!({}));
    assert!(problems[0].starts_with("environment variable CLAUDE_CONFIG_DIR: there is no Claude CLI profile at "));
}

#[test]
fn a_file_that_was_asked_for_must_be_there() {
    let home = Home::new().with("AUTH_POOL_CONFIG", "~/none.json");
    let path = home.dir.path().join("none.json");
    let expected = format!("there is no file {}", path.display());
    let problems = load(&home.env(), &Overrides::default()).unwrap_err();
    assert_eq!(problems.heading, path.display().to_string());
    assert_eq!(problems.problems[0].to_string(), format!("environment variable AUTH_POOL_CONFIG: {expected}"));
    let overrides = Overrides { config: Some(path), listen: None };
    let problems = load(&home.env(), &overrides).unwrap_err();
    assert_eq!(problems.problems[0].to_string(), format!("--config: {expected}"));
}

#[test]
fn lengths_of_time_are_numbers_or_words() {
    let home = Home::new();
    let config = home
        .load(&json!({
            "rebalancing": {"intervalSeconds": "5m"},
            "claude": {"firstEventTimeout": 1.5, "idleTimeout": "2m", "totalTimeout": "1h 30m", "keepIdle": "1m 30s"},
            "server": {"drainTimeout": 0}
        }))
        .unwrap();
    assert_eq!(config.rebalancing.interval, Duration::from_mins(5));
    assert_eq!(config.claude.first_event_timeout, Duration::from_millis(1500));
    assert_eq!(config.claude.total_timeout, Duration::from_mins(90));
    assert_eq!(config.claude.keep_idle, Duration::from_secs(90));
    assert_eq!(home.load(&json!({})).unwrap().claude.keep_idle, Duration::from_mins(10));
    assert_eq!(config.server.drain_timeout, Duration::ZERO);
    assert_eq!(
        home.problems(&json!({
            "rebalancing": {"intervalSeconds": 0},
            "claude": {"idleTimeout": "1h", "totalTimeout": "10m", "keepIdle": 0},
            "server": {"drainTimeout": -1}
        })),
        [
            "claude.idleTimeout: must not be longer than `totalTimeout`",
            "claude.keepIdle: must be between 100ms and 1day",
            "rebalancing.intervalSeconds: must be between 1s and 1day",
            "server.drainTimeout: must be at least 0",
        ]
    );
}

#[test]
fn all_bodies_together_may_take_at_least_what_one_may() {
    let home = Home::new();
    let bounds = |one: u64, all: u64| json!({"server": {"maxBodyBytes": one, "maxBodyBytesTotal": all}});
    assert_eq!(home.load(&bounds(4096, 4096)).unwrap().server.max_body_bytes_total, 4096);
    assert_eq!(home.problems(&bounds(4096, 4095)), ["server.maxBodyBytesTotal: must be at least `maxBodyBytes`"]);
}

#[test]
fn the_queue_has_a_bound_and_a_deadline() {
    let home = Home::new();
    let config = home.load(&json!({})).unwrap();
    assert_eq!(config.server.queue, Queue { max_waiting: 100, timeout: Duration::from_secs(30) });
    let config = home.load(&json!({"server": {"queue": {"maxWaiting": 0, "timeout": "1m 30s"}}})).unwrap();
    assert_eq!(config.server.queue, Queue { max_waiting: 0, timeout: Duration::from_secs(90) });
    assert_eq!(
        home.problems(&json!({"server": {"queue": {"maxWaiting": -1, "timeout": "2h"}}})),
        ["server.queue.maxWaiting: must be at least 0", "server.queue.timeout: must be between 0s and 1h"]
    );
    let schema = json_schema().to_string();
    for words in ["maxWaiting", "Where requests wait while every subscription is busy."] {
        assert!(schema.contains(words), "{words}");
    }
}

#[test]
fn usage_is_polled_now_and_then_or_never() {
    let home = Home::new();
    let interval = |value: Value| {
        let config = home.load(&json!({"claude": {"usagePollInterval": value}})).unwrap();
        config.claude.usage_poll_interval
    };
    assert_eq!(home.load(&json!({})).unwrap().claude.usage_poll_interval, Some(Duration::from_mins(5)));
    assert_eq!(interval(json!("90s")), Some(Duration::from_secs(90)));
    assert_eq!((interval(json!(0)), interval(json!("0s"))), (None, None));
    assert_eq!(
        home.problems(&json!({"claude": {"usagePollInterval": 0.5}})),
        ["claude.usagePollInterval: must be 0 or at least 1s"]
    );
}

#[test]
fn rules_that_cross_fields() {
    let home = Home::new();
    assert_eq!(
        home.problems(&json!({
            "models": {"a": "a", "b": "c", "c": "d", "d": "sonnet"},
            "notifications": {
                "rules": [
                    {"type": "failover", "threshold": 0.5},
                    {"type": "recovered", "channels": ["slack"]},
                    {"type": "rotation", "channels": ["webhook"], "enabled": false},
                ],
                "webhookUrl": "http://127.0.0.1/hook",
                "webhookSecretEnv": "UNSET"
            },
            "quotaAlerts": {"thresholds": {"warning": 96}},
            "server": {"corsOrigins": ["*", "https://a.example/", "https://b.example"]}
        })),
        [
            "models.a: stands for itself; name a Claude model or a CLI alias such as `sonnet`",
            "models.b: stands for `c`, which is more than one step from a model",
            "notifications.rules[0].threshold: has no meaning here: only `usage_threshold` has one",
            "notifications.rules[1].channels: names `slack`, but the environment variable SLACK_WEBHOOK_URL is not set",
            "notifications.webhookSecretEnv: names an environment variable that is not set",
            "notifications.webhookUrl: must begin with `https://`, unless `allowHosts` names its host",
            "quotaAlerts.thresholds.critical: must be greater than `warning`, which is 96",
            "server.corsOrigins[0]: `*` allows every origin, so it must stand alone",
            "server.corsOrigins[1]: must be an origin: scheme and host without a path, for example \
             `https://app.example.com`",
        ]
    );
    let config = home.load(&json!({"models": {"gpt-4o": "sonet", "o3": "claude-opus-9"}})).unwrap();
    let warnings: Vec<String> = config.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(warnings, ["models.gpt-4o: `sonet` is not a model that this version knows; did you mean `sonnet`?"]);
}
