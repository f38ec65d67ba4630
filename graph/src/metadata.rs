//! A model's metadata: an ordered table of keys and typed values.
//!
//! Keys are those of GGUF whatever the model came from (`general.architecture`,
//! `llama.block_count`, `tokenizer.ggml.model`, ...).

mod value;

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

pub use value::{Array, Value, ValueType};

/// Why a metadata value could not be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MetadataError {
    /// A key the model cannot do without.
    #[error("metadata key `{key}` is missing; is the model file complete?")]
    Missing {
        /// The key.
        key: String,
    },
    /// A value of another type, or a number outside the type's range.
    #[error("metadata key `{key}`: expected {expected}, got {got}")]
    Mismatch {
        /// The key.
        key: String,
        /// What it should hold.
        expected: String,
        /// What it holds.
        got: String,
    },
}

/// Keys in the order they were first set, each with one value.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata {
    entries: Vec<(Arc<str>, Value)>,
    index: HashMap<Arc<str>, usize>,
}

/// One key's value, with typed views. Integers of every width convert if the number fits.
#[derive(Clone, Copy, Debug)]
pub struct Field<'a> {
    key: &'a str,
    value: &'a Value,
}

impl Metadata {
    /// An empty table.
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Has it no keys?
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Keys and values in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(key, value)| (&**key, value))
    }

    /// Is the key there?
    pub fn contains(&self, key: &str) -> bool {
        self.index.contains_key(key)
    }

    /// Sets a key; a key that is there keeps its place. Returns the value it had.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) -> Option<Value> {
        let value = value.into();
        if let Some(&at) = self.index.get(key) {
            return Some(std::mem::replace(&mut self.entries[at].1, value));
        }
        let key: Arc<str> = key.into();
        self.index.insert(key.clone(), self.entries.len());
        self.entries.push((key, value));
        None
    }

    /// Keeps the entries for which `keep` says yes.
    pub fn retain(&mut self, mut keep: impl FnMut(&str, &Value) -> bool) {
        self.entries.retain(|(key, value)| keep(key, value));
        self.index = self.entries.iter().enumerate().map(|(i, (k, _))| (k.clone(), i)).collect();
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.index.get(key).map(|&at| &self.entries[at].1)
    }

    /// A key's value with typed views, if the key is there.
    pub fn field(&self, key: &str) -> Option<Field<'_>> {
        self.index.get_key_value(key).map(|(key, &at)| Field { key, value: &self.entries[at].1 })
    }

    /// A key's value with typed views: `metadata.required("llama.block_count")?.u32()?`.
    pub fn required(&self, key: &str) -> Result<Field<'_>, MetadataError> {
        self.field(key).ok_or_else(|| MetadataError::Missing { key: key.to_owned() })
    }

    /// A text; `None` if the key is missing (so for all getters below).
    pub fn str(&self, key: &str) -> Result<Option<&str>, MetadataError> {
        self.field(key).map(Field::str).transpose()
    }

    /// A non-negative integer of any width.
    pub fn u64(&self, key: &str) -> Result<Option<u64>, MetadataError> {
        self.field(key).map(Field::u64).transpose()
    }

    /// A non-negative integer below 2^32, of any width.
    pub fn u32(&self, key: &str) -> Result<Option<u32>, MetadataError> {
        self.field(key).map(Field::u32).transpose()
    }

    /// An integer of any width.
    pub fn i64(&self, key: &str) -> Result<Option<i64>, MetadataError> {
        self.field(key).map(Field::i64).transpose()
    }

    /// A floating point number of either width, rounded to single precision.
    pub fn f32(&self, key: &str) -> Result<Option<f32>, MetadataError> {
        self.field(key).map(Field::f32).transpose()
    }

    /// A floating point number of either width.
    pub fn f64(&self, key: &str) -> Result<Option<f64>, MetadataError> {
        self.field(key).map(Field::f64).transpose()
    }

    /// A truth value.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, MetadataError> {
        self.field(key).map(Field::bool).transpose()
    }

    /// An array of texts.
    pub fn strings(&self, key: &str) -> Result<Option<&[String]>, MetadataError> {
        self.field(key).map(Field::strings).transpose()
    }

    /// An array of floating point numbers, borrowed if they are stored in single precision.
    pub fn f32s(&self, key: &str) -> Result<Option<Cow<'_, [f32]>>, MetadataError> {
        self.field(key).map(Field::f32s).transpose()
    }

    /// An array of integers of any width, borrowed if they are stored as `i32`.
    pub fn i32s(&self, key: &str) -> Result<Option<Cow<'_, [i32]>>, MetadataError> {
        self.field(key).map(Field::i32s).transpose()
    }

    /// An array of integers of any width, borrowed if they are stored as `u32`.
    pub fn u32s(&self, key: &str) -> Result<Option<Cow<'_, [u32]>>, MetadataError> {
        self.field(key).map(Field::u32s).transpose()
    }

    /// An array of truth values.
    pub fn bools(&self, key: &str) -> Result<Option<&[bool]>, MetadataError> {
        self.field(key).map(Field::bools).transpose()
    }

    /// A number for each of `layers` layers, stored as an array of that length or as one number
    /// that holds for all.
    pub fn u32_per_layer(
        &self,
        key: &str,
        layers: usize,
    ) -> Result<Option<Vec<u32>>, MetadataError> {
        let Some(field) = self.field(key) else { return Ok(None) };
        if !matches!(field.value, Value::Array(_)) {
            return field.u32().map(|value| Some(vec![value; layers]));
        }
        let values = field.u32s()?;
        if values.len() != layers {
            return Err(field.mismatch(format!("one number or an array of {layers}")));
        }
        Ok(Some(values.into_owned()))
    }
}

impl<'a> FromIterator<(&'a str, Value)> for Metadata {
    fn from_iter<I: IntoIterator<Item = (&'a str, Value)>>(entries: I) -> Self {
        let mut metadata = Self::new();
        for (key, value) in entries {
            metadata.set(key, value);
        }
        metadata
    }
}

impl<'a> Field<'a> {
    /// The key.
    pub fn key(self) -> &'a str {
        self.key
    }

    /// The value as stored.
    pub fn value(self) -> &'a Value {
        self.value
    }

    /// An error about this field's value.
    pub fn mismatch(self, expected: impl Into<String>) -> MetadataError {
        MetadataError::Mismatch {
            key: self.key.to_owned(),
            expected: expected.into(),
            got: self.value.to_string(),
        }
    }

    fn integer<T: TryFrom<i128>>(self, expected: &str) -> Result<T, MetadataError> {
        self.value
            .as_integer()
            .and_then(|wide| T::try_from(wide).ok())
            .ok_or_else(|| self.mismatch(expected))
    }

    fn integers<T: TryFrom<i128> + Clone>(
        self,
        expected: &str,
    ) -> Result<Cow<'a, [T]>, MetadataError> {
        let Value::Array(array) = self.value else { return Err(self.mismatch(expected)) };
        if array.is_empty() {
            return Ok(Cow::Owned(Vec::new()));
        }
        let wide = array.as_integers().ok_or_else(|| self.mismatch(expected))?;
        wide.map(|number| {
            T::try_from(number).map_err(|_| MetadataError::Mismatch {
                key: self.key.to_owned(),
                expected: expected.to_owned(),
                got: format!("{} with {number} in it", self.value),
            })
        })
        .collect::<Result<Vec<T>, _>>()
        .map(Cow::Owned)
    }

    /// A text.
    pub fn str(self) -> Result<&'a str, MetadataError> {
        match self.value {
            Value::String(text) => Ok(text),
            _ => Err(self.mismatch("string")),
        }
    }

    /// A non-negative integer of any width.
    pub fn u64(self) -> Result<u64, MetadataError> {
        self.integer("non-negative integer")
    }

    /// A non-negative integer below 2^32, of any width.
    pub fn u32(self) -> Result<u32, MetadataError> {
        self.integer("integer from 0 to 4294967295")
    }

    /// A non-negative integer of any width, as a size.
    pub fn usize(self) -> Result<usize, MetadataError> {
        self.integer("non-negative integer")
    }

    /// An integer of any width.
    pub fn i64(self) -> Result<i64, MetadataError> {
        self.integer("integer that fits in 64 bits with a sign")
    }

    /// A floating point number, rounded to single precision.
    pub fn f32(self) -> Result<f32, MetadataError> {
        let wide = self.f64()?;
        let value = wide as f32;
        if wide.is_finite() && value.is_infinite() {
            return Err(self.mismatch("number within single precision"));
        }
        Ok(value)
    }

    /// A floating point number.
    pub fn f64(self) -> Result<f64, MetadataError> {
        self.value.as_float().ok_or_else(|| self.mismatch("floating point number"))
    }

    /// A truth value.
    pub fn bool(self) -> Result<bool, MetadataError> {
        match self.value {
            Value::Bool(value) => Ok(*value),
            _ => Err(self.mismatch("bool")),
        }
    }

    /// An array of texts.
    pub fn strings(self) -> Result<&'a [String], MetadataError> {
        match self.value {
            Value::Array(Array::String(values)) => Ok(values),
            Value::Array(array) if array.is_empty() => Ok(&[]),
            _ => Err(self.mismatch("array of strings")),
        }
    }

    /// An array of truth values.
    pub fn bools(self) -> Result<&'a [bool], MetadataError> {
        match self.value {
            Value::Array(Array::Bool(values)) => Ok(values),
            Value::Array(array) if array.is_empty() => Ok(&[]),
            _ => Err(self.mismatch("array of bools")),
        }
    }

    /// An array of floating point numbers.
    pub fn f32s(self) -> Result<Cow<'a, [f32]>, MetadataError> {
        match self.value {
            Value::Array(Array::F32(values)) => Ok(Cow::Borrowed(values)),
            Value::Array(Array::F64(values)) => {
                Ok(Cow::Owned(values.iter().map(|&v| v as f32).collect()))
            }
            Value::Array(array) if array.is_empty() => Ok(Cow::Owned(Vec::new())),
            _ => Err(self.mismatch("array of floating point numbers")),
        }
    }

    /// An array of integers that fit in 32 bits with a sign.
    pub fn i32s(self) -> Result<Cow<'a, [i32]>, MetadataError> {
        match self.value {
            Value::Array(Array::I32(values)) => Ok(Cow::Borrowed(values)),
            _ => self.integers("array of integers of 32 bits"),
        }
    }

    /// An array of non-negative integers below 2^32.
    pub fn u32s(self) -> Result<Cow<'a, [u32]>, MetadataError> {
        match self.value {
            Value::Array(Array::U32(values)) => Ok(Cow::Borrowed(values)),
            _ => self.integers("array of non-negative integers of 32 bits"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Metadata {
        [
            ("a.count", Value::U16(7)),
            ("a.negative", Value::I8(-1)),
            ("a.large", Value::U64(1 << 40)),
            ("a.eps", Value::F64(1e-6)),
            ("a.name", Value::from("x")),
            ("a.heads", Value::from(vec![1i32, 2, 3])),
            ("a.none", Value::from(Vec::<f32>::new())),
        ]
        .into_iter()
        .collect()
    }

    #[test]
    fn integers_of_every_width_convert_with_a_range_check() {
        let m = sample();
        assert_eq!(m.u32("a.count"), Ok(Some(7)));
        assert_eq!(m.i64("a.negative"), Ok(Some(-1)));
        assert_eq!(m.u64("a.large"), Ok(Some(1 << 40)));
        assert_eq!(m.u64("a.missing"), Ok(None));
        let error = m.u32("a.large").unwrap_err().to_string();
        assert!(error.contains("a.large") && error.contains("1099511627776"), "{error}");
        assert!(m.u64("a.negative").is_err());
        assert!(m.u32("a.eps").is_err());
        assert!(m.required("a.missing").unwrap_err().to_string().contains("a.missing"));
    }

    #[test]
    fn arrays_convert_and_layers_share_one_number() {
        let m = sample();
        assert_eq!(m.u32s("a.heads").unwrap().unwrap().as_ref(), [1, 2, 3]);
        assert_eq!(m.u32_per_layer("a.heads", 3), Ok(Some(vec![1, 2, 3])));
        assert_eq!(m.u32_per_layer("a.count", 2), Ok(Some(vec![7, 7])));
        assert!(m.u32_per_layer("a.heads", 4).is_err());
        assert_eq!(m.strings("a.none"), Ok(Some(&[][..])));
        assert!(m.strings("a.heads").is_err());
        assert!(m.f32s("a.heads").is_err());
    }

    #[test]
    fn order_is_kept_and_setting_again_replaces() {
        let mut m = sample();
        assert_eq!(m.set("a.count", 9u32), Some(Value::U16(7)));
        assert_eq!(m.iter().next(), Some(("a.count", &Value::U32(9))));
        m.retain(|key, _| key == "a.name" || key == "a.eps");
        assert_eq!(m.iter().map(|(k, _)| k).collect::<Vec<_>>(), ["a.eps", "a.name"]);
        assert_eq!(m.str("a.name"), Ok(Some("x")));
        assert_eq!(m.get("a.count"), None);
    }
}
