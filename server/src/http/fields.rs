//! Reading a JSON body field by field, with errors that name field, expected and got.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::RangeInclusive;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::error::ApiError;

/// A JSON document in which no object names a key twice.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Self)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(Strict(value)) = seq.next_element()? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut values = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            let Strict(value) = map.next_value()?;
            if values.contains_key(&key) {
                return Err(serde::de::Error::custom(format!("the key {key:?} comes twice")));
            }
            values.insert(key, value);
        }
        Ok(Value::Object(values))
    }
}

/// An object of the body; remembers which fields were asked for.
pub(crate) struct Fields {
    values: Map<String, Value>,
    known: BTreeSet<&'static str>,
    path: String,
}

/// A value in a few words, for messages.
fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(_) => "a boolean".to_owned(),
        Value::Number(number) => format!("the number {number}"),
        Value::String(text) if text.chars().count() <= 40 => format!("the string {text:?}"),
        Value::String(_) => "a string".to_owned(),
        Value::Array(list) => format!("an array of {}", list.len()),
        Value::Object(_) => "an object".to_owned(),
    }
}

impl Fields {
    /// Parses a body: JSON, UTF-8, one object, no key twice.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let Strict(value) = serde_json::from_slice(body).map_err(|error| {
            let status = axum::http::StatusCode::BAD_REQUEST;
            ApiError::new(status, "invalid_json", format!("The body is not valid JSON: {error}."))
        })?;
        match value {
            Value::Object(values) => Ok(Self::new(values, String::new())),
            other => Err(ApiError::new(
                axum::http::StatusCode::BAD_REQUEST,
                "invalid_type",
                format!("Expected a JSON object as the body, got {}.", describe(&other)),
            )),
        }
    }

    fn new(values: Map<String, Value>, path: String) -> Self {
        Self { values, known: BTreeSet::new(), path }
    }

    fn name(&self, field: &str) -> String {
        if self.path.is_empty() { field.to_owned() } else { format!("{}.{field}", self.path) }
    }

    /// How messages name the object.
    pub(crate) fn place(&self) -> String {
        self.path.clone()
    }

    /// A field as it was given, null if it was not.
    pub(crate) fn peek(&self, field: &str) -> Value {
        self.values.get(field).cloned().unwrap_or(Value::Null)
    }

    /// Takes a field; null counts as absent.
    pub(crate) fn take(&mut self, field: &'static str) -> Option<Value> {
        self.known.insert(field);
        // Keeps the order of the others: unknown ones are named as they came.
        self.values.shift_remove(field).filter(|value| !value.is_null())
    }

    /// Is the field there, and not null?
    pub(crate) fn has(&self, field: &str) -> bool {
        self.values.get(field).is_some_and(|value| !value.is_null())
    }

    fn wrong_type(&self, field: &str, expected: &str, got: &Value) -> ApiError {
        let name = self.name(field);
        let message = format!("'{name}': expected {expected}, got {}.", describe(got));
        ApiError::field("invalid_type", &name, message)
    }

    fn out_of_range(&self, field: &str, expected: &str, got: &str) -> ApiError {
        let name = self.name(field);
        ApiError::field(
            "invalid_value",
            &name,
            format!("'{name}': expected {expected}, got {got}."),
        )
    }

    /// The error for a field that must be there.
    pub(crate) fn missing(&self, field: &str) -> ApiError {
        let name = self.name(field);
        let message = format!("The field '{name}' is required.");
        ApiError::field("missing_required_parameter", &name, message)
    }

    pub(crate) fn string(&mut self, field: &'static str) -> Result<Option<String>, ApiError> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong_type(field, "a string", &other)),
        }
    }

    pub(crate) fn bool(&mut self, field: &'static str) -> Result<Option<bool>, ApiError> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(other) => Err(self.wrong_type(field, "a boolean", &other)),
        }
    }

    pub(crate) fn integer(
        &mut self,
        field: &'static str,
        range: RangeInclusive<i64>,
    ) -> Result<Option<i64>, ApiError> {
        let Some(value) = self.take(field) else { return Ok(None) };
        let Some(number) = value.as_i64() else {
            return Err(self.wrong_type(field, "an integer", &value));
        };
        if range.contains(&number) {
            return Ok(Some(number));
        }
        let expected = match (range.start(), range.end()) {
            (start, &i64::MAX) => format!("an integer of at least {start}"),
            (start, end) => format!("an integer from {start} to {end}"),
        };
        Err(self.out_of_range(field, &expected, &number.to_string()))
    }

    pub(crate) fn number(
        &mut self,
        field: &'static str,
        range: RangeInclusive<f64>,
    ) -> Result<Option<f64>, ApiError> {
        let Some(value) = self.take(field) else { return Ok(None) };
        let Some(number) = value.as_f64() else {
            return Err(self.wrong_type(field, "a number", &value));
        };
        if range.contains(&number) {
            return Ok(Some(number));
        }
        let expected = format!("a number from {} to {}", range.start(), range.end());
        Err(self.out_of_range(field, &expected, &number.to_string()))
    }

    pub(crate) fn object(&mut self, field: &'static str) -> Result<Option<Self>, ApiError> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::Object(values)) => Ok(Some(Self::new(values, self.name(field)))),
            Some(other) => Err(self.wrong_type(field, "an object", &other)),
        }
    }

    pub(crate) fn array(&mut self, field: &'static str) -> Result<Option<Vec<Value>>, ApiError> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::Array(values)) => Ok(Some(values)),
            Some(other) => Err(self.wrong_type(field, "an array", &other)),
        }
    }

    /// A string, or a list of strings.
    pub(crate) fn strings(&mut self, field: &'static str) -> Result<Option<Vec<String>>, ApiError> {
        let expected = "a string or an array of strings";
        match self.take(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(vec![text])),
            Some(Value::Array(values)) => {
                let texts = values.into_iter().map(|value| match value {
                    Value::String(text) => Ok(text),
                    other => Err(self.wrong_type(field, expected, &other)),
                });
                texts.collect::<Result<_, _>>().map(Some)
            }
            Some(other) => Err(self.wrong_type(field, expected, &other)),
        }
    }

    /// Everything left in the object: free keys.
    pub(crate) fn rest(self) -> Map<String, Value> {
        self.values
    }

    /// An error for a value that makes no sense.
    pub(crate) fn invalid(&self, field: &str, expected: &str, got: &str) -> ApiError {
        self.out_of_range(field, expected, got)
    }

    /// Fields that nobody asked for.
    pub(crate) fn unknown(&self) -> Vec<String> {
        self.values.keys().map(|key| self.name(key)).collect()
    }
}

/// One element of an array as an object; `path` is how messages name it.
pub(crate) fn element(value: Value, path: String) -> Result<Fields, ApiError> {
    match value {
        Value::Object(values) => Ok(Fields::new(values, path)),
        other => {
            let message = format!("'{path}': expected an object, got {}.", describe(&other));
            Err(ApiError::field("invalid_type", &path, message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(body: &[u8]) -> &'static str {
        Fields::parse(body).err().expect("refused").code
    }

    #[test]
    fn bodies_that_are_no_object_are_refused() {
        assert_eq!(code(b"{"), "invalid_json");
        assert_eq!(code(b"[1]"), "invalid_type");
        assert_eq!(code(b"{\"a\":1,\"a\":2}"), "invalid_json");
        assert_eq!(code(b"{\"a\":\"\xff\"}"), "invalid_json");
        assert_eq!(code("[".repeat(100_000).as_bytes()), "invalid_json");
    }

    #[test]
    fn fields_are_read_and_misfits_named() {
        let body = br#"{"a":1,"b":"x","c":null,"d":{"e":true},"f":2.5}"#;
        let mut fields = Fields::parse(body).expect("valid");
        assert_eq!(fields.integer("a", 0..=5), Ok(Some(1)));
        assert_eq!(fields.bool("c"), Ok(None));
        let error = fields.integer("b", 0..=5).expect_err("a string");
        assert_eq!((error.code, error.param.as_deref()), ("invalid_type", Some("b")));
        let mut inner = fields.object("d").expect("an object").expect("there");
        let error = inner.string("e").expect_err("a boolean");
        assert_eq!(error.message, "'d.e': expected a string, got a boolean.");
        assert_eq!(fields.unknown(), ["f"]);
        assert!(fields.number("f", 0.0..=2.0).is_err());
    }
}
