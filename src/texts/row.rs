//! The text of one JSON value; whatever else the value has cannot refuse it.

use scalescope_sim::text::strict_json;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::fmt;

/// A text, or why there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row(pub Result<String, String>);

impl Row {
    /// The row of a line.
    pub fn of_json(line: &[u8]) -> Self {
        let read = || {
            std::str::from_utf8(line).map_err(|e| format!("not UTF-8: {e}"))?;
            let json = strict_json(line)?;
            let row: Row = serde_json::from_slice(&json).map_err(|e| refused(&e.to_string()))?;
            row.0
        };
        Self(read())
    }
}

fn refused(found: &str) -> String {
    format!("not a JSON object with a string `text`: {found}")
}

impl<'de> Deserialize<'de> for Row {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Ok(match Shallow::deserialize(from)? {
            Shallow::Text(text) => Row(Ok(text)),
            Shallow::Object(row) => row,
            Shallow::Other(kind) => Row(Err(refused(kind))),
        })
    }
}

/// A value as far as it is of interest.
enum Shallow {
    Text(String),
    Object(Row),
    Other(&'static str),
}

impl<'de> Deserialize<'de> for Shallow {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Any)
    }
}

struct Any;

impl<'de> Visitor<'de> for Any {
    type Value = Shallow;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Shallow, A::Error> {
        let mut found: Option<Row> = None;
        let mut others: Vec<String> = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            if key != "text" {
                map.next_value::<IgnoredAny>()?;
                others.push(key.chars().take(40).collect());
                continue;
            }
            let text = match map.next_value()? {
                Shallow::Text(text) => Ok(text),
                Shallow::Object(_) => Err(refused("`text` is an object, or NaN")),
                Shallow::Other(kind) => Err(refused(&format!("`text` is {kind}"))),
            };
            found = Some(match found {
                None => Row(text),
                Some(_) => Row(Err(refused("`text` twice"))),
            });
        }
        Ok(Shallow::Object(found.unwrap_or_else(|| {
            others.truncate(5);
            Row(Err(refused(&format!("its fields are {others:?}"))))
        })))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Shallow, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Shallow::Other("a list"))
    }

    fn visit_str<E>(self, text: &str) -> Result<Shallow, E> {
        Ok(Shallow::Text(text.to_owned()))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Shallow, E> {
        Ok(Shallow::Other("true or false"))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Shallow, E> {
        Ok(Shallow::Other("a number"))
    }

    fn visit_u64<E>(self, _: u64) -> Result<Shallow, E> {
        Ok(Shallow::Other("a number"))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Shallow, E> {
        Ok(Shallow::Other("a number"))
    }

    fn visit_unit<E>(self) -> Result<Shallow, E> {
        Ok(Shallow::Other("null"))
    }
}
