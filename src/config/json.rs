//! Reads JSON text, and notices what a plain reader hides: a field written twice.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::problem::{FieldPath, Findings, Place};
use super::schema::whole_number;

/// The value that `bytes` hold; reported when they hold none.
pub(super) fn parse(bytes: &[u8], findings: &mut Findings) -> Option<Value> {
    let Ok(text) = std::str::from_utf8(bytes) else {
        findings.problem(Place::File, "is not UTF-8 text");
        return None;
    };
    // Some editors begin a file with a byte order mark, which JSON does not know.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.trim().is_empty() {
        findings.problem(Place::File, "is empty");
        return None;
    }
    let mut twice = Vec::new();
    let mut reader = serde_json::Deserializer::from_str(text);
    let node = Node { path: FieldPath::default(), twice: &mut twice };
    match node.deserialize(&mut reader).and_then(|value| reader.end().map(|()| value)) {
        Ok(value) => {
            for path in twice {
                findings.problem(path, "is written twice");
            }
            Some(value)
        }
        Err(error) => {
            let (line, column) = (error.line(), error.column());
            let message = error.to_string();
            let message = message.strip_suffix(&format!(" at line {line} column {column}")).unwrap_or(&message);
            let comment = text.lines().nth(line.saturating_sub(1)).is_some_and(|line| line.contains("//"));
            let advice = if comment { "; JSON knows no comments" } else { "" };
            findings.problem(Place::Text { line, column }, format!("{message}{advice}"));
            None
        }
    }
}

struct Node<'a> {
    path: FieldPath,
    twice: &'a mut Vec<FieldPath>,
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    /// A whole number is one however it is written: `15.0` counts as `15`.
    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        let fraction = || Number::from_f64(value).map_or(Value::Null, Value::Number);
        Ok(whole_number(value).map_or_else(fraction, Value::from))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) =
            list.next_element_seed(Node { path: self.path.index(values.len()), twice: &mut *self.twice })?
        {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Value, A::Error> {
        let mut fields = Map::new();
        while let Some(name) = object.next_key::<String>()? {
            let path = self.path.key(&name);
            let value = object.next_value_seed(Node { path: path.clone(), twice: &mut *self.twice })?;
            if fields.insert(name, value).is_some() {
                self.twice.push(path);
            }
        }
        Ok(Value::Object(fields))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn problems(text: &str) -> String {
        let mut findings = Findings::default();
        parse(text.as_bytes(), &mut findings);
        findings.finish("f".into()).map_or_else(|problems| problems.to_string(), |_| String::new())
    }

    #[test]
    fn syntax_errors_say_line_and_column() {
        assert_eq!(problems("{\n  \"a\": 1,\n}"), "f: 1 problem\n  line 3, column 1: trailing comma");
        assert!(problems("{\n  \"a\": 1, // one\n  \"b\": 2}").contains("line 2, column 11: "));
        assert!(problems("{\n  \"a\": 1, // one\n  \"b\": 2}").ends_with("; JSON knows no comments"));
        assert!(problems("").contains("is empty"));
        assert!(problems("{} {}").contains("trailing characters"));
    }

    #[test]
    fn a_field_written_twice_is_reported_wherever_it_stands() {
        assert_eq!(problems(r#"{"a": [{"b": 1, "b": 2}]}"#), "f: 1 problem\n  a[0].b: is written twice");
    }

    #[test]
    fn whole_numbers_are_whole_however_written_and_a_byte_order_mark_is_skipped() {
        let mut findings = Findings::default();
        assert_eq!(parse("\u{feff}[15.0, 0.5, -3]".as_bytes(), &mut findings), Some(json!([15, 0.5, -3])));
    }
}
