//! `trefoil.toml`: built-in values, then files, then the environment, each laid over the one before,
//! key by key. Flags are laid over all of them where commands read them.

pub(crate) mod edit;
mod keys;
mod layer;
mod list;
mod places;
mod settings;
mod values;

use std::collections::BTreeMap;
use std::path::{Path as FilePath, PathBuf};

use serde::Deserialize;
use toml::{Table, Value};
use trefoil_scheduler::policy::{Keys, PolicyError, PolicyFile, Resolved};
use trefoil_scheduler::{TomlError, nearest};

pub(crate) use keys::{
    BELOW_CHARGE, Device, Devices, Engine, Form, GpuApi, Key, KvName, Level, Model, Npu,
    POLICY_KEYS, Sampling, Sections, Server, Telemetry, Use,
};
use layer::Layer;
pub(crate) use layer::{Origin, Path, written};
pub(crate) use list::Entry;
pub(crate) use places::{Place, places, user_file};
pub(crate) use settings::{Settings, id_of};

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum ConfigError {
    /// What a file or variable says.
    #[error(transparent)]
    Text(#[from] TomlError),
    /// A file that is there and cannot be read.
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: std::io::Error },
    /// A policy.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// A variable that names no key.
    #[error(
        "environment variable {name}: expected TREFOIL__SECTION__KEY, such as TREFOIL__SERVER__PORT"
    )]
    Variable { name: String },
    /// Sampling that no request may ask for.
    #[error("models.{name}.sampling: {problem}")]
    Sampling { name: String, problem: String },
    /// A file in which a key is set in a way that is not followed.
    #[error("{}: {key} cannot be set here without changing more; edit the file by hand", path.display())]
    ByHand { path: PathBuf, key: String },
    /// A key that there is not.
    #[error(
        "key {got:?} is not known{}; `trefoil config show` lists all",
        near.as_ref().map(|near| format!("; did you mean {near:?}?")).unwrap_or_default()
    )]
    Unknown { got: String, near: Option<String> },
    /// A value that is understood and cannot be met.
    #[error("{key} ({origin}): expected {expected}, got {got}")]
    Value { key: &'static str, origin: String, expected: &'static str, got: String },
}

/// Environment variables with names of their own, and their keys.
const NAMED: [(&str, [&str; 2]); 7] = [
    ("TREFOIL_HOST", ["server", "host"]),
    ("TREFOIL_PORT", ["server", "port"]),
    ("TREFOIL_API_KEY", ["server", "api_key"]),
    ("TREFOIL_ADMIN_API_KEY", ["server", "admin_api_key"]),
    ("TREFOIL_OFFLINE", ["server", "offline"]),
    ("TREFOIL_MODELS", ["engine", "models_dir"]),
    ("TREFOIL_THREADS", ["engine", "threads"]),
];

/// Beginning of variables that name a key.
const PREFIX: &str = "TREFOIL__";

/// What applies, and where it is from.
#[derive(Clone, Debug, Default)]
pub(crate) struct Config {
    /// Everything but policies.
    pub(crate) sections: Sections,
    /// What is not as built in.
    set: BTreeMap<Path, (Value, Origin)>,
    policies: Vec<PolicyFile>,
    /// What was passed over, and why.
    pub(crate) warnings: Vec<String>,
}

/// May the file of the current folder, which may be anybody's, not set this key?
fn not_from_here(path: &[String]) -> bool {
    let [section, key, ..] = path else { return false };
    // What is loaded as a library runs.
    let loads = key == "runtime_path" || key.starts_with("provider");
    if section == "npu" {
        return loads || key == "cache_dir";
    }
    let secret = key == "host" || key.contains("api_key") || key.starts_with("allowed_");
    section == "server" && secret
}

impl Config {
    /// Reads the configuration of this process: `given` replaces all files.
    pub(crate) fn load(given: Option<&FilePath>) -> Result<Self, ConfigError> {
        let variables = std::env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        });
        Self::read(&places(given), variables.collect())
    }

    /// Reads files, those that are there, and then variables.
    fn read(places: &[Place], variables: BTreeMap<String, String>) -> Result<Self, ConfigError> {
        let mut config = Self::default();
        for place in places {
            let text = match std::fs::read_to_string(&place.path) {
                Ok(text) => text,
                Err(error) if !place.given && error.kind() == std::io::ErrorKind::NotFound => {
                    continue;
                }
                Err(source) => return Err(ConfigError::File { path: place.path.clone(), source }),
            };
            config.lay(Layer::of_file(&place.path, &text)?, place.local);
        }
        for (name, path) in NAMED {
            if let Some(value) = variables.get(name) {
                let path = path.map(str::to_owned);
                config.lay(Layer::of_variable(name, &path, value)?, false);
            }
        }
        for (name, value) in variables.iter().filter(|(name, _)| name.starts_with(PREFIX)) {
            let path: Path =
                name[PREFIX.len()..].to_lowercase().split("__").map(str::to_owned).collect();
            if path.len() < 2 || path.iter().any(String::is_empty) {
                return Err(ConfigError::Variable { name: name.clone() });
            }
            config.lay(Layer::of_variable(name, &path, value)?, false);
        }
        config.sections = Sections::deserialize(config.table()).expect("every layer was checked");
        config.check()?;
        Ok(config)
    }

    fn lay(&mut self, layer: Layer, local: bool) {
        for (path, value, origin) in layer.values {
            if local && not_from_here(&path) {
                let key = written(&path);
                self.warnings.push(format!(
                    "{origin}: {key} is passed over: a file of the current folder may not set it; \
                     set it in the user's file, or give this one with --config"
                ));
                continue;
            }
            self.set.insert(path, (value, origin));
        }
        self.policies.push(layer.policy);
    }

    /// What is set, as one table.
    fn table(&self) -> Table {
        let mut all = Table::new();
        for (path, (value, _)) in &self.set {
            let (key, sections) = path.split_last().expect("paths are not empty");
            let section = sections.iter().fold(&mut all, |table, name| {
                let inner = table.entry(name.clone()).or_insert_with(|| Value::Table(Table::new()));
                inner.as_table_mut().expect("sections are tables in every layer")
            });
            section.insert(key.clone(), value.clone());
        }
        all
    }

    /// Checks what only values together, or this version, can say.
    fn check(&self) -> Result<(), ConfigError> {
        let wrong = |key: [&str; 2], name, expected, got: &str| {
            let path = key.map(str::to_owned);
            let origin = self.set.get(&path[..]).map_or(&Origin::Default, |(_, origin)| origin);
            let (origin, got) = (origin.to_string(), got.to_owned());
            Err(ConfigError::Value { key: name, origin, expected, got })
        };
        if self.sections.engine.kv_type == KvName::Q80 {
            let expected = "f16 or f32: q8_0 is not there yet";
            return wrong(["engine", "kv_type"], "engine.kv_type", expected, "q8_0");
        }
        if self.sections.devices.gpu_api == GpuApi::Hip {
            let expected = "auto, vulkan or off: hip is not there yet";
            return wrong(["devices", "gpu_api"], "devices.gpu_api", expected, "hip");
        }
        let server = &self.sections.server;
        if server.api_key.get().is_some() && !server.api_key_file.is_empty() {
            let expected = "one of api_key and api_key_file";
            return wrong(["server", "api_key_file"], "server.api_key_file", expected, "both");
        }
        self.policy(None)?;
        for name in self.policy_names() {
            self.policy(Some(&name))?;
        }
        for (name, model) in &self.sections.models {
            self.policy(Some(model.policy.as_str()).filter(|policy| !policy.is_empty()))?;
            let sampling = model.sampling.settings().params();
            sampling.validate(usize::MAX).map_err(|error| ConfigError::Sampling {
                name: name.clone(),
                problem: error.to_string(),
            })?;
        }
        Ok(())
    }

    /// Names of `[policies.NAME]`.
    pub(crate) fn policy_names(&self) -> Vec<String> {
        let names = self.policies.iter().flat_map(|file| file.named.keys().cloned());
        names.collect::<std::collections::BTreeSet<_>>().into_iter().collect()
    }

    /// Names of all policies: those of files, and the objectives.
    pub(crate) fn known_policies(&self) -> Vec<String> {
        let built_in = OBJECTIVES.into_iter().chain([ON_BATTERY]).map(str::to_owned);
        built_in.chain(self.policy_names()).collect()
    }

    /// The policy of a name: one of `[policies.NAME]`; `on_battery`, as it is with the battery empty;
    /// else an objective, laid over `[policy]`. `[policy]` itself if there is no name.
    pub(crate) fn policy(&self, name: Option<&str>) -> Result<Resolved, PolicyError> {
        let Some(name) = name else { return Resolved::new(&self.policies, None, None) };
        if self.policies.iter().any(|file| file.named.contains_key(name)) {
            return Resolved::new(&self.policies, Some(name), None);
        }
        if name == ON_BATTERY {
            let mut resolved = Resolved::new(&self.policies, None, Some(0.0))?;
            ON_BATTERY.clone_into(&mut resolved.name);
            return Ok(resolved);
        }
        let objective = Value::String(name.to_owned()).try_into();
        if let Ok(objective) = objective {
            let keys = Keys { objective: Some(objective), ..Keys::default() };
            let mut files = self.policies.clone();
            files.push(PolicyFile {
                source: "name".to_owned(),
                policy: keys,
                ..PolicyFile::default()
            });
            return Resolved::new(&files, None, None);
        }
        let known = self.known_policies();
        let known: Vec<&str> = known.iter().map(String::as_str).collect();
        Err(PolicyError::Unknown {
            got: name.to_owned(),
            known: known.join(", "),
            near: nearest(name, known.iter().copied()).map(str::to_owned),
        })
    }

    /// Is it the name of a policy?
    pub(crate) fn is_policy(&self, name: &str) -> bool {
        name == ON_BATTERY
            || OBJECTIVES.contains(&name)
            || self.policies.iter().any(|file| file.named.contains_key(name))
    }
}

/// Name of `[policy]` with `[policy.on_battery]` laid over it.
const ON_BATTERY: &str = "on_battery";
/// Names of objectives.
pub(crate) const OBJECTIVES: [&str; 4] = ["latency", "throughput", "energy", "balanced"];

#[cfg(test)]
mod tests;
