//! What the configuration says of accounts and backends, and what is wrong with it.

use auth_pool::config::{self, BackendKind, Config, Env, Overrides, Problems};
use serde_json::{Value, json};

pub(super) fn load(file: &Value) -> Result<Config, Problems> {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("auth-pool.json");
    std::fs::write(&path, file.to_string()).unwrap();
    std::fs::create_dir(home.path().join(".claude-sub1")).unwrap();
    let vars = [
        ("HOME", home.path().to_str().unwrap()),
        ("KEY", "sk-x"),
        ("ANTHROPIC_API_KEY", "sk-y"),
        ("ANTHROPIC_API_KEY_A", "sk-a"),
        ("ANTHROPIC_API_KEY_B", "sk-b"),
        ("OPENROUTER_API_KEY", "sk-o"),
    ];
    let env: Env = vars.map(|(name, value)| (name.to_owned(), value.to_owned())).into_iter().collect();
    config::load(&env, &Overrides { config: Some(path), listen: None })
}

pub(super) fn problems(file: &Value) -> Vec<String> {
    let problems = load(file).map_or_else(|problems| problems.problems, |config| panic!("accepted: {config:?}"));
    problems.iter().map(ToString::to_string).collect()
}

#[test]
fn an_api_subscription_needs_a_key_and_an_address_that_can_be_used() {
    let member = |fields: &Value| {
        let mut value = json!({"id": "a", "type": "api", "apiKeyEnv": "KEY", "weeklyBudget": 10});
        for (name, field) in fields.as_object().unwrap() {
            value[name] = field.clone();
        }
        value
    };
    let file = |fields: &Value| json!({"subscriptions": [member(fields)]});
    let config = load(&file(&json!({"baseUrl": "http://127.0.0.1:9/v1/", "models": {"*": "m"}}))).unwrap();
    assert_eq!(config.warnings, [], "no CLI is missed where none is needed");
    let api = config.subscriptions[0].api.as_ref().unwrap();
    assert_eq!((api.key_env.as_str(), api.base_url.as_str()), ("KEY", "http://127.0.0.1:9/v1"));
    assert!(!format!("{config:?}").contains("sk-x"));
    let insecure = load(&file(&json!({"baseUrl": "http://gateway.example.com"}))).unwrap();
    assert!(insecure.warnings[0].to_string().starts_with("subscriptions[0].baseUrl: is plain http"));
    for (fields, expected) in [
        (json!({"apiKeyEnv": "NONE"}), "apiKeyEnv: names an environment variable that is not set"),
        (json!({"baseUrl": "api.example.com"}), "baseUrl: is not a URL: relative URL without a base"),
        (json!({"baseUrl": "file:///etc"}), "baseUrl: must begin with `https://` (or `http://`) and a host"),
        (json!({"baseUrl": "https://u:p@h"}), "baseUrl: must be an address without user, password, `?` and `#`"),
        (json!({"models": {"a": ""}}), "models.a: must not be empty"),
        (
            json!({"configDir": "~/.claude-sub1"}),
            "configDir: belongs to subscriptions that are driven through the CLI; this one has the type `api`",
        ),
    ] {
        assert_eq!(problems(&file(&fields)), [format!("subscriptions[0].{expected}")]);
    }
    let mut missing = member(&json!({}));
    missing.as_object_mut().unwrap().remove("apiKeyEnv");
    assert_eq!(
        problems(&json!({"subscriptions": [missing]})),
        ["subscriptions[0].apiKeyEnv: is missing: name the environment variable that holds the key"]
    );
    let twice = json!({"subscriptions": [member(&json!({})), member(&json!({"id": "b"}))]});
    assert_eq!(
        problems(&twice),
        ["subscriptions[1].apiKeyEnv: is already that of subscriptions[0]: the same account would be counted twice"]
    );
}

#[test]
fn the_shipped_samples_load_and_mean_what_they_say() {
    let sample =
        |text: &str| load(&serde_json::from_str(text).unwrap()).unwrap_or_else(|problems| panic!("{problems}"));
    let api = sample(include_str!("../../../config/auth-pool.api.json"));
    assert_eq!(api.warnings, []);
    assert!(api.subscriptions.iter().all(|member| member.api.is_some()));

    let config = sample(include_str!("../../../config/auth-pool.backends.json"));
    let names: Vec<&str> = config.backends.iter().map(|backend| backend.name.as_str()).collect();
    assert_eq!(names, ["claude-cli-sub1", "reserve", "openrouter", "local"]);
    assert_eq!(config.backends[0].kind, BackendKind::Pool { subscription: Some("sub1".to_owned()) });
    let BackendKind::OpenAiApi { key_env: None, models, .. } = &config.backends[3].kind else { panic!("{config:?}") };
    assert_eq!(models["*"], "llama");
    assert_eq!(config.routing.fallback_chain, ["reserve", "openrouter", "local"]);
}

#[test]
fn files_may_have_comments_as_people_write_them() {
    let home = tempfile::tempdir().unwrap();
    std::fs::create_dir(home.path().join(".claude-sub1")).unwrap();
    let path = home.path().join("auth-pool.json");
    std::fs::write(
        &path,
        "{\n  // the team's own\n  \"subscriptions\": [\n    { \"id\": \"sub1\", \"type\": \"claude-pro\", /* until May */ \
         \"configDir\": \"~/.claude-sub1\", \"weeklyBudget\": 456 }\n  ]\n}\n",
    )
    .unwrap();
    let beside = home.path().join("backends.json");
    let backend = |end: &str| {
        format!(
            "{{ \"backends\": [{{\n  \"name\": \"cli-1\", \"type\": \"claude-cli\",\n  \"accountId\": \"sub1\", // new\n  \"maxConcurrent\": 10{end}\n}}] }}"
        )
    };
    std::fs::write(&beside, backend(" // enough")).unwrap();
    let env: Env = [("HOME".to_owned(), home.path().display().to_string())].into_iter().collect();
    let overrides = Overrides { config: Some(path), listen: None };
    let config = config::load(&env, &overrides).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(config.backends[0].kind, BackendKind::Pool { subscription: Some("sub1".to_owned()) });
    // What is wrong is still said by its line and column.
    std::fs::write(&beside, backend(", # no comment")).unwrap();
    let said = config::load(&env, &overrides).unwrap_err().to_string();
    assert!(said.contains("line 4, column 24") && said.contains("comments begin with `//`"), "{said}");
}

#[test]
fn what_is_wrong_with_backends_is_said_by_place() {
    let file = |backend: &Value, routing: &Value| {
        json!({
            "subscriptions": [{ "id": "sub1", "type": "claude-pro", "configDir": "~/.claude-sub1", "weeklyBudget": 1 }],
            "backends": [{ "name": "b", "type": "anthropic-api", "apiKeyEnv": "KEY" }, backend], "routing": routing,
        })
    };
    for (backend, expected) in [
        (json!({ "name": "b", "type": "claude-cli" }), "name: `b` is already the name of backends[0]"),
        (json!({ "name": "models", "type": "claude-cli" }), "name: `models` is a name of its own"),
        (json!({ "name": "c", "type": "openai" }), "type: must be one of `claude-cli`, `anthropic-api`, `openai-api`"),
        (
            json!({ "name": "c", "type": "openai-api" }),
            "apiKeyEnv: is missing: name the environment variable that holds the key",
        ),
        (
            json!({ "name": "c", "type": "openai-api", "apiKeyEnv": "NONE" }),
            "apiKeyEnv: names an environment variable that is not set",
        ),
        (
            json!({ "name": "c", "type": "claude-cli", "accountId": "sub2" }),
            "accountId: `sub2` is not the id of a subscription; did you mean `sub1`?",
        ),
        (
            json!({ "name": "c", "type": "claude-cli", "configDir": "~/.claude-x" }),
            "configDir: is not that of a subscription: name one in `accountId`",
        ),
        (
            json!({ "name": "c", "type": "claude-cli", "baseUrl": "https://x" }),
            "baseUrl: belongs to a backend over HTTP; this one is the pool or a subscription of it",
        ),
    ] {
        assert_eq!(problems(&file(&backend, &json!({}))), [format!("backends[1].{expected}")]);
    }
    // A name beside the pool that is a subscription's too; one that leads to the subscription itself is no harm.
    let same = json!({ "name": "sub1", "type": "openai-api", "apiKeyEnv": "KEY" });
    assert_eq!(
        problems(&file(&same, &json!({}))),
        [
            "backends[1].name: `sub1` is the subscription subscriptions[0].id as well: what both use would be written down as \
          one; name the backend otherwise"
        ]
    );
    let itself = json!({ "name": "sub1", "type": "claude-cli", "accountId": "sub1" });
    assert!(load(&file(&itself, &json!({}))).is_ok());
    let good = json!({ "name": "c", "type": "claude-cli" });
    assert_eq!(
        problems(&file(&good, &json!({ "defaultBackend": "d", "fallbackChain": ["b", "x"] }))),
        [
            "routing.defaultBackend: `d` is not the name of a backend",
            "routing.fallbackChain[1]: `x` is not the name of a backend",
        ]
    );
}
