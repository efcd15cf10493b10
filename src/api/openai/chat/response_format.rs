//! `response_format`: what the answer's text must be.
//!
//! A JSON schema that the provider can hold an answer to goes up as its own structured output
//! ([`conversation::native`](crate::conversation::native)). What it cannot (a list at the root, recursion, maps with any
//! names, `json_object`) is asked of the model in the system prompt. Either way the answer is checked against what the
//! client sent, by the gateway.

use serde_json::{Map, Value, json};

use super::tools;
use crate::api::field::{Invalid, Path, boolean, excerpt, object, require, string, take};
use crate::conversation::{OutputCheck, native};

/// What becomes of a `response_format`.
#[derive(Debug, Default, PartialEq)]
pub(super) struct ResponseFormat {
    /// What the provider holds the answer to.
    pub(super) schema: Option<Value>,
    /// What the answer is checked against.
    pub(super) check: Option<OutputCheck>,
    /// What the system prompt says of it.
    pub(super) instruction: Option<String>,
}

/// Keywords that OpenAI takes in no strict schema.
const NOT_STRICT: [&str; 7] = ["allOf", "not", "dependentRequired", "dependentSchemas", "if", "then", "else"];

/// Reads a `response_format`.
pub(super) fn read(format: Value, at: &Path<'_>) -> Result<ResponseFormat, Invalid> {
    let mut format = object(format, at)?;
    let kind_at = at.key("type");
    match string(require(&mut format, "type", at)?, &kind_at)?.as_str() {
        "text" => Ok(ResponseFormat::default()),
        "json_object" => Ok(any_object()),
        "json_schema" => {
            let holder_at = at.key("json_schema");
            schema(object(require(&mut format, "json_schema", at)?, &holder_at)?, &holder_at)
        }
        other => {
            let other = excerpt(other);
            Err(kind_at.invalid(format_args!("must be 'text', 'json_object' or 'json_schema', not '{other}'")))
        }
    }
}

/// The provider's structured output knows closed objects only, and a closed object of which nothing is known is empty. So
/// the model is told.
fn any_object() -> ResponseFormat {
    ResponseFormat {
        schema: None,
        // This schema is a good one.
        check: OutputCheck::new(json!({ "type": "object" })).ok().map(OutputCheck::told_in_words),
        instruction: Some(
            "Answer with one JSON object and with nothing else: no words before or after it, no code fence.".to_owned(),
        ),
    }
}

fn schema(mut holder: Map<String, Value>, at: &Path<'_>) -> Result<ResponseFormat, Invalid> {
    let name_at = at.key("name");
    tools::tool_name(string(require(&mut holder, "name", at)?, &name_at)?, &name_at)?;
    let description = take(&mut holder, "description").map(|text| string(text, &at.key("description"))).transpose()?;
    let strict = take(&mut holder, "strict").map_or(Ok(false), |flag| boolean(&flag, &at.key("strict")))?;
    let schema_at = at.key("schema");
    let schema = Value::Object(object(require(&mut holder, "schema", at)?, &schema_at)?);
    let check = OutputCheck::new(schema.clone())
        .map_err(|why| schema_at.invalid(format_args!("is not a usable JSON schema: {why}")))?;
    if strict {
        if schema["type"] != "object" || schema.get("anyOf").is_some() {
            return Err(schema_at.invalid("must have the 'type' 'object' at its root, and no 'anyOf', with 'strict'"));
        }
        check_strict(&schema, &schema_at)?;
    }
    let told = description.as_ref().map(|text| format!("\nWhat it is for: {text}")).unwrap_or_default();
    Ok(match native(&schema) {
        Some(mut native) => {
            if let Some(description) = description {
                native["description"] = match native.get("description").and_then(Value::as_str) {
                    Some(own) => format!("{description}\n{own}").into(),
                    None => description.into(),
                };
            }
            ResponseFormat { schema: Some(native), check: Some(check), instruction: None }
        }
        None => ResponseFormat {
            instruction: Some(format!(
                "Answer with one JSON value that is valid against this JSON schema, and with nothing else: no words \
                 before or after it, no code fence.{told}\n{schema}"
            )),
            schema: None,
            check: Some(check.told_in_words()),
        },
    })
}

/// OpenAI's rules for `"strict": true`: every object is closed and needs all of its properties.
fn check_strict(schema: &Value, at: &Path<'_>) -> Result<(), Invalid> {
    let Some(fields) = schema.as_object() else { return Ok(()) };
    if let Some(keyword) = NOT_STRICT.iter().find(|keyword| fields.contains_key(**keyword)) {
        return Err(at.key(keyword).invalid("is not allowed with 'strict'"));
    }
    let is_object = match fields.get("type") {
        Some(Value::Array(kinds)) => kinds.iter().any(|kind| kind == "object"),
        Some(kind) => kind == "object",
        None => false,
    };
    let properties = fields.get("properties").and_then(Value::as_object);
    if is_object || properties.is_some() {
        if fields.get("additionalProperties") != Some(&Value::Bool(false)) {
            return Err(at.key("additionalProperties").invalid("must be false with 'strict'"));
        }
        let required = fields.get("required").and_then(Value::as_array);
        let is_required =
            |name: &String| required.is_some_and(|names| names.iter().any(|known| known == name.as_str()));
        if let Some(name) = properties.into_iter().flat_map(Map::keys).find(|name| !is_required(name)) {
            let name = excerpt(name);
            let why = format_args!("must hold every property with 'strict'; '{name}' is missing").to_string();
            return Err(at.key("required").invalid(why));
        }
    }
    for keyword in ["properties", "$defs", "definitions"] {
        let inside = at.key(keyword);
        for (name, schema) in fields.get(keyword).and_then(Value::as_object).into_iter().flatten() {
            check_strict(schema, &inside.key(name))?;
        }
    }
    for (index, schema) in fields.get("anyOf").and_then(Value::as_array).into_iter().flatten().enumerate() {
        check_strict(schema, &at.key("anyOf").index(index))?;
    }
    fields.get("items").map_or(Ok(()), |items| check_strict(items, &at.key("items")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(format: Value) -> Result<ResponseFormat, Invalid> {
        super::read(format, &Path::Root.key("response_format"))
    }

    fn with(schema: &Value, strict: bool) -> Value {
        json!({ "type": "json_schema", "json_schema": { "name": "n", "strict": strict, "schema": schema } })
    }

    fn closed() -> Value {
        json!({"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"], "additionalProperties": false})
    }

    #[test]
    fn what_the_provider_can_hold_to_goes_up_natively() {
        let format = read(with(&closed(), true)).expect("a good format");
        assert_eq!((format.schema, format.instruction), (Some(closed()), None));
        let check = format.check.expect("a check");
        assert!(check.check("{\"a\":\"x\"}").is_ok() && check.check("{}").is_err() && !check.may_be_fenced());
        let described = json!({ "type": "json_schema",
            "json_schema": { "name": "n", "description": "For tests.", "schema": closed() } });
        let schema = read(described).expect("a good format").schema.expect("native");
        assert_eq!(schema["description"], "For tests.");
        assert_eq!(read(json!({ "type": "text" })), Ok(ResponseFormat::default()));
    }

    #[test]
    fn the_rest_is_asked_in_words() {
        let list = json!({"type": "array", "items": {"type": "string"}});
        let format = read(with(&list, false)).expect("a good format");
        assert_eq!(format.schema, None);
        assert!(format.instruction.expect("an instruction").ends_with(&format!("\n{list}")));
        assert!(format.check.is_some_and(|check| check.may_be_fenced() && check.check("[\"x\"]").is_ok()));

        let format = read(json!({ "type": "json_object" })).expect("a good format");
        assert!(format.schema.is_none() && format.instruction.is_some_and(|text| text.contains("JSON object")));
        let check = format.check.expect("a check");
        assert!(check.check("{\"any\":[1]}").is_ok() && check.check("[]").is_err() && check.may_be_fenced());
    }

    #[test]
    fn a_strict_schema_follows_openais_rules() {
        let refuse = |schema: Value, param: &str, words: &str| {
            let error = read(with(&schema, true)).expect_err("refused");
            assert_eq!(error.param.as_deref(), Some(format!("response_format.json_schema.schema{param}").as_str()));
            assert!(error.message.contains(words), "{error}");
            assert!(read(with(&schema, false)).is_ok(), "{schema}");
        };
        refuse(json!({"type": "array", "items": {"type": "string"}}), "", "'object' at its root");
        refuse(json!({"anyOf": [closed()]}), "", "'object' at its root");
        refuse(json!({"type": "object", "properties": {}}), ".additionalProperties", "must be false");
        let mut open = closed();
        open["required"] = json!([]);
        refuse(open.clone(), ".required", "'a' is missing");
        let inside = |keyword: &str, schema: Value| {
            let mut outer = closed();
            outer["properties"]["a"] = json!({ keyword: schema });
            outer
        };
        refuse(inside("items", open.clone()), ".properties.a.items.required", "'a' is missing");
        refuse(inside("anyOf", json!([{"type": "null"}, open])), ".properties.a.anyOf[1].required", "'a' is missing");
        refuse(inside("allOf", json!([{"type": "string"}])), ".properties.a.allOf", "not allowed");
        let error = read(with(&json!({"type": "objekt"}), false)).expect_err("refused");
        assert!(error.message.contains("is not a usable JSON schema"), "{error}");
    }
}
