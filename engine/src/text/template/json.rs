//! JSON as Python's `json.dumps` writes it, from template values.

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};

use super::python;

/// Widest indentation that is accepted, in spaces.
pub(super) const INDENT_MAX: usize = 64;

/// Deepest nesting that is written.
const DEPTH_MAX: usize = 128;

/// How a document is laid out.
pub(super) struct Layout {
    ensure_ascii: bool,
    /// `None`: everything on one line.
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    sort_keys: bool,
}

impl Layout {
    /// Separators default to `", "` and `": "`, and to `","` and `": "` with an indentation.
    pub(super) fn new(
        ensure_ascii: bool,
        indent: Option<String>,
        separators: Option<(String, String)>,
        sort_keys: bool,
    ) -> Self {
        let (item_separator, key_separator) = separators.unwrap_or_else(|| {
            let item = if indent.is_some() { "," } else { ", " };
            (item.to_owned(), ": ".to_owned())
        });
        Self { ensure_ascii, indent, item_separator, key_separator, sort_keys }
    }
}

/// The JSON text of `value`; fails on what JSON cannot hold.
pub(super) fn dumps(value: &Value, layout: &Layout) -> Result<String, Error> {
    let mut out = String::new();
    write(&mut out, value, layout, 0)?;
    Ok(out)
}

fn write(out: &mut String, value: &Value, layout: &Layout, depth: usize) -> Result<(), Error> {
    if depth > DEPTH_MAX {
        return Err(failure(format!("tojson: nested deeper than {DEPTH_MAX}")));
    }
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => number(out, value),
        ValueKind::String => string(out, value.as_str().unwrap_or_default(), layout.ensure_ascii),
        ValueKind::Seq | ValueKind::Iterable => {
            let items: Vec<Value> = value.try_iter()?.collect();
            container(out, ['[', ']'], items.len(), layout, depth, |out, index| {
                write(out, &items[index], layout, depth + 1)
            })?;
        }
        ValueKind::Map => {
            let mut keys: Vec<Value> = value.try_iter()?.collect();
            if layout.sort_keys {
                keys.sort();
            }
            container(out, ['{', '}'], keys.len(), layout, depth, |out, index| {
                let key = &keys[index];
                match key.kind() {
                    ValueKind::String => {
                        string(out, key.as_str().unwrap_or_default(), layout.ensure_ascii);
                    }
                    ValueKind::None | ValueKind::Bool | ValueKind::Number => {
                        out.push('"');
                        write(out, key, layout, depth + 1)?;
                        out.push('"');
                    }
                    kind => return Err(failure(format!("tojson: a key is a {kind}"))),
                }
                out.push_str(&layout.key_separator);
                write(out, &value.get_item(key)?, layout, depth + 1)
            })?;
        }
        kind => return Err(failure(format!("tojson: a value is {kind}, which JSON cannot hold"))),
    }
    Ok(())
}

/// Writes brackets, separators and line breaks around `count` items.
fn container(
    out: &mut String,
    [open, close]: [char; 2],
    count: usize,
    layout: &Layout,
    depth: usize,
    mut item: impl FnMut(&mut String, usize) -> Result<(), Error>,
) -> Result<(), Error> {
    let line_break = |out: &mut String, depth: usize| {
        if let Some(indent) = &layout.indent {
            out.push('\n');
            for _ in 0..depth {
                out.push_str(indent);
            }
        }
    };
    out.push(open);
    for index in 0..count {
        if index > 0 {
            out.push_str(&layout.item_separator);
        }
        line_break(out, depth + 1);
        item(out, index)?;
    }
    if count > 0 {
        line_break(out, depth);
    }
    out.push(close);
    Ok(())
}

fn number(out: &mut String, value: &Value) {
    use std::fmt::Write;
    match f64::try_from(value.clone()) {
        Ok(float) if !value.is_integer() => {
            if float.is_nan() {
                out.push_str("NaN");
            } else if float.is_infinite() {
                out.push_str(if float > 0.0 { "Infinity" } else { "-Infinity" });
            } else {
                out.push_str(&python::float(float));
            }
        }
        _ => write!(out, "{value}").expect("a String takes all text"),
    }
}

fn string(out: &mut String, text: &str, ensure_ascii: bool) {
    use std::fmt::Write;
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if c < ' ' || (ensure_ascii && !(' '..='~').contains(&c)) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    write!(out, "\\u{unit:04x}").expect("a String takes all text");
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

fn failure(message: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

#[cfg(test)]
mod tests {
    use minijinja::value::Serde;
    use serde_json::json;

    use super::*;

    /// Expected texts come from CPython's json module.
    #[test]
    fn layouts_follow_python() {
        let value = Value::from(Serde(json!({
            "b": [1, 2.0, 1e22, -0.0], "a": {}, "c": [], "é\u{7f}": "<&'\">\u{1}🙂\n"
        })));
        let text = |layout: Layout| dumps(&value, &layout).expect("can be written");
        assert_eq!(
            text(Layout::new(false, None, None, false)),
            "{\"b\": [1, 2.0, 1e+22, -0.0], \"a\": {}, \"c\": [], \
             \"é\u{7f}\": \"<&'\\\">\\u0001🙂\\n\"}"
        );
        assert_eq!(
            text(Layout::new(true, None, Some((",".into(), ":".into())), true)),
            "{\"a\":{},\"b\":[1,2.0,1e+22,-0.0],\"c\":[],\
             \"\\u00e9\\u007f\":\"<&'\\\">\\u0001\\ud83d\\ude42\\n\"}"
        );
        assert_eq!(
            text(Layout::new(false, Some("  ".into()), None, false)),
            "{\n  \"b\": [\n    1,\n    2.0,\n    1e+22,\n    -0.0\n  ],\n  \"a\": {},\n  \
             \"c\": [],\n  \"é\u{7f}\": \"<&'\\\">\\u0001🙂\\n\"\n}"
        );
    }

    #[test]
    fn what_json_cannot_hold_is_an_error() {
        let layout = Layout::new(false, None, None, false);
        assert!(dumps(&Value::UNDEFINED, &layout).is_err());
    }
}
