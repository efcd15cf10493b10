//! Checks a file's structure against its schema and says what is wrong in plain words.
//!
//! Everything that is wrong is taken out of the value, so that the other checks can go on with the rest.

use std::sync::LazyLock;

use jsonschema::error::{TypeKind, ValidationErrorKind};
use jsonschema::paths::Location;
use jsonschema::{JsonType, ValidationError, Validator};
use serde_json::Value;

use super::problem::{FieldPath, Findings};
use super::raw;
use super::schema::json_schema;

/// The file's sections, with everything structurally wrong reported and left out; `None` when nothing is left.
pub(super) fn read(mut value: Value, findings: &mut Findings) -> Option<raw::File> {
    static VALIDATOR: LazyLock<Result<Validator, String>> =
        LazyLock::new(|| jsonschema::validator_for(json_schema()).map_err(|error| error.to_string()));
    let validator = match &*VALIDATOR {
        Ok(validator) => validator,
        Err(error) => {
            findings.problem(FieldPath::default(), format!("cannot be checked: {error}"));
            return None;
        }
    };

    let mut spoiled = Vec::new();
    let mut missing = Vec::new();
    let mut meant = Vec::new();
    for error in validator.iter_errors(&value) {
        let steps = steps(error.instance_path());
        let at = field_path(&value, &steps);
        match error.kind() {
            ValidationErrorKind::AdditionalProperties { unexpected } => {
                for name in unexpected {
                    let (message, nearest) = unknown_field(name, error.schema_path());
                    findings.problem(at.key(name), message);
                    meant.extend(nearest.map(|nearest| at.key(&nearest)));
                    spoiled.push([steps.as_slice(), std::slice::from_ref(name)].concat());
                }
            }
            ValidationErrorKind::Required { property } => missing.push(at.key(property.as_str().unwrap_or_default())),
            _ => {
                findings.problem(&at, describe(&error));
                spoiled.push(steps);
            }
        }
    }
    for path in missing {
        // A misspelt name is one mistake, not two.
        if !meant.contains(&path) {
            findings.problem(&path, "is missing");
        }
        findings.unusable(path);
    }
    if spoiled.iter().any(Vec::is_empty) {
        return None;
    }
    for steps in &spoiled {
        findings.unusable(field_path(&value, steps));
    }
    for steps in &spoiled {
        take_out(&mut value, steps);
    }
    match serde_path_to_error::deserialize(value) {
        Ok(file) => Some(file),
        Err(error) => {
            // The schema is narrower than the types, so this is a mistake of this program. The inner message could quote
            // a secret.
            findings.problem(FieldPath::field(&error.path().to_string()), "does not have the expected form");
            None
        }
    }
}

/// The names and indices that lead to a value.
fn steps(location: &Location) -> Vec<String> {
    // Not `location.segments()`, which leaves out empty names.
    location.as_str().split('/').skip(1).map(|step| step.replace("~1", "/").replace("~0", "~")).collect()
}

/// Tells indices from names by what they lead through.
fn field_path(root: &Value, steps: &[String]) -> FieldPath {
    let mut path = FieldPath::default();
    let mut value = Some(root);
    for step in steps {
        if let Some(Value::Array(list)) = value {
            let index = step.parse().unwrap_or(usize::MAX);
            value = list.get(index);
            path = path.index(index);
        } else {
            value = value.and_then(|value| value.get(step));
            path = path.key(step);
        }
    }
    path
}

/// Removes a field, or empties an element, so that the elements after it keep their numbers.
fn take_out(root: &mut Value, steps: &[String]) {
    let Some((last, parents)) = steps.split_last() else { return };
    let parent = parents.iter().try_fold(root, |value, step| match value {
        Value::Array(elements) => elements.get_mut(step.parse::<usize>().ok()?),
        Value::Object(fields) => fields.get_mut(step),
        _ => None,
    });
    match parent {
        Some(Value::Array(elements)) => {
            if let Some(element) = last.parse::<usize>().ok().and_then(|index| elements.get_mut(index)) {
                *element = Value::Null;
            }
        }
        Some(Value::Object(fields)) => {
            fields.remove(last);
        }
        _ => {}
    }
}

/// What to say of a field that does not exist, and the name that was probably meant.
fn unknown_field(name: &str, schema_path: &Location) -> (String, Option<String>) {
    /// Names that people try, and why they do not exist.
    const ADVICE: [(&str, &str, &str); 5] = [
        ("ClientKey", "key", "give the key's `sha256`, or name in `env` the environment variable that holds it"),
        ("ClientKey", "apiKey", "give the key's `sha256`, or name in `env` the environment variable that holds it"),
        ("Backend", "apiKey", "name in `apiKeyEnv` the environment variable that holds the key"),
        ("Subscription", "apiKey", "name in `apiKeyEnv` the environment variable that holds the key"),
        ("Subscription", "oauthToken", "name in `oauthTokenEnv` the environment variable that holds the token"),
    ];
    let owner = schema_path.as_str().strip_suffix("/additionalProperties").unwrap_or_default();
    let advice = ADVICE.iter().find(|(section, field, _)| owner.ends_with(&format!("/{section}")) && *field == name);
    if let Some((_, _, advice)) = advice {
        return (format!("unknown field; {advice}"), None);
    }
    let known: Vec<&str> = json_schema()
        .pointer(owner)
        .and_then(|schema| schema.get("properties")?.as_object())
        .map(|properties| properties.keys().map(String::as_str).collect())
        .unwrap_or_default();
    if let Some(nearest) = nearest(name, known.iter().copied()) {
        return (format!("unknown field; did you mean `{nearest}`?"), Some(nearest.to_owned()));
    }
    (format!("unknown field; known here are {}", list(&known)), None)
}

fn describe(error: &ValidationError<'_>) -> String {
    let found = error.instance();
    match error.kind() {
        ValidationErrorKind::Type { kind } => {
            let types: Vec<JsonType> = match kind {
                TypeKind::Single(only) => vec![*only],
                TypeKind::Multiple(set) => set.iter().collect(),
            };
            if types == [JsonType::Integer] && found.is_number() {
                return "expected a whole number, found a fraction".to_owned();
            }
            let expected = types.iter().map(|name| type_name(*name)).collect::<Vec<_>>().join(" or ");
            format!("expected {expected}, found {}", value_name(found))
        }
        ValidationErrorKind::ExclusiveMinimum { limit } => format!("must be greater than {limit}"),
        ValidationErrorKind::Minimum { limit } => format!("must be at least {limit}"),
        ValidationErrorKind::ExclusiveMaximum { limit } => format!("must be less than {limit}"),
        ValidationErrorKind::Maximum { limit } => format!("must be at most {limit}"),
        ValidationErrorKind::MinLength { limit: 1 } => "must not be empty".to_owned(),
        ValidationErrorKind::MinItems { limit: 1 } => "needs at least one element".to_owned(),
        ValidationErrorKind::MaxLength { limit } => format!("must be at most {limit} characters long"),
        ValidationErrorKind::Pattern { pattern } => describe_pattern(pattern),
        ValidationErrorKind::Enum { .. }
        | ValidationErrorKind::Constant { .. }
        | ValidationErrorKind::AnyOf { .. }
        | ValidationErrorKind::OneOfNotValid { .. } => {
            let mut options = Vec::new();
            collect_options(error.kind(), &mut options);
            let options: Vec<&str> = options.iter().map(String::as_str).collect();
            let meant = found.as_str().and_then(|word| nearest(word, options.iter().copied()));
            let advice = meant.map(|word| format!("; did you mean `{word}`?")).unwrap_or_default();
            format!("must be one of {}{advice}", list(&options))
        }
        // Nothing in the schema leads here; the value is masked because it could be a secret.
        _ => error.masked().to_string(),
    }
}

fn describe_pattern(pattern: &str) -> String {
    match pattern {
        raw::NAME => "must be 1 to 64 letters, digits, `.`, `_` or `-`, and begin with a letter or digit".to_owned(),
        raw::VARIABLE => "must be the name of an environment variable".to_owned(),
        raw::DIGEST => "must be 64 hexadecimal digits".to_owned(),
        other => format!("must match {other}"),
    }
}

/// The words allowed: an enumeration with a comment on each word becomes one schema a word.
fn collect_options(kind: &ValidationErrorKind, options: &mut Vec<String>) {
    let mut add = |value: &Value| options.extend(value.as_str().map(str::to_owned));
    match kind {
        ValidationErrorKind::Enum { options: values } => values.as_array().into_iter().flatten().for_each(add),
        ValidationErrorKind::Constant { expected_value } => add(expected_value),
        ValidationErrorKind::AnyOf { context } | ValidationErrorKind::OneOfNotValid { context } => {
            for error in context.iter().flatten() {
                collect_options(error.kind(), options);
            }
        }
        _ => {}
    }
}

const fn type_name(kind: JsonType) -> &'static str {
    match kind {
        JsonType::Null => "nothing",
        JsonType::Boolean => "true or false",
        JsonType::Integer => "a whole number",
        JsonType::Number => "a number",
        JsonType::String => "text",
        JsonType::Array => "a list",
        JsonType::Object => "an object",
    }
}

const fn value_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(true) => "true",
        Value::Bool(false) => "false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn list(words: &[&str]) -> String {
    words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
}

/// The candidate that is spelled most like `word`, if one is near enough to have been meant.
pub(super) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let fold = |text: &str| text.chars().filter(|c| c.is_alphanumeric()).collect::<String>().to_lowercase();
    let word = fold(word);
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&word, &fold(candidate)), candidate))
        .filter(|(distance, candidate)| distance * 3 <= candidate.len().min(word.len() + 1))
        .min()
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::config::schema::whole_number;

    /// A file in which every field occurs.
    fn whole() -> Value {
        json!({
            "$schema": "x",
            "subscriptions": [{
                "id": "a", "email": "a@b.c", "type": "claude-pro", "configDir": "~/.claude", "weeklyBudget": 1.5,
                "maxClients": 1, "maxConcurrent": 2, "enabled": true, "priority": "low", "tier": "t",
                "organizationId": "o",
                "env": {"A": "b"}, "oauthTokenEnv": "T",
                "apiKeyEnv": "K", "baseUrl": "https://api.example.com", "models": {"opus": "their-opus"}
            }],
            "maxClientsPerSubscription": 1, "weeklyBudgetThreshold": 0.5, "fallbackWhenExhausted": false,
            "rebalancing": {
                "enabled": true, "intervalSeconds": 1, "costGapThreshold": 0, "maxClientsToMovePerCycle": 1
            },
            "notifications": {
                "rules": [{"type": "usage_threshold", "threshold": 1, "channels": ["log"], "enabled": true}],
                "webhookUrl": "u", "webhookSecretEnv": "S", "allowHosts": ["h"]
            },
            "models": {"a": "b"},
            "claude": {
                "command": "c", "firstEventTimeout": 1, "idleTimeout": "1s", "totalTimeout": 2, "keepIdle": "1m",
                "maxProcesses": 1,
                "sparesPerSubscription": 0, "maxLineBytes": 65536, "usagePollInterval": 0, "selfTest": true, "maxMemory": "4GiB"
            },
            "server": {
                "listen": "l", "corsOrigins": ["o"], "maxBodyBytes": 1024, "maxBodyBytesTotal": 1024, "drainTimeout": 0,
                "headerReadTimeout": 1, "maxConnections": 1, "requestsPerMinute": 60,
                "queue": {"maxWaiting": 0, "timeout": "30s"}
            },
            "store": {
                "url": "none", "path": "p", "usageRetention": "8days", "usageDaysRetention": 1, "activityRetention": 1,
                "alertRetention": 1, "auditRetention": 1
            },
            "clientKeys": [{
                "name": "n", "sha256": "0".repeat(64), "env": "E", "models": ["m"], "admin": true, "scopes": ["chat"],
                "organizationId": "o", "subscriptions": ["a"], "requestsPerMinute": 60, "weeklyBudget": 1.5,
                "maxPriority": "normal", "expiresAt": "2027-01-01T00:00:00Z"
            }],
            "organizations": {"o": {"accountSelection": {"strategy": "random", "fallbackStrategies": ["pace"]}}},
            "accountSelection": {
                "strategy": "pace", "fallbackStrategies": ["random"], "retryOnFailure": true, "maxRetries": 1
            },
            "runawayGuard": { "enabled": true, "spawnsPerMinute": 1, "repeatedPrompts": 0 },
            "circuitBreaker": {
                "enabled": true, "failureThreshold": 1, "successThreshold": 1, "timeout": 1, "resetTimeoutSeconds": 1
            },
            "quotaAlerts": {
                "enabled": true, "thresholds": {"warning": 1, "critical": 2, "emergency": 3},
                "channels": {"slack": false, "webhook": false, "email": false}
            },
            "capacityTracking": {
                "enabled": true, "syncIntervalSeconds": 1, "redisKeyPrefix": "p", "redisTTLSeconds": 1,
                "redisTimeout": 50
            },
            "backends": [
                {"name": "b", "type": "openai-api", "baseUrl": "https://api.example.com", "apiKeyEnv": "K", "models": {"*": "m"}, "maxConcurrent": 1, "supportsTools": true},
                {"name": "c", "type": "claude-cli", "accountId": "a", "configDir": "~/.claude"}
            ],
            "routing": {"defaultBackend": "c", "fallbackChain": ["b"], "fallbackAfter": "1s"},
            "rateLimits": {"t": {
                "requestsPerMinute": 1, "tokensPerMinute": 1, "inputTokensPerMinute": 1, "tokensPerDay": 1,
                "costPerDay": 0.5
            }}
        })
    }

    fn problems(value: Value) -> Vec<String> {
        let mut findings = Findings::default();
        let _ = read(value, &mut findings);
        let found = findings.finish(String::new()).map_or_else(|problems| problems.problems, |_| Vec::new());
        found.iter().map(ToString::to_string).collect()
    }

    /// Pointers to every value inside.
    fn pointers(value: &Value, at: &str, into: &mut Vec<String>) {
        let mut inner = |name: &str, value: &Value| {
            let pointer = format!("{at}/{name}");
            into.push(pointer.clone());
            pointers(value, &pointer, into);
        };
        match value {
            Value::Object(fields) => fields.iter().for_each(|(name, value)| inner(name, value)),
            Value::Array(list) => list.iter().enumerate().for_each(|(index, value)| inner(&index.to_string(), value)),
            _ => {}
        }
    }

    #[test]
    fn every_field_of_the_schema_is_in_the_whole_file_and_accepted() {
        assert_eq!(problems(whole()), [""; 0]);
        let text = whole().to_string();
        let sections = json_schema()["$defs"].as_object().into_iter().flatten().map(|(_, section)| section);
        for section in sections.chain([json_schema()]) {
            for name in section["properties"].as_object().into_iter().flatten().map(|(name, _)| name) {
                assert!(text.contains(&format!("\"{name}\":")), "{name}");
            }
        }
    }

    fn anything() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            (-10_i64..10).prop_map(Value::from),
            // As the reader of the text gives it: a whole number is an integer.
            any::<f64>().prop_map(|number| whole_number(number).map_or_else(|| Value::from(number), Value::from)),
            "secret-[a-z]{4}".prop_map(Value::from),
        ];
        leaf.prop_recursive(2, 8, 3, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                prop::collection::btree_map("[a-z~/01]{0,3}", inner, 0..3)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    proptest! {
        /// Whatever stands anywhere, the schema's verdict is at least as strict as the types', and quotes nothing.
        #[test]
        fn any_value_anywhere_is_accepted_or_told(choices in prop::collection::vec((any::<prop::sample::Index>(), anything()), 1..4)) {
            let mut value = whole();
            for (index, replacement) in choices {
                let mut places = Vec::new();
                pointers(&value, "", &mut places);
                if let Some(place) = value.pointer_mut(index.get(&places).as_str()) {
                    *place = replacement;
                }
            }
            for problem in problems(value) {
                prop_assert!(!problem.contains("expected form"), "{problem}");
                prop_assert!(!problem.contains("secret-"), "{problem}");
            }
        }
    }
}
