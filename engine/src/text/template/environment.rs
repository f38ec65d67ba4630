//! The environment that chat templates expect: Jinja as Python's transformers library sets it up.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, UndefinedBehavior, Value};

use super::civil_time::CivilTime;
use super::json::{self, Layout};
use super::{markup, methods, python, source};

/// Instructions that one rendering may take; the longest known conversation with a long template
/// takes less than a hundredth. It bounds what a hostile template costs.
const FUEL: u64 = 50_000_000;

/// The cause of an error that the template raised itself, with its words.
#[derive(Debug)]
pub(super) struct Raised(pub(super) String);

impl std::fmt::Display for Raised {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

/// A new environment without templates.
pub(super) fn python() -> Environment<'static> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.expect("Jinja's own delimiters differ from each other"));
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_fuel(Some(FUEL));
    environment.set_formatter(|output, _, value| Ok(python::write_str(value, output)?));
    environment.set_unknown_method_callback(methods::call);
    environment.add_function("raise_exception", raise_exception);
    environment.add_filter("tojson", to_json);
    environment.add_filter("string", |value: &Value| python::str(value));
    environment.add_filter("escape", markup::escape);
    environment.add_filter("e", markup::escape);
    environment.add_filter(source::ADD_FILTER, markup::add);
    environment.add_filter(source::ITER_FILTER, markup::iterated);
    environment.add_test("iterable", is_iterable);
    environment.add_test("sequence", is_sequence);
    environment
}

/// The function `strftime_now` of a moment.
pub(super) fn strftime_now(now: CivilTime) -> Value {
    Value::from_function(move |format: &str| now.strftime(format))
}

fn raise_exception(message: &Value) -> Result<Value, Error> {
    let message = python::str(message);
    Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
}

/// The test `iterable`: what Python's `iter` takes. Jinja's undefined value is one.
fn is_iterable(value: &Value) -> bool {
    !value.is_none() && value.try_iter().is_ok()
}

/// The test `sequence`: what has a length and can be indexed, strings and mappings included.
fn is_sequence(value: &Value) -> bool {
    use ValueKind::{Map, Seq, String, Undefined};
    matches!(value.kind(), String | Seq | Map | Undefined)
}

/// `tojson` as transformers replaces it: `json.dumps` with the same named arguments, which may be
/// given by position too.
fn to_json(value: &Value, positional: Option<&Value>, options: Kwargs) -> Result<Value, Error> {
    let ensure_ascii = match (options.get::<Option<bool>>("ensure_ascii")?, positional) {
        (Some(named), _) => named,
        (None, Some(first)) => first.is_true(),
        (None, None) => false,
    };
    let indent = match options.get::<Option<Value>>("indent")? {
        None => None,
        Some(indent) => match indent.kind() {
            ValueKind::None | ValueKind::Undefined => None,
            ValueKind::String => Some(indent.as_str().unwrap_or_default().to_owned()),
            _ => {
                let width = usize::try_from(indent.as_i64().unwrap_or(0)).unwrap_or(0);
                if width > json::INDENT_MAX {
                    return Err(Error::new(
                        ErrorKind::InvalidOperation,
                        format!("tojson: expected indent <= {}, got {width}", json::INDENT_MAX),
                    ));
                }
                Some(" ".repeat(width))
            }
        },
    };
    let separators = match options.get::<Option<Value>>("separators")? {
        Some(pair) if !pair.is_none() => {
            let part = |index: usize| -> Result<String, Error> {
                let part = pair.get_item_by_index(index)?;
                part.as_str().map(str::to_owned).ok_or_else(|| {
                    Error::new(
                        ErrorKind::InvalidOperation,
                        "tojson: expected separators to be two strings",
                    )
                })
            };
            Some((part(0)?, part(1)?))
        }
        _ => None,
    };
    let sort_keys = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    options.assert_all_used()?;
    let layout = Layout::new(ensure_ascii, indent, separators, sort_keys);
    json::dumps(value, &layout).map(Value::from)
}
