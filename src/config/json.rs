//! Reads JSON text, in which comments may stand (`// to the end of the line`, `/* up to here */`), and notices what a plain
//! reader hides: a field written twice.

use std::borrow::Cow;
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
    let text = match without_comments(text) {
        Ok(text) => text,
        Err(place) => {
            findings.problem(place, "a comment begins here that does not end");
            return None;
        }
    };
    let mut twice = Vec::new();
    let mut reader = serde_json::Deserializer::from_str(&text);
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
            let found = text.lines().nth(line.saturating_sub(1)).and_then(|line| line.get(column.saturating_sub(1)..));
            let is_hash = found.is_some_and(|rest| rest.starts_with('#'));
            let advice = if is_hash { "; comments begin with `//`, or stand between `/*` and `*/`" } else { "" };
            findings.problem(Place::Text { line, column }, format!("{message}{advice}"));
            None
        }
    }
}

/// The text with spaces for its comments, so that everything else stays where it is; or where a comment begins that does
/// not end.
fn without_comments(text: &str) -> Result<Cow<'_, str>, Place> {
    let blank = |comment: &str| comment.bytes().map(|byte| if byte == b'\n' { '\n' } else { ' ' }).collect::<String>();
    let (mut kept, mut rest, mut at) = (Cow::Borrowed(text), text, 0);
    while let Some(next) = rest.find(['"', '/']) {
        let found = &rest[next..];
        let length = if found.starts_with('"') {
            length_of_string(found)
        } else if found.starts_with("//") {
            found.find('\n').unwrap_or(found.len())
        } else if let Some(comment) = found.strip_prefix("/*") {
            let Some(end) = comment.find("*/") else {
                let before = &text[..at + next];
                let line_begin = before.rfind('\n').map_or(0, |end| end + 1);
                let line = before.matches('\n').count() + 1;
                return Err(Place::Text { line, column: before.len() - line_begin + 1 });
            };
            end + 4
        } else {
            // The reader says what is wrong with it.
            1
        };
        if found.starts_with("//") || found.starts_with("/*") {
            kept.to_mut().replace_range(at + next..at + next + length, &blank(&found[..length]));
        }
        at += next + length;
        rest = &text[at..];
    }
    Ok(kept)
}

/// How many bytes the string takes that `text` begins with; all of them if it does not end.
fn length_of_string(text: &str) -> usize {
    let mut is_escaped = false;
    let end = text.bytes().skip(1).position(|byte| {
        let ends = byte == b'"' && !is_escaped;
        is_escaped = byte == b'\\' && !is_escaped;
        ends
    });
    end.map_or(text.len(), |end| end + 2)
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
        let hash = problems("{\n  # one\n  \"b\": 2}");
        assert!(
            hash.contains("line 2, column 3: ")
                && hash.ends_with("; comments begin with `//`, or stand between `/*` and `*/`"),
            "{hash}"
        );
        assert!(!problems("{\n  \"a\": \"https://x\", }").contains("comment"));
        assert!(problems("").contains("is empty"));
        assert!(problems("{} {}").contains("trailing characters"));
    }

    #[test]
    fn comments_are_passed_over_and_move_nothing() {
        let parsed = |text: &str| {
            let mut findings = Findings::default();
            let value = parse(text.as_bytes(), &mut findings);
            value.ok_or_else(|| findings.finish("f".into()).unwrap_err().to_string())
        };
        let text = "// first\n{ // \"a\": 0,\n  \"a\": \"http://x/*y*/\", /* two\n lines, ü */ \"b\": \"\\\"//\\\\\" /**/ } // last";
        assert_eq!(parsed(text), Ok(json!({ "a": "http://x/*y*/", "b": "\"//\\" })));
        assert_eq!(
            parsed("{ \"a\": 1 /* ü\n*/ x }").unwrap_err(),
            "f: 1 problem\n  line 2, column 4: expected `,` or `}`"
        );
        assert_eq!(
            parsed("{ \"a\": 1\n  /* no end }").unwrap_err(),
            "f: 1 problem\n  line 2, column 3: a comment begins here that does not end"
        );
        for wrong in ["{ \"a\": 1 / 2 }", "/", "\"no end // of it", "{ \"a\": 1, // a comma\n }", "// nothing else"] {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
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
