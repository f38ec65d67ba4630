//! Values as Python prints them.

use std::fmt::{self, Write};

use minijinja::Value;
use minijinja::value::{Tuple, ValueKind};

/// Deepest nesting that is printed; what lies deeper is shown as `...`.
const DEPTH_MAX: usize = 128;

/// `str(value)`; an undefined value is empty.
pub(super) fn str(value: &Value) -> String {
    let mut out = String::new();
    write_str(value, &mut out).expect("a String takes all text");
    out
}

/// Writes `str(value)`: a string as it is, all else as [`write_repr`].
pub(super) fn write_str(value: &Value, out: &mut impl Write) -> fmt::Result {
    match value.as_str() {
        Some(text) => out.write_str(text),
        None if value.is_undefined() => Ok(()),
        None => write_repr(value, out, 0),
    }
}

fn write_repr(value: &Value, out: &mut impl Write, depth: usize) -> fmt::Result {
    if depth > DEPTH_MAX {
        return out.write_str("...");
    }
    match value.kind() {
        ValueKind::Number if !value.is_integer() => match f64::try_from(value.clone()) {
            Ok(number) => out.write_str(&float(number)),
            Err(_) => write!(out, "{value}"),
        },
        ValueKind::Seq => {
            let tuple = value.downcast_object_ref::<Tuple>().is_some();
            out.write_char(if tuple { '(' } else { '[' })?;
            for (index, item) in value.try_iter().into_iter().flatten().enumerate() {
                if index > 0 {
                    out.write_str(", ")?;
                }
                write_repr(&item, out, depth + 1)?;
            }
            if tuple && value.len() == Some(1) {
                out.write_char(',')?;
            }
            out.write_char(if tuple { ')' } else { ']' })
        }
        ValueKind::Map => {
            out.write_char('{')?;
            for (index, key) in value.try_iter().into_iter().flatten().enumerate() {
                if index > 0 {
                    out.write_str(", ")?;
                }
                write_repr(&key, out, depth + 1)?;
                out.write_str(": ")?;
                let item = value.get_item(&key).unwrap_or_default();
                write_repr(&item, out, depth + 1)?;
            }
            out.write_char('}')
        }
        // strings with quotes, None, True, whole numbers: minijinja prints these as Python does
        _ => write!(out, "{value:?}"),
    }
}

/// `repr` of a float: the shortest digits that read back the same, in scientific form below
/// 1e-4 and from 1e16 on.
pub(super) fn float(number: f64) -> String {
    if number.is_nan() {
        return "nan".into();
    }
    if number.is_infinite() {
        return if number > 0.0 { "inf" } else { "-inf" }.into();
    }
    let magnitude = number.abs();
    if magnitude != 0.0 && !(1e-4..1e16).contains(&magnitude) {
        let text = format!("{number:e}");
        let (digits, exponent) = text.split_once('e').expect("{:e} writes an exponent");
        let exponent: i32 = exponent.parse().expect("{:e} writes a whole exponent");
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    let text = number.to_string();
    if text.contains('.') { text } else { text + ".0" }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected texts come from CPython.
    #[test]
    fn floats_are_written_as_repr_does() {
        for (number, text) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (0.1, "0.1"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e-5, "1.5e-05"),
            (0.0001, "0.0001"),
            (1.7976931348623157e308, "1.7976931348623157e+308"),
            (5e-324, "5e-324"),
            (f64::NEG_INFINITY, "-inf"),
        ] {
            assert_eq!(float(number), text);
        }
    }
}
