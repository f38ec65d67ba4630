//! Marked text: what the filters `safe` and `escape` give in Jinja.
//!
//! Chat templates are rendered without automatic escaping, so that the mark matters in one place
//! only: adding plain text to marked text escapes the plain text.

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};

use super::python;

/// The filter `escape`: marked text, with the signs that mean something to HTML replaced.
pub(super) fn escape(value: &Value) -> Value {
    if value.is_safe() {
        return value.clone();
    }
    let mut out = String::new();
    for c in python::str(value).chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    Value::from_safe_string(out)
}

/// `left + right` as Python and Jinja's marked text define it.
pub(super) fn add(left: &Value, right: &Value) -> Result<Value, Error> {
    match (left.kind(), right.kind()) {
        (ValueKind::String, ValueKind::String) => {
            if left.is_safe() || right.is_safe() {
                let text = [escape(left), escape(right)].map(|part| python::str(&part)).concat();
                return Ok(Value::from_safe_string(text));
            }
            Ok(Value::from([python::str(left), python::str(right)].concat()))
        }
        (ValueKind::Number, ValueKind::Number) if left.is_integer() && right.is_integer() => {
            let sum = i128::try_from(left.clone())?.checked_add(i128::try_from(right.clone())?);
            sum.map(Value::from).ok_or_else(|| impossible(left, right))
        }
        (ValueKind::Number, ValueKind::Number) => {
            Ok(Value::from(f64::try_from(left.clone())? + f64::try_from(right.clone())?))
        }
        (ValueKind::Seq, ValueKind::Seq) => Ok(left.try_iter()?.chain(right.try_iter()?).collect()),
        _ => Err(impossible(left, right)),
    }
}

/// Passes on what Python can iterate over.
pub(super) fn iterated(value: &Value) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::None | ValueKind::Bool | ValueKind::Number => Err(Error::new(
            ErrorKind::InvalidOperation,
            format!("expected something to iterate over, got {}", value.kind()),
        )),
        _ => Ok(value.clone()),
    }
}

fn impossible(left: &Value, right: &Value) -> Error {
    let message = format!("cannot add {} and {}", left.kind(), right.kind());
    Error::new(ErrorKind::InvalidOperation, message)
}
