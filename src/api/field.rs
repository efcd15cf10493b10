//! Reading JSON that a stranger wrote: every value is taken with its path, so that every complaint names its place.

use std::fmt;

use serde_json::{Map, Value};

use super::json;

/// Where a value is in a document; prints as `messages[2].content[0].image_url.url`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Path<'a> {
    /// The document itself.
    Root,
    /// A member of an object.
    Key(&'a Path<'a>, &'a str),
    /// An element of an array.
    Index(&'a Path<'a>, usize),
}

impl<'a> Path<'a> {
    /// The member `key` of this object.
    pub(crate) const fn key(&'a self, key: &'a str) -> Path<'a> {
        Path::Key(self, key)
    }

    /// The element `index` of this array.
    pub(crate) const fn index(&'a self, index: usize) -> Path<'a> {
        Path::Index(self, index)
    }

    /// The value here is wrong.
    pub(crate) fn invalid(&self, why: impl fmt::Display) -> Invalid {
        self.complain(InvalidKind::Value, why)
    }

    /// What stands here is right by the dialect, but not served.
    pub(crate) fn unsupported(&self, why: impl fmt::Display) -> Invalid {
        self.complain(InvalidKind::Unsupported, why)
    }

    /// Something must stand here and does not.
    pub(crate) fn missing(&self) -> Invalid {
        self.complain(InvalidKind::Missing, "is required")
    }

    fn complain(&self, kind: InvalidKind, why: impl fmt::Display) -> Invalid {
        let path = self.to_string();
        let message = if path.is_empty() { format!("the request body {why}") } else { format!("'{path}' {why}") };
        Invalid { kind, param: (!path.is_empty()).then_some(path), message }
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Key(Path::Root, key) => f.write_str(key),
            Self::Key(parent, key) => write!(f, "{parent}.{key}"),
            Self::Index(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

/// A request that does not say what it must.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Invalid {
    /// What kind of mistake it is.
    pub kind: InvalidKind,
    /// The path of the field at fault; `None` for the document as a whole.
    pub param: Option<String>,
    /// For the client, path included.
    pub message: String,
}

/// See [`Invalid::kind`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidKind {
    /// The document is not JSON.
    Json,
    /// A value has the wrong type, or is out of range.
    Value,
    /// A value is missing.
    Missing,
    /// Right by the dialect, but not served here.
    Unsupported,
}

/// Parses a body that must be a JSON object.
pub(crate) fn document(body: &[u8]) -> Result<Map<String, Value>, Invalid> {
    let broken =
        |why: &str| Invalid { kind: InvalidKind::Json, param: None, message: format!("the request body {why}") };
    // Some Windows clients begin their text with a byte order mark.
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    if body.trim_ascii().is_empty() {
        return Err(broken("is empty; a JSON object is expected"));
    }
    object(json::parse(body).map_err(|why| broken(&why))?, &Path::Root)
}

/// Takes a member out of an object; `null` counts as absent.
pub(crate) fn take(object: &mut Map<String, Value>, key: &str) -> Option<Value> {
    object.swap_remove(key).filter(|value| !value.is_null())
}

/// Takes a member that must be there.
pub(crate) fn require(object: &mut Map<String, Value>, key: &str, at: &Path<'_>) -> Result<Value, Invalid> {
    take(object, key).ok_or_else(|| at.key(key).missing())
}

pub(crate) fn object(value: Value, at: &Path<'_>) -> Result<Map<String, Value>, Invalid> {
    match value {
        Value::Object(map) => Ok(map),
        other => Err(wrong_type(&other, "an object", at)),
    }
}

pub(crate) fn array(value: Value, at: &Path<'_>) -> Result<Vec<Value>, Invalid> {
    match value {
        Value::Array(items) => Ok(items),
        other => Err(wrong_type(&other, "an array", at)),
    }
}

pub(crate) fn string(value: Value, at: &Path<'_>) -> Result<String, Invalid> {
    match value {
        Value::String(text) => Ok(text),
        other => Err(wrong_type(&other, "a string", at)),
    }
}

pub(crate) fn boolean(value: &Value, at: &Path<'_>) -> Result<bool, Invalid> {
    value.as_bool().ok_or_else(|| wrong_type(value, "a boolean", at))
}

/// A number between `least` and `most`.
pub(crate) fn number(value: &Value, least: f64, most: f64, at: &Path<'_>) -> Result<f64, Invalid> {
    let number = value.as_f64().ok_or_else(|| wrong_type(value, "a number", at))?;
    if (least..=most).contains(&number) {
        Ok(number)
    } else {
        Err(at.invalid(format_args!("must be between {least} and {most}, not {number}")))
    }
}

/// A whole number of at least 1.
pub(crate) fn positive(value: &Value, at: &Path<'_>) -> Result<u32, Invalid> {
    if !value.is_number() {
        return Err(wrong_type(value, "an integer", at));
    }
    value
        .as_u64()
        .and_then(|number| u32::try_from(number).ok())
        .filter(|number| *number >= 1)
        .ok_or_else(|| at.invalid(format_args!("must be an integer of at least 1, not {value}")))
}

/// The complaint that `value` is not `expected`. Never repeats the value itself: it may be long, or a secret.
pub(crate) fn wrong_type(value: &Value, expected: &str, at: &Path<'_>) -> Invalid {
    let found = match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    };
    at.invalid(format_args!("must be {expected}, not {found}"))
}

/// `text` fit for an error message: cut when long, without control characters.
pub(crate) fn excerpt(text: &str) -> String {
    let mut short: String = text.chars().take(64).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().nth(64).is_some() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_prints_as_a_client_would_write_it() {
        let (messages, content) = (Path::Root.key("messages"), "content");
        let (message, zero) = (messages.index(2), 0);
        let content = message.key(content);
        let part = content.index(zero);
        assert_eq!(part.key("image_url").to_string(), "messages[2].content[0].image_url");
        assert_eq!(Path::Root.to_string(), "");
    }

    #[test]
    fn a_body_that_is_no_object_is_refused_with_its_place() {
        let check = |body: &[u8], expected: &str| match document(body) {
            Ok(_) => panic!("{body:?} was taken"),
            Err(error) => assert_eq!(error.message, expected),
        };
        check(b"", "the request body is empty; a JSON object is expected");
        check(b" \n", "the request body is empty; a JSON object is expected");
        assert!(document(b"\xef\xbb\xbf{}").is_ok());
        check(b"[]", "the request body must be an object, not an array");
        check(b"{\n\"a\":}", "the request body is not valid JSON: expected value at line 2 column 5");
        check(b"{} x", "the request body is not valid JSON: trailing characters at line 1 column 4");
        check(b"{\"a\":\"\xff\"}", "the request body is not valid JSON: invalid unicode code point at line 1 column 7");
        let deep = "[".repeat(200);
        check(deep.as_bytes(), "the request body is not valid JSON: recursion limit exceeded at line 1 column 128");
    }
}
