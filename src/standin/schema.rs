//! A value that fits a JSON schema, for structured answers and for tools' arguments.

use serde_json::{Map, Number, Value, json};

/// Deeper than this a schema is taken to refer to itself.
const DEPTH: usize = 12;

/// The simplest sensible value that fits `schema`.
pub(super) fn sample(schema: &Value) -> Value {
    fit(schema, schema, DEPTH)
}

fn fit(schema: &Value, root: &Value, depth: usize) -> Value {
    if depth == 0 {
        return Value::Null;
    }
    let deeper = |schema: &Value| fit(schema, root, depth - 1);
    if let Some(target) = schema["$ref"].as_str().and_then(|path| root.pointer(path.strip_prefix('#')?)) {
        return deeper(target);
    }
    for given in ["const", "default"] {
        if let Some(value) = schema.get(given) {
            return value.clone();
        }
    }
    for choice in ["enum", "examples"] {
        if let Some(value) = schema[choice].get(0) {
            return value.clone();
        }
    }
    for choice in ["anyOf", "oneOf"] {
        if let Some(first) = schema[choice].get(0) {
            return deeper(first);
        }
    }
    if let Some(parts) = schema["allOf"].as_array() {
        return parts.iter().map(deeper).fold(Value::Null, merge);
    }
    let kind = schema["type"].as_str().or_else(|| schema["type"][0].as_str());
    match kind {
        Some("string") => Value::String(text(schema)),
        Some("integer") => json!(at_least(schema).ceil()).as_f64().map_or(Value::Null, whole),
        Some("number") => Number::from_f64(at_least(schema)).map_or(Value::Null, Value::Number),
        Some("boolean") => Value::Bool(true),
        Some("array") => {
            let count = schema["minItems"].as_u64().unwrap_or(1).clamp(1, 100);
            (0..count).map(|_| deeper(&schema["items"])).collect()
        }
        Some("null") => Value::Null,
        _ if kind == Some("object") || schema["properties"].is_object() => {
            let properties = schema["properties"].as_object();
            properties.into_iter().flatten().map(|(name, schema)| (name.clone(), deeper(schema))).collect()
        }
        _ => Value::Object(Map::new()),
    }
}

fn merge(left: Value, right: Value) -> Value {
    match (left, right) {
        (Value::Object(mut left), Value::Object(right)) => {
            left.extend(right);
            Value::Object(left)
        }
        (_, right) => right,
    }
}

fn at_least(schema: &Value) -> f64 {
    let above = schema["exclusiveMinimum"].as_f64().map(|bound| bound + 1.0);
    let most = schema["maximum"].as_f64().unwrap_or(f64::INFINITY);
    schema["minimum"].as_f64().or(above).unwrap_or(1.0).min(most)
}

#[expect(clippy::cast_possible_truncation, reason = "saturates, and bounds of that size are not sensible")]
fn whole(number: f64) -> Value {
    json!(number as i64)
}

fn text(schema: &Value) -> String {
    let text = match schema["format"].as_str() {
        Some("date") => "2026-01-02",
        Some("time") => "03:04:05Z",
        Some("date-time") => "2026-01-02T03:04:05Z",
        Some("email") => "someone@example.com",
        Some("uri") => "https://example.com/",
        Some("uuid") => "00000000-0000-4000-8000-000000000000",
        _ => "text",
    };
    let length = |field: &str| schema[field].as_u64().and_then(|length| usize::try_from(length).ok());
    let mut text = text.to_owned();
    while text.len() < length("minLength").unwrap_or(0).min(10_000) {
        text.push('x');
    }
    if let Some(most) = length("maxLength") {
        text.truncate(most);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_fits_its_schema() {
        let schemas = [
            json!({"type": "object", "properties": {"a": {"type": "integer", "minimum": 3}}, "required": ["a"]}),
            json!({"type": "object", "additionalProperties": false, "required": ["who", "tags", "when", "n"],
                "properties": {
                    "who": {"$ref": "#/$defs/person"},
                    "tags": {"type": "array", "minItems": 2, "items": {"enum": ["x", "y"]}},
                    "when": {"type": ["string", "null"], "format": "date-time"},
                    "n": {"anyOf": [{"type": "number", "maximum": 0.5}, {"type": "null"}]},
                },
                "$defs": {"person": {"type": "object", "properties": {"name": {"type": "string", "minLength": 9}}}}}),
            json!({"type": "array", "items": {"allOf": [
                {"type": "object", "properties": {"a": {"const": 1}}},
                {"type": "object", "properties": {"b": {"type": "boolean"}}, "required": ["b"]},
            ]}}),
        ];
        for schema in schemas {
            let sample = sample(&schema);
            assert!(jsonschema::is_valid(&schema, &sample), "{sample} does not fit {schema}");
        }
    }

    #[test]
    fn a_schema_that_refers_to_itself_ends() {
        let schema = json!({"type": "object", "properties": {"next": {"$ref": "#"}}});
        assert!(sample(&schema).is_object());
    }
}
