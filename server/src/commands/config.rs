//! `trefoil config`.

use std::fmt::Write as _;
use std::io::{Write, stdout};
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::cli::{ConfigCommand, Global};
use crate::config::{Config, Entry, Use, edit, places, user_file, written};
use crate::exit::{Failure, Outcome, Status};

pub(crate) fn run(what: &ConfigCommand, global: &Global) -> Outcome {
    let given = global.config.as_deref();
    if let ConfigCommand::Path = what {
        for place in places(given) {
            let there = if place.path.exists() { "is read" } else { "not there" };
            writeln!(stdout(), "{}  ({there})", place.path.display())?;
        }
        return Ok(());
    }
    if let ConfigCommand::Set { key, value } = what {
        return set(key, value, given);
    }
    let config = Config::load(given)?;
    for warning in &config.warnings {
        eprintln!("warning: {warning}");
    }
    match what {
        ConfigCommand::Path | ConfigCommand::Set { .. } => {}
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

/// Sets a key in the user's file, or in the one given.
fn set(key: &str, value: &str, given: Option<&Path>) -> Outcome {
    let Some(path) = edit::path_of(key) else {
        // Named with the nearest key, if there is one.
        Config::default().get(key)?;
        return Err(Failure::new(Status::Usage, format!("{key:?}: expected SECTION.KEY")));
    };
    let Some(file) = given.map(Path::to_path_buf).or_else(user_file) else {
        let error = "expected a folder for the user's file: set XDG_CONFIG_HOME or HOME, or give \
                     --config FILE";
        return Err(Failure::new(Status::Usage, error));
    };
    let fail = |error: std::io::Error| {
        Failure::new(Status::Failed, format!("{}: {error}", file.display()))
    };
    let text = match std::fs::read_to_string(&file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        read => read.map_err(fail)?,
    };
    let new = edit::set(&file, &text, &path, value)?;
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder).map_err(fail)?;
    }
    write(&file, &new).map_err(fail)?;
    eprintln!("set {} in {}", written(&path), file.display());
    Ok(())
}

/// Writes a file whole or not at all, readable by as many as before; a new one by its owner only, for it
/// may hold a key.
fn write(file: &Path, text: &str) -> std::io::Result<()> {
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}", std::process::id()));
    let temporary = file.with_file_name(name);
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let written = options.open(&temporary).and_then(|mut out| {
        if let Ok(before) = std::fs::metadata(file) {
            out.set_permissions(before.permissions())?;
        }
        out.write_all(text.as_bytes())?;
        out.sync_all()
    });
    let done = written.and_then(|()| std::fs::rename(&temporary, file));
    if done.is_err() {
        // What is left of it is of no use.
        let _ = std::fs::remove_file(&temporary);
    }
    done
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
            Use::NotYet => "; not used yet".to_owned(),
            Use::Only(what) => format!("; only {what}"),
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
