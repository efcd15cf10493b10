//! The JSON Schema of the file, generated from the types in [`super::raw`].

use std::sync::LazyLock;

use schemars::Schema;
use schemars::generate::SchemaSettings;
use schemars::transform::transform_subschemas;
use serde_json::Value;

use super::raw;

/// The JSON Schema (draft 2020-12) of `auth-pool.json`, for editors and for other programs.
pub fn json_schema() -> &'static Value {
    &SCHEMA
}

static SCHEMA: LazyLock<Value> = LazyLock::new(|| {
    let settings = SchemaSettings::draft2020_12().with_transform(plain);
    settings.into_generator().into_root_schema_for::<raw::File>().to_value()
});

/// Takes out what only Rust means: that `None` is `null` (a value is left out instead), the width of integers (there are
/// explicit bounds), and a section's defaults as a whole (its fields have theirs).
fn plain(schema: &mut Schema) {
    schema.remove("format");
    if let Some(default) = schema.get_mut("default") {
        let is_section = default.as_object().is_some_and(|fields| !fields.is_empty());
        if default.is_null() || is_section {
            schema.remove("default");
        } else if let Some(whole) = default.as_f64().filter(|_| default.is_f64()).and_then(whole_number) {
            *default = whole.into();
        }
    }
    if let Some(Value::String(description)) = schema.get_mut("description") {
        // Comments are wrapped for the width of the source.
        *description = description.replace('\n', " ");
    }
    if let Some(Value::Array(types)) = schema.get_mut("type") {
        types.retain(|name| name != "null");
        if let [only] = types.as_slice() {
            let only = only.clone();
            schema.insert("type".to_owned(), only);
        }
    }
    if let Some(Value::Array(options)) = schema.get_mut("anyOf") {
        options.retain(|option| option.get("type").is_none_or(|name| name != "null"));
        if let [Value::Object(only)] = options.as_slice() {
            let only = only.clone();
            schema.remove("anyOf");
            for (key, value) in only {
                schema.insert(key, value);
            }
        }
    }
    transform_subschemas(&mut plain, schema);
}

/// `number` as an integer, if it is one; JSON does not tell `5.0` from `5`.
#[expect(clippy::cast_possible_truncation, reason = "the bounds are checked")]
pub(super) fn whole_number(number: f64) -> Option<i64> {
    (number.fract() == 0.0 && number.abs() < 1e15).then_some(number as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schema_is_itself_valid_and_knows_no_null() {
        let schema = json_schema();
        assert!(jsonschema::meta::is_valid(schema));
        let text = schema.to_string();
        assert!(!text.contains("null"), "{text}");
        assert!(!text.contains("uint32"), "{text}");
        assert!(!text.contains("[`"), "descriptions are for people who do not see the source: {text}");
    }

    #[test]
    fn every_field_says_what_it_is_for() {
        fn walk(schema: &Value, path: &str) {
            if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
                for (name, property) in properties {
                    assert!(property.get("description").is_some(), "{path}.{name} has no description");
                }
            }
            if let Some(map) = schema.as_object() {
                for (name, inner) in map {
                    walk(inner, &format!("{path}/{name}"));
                }
            }
        }
        walk(json_schema(), "");
    }
}
