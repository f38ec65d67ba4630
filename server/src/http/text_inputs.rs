//! Texts as requests bring them: one or several, as text or as token ids.

use serde_json::Value;

use super::error::ApiError;
use super::state::ServedModel;

/// One text.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Input {
    /// As it is.
    Text(String),
    /// As token ids.
    Tokens(Vec<u32>),
}

impl Input {
    /// Is there nothing in it?
    pub(crate) fn is_empty(&self) -> bool {
        match self {
            Self::Text(text) => text.is_empty(),
            Self::Tokens(tokens) => tokens.is_empty(),
        }
    }
}

/// An array of numbers as token ids; `None` where one cannot be.
pub(crate) fn ids(list: &[Value]) -> Option<Vec<u32>> {
    list.iter().map(|value| value.as_u64().and_then(|id| u32::try_from(id).ok())).collect()
}

/// The texts of `field`: a string, an array of strings, an array of token ids, or an array of such
/// arrays; 1 to `most` of them, of which some may be empty.
pub(crate) fn inputs(field: &str, value: Value, most: usize) -> Result<Vec<Input>, ApiError> {
    let mixed = || {
        let message = format!(
            "'{field}': expected a string, an array of strings, an array of token ids, or an array of \
             such arrays."
        );
        ApiError::field("invalid_type", field, message)
    };
    let inputs = match value {
        Value::String(text) => vec![Input::Text(text)],
        Value::Array(list) if list.first().is_some_and(Value::is_number) => {
            vec![Input::Tokens(ids(&list).ok_or_else(mixed)?)]
        }
        Value::Array(list) => {
            let one = |value: Value| match value {
                Value::String(text) => Some(Input::Text(text)),
                Value::Array(list) => ids(&list).map(Input::Tokens),
                _ => None,
            };
            let kinds = list.iter().map(Value::is_string);
            if kinds.clone().any(|text| text) && !kinds.clone().all(|text| text) {
                return Err(mixed());
            }
            list.into_iter().map(one).collect::<Option<_>>().ok_or_else(mixed)?
        }
        _ => return Err(mixed()),
    };
    if !(1..=most).contains(&inputs.len()) {
        let message = format!("'{field}': expected 1 to {most} texts, got {}.", inputs.len());
        return Err(ApiError::field("invalid_value", field, message));
    }
    Ok(inputs)
}

/// Refuses token ids that `model` does not have; `name` is how messages call the list.
pub(crate) fn check_ids(model: &ServedModel, name: &str, tokens: &[u32]) -> Result<(), ApiError> {
    let Some(id) = tokens.iter().find(|&&id| id as usize >= model.vocabulary) else {
        return Ok(());
    };
    let message = format!("'{name}': expected token ids below {}, got {id}.", model.vocabulary);
    let field = name.split('[').next().unwrap_or(name);
    Err(ApiError::field("invalid_value", field, message))
}
