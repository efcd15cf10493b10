//! Parsing JSON that a stranger wrote, within bounds.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// The most values a document may hold. An empty object takes 2 bytes in the document and a hundred in memory: without
/// this bound a body of 32 MB could fill a gigabyte. The largest real requests hold some ten thousand.
const MOST_VALUES: u32 = 500_000;

/// Parses a document. The error is for the client, with line and column.
pub(super) fn parse(document: &[u8]) -> Result<Value, String> {
    let left = Cell::new(MOST_VALUES);
    let mut parser = serde_json::Deserializer::from_slice(document);
    let parsed = Bounded { left: &left }.deserialize(&mut parser).and_then(|value| parser.end().map(|()| value));
    parsed.map_err(|error| match left.get() {
        0 => format!("is too complex: {error}"),
        _ => format!("is not valid JSON: {error}"),
    })
}

/// Reads a [`Value`] as long as any are left.
#[derive(Clone, Copy)]
struct Bounded<'a> {
    left: &'a Cell<u32>,
}

impl<'de> DeserializeSeed<'de> for Bounded<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        let Some(left) = self.left.get().checked_sub(1) else {
            return Err(D::Error::custom(format_args!("more than {MOST_VALUES} values")));
        };
        self.left.set(left);
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Bounded<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut array = Vec::new();
        while let Some(item) = items.next_element_seed(self)? {
            array.push(item);
        }
        Ok(array.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(name) = members.next_key()? {
            object.insert(name, members.next_value_seed(self)?);
        }
        Ok(object.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_read_as_serde_json_reads_it() {
        let text = r#"{"z":null,"a":[true,-1,18446744073709551615,1.5,1e3,"\u00e9\n",{}],"z":"twice","":1.0}"#;
        let expected: Option<Value> = serde_json::from_str(text).ok();
        let read = parse(text.as_bytes()).ok();
        assert_eq!(read.map(|value| value.to_string()), expected.map(|value| value.to_string()));
    }

    #[test]
    fn as_many_values_as_allowed_and_not_one_more() {
        let document = |values: u32| format!("[{}0]", "0,".repeat(values as usize - 2)).into_bytes();
        assert!(parse(&document(MOST_VALUES)).is_ok());
        let error = parse(&document(MOST_VALUES + 1)).err().unwrap_or_default();
        assert_eq!(error, "is too complex: more than 500000 values at line 1 column 999999");
    }
}
