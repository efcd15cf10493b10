//! The part of a URL behind its question mark.

use std::fmt;

use percent_encoding::percent_decode_str;

use super::{Invalid, InvalidKind};

/// The names and values, decoded.
pub(super) fn pairs(query: Option<&str>) -> impl Iterator<Item = (String, String)> {
    query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decoded(name), decoded(value))
    })
}

fn decoded(text: &str) -> String {
    percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned()
}

/// The parameter `name` is wrong.
pub(super) fn invalid(name: &str, why: impl fmt::Display) -> Invalid {
    let name = super::field::excerpt(name);
    Invalid { kind: InvalidKind::Value, message: format!("'{name}' {why}"), param: Some(name) }
}
