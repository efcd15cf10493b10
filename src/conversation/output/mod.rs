//! What an answer's text has to be, where the client wants JSON.

mod cost;
mod native;

use std::fmt;
use std::sync::Arc;

use jsonschema::{PatternOptions, Validator};
use serde_json::Value;

pub use native::native;

/// The most mistakes that are told of one answer.
const MOST_MISTAKES: usize = 5;
/// The most characters that one mistake is told in; it may quote the answer.
const LONGEST_MISTAKE: usize = 300;
/// The most values that a schema may hold.
const LARGEST: usize = 20_000;
/// The most visits of schema and answer that a check may take, as [`cost`] reckons them: about a tenth of a second.
const MOST_VISITS: u64 = 2_000_000;

/// A JSON schema that is checked against the answer here, whatever the provider made of it.
#[derive(Clone)]
pub struct OutputCheck {
    compiled: Arc<Compiled>,
    may_be_fenced: bool,
}

struct Compiled {
    schema: Value,
    validator: Validator,
}

impl OutputCheck {
    /// A check against `schema`. The error says what is wrong with it.
    ///
    /// No reference leads out of the schema: neither files nor addresses are read.
    pub fn new(schema: Value) -> Result<Self, String> {
        if cost::values(&schema) > LARGEST {
            return Err(format!("is too large: it may hold {LARGEST} values"));
        }
        if cost::refers_to_itself_in_place(&schema) {
            return Err("refers to itself without an end".to_owned());
        }
        // Patterns come from strangers: this engine's time is linear in the text.
        let options = jsonschema::options().offline().with_pattern_options(PatternOptions::regex());
        let validator = options.build(&schema).map_err(|error| short(&error.to_string()))?;
        if cost::visits(&schema, 0) > MOST_VISITS {
            return Err("is too complex".to_owned());
        }
        Ok(Self { compiled: Arc::new(Compiled { schema, validator }), may_be_fenced: false })
    }

    /// The same check for a model that knows only by words what to write, so that it may put a code fence around it.
    #[must_use]
    pub fn told_in_words(self) -> Self {
        Self { may_be_fenced: true, ..self }
    }

    /// Whether a code fence around the answer is not part of it.
    pub fn may_be_fenced(&self) -> bool {
        self.may_be_fenced
    }

    /// Checks an answer. The error says what is wrong with it, for the model and for the client.
    pub fn check(&self, text: &str) -> Result<(), String> {
        let value: Value = match serde_json::from_str(text) {
            Ok(value) => value,
            Err(_) if text.trim().is_empty() => return Err("it is empty instead of JSON".to_owned()),
            Err(error) => return Err(format!("it is not valid JSON: {error}")),
        };
        let (values, depth) = cost::extent(&value);
        if depth > cost::DEEPEST || cost::visits(&self.compiled.schema, depth).saturating_mul(values) > MOST_VISITS {
            return Err("it is too deep to be checked against this schema".to_owned());
        }
        let mut mistakes = self.compiled.validator.iter_errors(&value).map(|error| {
            let (at, what) = (error.instance_path().to_string(), short(&error.to_string()));
            if at.is_empty() { what } else { format!("at '{at}': {what}") }
        });
        let told: Vec<String> = mistakes.by_ref().take(MOST_MISTAKES).collect();
        let more = if mistakes.next().is_some() { "; and more" } else { "" };
        if told.is_empty() { Ok(()) } else { Err(format!("{}{more}", told.join("; "))) }
    }
}

fn short(text: &str) -> String {
    let mut short: String = text.chars().take(LONGEST_MISTAKE).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

impl PartialEq for OutputCheck {
    fn eq(&self, other: &Self) -> bool {
        self.compiled.schema == other.compiled.schema && self.may_be_fenced == other.may_be_fenced
    }
}

impl fmt::Debug for OutputCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OutputCheck").field(&self.compiled.schema).finish()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(schema: Value, text: &str) -> String {
        OutputCheck::new(schema).expect("a good schema").check(text).err().unwrap_or_default()
    }

    #[test]
    fn an_answer_is_checked_with_the_place_of_every_mistake() {
        let schema = json!({"type": "object", "properties": {"a": {"type": "array", "items": {"minimum": 3}}},
            "required": ["a", "b"]});
        assert_eq!(check(schema.clone(), r#" {"a": [3], "b": null} "#), "");
        let mistakes = check(schema.clone(), r#"{"a": [4, 2]}"#);
        assert!(mistakes.contains("at '/a/1': 2 is less than the minimum of 3"), "{mistakes}");
        assert!(mistakes.contains("\"b\" is a required property"), "{mistakes}");
        assert_eq!(check(schema.clone(), " \n"), "it is empty instead of JSON");
        assert!(check(schema.clone(), "{\"a\": [").starts_with("it is not valid JSON: EOF while parsing"));
        assert!(check(schema, "{} or else").contains("trailing characters"));
        let many: Vec<u8> = vec![0; 20];
        let mistakes = check(json!({"items": {"minimum": 1}}), &json!(many).to_string());
        assert!(mistakes.ends_with("; and more") && mistakes.matches("at '/").count() == MOST_MISTAKES, "{mistakes}");
        let long = json!(["x".repeat(10_000)]).to_string();
        assert!(check(json!({"items": {"type": "null"}}), &long).len() < 2 * LONGEST_MISTAKE);
    }

    #[test]
    fn a_schema_that_cannot_be_used_is_refused() {
        let refuse = |schema: Value| OutputCheck::new(schema).expect_err("refused");
        assert!(refuse(json!({"type": "objekt"})).contains("objekt"));
        refuse(json!({"$ref": "https://example.com/schema.json"}));
        refuse(json!({"$ref": "file:///etc/passwd"}));
        refuse(json!({"$ref": "#/$defs/missing"}));
        refuse(json!({"pattern": "(?=lookahead)"}));
        for endless in [
            json!({"$ref": "#"}),
            json!({"allOf": [{"$ref": "#"}]}),
            json!({"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/b"}]}, "b": {"$ref": "#/$defs/a"}}}),
            json!({"properties": {"x": {"not": {"$ref": "#/properties/x"}}}}),
        ] {
            assert_eq!(refuse(endless), "refers to itself without an end");
        }
    }

    #[test]
    fn a_check_that_would_take_ages_is_not_begun() {
        // Every level looks at the next one twenty times: 20^7 visits.
        let mut defs = serde_json::Map::new();
        for level in 0..7 {
            let next = json!({"$ref": format!("#/$defs/d{}", level + 1)});
            defs.insert(format!("d{level}"), json!({"allOf": vec![next; 20]}));
        }
        defs.insert("d7".into(), json!(true));
        assert_eq!(OutputCheck::new(json!({"$ref": "#/$defs/d0", "$defs": defs})), Err("is too complex".into()));

        // A tree of two kinds of nodes is fine, as long as it is not too deep.
        let node = |kind: &str| json!({"properties": {"next": {"$ref": "#"}, "kind": {"const": kind}}});
        let tree = json!({"type": "object", "anyOf": [node("a"), node("b")]});
        let nested = |depth: usize| {
            format!("{}{{\"kind\":\"b\"}}{}", "{\"kind\":\"b\",\"next\":".repeat(depth), "}".repeat(depth))
        };
        assert_eq!(check(tree.clone(), &nested(8)), "");
        assert_eq!(check(tree, &nested(60)), "it is too deep to be checked against this schema");
        let list = json!({"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}});
        assert_eq!(check(list.clone(), &nested(60)), "");
        assert_eq!(check(list, &nested(100)), "it is too deep to be checked against this schema");
    }

    #[test]
    fn a_long_chain_of_references_is_no_danger() {
        let chain = |step: fn(Value) -> Value| {
            let mut defs = serde_json::Map::new();
            for level in 0..4_000 {
                defs.insert(format!("d{level}"), step(json!({"$ref": format!("#/$defs/d{}", level + 1)})));
            }
            defs.insert("d4000".into(), json!(true));
            OutputCheck::new(json!({"type": "object", "allOf": [{"$ref": "#/$defs/d0"}], "$defs": defs}))
        };
        assert_eq!(chain(|next| next).err().as_deref(), Some("refers to itself without an end"));
        let check = chain(|next| json!({"properties": {"x": next}})).expect("a good schema");
        assert_eq!(check.check("{\"x\":{\"x\":{}}}"), Ok(()));
    }
}
