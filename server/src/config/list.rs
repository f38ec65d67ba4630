//! All keys with what applies, for people: value, where it is from, and who reads it.

use toml::{Table, Value};
use trefoil_scheduler::nearest;
use trefoil_scheduler::policy::Policy;

use super::layer::{Origin, Path, written};
use super::{
    BELOW_CHARGE, Config, ConfigError, Device, Devices, Engine, Key, Model, Npu, POLICY_KEYS,
    Sampling, Sections, Server, Telemetry, Use,
};

/// A key and what applies.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    pub(crate) path: Path,
    /// `None` where nothing is set and there is no default.
    pub(crate) value: Option<Value>,
    pub(crate) origin: Origin,
    pub(crate) used: Use,
    /// What the key means.
    pub(crate) meaning: &'static str,
}

impl Entry {
    /// The section, as users write it.
    pub(crate) fn section(&self) -> String {
        written(&self.path[..self.path.len() - 1])
    }

    /// The key in its section.
    pub(crate) fn key(&self) -> String {
        written(&self.path[self.path.len() - 1..])
    }

    /// Is it a secret that is set?
    pub(crate) fn is_secret(&self) -> bool {
        let key = self.path.last().is_some_and(|key| key.ends_with("api_key"));
        key && self.value.as_ref().and_then(Value::as_str).is_some_and(|text| !text.is_empty())
    }

    /// The value as TOML writes it; a secret is only said to be set.
    pub(crate) fn text(&self) -> String {
        match &self.value {
            Some(_) if self.is_secret() => "(set)".to_owned(),
            Some(value) => value.to_string(),
            None => "(none)".to_owned(),
        }
    }
}

/// Keys of a section by the path to it; `None` for a section that there is not.
pub(crate) fn keys_of(section: &[&str]) -> Option<&'static [Key]> {
    Some(match section {
        ["server"] => Server::KEYS,
        ["engine"] => Engine::KEYS,
        ["models", _] => Model::KEYS,
        ["models", _, "sampling"] => Sampling::KEYS,
        ["policy" | "policies"] | ["policies", _] | ["policy", "on_battery"] => POLICY_KEYS,
        ["devices"] => Devices::KEYS,
        ["devices", _] => Device::KEYS,
        ["npu"] => Npu::KEYS,
        ["telemetry"] => Telemetry::KEYS,
        _ => return None,
    })
}

/// Sections whose keys have defaults, in the order of the documentation.
pub(crate) const FIXED: [&str; 6] = ["server", "engine", "policy", "devices", "npu", "telemetry"];

/// Built-in values, by section.
pub(crate) fn defaults() -> Table {
    let mut table = Table::try_from(Sections::default()).expect("plain data");
    let policy = Table::try_from(Policy::default()).expect("plain data");
    table.insert("policy".to_owned(), Value::Table(policy));
    table
}

impl Config {
    /// All keys that have a default, and all that are set.
    pub(crate) fn entries(&self) -> Vec<Entry> {
        let defaults = defaults();
        let fixed = FIXED.iter().flat_map(|section| {
            let keys = keys_of(&[section]).expect("a section");
            keys.iter().filter(|key| key.name != "sampling").map(move |key| (*section, key))
        });
        let mut entries: Vec<Entry> = fixed
            .map(|(section, key)| {
                let path = vec![section.to_owned(), key.name.to_owned()];
                let (value, origin) = match self.set.get(&path) {
                    Some((value, origin)) => (Some(value.clone()), origin.clone()),
                    None => (defaults[section].get(key.name).cloned(), Origin::Default),
                };
                Entry { path, value, origin, used: key.used, meaning: key.meaning.trim() }
            })
            .collect();
        for (path, (value, origin)) in &self.set {
            if entries.iter().all(|entry| entry.path != *path) {
                let (value, origin) = (Some(value.clone()), origin.clone());
                let (path, (used, meaning)) = (path.clone(), about(path));
                entries.push(Entry { path, value, origin, used, meaning });
            }
        }
        entries
    }

    /// Keys that are set.
    pub(crate) fn set_entries(&self) -> Vec<Entry> {
        let entries = self.entries().into_iter();
        entries.filter(|entry| entry.origin != Origin::Default).collect()
    }

    /// What applies for a key, by its name: `server.port`.
    pub(crate) fn get(&self, name: &str) -> Result<Entry, ConfigError> {
        let mut entries = self.entries();
        if let Some(at) = entries.iter().position(|entry| written(&entry.path) == name) {
            return Ok(entries.swap_remove(at));
        }
        // A name without a section is compared without sections.
        let compared = |entry: &Entry| {
            if name.contains('.') { written(&entry.path) } else { entry.key() }
        };
        let names: Vec<String> = entries.iter().map(compared).collect();
        let near = nearest(name, names.iter().map(String::as_str));
        let near = near.and_then(|near| names.iter().position(|name| name == near));
        let near = near.map(|at| written(&entries[at].path));
        Err(ConfigError::Unknown { got: name.to_owned(), near })
    }
}

/// Who reads a key that is set, and what it means.
fn about(path: &[String]) -> (Use, &'static str) {
    let names: Vec<&str> = path.iter().map(String::as_str).collect();
    let (name, section) = names.split_last().expect("paths are not empty");
    let known = keys_of(section).unwrap_or_default().iter().chain([&BELOW_CHARGE]);
    let key = known.into_iter().find(|key| key.name == *name);
    let used = match (section, key.map_or(Use::NotYet, |key| key.used)) {
        (_, Use::NotYet) => Use::NotYet,
        (["policy", "on_battery"], _) => Use::Only("`--policy on_battery`"),
        (["policies", _], _) => Use::Only("`--policy NAME`"),
        (_, used) => used,
    };
    (used, key.map_or("", |key| key.meaning.trim()))
}
