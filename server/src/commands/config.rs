//! `trefoil config`.

use std::fmt::Write as _;
use std::io::{Write, stdout};

use serde_json::{Map, Value, json};

use crate::cli::{ConfigCommand, Global};
use crate::config::{Config, Entry, Use, places, written};
use crate::exit::Outcome;

pub(crate) fn run(what: &ConfigCommand, global: &Global) -> Outcome {
    let given = global.config.as_deref();
    if let ConfigCommand::Path = what {
        for place in places(given) {
            let there = if place.path.exists() { "is read" } else { "not there" };
            writeln!(stdout(), "{}  ({there})", place.path.display())?;
        }
        return Ok(());
    }
    let config = Config::load(given)?;
    for warning in &config.warnings {
        eprintln!("warning: {warning}");
    }
    match what {
        ConfigCommand::Path => {}
        ConfigCommand::Show { json: true } => {
            writeln!(stdout(), "{}", serde_json::to_string_pretty(&as_json(&config.entries()))?)?;
        }
        ConfigCommand::Show { json: false } => {
            write!(stdout(), "{}", as_toml(&config.entries()))?;
        }
        ConfigCommand::Check => write!(stdout(), "{}", checked(&config.set_entries()))?,
        ConfigCommand::Get { key } => {
            let entry = config.get(key)?;
            let text = match entry.value.as_ref().and_then(toml::Value::as_str) {
                Some(plain) if !entry.is_secret() => plain.to_owned(),
                _ => entry.text(),
            };
            writeln!(stdout(), "{text}")?;
        }
    }
    Ok(())
}

/// The configuration as a file that says the same, with where each value is from.
fn as_toml(entries: &[Entry]) -> String {
    let mut text = String::new();
    let mut section = String::new();
    for entry in entries {
        if entry.section() != section {
            section = entry.section();
            let gap = if text.is_empty() { "" } else { "\n" };
            writeln!(text, "{gap}[{section}]").expect("strings take text");
        }
        // A secret cannot be shown, so that its line is a remark.
        let mark = if entry.is_secret() { "# " } else { "" };
        let line = format!("{mark}{} = {}", entry.key(), entry.text());
        let note = match entry.used {
            Use::Full => String::new(),
            used => format!("; {}", used.note()),
        };
        writeln!(text, "{line:<44} # {}{note}", entry.origin).expect("strings take text");
    }
    text
}

fn as_json(entries: &[Entry]) -> Value {
    let all = entries.iter().map(|entry| {
        let value = match &entry.value {
            Some(_) if entry.is_secret() => json!("(set)"),
            value => json!(value),
        };
        let origin = entry.origin.to_string();
        let mut about = json!({"value": value, "origin": origin, "meaning": entry.meaning});
        if entry.used != Use::Full {
            about["note"] = json!(entry.used.note());
        }
        (written(&entry.path), about)
    });
    Value::Object(all.collect::<Map<_, _>>())
}

/// What is set, and which of it nothing reads yet.
fn checked(set: &[Entry]) -> String {
    let mut text = format!("the configuration is valid; {} keys are set\n", set.len());
    for entry in set {
        let note = match entry.used {
            Use::Full => continue,
            Use::NotYet => "not used yet".to_owned(),
            Use::Only(what) => format!("used by {what}"),
        };
        writeln!(text, "{} ({}): {note}", written(&entry.path), entry.origin)
            .expect("strings take text");
    }
    text
}
