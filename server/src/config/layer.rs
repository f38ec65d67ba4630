//! One layer of the configuration: the keys that a file or an environment variable sets.

use std::fmt;
use std::path::PathBuf;

use toml::{Table, Value};
use trefoil_scheduler::policy::PolicyFile;
use trefoil_scheduler::{TomlError, read_toml};

use super::keys::Sections;

/// Where a value is from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Built in.
    Default,
    /// A file, and the line in it.
    File(PathBuf, usize),
    /// An environment variable.
    Environment(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path, line) => write!(f, "{}:{line}", path.display()),
            Self::Environment(name) => write!(f, "environment {name}"),
        }
    }
}

/// A key, from the section on: `["models", "x", "ctx"]`.
pub(crate) type Path = Vec<String>;

/// A key as users write it, quoted where it must be.
pub(crate) fn written(path: &[String]) -> String {
    let bare = |part: &str| {
        !part.is_empty()
            && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'))
    };
    let parts = path.iter().map(|part| {
        if bare(part) { part.clone() } else { Value::String(part.clone()).to_string() }
    });
    parts.collect::<Vec<_>>().join(".")
}

/// What one source sets.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) values: Vec<(Path, Value, Origin)>,
    pub(crate) policy: PolicyFile,
}

/// Is what stands at the path a table of keys, not the value of one?
fn is_section(path: &[&str]) -> bool {
    match path {
        ["models" | "policies"] => true,
        ["models", _, rest @ ..] => matches!(rest, [] | ["sampling"]),
        ["policies", _] | ["policy", "on_battery"] => true,
        ["devices", name] => name.ends_with(|c: char| c.is_ascii_digit()),
        [_] => true,
        _ => false,
    }
}

/// The error without the line's value, where that may be a secret.
fn discreet(mut error: TomlError) -> TomlError {
    if let Some((key, _)) = error.text.split_once('=')
        && key.contains("api_key")
    {
        error.text = format!("{}= ...", key);
        if !error.problem.starts_with("unknown field") {
            "expected a text, got something else".clone_into(&mut error.problem);
        }
    }
    error
}

impl Layer {
    /// Reads a file's text, `name` as users know it.
    pub(crate) fn of_file(name: &std::path::Path, text: &str) -> Result<Self, TomlError> {
        let source = name.display().to_string();
        let _: Sections = read_toml(&source, text).map_err(discreet)?;
        let policy = PolicyFile::parse(&source, text)?;
        let table: Table = read_toml(&source, text)?;
        let mut values = Vec::new();
        collect(&table, &mut Vec::new(), &mut values);
        // The text was read before.
        let places = toml::de::DeTable::parse(text).ok();
        let line = |path: &[String]| {
            let found = places.as_ref().and_then(|table| spans(table.get_ref(), path));
            let start = found.map_or(0, |(key, _)| key.start);
            let before = text.get(..start).unwrap_or_default();
            before.bytes().filter(|&byte| byte == b'\n').count() + 1
        };
        let values = values.into_iter().map(|(path, value)| {
            let origin = Origin::File(name.to_path_buf(), line(&path));
            (path, value, origin)
        });
        Ok(Self { values: values.collect(), policy })
    }

    /// Reads the value of an environment variable for the key at `path`: as TOML, else as text.
    pub(crate) fn of_variable(name: &str, path: &[String], value: &str) -> Result<Self, TomlError> {
        let (key, sections) = path.split_last().expect("paths have a section and a key");
        let text = |value: &str| {
            let key = written(std::slice::from_ref(key));
            format!("[{}]\n{key} = {value}\n", written(sections))
        };
        let quoted = Value::String(value.to_owned()).to_string();
        let mut tries = vec![text(&quoted)];
        if let "0" | "1" = value {
            tries.insert(0, text(if value == "1" { "true" } else { "false" }));
        }
        if !value.contains('\n') {
            tries.insert(0, text(value));
        }
        let source = format!("environment variable {name}");
        let read = |text: &String| {
            let _: Sections = read_toml(&source, text)?;
            Ok((PolicyFile::parse(&source, text)?, read_toml::<Table>(&source, text)?))
        };
        let mut first = None;
        for text in &tries {
            match read(text) {
                Ok((policy, table)) => {
                    let mut values = Vec::new();
                    collect(&table, &mut Vec::new(), &mut values);
                    let origin = Origin::Environment(name.to_owned());
                    let values = values.into_iter().map(|(path, v)| (path, v, origin.clone()));
                    return Ok(Self { values: values.collect(), policy });
                }
                // Of text that is no TOML, what is said of it as text helps more.
                Err(error) if first.is_none() && text.parse::<Table>().is_ok() => {
                    first = Some(error)
                }
                Err(_) => {}
            }
        }
        Err(first.expect("the quoted text is TOML"))
    }
}

fn collect(table: &Table, path: &mut Path, values: &mut Vec<(Path, Value)>) {
    for (key, value) in table {
        path.push(key.clone());
        let names: Vec<&str> = path.iter().map(String::as_str).collect();
        match value {
            Value::Table(inner) if is_section(&names) => collect(inner, path, values),
            _ => values.push((path.clone(), value.clone())),
        }
        path.pop();
    }
}

/// Where in the text a key stands, and its value.
fn spans(
    table: &toml::de::DeTable<'_>,
    path: &[String],
) -> Option<(std::ops::Range<usize>, std::ops::Range<usize>)> {
    let (first, rest) = path.split_first()?;
    let (key, value) = table.iter().find(|(key, _)| key.get_ref().as_ref() == first.as_str())?;
    match value.get_ref() {
        toml::de::DeValue::Table(inner) if !rest.is_empty() => spans(inner, rest),
        _ if rest.is_empty() => Some((key.span(), value.span())),
        _ => None,
    }
}

/// Where in a file's text the value of a key stands, if the text sets it.
pub(super) fn place_of(text: &str, path: &[String]) -> Option<std::ops::Range<usize>> {
    let table = toml::de::DeTable::parse(text).ok()?;
    spans(table.get_ref(), path).map(|(_, value)| value)
}
