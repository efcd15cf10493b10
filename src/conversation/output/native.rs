//! A JSON schema in the subset that the provider can hold an answer to.
//!
//! The provider writes within a schema: every object closed, no recursion, no bounds on numbers or lengths. What it does
//! not know is told to the model in the description of its place, and checked here afterwards
//! ([`super::OutputCheck`]). Rules: Anthropic's documentation, "Structured outputs", "JSON Schema limitations".

use serde_json::{Map, Value, json};

/// Deeper than this no schema is meant seriously.
const DEEPEST: usize = 48;
/// The most values a schema may grow to.
const LARGEST: usize = 20_000;

/// What is passed on as it is.
const KEPT: [&str; 6] = ["type", "const", "default", "title", "description", "required"];
/// What only narrows a value: the model is told in words.
const TOLD: [&str; 17] = [
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
    "minLength",
    "maxLength",
    "pattern",
    "minItems",
    "maxItems",
    "uniqueItems",
    "minProperties",
    "maxProperties",
    "propertyNames",
    "contains",
    "minContains",
    "maxContains",
];
/// What the subset has no place for.
const NOT_EXPRESSIBLE: [&str; 13] = [
    "not",
    "if",
    "then",
    "else",
    "patternProperties",
    "prefixItems",
    "additionalItems",
    "dependentSchemas",
    "dependentRequired",
    "dependencies",
    "unevaluatedItems",
    "unevaluatedProperties",
    "$dynamicRef",
];
const FORMATS: [&str; 9] = ["date-time", "time", "date", "duration", "email", "hostname", "uri", "ipv4", "ipv6"];

/// `schema` as the provider takes it, or `None` where it cannot be said in the provider's words.
///
/// Every answer that fits the result fits `schema` too, but for what is told in words only.
pub fn native(schema: &Value) -> Option<Value> {
    let mut work = Work { root: schema, left: LARGEST };
    let adapted = work.adapt(schema, &mut Vec::new(), 0)?;
    // An answer is an object at its root.
    (adapted["type"] == "object").then_some(adapted)
}

struct Work<'a> {
    root: &'a Value,
    left: usize,
}

impl<'a> Work<'a> {
    /// `path`: the references that led here.
    fn adapt(&mut self, schema: &'a Value, path: &mut Vec<&'a str>, depth: usize) -> Option<Value> {
        self.left = self.left.checked_sub(1)?;
        let fields = schema.as_object().filter(|fields| !fields.is_empty() && depth < DEEPEST)?;
        if NOT_EXPRESSIBLE.iter().any(|keyword| fields.contains_key(*keyword)) {
            return None;
        }
        if let Some(reference) = fields.get("$ref") {
            let reference = reference.as_str()?;
            if path.contains(&reference) {
                return None;
            }
            path.push(reference);
            let target = self.root.pointer(reference.strip_prefix('#')?)?;
            let adapted = self.another(target, "$ref", fields, path, depth);
            path.pop();
            return adapted;
        }
        if let Some(parts) = fields.get("allOf") {
            // Some generators write a reference so. Several parts would have to be joined.
            let [only] = parts.as_array()?.as_slice() else { return None };
            return self.another(only, "allOf", fields, path, depth);
        }
        let mut adapted = Map::new();
        let mut told = Map::new();
        for (keyword, value) in fields {
            match keyword.as_str() {
                keyword if KEPT.contains(&keyword) => _ = adapted.insert(keyword.to_owned(), value.clone()),
                keyword if TOLD.contains(&keyword) => _ = told.insert(keyword.to_owned(), value.clone()),
                "enum" => {
                    let is_simple = |value: &Value| !value.is_array() && !value.is_object();
                    adapted.insert("enum".to_owned(), value.as_array()?.iter().all(is_simple).then(|| value.clone())?);
                }
                "format" if FORMATS.iter().any(|known| value == known) || value == "uuid" => {
                    adapted.insert("format".to_owned(), value.clone());
                }
                "format" => _ = told.insert("format".to_owned(), value.clone()),
                // That exactly one fits is checked afterwards.
                "anyOf" | "oneOf" => {
                    let ways = value.as_array()?.iter().map(|way| self.adapt(way, path, depth + 1));
                    adapted.insert("anyOf".to_owned(), ways.collect::<Option<_>>()?);
                }
                "items" => _ = adapted.insert("items".to_owned(), self.adapt(value, path, depth + 1)?),
                "properties" => {
                    let properties = value.as_object()?.iter();
                    let adapt = |(name, schema): (&String, &'a Value)| {
                        Some((name.clone(), self.adapt(schema, path, depth + 1)?))
                    };
                    adapted
                        .insert("properties".to_owned(), properties.map(adapt).collect::<Option<Map<_, _>>>()?.into());
                }
                // References are written out, objects are closed below; the rest says nothing about the answer.
                _ => {}
            }
        }
        if may_be(&adapted, "array") && !adapted.contains_key("items") {
            return None;
        }
        if may_be(&adapted, "object") || adapted.contains_key("properties") {
            close(fields, &mut adapted)?;
        } else if !["type", "const", "enum", "anyOf"].iter().any(|keyword| adapted.contains_key(*keyword)) {
            // Anything at all, which the subset cannot say.
            return None;
        }
        if !told.is_empty() {
            let told = format!("It must also satisfy {}.", Value::Object(told));
            describe(&mut adapted, &told);
        }
        Some(Value::Object(adapted))
    }

    /// Another schema in the place of `fields`, which only says with `keyword` that it is to be put here. A description
    /// beside it stays.
    fn another(
        &mut self,
        target: &'a Value,
        keyword: &str,
        fields: &'a Map<String, Value>,
        path: &mut Vec<&'a str>,
        depth: usize,
    ) -> Option<Value> {
        const ASIDE: [&str; 6] = ["$defs", "definitions", "$schema", "title", "description", "default"];
        if fields.keys().any(|name| name != keyword && !ASIDE.contains(&name.as_str())) {
            return None;
        }
        let mut adapted = self.adapt(target, path, depth + 1)?;
        if let Some(description) = fields.get("description") {
            adapted["description"] = description.clone();
        }
        Some(adapted)
    }
}

/// Whether a schema names this type, alone or among others.
fn may_be(schema: &Map<String, Value>, kind: &str) -> bool {
    match schema.get("type") {
        Some(Value::Array(kinds)) => kinds.iter().any(|known| known == kind),
        Some(only) => only == kind,
        None => false,
    }
}

/// Closes an object. One that is for any names at all (a map) cannot be closed without losing its meaning.
fn close(fields: &Map<String, Value>, adapted: &mut Map<String, Value>) -> Option<()> {
    let has_properties = fields.get("properties").and_then(Value::as_object).is_some_and(|all| !all.is_empty());
    match fields.get("additionalProperties") {
        Some(Value::Bool(false)) => {}
        None | Some(Value::Bool(true)) if has_properties => {}
        _ => return None,
    }
    adapted.entry("type").or_insert(json!("object"));
    adapted.insert("additionalProperties".to_owned(), json!(false));
    // A required name that is nowhere described could not be written any more.
    let names = adapted.get("properties").and_then(Value::as_object);
    let required = adapted.get("required").and_then(Value::as_array).into_iter().flatten();
    let known = |name: &Value| name.as_str().is_some_and(|name| names.is_some_and(|names| names.contains_key(name)));
    required.into_iter().all(known).then_some(())
}

/// Adds a sentence to a schema's description.
fn describe(schema: &mut Map<String, Value>, sentence: &str) {
    let described = match schema.get("description").and_then(Value::as_str) {
        Some(description) => format!("{description} {sentence}"),
        None => sentence.to_owned(),
    };
    schema.insert("description".to_owned(), described.into());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_provider_knows_passes_as_it_is() {
        let schema = json!({"type": "object", "title": "City", "additionalProperties": false, "required": ["name"],
            "properties": {"name": {"type": "string", "description": "Its name"}, "kind": {"enum": ["a", null]},
                "at": {"anyOf": [{"type": "string", "format": "date"}, {"type": "null"}]},
                "tags": {"type": "array", "items": {"type": "integer"}}}});
        assert_eq!(native(&schema), Some(schema));
    }

    #[test]
    fn what_it_does_not_know_is_told_in_words() {
        let schema = json!({"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object",
            "properties": {"n": {"type": "integer", "minimum": 1, "description": "How many."},
                "who": {"$ref": "#/$defs/who", "description": "Of it all"}, "code": {"type": "string", "pattern": "^a"},
                "old": {"allOf": [{"$ref": "#/$defs/who"}], "default": null}},
            "$defs": {"who": {"type": "object", "properties": {"x": {"oneOf": [{"type": "string"}, {"const": 5}]}}}}});
        let expected = json!({"type": "object",
            "properties": {
                "n": {"type": "integer", "description": "How many. It must also satisfy {\"minimum\":1}."},
                "who": {"type": "object", "properties": {"x": {"anyOf": [{"type": "string"}, {"const": 5}]}},
                    "additionalProperties": false, "description": "Of it all"},
                "code": {"type": "string", "description": "It must also satisfy {\"pattern\":\"^a\"}."},
                "old": {"type": "object", "properties": {"x": {"anyOf": [{"type": "string"}, {"const": 5}]}},
                    "additionalProperties": false}},
            "additionalProperties": false});
        assert_eq!(native(&schema), Some(expected));
    }

    #[test]
    fn what_it_cannot_hold_to_is_not_asked_of_it() {
        let property = |schema: Value| json!({"type": "object", "properties": {"x": schema}});
        for schema in [
            json!({"type": "array", "items": {"type": "string"}}),
            json!({"type": "object"}),
            json!({"type": "object", "additionalProperties": {"type": "string"}}),
            json!({"type": "object", "properties": {"next": {"$ref": "#"}}}),
            json!({"type": "object", "properties": {"a": {"type": "null"}}, "required": ["b"]}),
            json!(true),
            property(json!({})),
            property(json!({"enum": [[1], [2]]})),
            property(json!({"allOf": [{"type": "string"}, {"minLength": 1}]})),
            property(json!({"type": ["object", "null"]})),
            property(json!({"type": "array"})),
            property(json!({"not": {"type": "string"}})),
            property(json!({"type": "array", "prefixItems": [{"type": "string"}]})),
            property(json!({"$ref": "#/$defs/missing"})),
            property(json!({"$ref": "other.json"})),
        ] {
            assert_eq!(native(&schema), None, "{schema}");
        }
        // References that double at every level would fill the memory.
        let mut defs = Map::new();
        for level in 0..40 {
            let next = json!({"$ref": format!("#/$defs/d{}", level + 1)});
            defs.insert(format!("d{level}"), json!({"anyOf": [next, next]}));
        }
        defs.insert("d40".into(), json!({"type": "null"}));
        assert_eq!(
            native(&json!({"type": "object", "properties": {"x": {"$ref": "#/$defs/d0"}}, "$defs": defs})),
            None
        );
    }
}
