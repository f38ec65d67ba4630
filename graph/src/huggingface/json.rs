//! Typed access to the fields of a JSON table; `null` counts as missing.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;

use serde::de::{Deserializer, Error, MapAccess, Visitor};
use serde_json::{Map, Value};

use super::HuggingFaceError;

/// Fields of one table, with numbers that stand in for missing fields.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a> {
    table: &'a Map<String, Value>,
    /// Where the table lies, for messages: empty or `NAME.`.
    place: &'static str,
    defaults: &'a [(&'a str, f64)],
}

impl<'a> Fields<'a> {
    pub(super) fn new(table: &'a Map<String, Value>) -> Self {
        Self { table, place: "", defaults: &[] }
    }

    pub(super) fn with_defaults(self, defaults: &'a [(&'a str, f64)]) -> Self {
        Self { defaults, ..self }
    }

    pub(super) fn get(&self, field: &str) -> Option<&'a Value> {
        self.table.get(field).filter(|value| !value.is_null())
    }

    pub(super) fn error(&self, field: &str, expected: impl Into<String>) -> HuggingFaceError {
        HuggingFaceError::Field {
            field: format!("{}{field}", self.place),
            expected: expected.into(),
            got: short(self.table.get(field).unwrap_or(&Value::Null)),
        }
    }

    pub(super) fn missing(&self, field: &str, expected: &'static str) -> HuggingFaceError {
        HuggingFaceError::Missing { field: format!("{}{field}", self.place), expected }
    }

    /// A table within this one.
    pub(super) fn table(
        &self,
        field: &str,
        place: &'static str,
    ) -> Result<Option<Fields<'a>>, HuggingFaceError> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::Object(table)) => Ok(Some(Fields { table, place, defaults: &[] })),
            Some(_) => Err(self.error(field, "a table")),
        }
    }

    fn number(&self, field: &str) -> Result<Option<f64>, HuggingFaceError> {
        match self.get(field) {
            None => Ok(self.defaults.iter().find(|(name, _)| *name == field).map(|row| row.1)),
            Some(value) => match value.as_f64() {
                Some(number) => Ok(Some(number)),
                None => Err(self.error(field, "a number")),
            },
        }
    }

    /// A non-negative integer below 2^32 (written as integer or as a float without fraction).
    pub(super) fn u32(&self, field: &str) -> Result<Option<u32>, HuggingFaceError> {
        const EXPECTED: &str = "an integer from 0 to 4294967295";
        match self.number(field) {
            Ok(None) => Ok(None),
            Ok(Some(number)) if number == f64::from(number as u32) => Ok(Some(number as u32)),
            _ => Err(self.error(field, EXPECTED)),
        }
    }

    /// A number within single precision.
    pub(super) fn f32(&self, field: &str) -> Result<Option<f32>, HuggingFaceError> {
        match self.number(field)? {
            Some(number) if !(number as f32).is_finite() => {
                Err(self.error(field, "a number within single precision"))
            }
            number => Ok(number.map(|number| number as f32)),
        }
    }

    pub(super) fn bool(&self, field: &str) -> Result<Option<bool>, HuggingFaceError> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(_) => Err(self.error(field, "true or false")),
        }
    }

    pub(super) fn str(&self, field: &str) -> Result<Option<&'a str>, HuggingFaceError> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.error(field, "a text")),
        }
    }

    pub(super) fn f32s(&self, field: &str) -> Result<Option<Vec<f32>>, HuggingFaceError> {
        let fail = || self.error(field, "a list of numbers");
        let Some(value) = self.get(field) else { return Ok(None) };
        let list = value.as_array().ok_or_else(fail)?;
        let numbers = list.iter().map(|value| {
            value.as_f64().map(|number| number as f32).filter(|n| n.is_finite()).ok_or_else(fail)
        });
        numbers.collect::<Result<_, _>>().map(Some)
    }

    /// One token id, or a list of them.
    pub(super) fn ids(&self, field: &str) -> Result<Vec<u32>, HuggingFaceError> {
        let fail = || self.error(field, "a token id or a list of them");
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        match self.get(field) {
            None => Ok(Vec::new()),
            Some(Value::Array(list)) => {
                list.iter().map(|value| id(value).ok_or_else(fail)).collect()
            }
            Some(value) => Ok(vec![id(value).ok_or_else(fail)?]),
        }
    }
}

/// A value for messages, cut if long.
fn short(value: &Value) -> String {
    match value {
        Value::Array(list) => format!("a list of {}", list.len()),
        Value::Object(_) => "a table".to_owned(),
        other => {
            let text = other.to_string();
            let mut head: String = text.chars().take(60).collect();
            if head.len() < text.len() {
                head.push_str("...");
            }
            head
        }
    }
}

/// A table from texts to texts in which no key stands twice: which of the two was meant cannot be
/// known.
pub(super) fn unique_keys<'de, D: Deserializer<'de>>(
    source: D,
) -> Result<BTreeMap<String, String>, D::Error> {
    struct Unique;
    impl<'de> Visitor<'de> for Unique {
        type Value = BTreeMap<String, String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a table of texts")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut table: A) -> Result<Self::Value, A::Error> {
            let mut out = BTreeMap::new();
            while let Some((key, value)) = table.next_entry::<String, String>()? {
                match out.entry(key) {
                    Entry::Vacant(slot) => slot.insert(value),
                    Entry::Occupied(slot) => {
                        let message = format!("expected each key once, got {:?} twice", slot.key());
                        return Err(A::Error::custom(message));
                    }
                };
            }
            Ok(out)
        }
    }
    source.deserialize_map(Unique)
}
