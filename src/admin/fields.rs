//! Reading what somebody sent: every field is taken out with its name, so that every complaint names its place, and what
//! is left over is unknown.

use std::collections::BTreeMap;
use std::fmt;

use secrecy::SecretString;
use serde::Serialize;
use serde_json::{Map, Value};

use super::{AdminError, Body, Result};
use crate::store::Page;
use crate::units::{MicroUsd, Timestamp};

/// The most bytes of `metadata`.
const MOST_METADATA: usize = 16 << 10;
/// The most entries of a list.
const MOST_ENTRIES: usize = 1000;

/// Something that is wrong with what was sent. Never quotes a value: it may be a secret in the wrong place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mistake {
    /// Where.
    pub path: String,
    /// What.
    pub message: String,
}

pub(super) fn words(mistakes: &[Mistake]) -> String {
    mistakes.iter().map(|Mistake { path, message }| format!("'{path}' {message}")).collect::<Vec<_>>().join("; ")
}

/// The fields of a body under examination.
pub(super) struct Fields {
    body: Body,
    mistakes: Vec<Mistake>,
}

impl Fields {
    pub(super) fn new(body: Body) -> Self {
        Self { body, mistakes: Vec::new() }
    }

    pub(super) fn wrong(&mut self, path: impl Into<String>, message: impl fmt::Display) {
        self.mistakes.push(Mistake { path: path.into(), message: message.to_string() });
    }

    /// Whether a field is there, if only as `null`.
    pub(super) fn has(&self, name: &str) -> bool {
        self.body.contains_key(name)
    }

    /// A field that is there and not `null`.
    pub(super) fn take(&mut self, name: &str) -> Option<Value> {
        self.body.swap_remove(name).filter(|value| !value.is_null())
    }

    /// A text of 1 to `most` characters, none of which is a control character.
    pub(super) fn text(&mut self, name: &str, most: usize) -> Option<String> {
        match self.take(name)? {
            Value::String(text)
                if (1..=most).contains(&text.trim().chars().count()) && !text.chars().any(char::is_control) =>
            {
                Some(text.trim().to_owned())
            }
            Value::String(_) => {
                self.wrong(name, format_args!("must have 1 to {most} characters, on one line"));
                None
            }
            other => self.expected(name, "a string", &other),
        }
    }

    /// A name as logs and headers show it.
    pub(super) fn name(&mut self, name: &str) -> Option<String> {
        let text = self.text(name, 64)?;
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        if text.bytes().all(is_plain) && text.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric()) {
            return Some(text);
        }
        self.wrong(name, "must be letters, digits, `.`, `_` and `-`, and begin with a letter or digit");
        None
    }

    /// A key or token.
    pub(super) fn secret(&mut self, name: &str) -> Option<SecretString> {
        match self.take(name)? {
            Value::String(text)
                if (8..=4096).contains(&text.trim().len())
                    && text.trim().bytes().all(|byte| byte.is_ascii_graphic()) =>
            {
                Some(text.trim().into())
            }
            Value::String(_) => {
                self.wrong(name, "must have 8 to 4096 visible characters and no spaces");
                None
            }
            other => self.expected(name, "a string", &other),
        }
    }

    pub(super) fn flag(&mut self, name: &str) -> Option<bool> {
        match self.take(name)? {
            Value::Bool(flag) => Some(flag),
            other => self.expected(name, "true or false", &other),
        }
    }

    /// A whole number from 1 to `most`.
    pub(super) fn count(&mut self, name: &str, most: u64) -> Option<u64> {
        let value = self.take(name)?;
        let count = value.as_u64().filter(|count| (1..=most).contains(count));
        if count.is_none() {
            self.wrong(name, format_args!("must be a whole number from 1 to {most}"));
        }
        count
    }

    /// US dollars.
    pub(super) fn dollars(&mut self, name: &str) -> Option<MicroUsd> {
        let value = self.take(name)?;
        let dollars = value.as_f64().filter(|dollars| *dollars > 0.0 && *dollars <= 1e9).map(MicroUsd::from_usd);
        let dollars = dollars.filter(|dollars| *dollars > MicroUsd::ZERO);
        if dollars.is_none() {
            self.wrong(name, "must be a number of US dollars greater than 0");
        }
        dollars
    }

    pub(super) fn instant(&mut self, name: &str) -> Option<Timestamp> {
        let value = self.take(name)?;
        let instant = value.as_str().and_then(Timestamp::parse_rfc3339);
        if instant.is_none() {
            self.wrong(name, "must be an instant, for example `2027-01-01T00:00:00Z`");
        }
        instant
    }

    /// One of these words.
    pub(super) fn word(&mut self, name: &str, words: &[&'static str]) -> Option<&'static str> {
        let value = self.take(name)?;
        let word = value.as_str().and_then(|text| words.iter().copied().find(|word| *word == text));
        if word.is_none() {
            self.wrong(name, format_args!("must be one of {}", words.join(", ")));
        }
        word
    }

    /// A list of texts, at least one.
    pub(super) fn list(&mut self, name: &str) -> Option<Vec<String>> {
        let items = match self.take(name)? {
            Value::Array(items) if (1..=MOST_ENTRIES).contains(&items.len()) => items,
            Value::Array(_) => {
                self.wrong(name, format_args!("must have 1 to {MOST_ENTRIES} entries; leave it out to allow all"));
                return None;
            }
            other => return self.expected(name, "a list", &other),
        };
        let mut texts = Vec::with_capacity(items.len());
        for (index, item) in items.into_iter().enumerate() {
            match item {
                Value::String(text) if (1..=200).contains(&text.len()) => texts.push(text),
                Value::String(_) => self.wrong(format!("{name}[{index}]"), "must have 1 to 200 characters"),
                _ => self.wrong(format!("{name}[{index}]"), "must be a string"),
            }
        }
        Some(texts)
    }

    /// What an owner wants to remember.
    pub(super) fn metadata(&mut self) -> Option<Value> {
        let value = self.take("metadata")?;
        if !value.is_object() {
            return self.expected("metadata", "an object", &value);
        }
        if value.to_string().len() > MOST_METADATA {
            self.wrong("metadata", format_args!("must not be longer than {MOST_METADATA} bytes"));
            return None;
        }
        Some(value)
    }

    /// The fields of these names, as they are; `null` says that one is to go.
    pub(super) fn pick(&mut self, names: &[&str]) -> Map<String, Value> {
        names.iter().filter_map(|name| Some(((*name).to_owned(), self.body.swap_remove(*name)?))).collect()
    }

    fn expected<T>(&mut self, name: &str, what: &str, found: &Value) -> Option<T> {
        let found = match found {
            Value::Null => "null",
            Value::Bool(_) => "a boolean",
            Value::Number(_) => "a number",
            Value::String(_) => "a string",
            Value::Array(_) => "a list",
            Value::Object(_) => "an object",
        };
        self.wrong(name, format_args!("must be {what}, not {found}"));
        None
    }

    /// Whether nothing was wrong and nothing is left over. `known` is what there could have been.
    pub(super) fn finish(mut self, known: &[&str]) -> Result<()> {
        let unknown: Vec<String> = self.body.keys().cloned().collect();
        for name in unknown {
            let meant = known.iter().map(|known| (strsim::jaro_winkler(known, &name), *known));
            let meant = meant.filter(|(likeness, _)| *likeness > 0.8).max_by(|one, other| one.0.total_cmp(&other.0));
            let shown: String = name.chars().take(64).collect();
            match meant {
                Some((_, meant)) => self.wrong(shown, format_args!("is not known; did you mean '{meant}'?")),
                None => self.wrong(shown, "is not known"),
            }
        }
        if self.mistakes.is_empty() { Ok(()) } else { Err(AdminError::Invalid(self.mistakes)) }
    }
}

/// The names and values behind the question mark.
#[derive(Debug, Default)]
pub struct Query(BTreeMap<String, String>, Vec<Mistake>);

impl FromIterator<(String, String)> for Query {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(pairs: I) -> Self {
        let mut query = Self::default();
        for (name, value) in pairs {
            if query.0.insert(name.clone(), value).is_some() {
                query.wrong(&name, "stands there twice");
            }
        }
        query
    }
}

impl Query {
    fn wrong(&mut self, name: &str, message: &str) {
        let path = name.chars().take(64).collect();
        self.1.push(Mistake { path, message: message.to_owned() });
    }

    pub(super) fn text(&mut self, name: &str) -> Option<String> {
        let text = self.0.remove(name)?;
        if text.is_empty() || text.len() > 200 || text.contains('\0') {
            self.wrong(name, "must have 1 to 200 characters");
            return None;
        }
        Some(text)
    }

    pub(super) fn flag(&mut self, name: &str) -> Option<bool> {
        match self.0.remove(name)?.as_str() {
            "true" => Some(true),
            "false" => Some(false),
            _ => {
                self.wrong(name, "must be true or false");
                None
            }
        }
    }

    pub(super) fn instant(&mut self, name: &str) -> Option<Timestamp> {
        let text = self.0.remove(name)?;
        let instant = Timestamp::parse_rfc3339(&text).or_else(|| text.parse().ok().map(Timestamp::from_millis));
        if instant.is_none() {
            self.wrong(name, "must be an instant: `2027-01-01T00:00:00Z`, or milliseconds since 1970");
        }
        instant
    }

    pub(super) fn word<T>(&mut self, name: &str, read: impl FnOnce(&str) -> Option<T>, rule: &str) -> Option<T> {
        let read = read(&self.0.remove(name)?);
        if read.is_none() {
            self.wrong(name, rule);
        }
        read
    }

    pub(super) fn page(&mut self) -> Page {
        let limit = |text: &str| text.parse().ok().filter(|limit| (1..=Page::LARGEST).contains(limit));
        let limit = self.word("limit", limit, "must be a number from 1 to 1000");
        let default = Page::default();
        Page { limit: limit.unwrap_or(default.limit), after: self.text("after") }
    }

    pub(super) fn finish(mut self) -> Result<()> {
        for name in std::mem::take(&mut self.0).into_keys() {
            self.wrong(&name, "is not known here");
        }
        if self.1.is_empty() { Ok(()) } else { Err(AdminError::Invalid(self.1)) }
    }
}
