//! "What if" questions: a profile with some of its numbers changed.

use std::fmt;
use std::str::FromStr;

use serde_json::{Map, Value};

use super::Profile;
use crate::nearest;

/// A change of one number of a profile: `gpu0.memory.bandwidth=300e9`.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// What is changed: a device or domain by name, `link.FROM.TO`, `co_run.A.B`, or a key of the
    /// profile; then keys as its file has them.
    path: Vec<String>,
    value: Value,
    /// The change as it was written.
    text: String,
}

/// A change that cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChangeError {
    /// Not of the form `KEY=VALUE`.
    #[error("{got:?}: expected KEY=VALUE, such as gpu0.memory.bandwidth=300e9 or ram.size=32GiB")]
    Form {
        /// What came.
        got: String,
    },
    /// A key that the profile has not.
    #[error(
        "{change}: {place} has no {got:?}; it has {known}{}",
        near.as_ref().map(|near| format!("; did you mean {near:?}?")).unwrap_or_default()
    )]
    Unknown {
        /// The change.
        change: String,
        /// Where the key was looked for.
        place: String,
        /// The key.
        got: String,
        /// What there is.
        known: String,
        /// The most similar one.
        near: Option<String>,
    },
    /// A key that holds others, or a value where keys are expected.
    #[error("{change}: {place} {problem}")]
    Depth {
        /// The change.
        change: String,
        /// The key.
        place: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A value that the profile cannot have.
    #[error("{change}: {problem}")]
    Value {
        /// The change.
        change: String,
        /// What was expected and what came.
        problem: String,
    },
}

impl FromStr for Change {
    type Err = ChangeError;

    fn from_str(text: &str) -> Result<Self, ChangeError> {
        let form = || ChangeError::Form { got: text.to_owned() };
        let (path, value) = text.split_once('=').ok_or_else(form)?;
        let path: Vec<String> = path.split('.').map(|part| part.trim().to_owned()).collect();
        let value = value.trim();
        if value.is_empty() || path.iter().any(String::is_empty) {
            return Err(form());
        }
        // As a profile's file writes it, or without the quotes of a text.
        let toml = toml::from_str::<Map<String, Value>>(&format!("value = {value}")).ok();
        let value = toml.and_then(|mut table| table.remove("value").filter(|_| table.is_empty()));
        let value = value.unwrap_or_else(|| {
            let (_, text) = text.split_once('=').expect("was there before");
            Value::String(text.trim().to_owned())
        });
        Ok(Self { path, value, text: text.to_owned() })
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Profile {
    /// The profile with changes made to it, one after another. The result is checked like a file.
    pub fn with_changes(&self, changes: &[Change]) -> Result<Self, ChangeError> {
        changes.iter().try_fold(self.clone(), |profile, change| profile.with_change(change))
    }

    fn with_change(&self, change: &Change) -> Result<Self, ChangeError> {
        let mut document = serde_json::to_value(self).expect("a profile is plain data");
        let (place, rest) = change.find(&mut document)?;
        change.set(place, rest)?;
        let fail = |problem: String| ChangeError::Value { change: change.text.clone(), problem };
        let changed: Self = serde_json::from_value(document).map_err(|error| {
            let whole = error.to_string();
            fail(whole)
        })?;
        changed.check().map_err(|error| fail(error.to_string()))?;
        Ok(changed)
    }
}

/// Lists of the profile whose entries are found by name.
const LISTS: [&str; 6] = ["domain", "device", "link", "co_run", "machine", "published"];

fn named(document: &Value, list: &str) -> Vec<String> {
    let entries = document[list].as_array().into_iter().flatten();
    entries.filter_map(|entry| entry["name"].as_str().map(str::to_owned)).collect()
}

impl Change {
    /// The table that the path begins with, and the rest of the path.
    fn find<'d>(&self, document: &'d mut Value) -> Result<(&'d mut Value, &[String]), ChangeError> {
        let first = self.path[0].as_str();
        for list in ["device", "domain"] {
            let at = named(document, list).iter().position(|name| name == first);
            if let Some(at) = at {
                return Ok((&mut document[list][at], &self.path[1..]));
            }
        }
        if let "link" | "co_run" = first {
            let ends = |entry: &Value| match first {
                "link" => [entry["from"].clone(), entry["to"].clone()],
                _ => [entry["devices"][0].clone(), entry["devices"][1].clone()],
            };
            let entries = document[first].as_array().map(Vec::as_slice).unwrap_or_default();
            let all: Vec<String> = entries
                .iter()
                .map(|entry| {
                    let ends = ends(entry);
                    ends.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(".")
                })
                .collect();
            let got = self.path.iter().skip(1).take(2).cloned().collect::<Vec<_>>().join(".");
            let Some(at) = all.iter().position(|name| *name == got) else {
                return Err(self.unknown(first, &got, &all));
            };
            return Ok((&mut document[first][at], &self.path[3..]));
        }
        let own = document.as_object().into_iter().flat_map(Map::keys);
        let own = own.filter(|key| !LISTS.contains(&key.as_str())).cloned();
        let own: Vec<String> = own.collect();
        if own.iter().any(|key| key == first) {
            return Ok((document, &self.path));
        }
        let lists = ["device", "domain"].iter().flat_map(|list| named(document, list));
        let known: Vec<String> =
            lists.chain(["link".to_owned(), "co_run".to_owned()]).chain(own).collect();
        Err(self.unknown("the profile", first, &known))
    }

    /// Sets the value at the end of the path.
    fn set(&self, mut place: &mut Value, path: &[String]) -> Result<(), ChangeError> {
        let depth = |place: &str, problem: &str| ChangeError::Depth {
            change: self.text.clone(),
            place: place.to_owned(),
            problem: problem.to_owned(),
        };
        let mut name = self.path[..self.path.len() - path.len()].join(".");
        let Some((last, tables)) = path.split_last() else {
            let known: Vec<&str> =
                place.as_object().into_iter().flat_map(Map::keys).map(String::as_str).collect();
            return Err(depth(&name, &format!("holds several values: {}", known.join(", "))));
        };
        for (index, key) in tables.iter().chain([last]).enumerate() {
            let here = if name.is_empty() { "the profile" } else { &name };
            let Some(table) = place.as_object_mut() else {
                return Err(depth(
                    here,
                    "is not set, or one value: give all of it as a table { ... }",
                ));
            };
            let known: Vec<String> = table.keys().cloned().collect();
            // Formats are a table of the user's choice: which there are is checked afterwards.
            let open = name.ends_with("compute.weights");
            if !known.contains(key) && !open {
                return Err(self.unknown(here, key, &known));
            }
            name = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
            let slot = table.entry(key.clone()).or_insert(Value::Null);
            if index == tables.len() {
                if slot.is_object() && !self.value.is_object() {
                    let known: Vec<&str> = slot
                        .as_object()
                        .into_iter()
                        .flat_map(Map::keys)
                        .map(String::as_str)
                        .collect();
                    return Err(depth(
                        &name,
                        &format!("holds several values: {}", known.join(", ")),
                    ));
                }
                *slot = self.value.clone();
                return Ok(());
            }
            place = slot;
        }
        Ok(())
    }

    fn unknown(&self, place: &str, got: &str, known: &[String]) -> ChangeError {
        ChangeError::Unknown {
            change: self.text.clone(),
            place: place.to_owned(),
            got: got.to_owned(),
            known: known.join(", "),
            near: nearest(got, known.iter().map(String::as_str)).map(str::to_owned),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::shipped;

    fn changed(profile: &str, changes: &[&str]) -> Result<Profile, ChangeError> {
        let changes: Result<Vec<Change>, _> = changes.iter().map(|text| text.parse()).collect();
        shipped(profile).expect("ships").with_changes(&changes?)
    }

    #[test]
    fn numbers_change_and_nothing_else_does() {
        let before = shipped("desktop-radeon").expect("ships");
        let after = changed(
            "desktop-radeon",
            &[
                "gpu0.memory.bandwidth=300e9",
                "ram.size=8GiB",
                "link.ram.vram0.bandwidth = 1e9",
                "base_power=7",
                "gpu0.compute.weights.q8_0=1e12",
                "gpu0.memory.kv_bandwidth=2e11",
            ],
        )
        .expect("valid");
        let gpu = after.device("gpu0").expect("has one");
        assert_eq!(gpu.memory.bandwidth.get(), 300e9);
        assert_eq!(gpu.memory.kv_bandwidth.expect("set").get(), 2e11);
        assert_eq!(gpu.compute.weights["q8_0"].get(), 1e12);
        assert_eq!(after.domains[0].size, "8GiB".parse().expect("a size"));
        assert_eq!(after.base_power.get(), 7.0);
        let link = |profile: &Profile| {
            let link =
                profile.links.iter().find(|l| (l.from.as_str(), l.to.as_str()) == ("ram", "vram0"));
            link.expect("has one").bandwidth.get()
        };
        assert_eq!(link(&after), 1e9);
        assert_ne!(link(&before), 1e9);
        assert_eq!(after.device("cpu0"), before.device("cpu0"));
        assert_eq!(before.with_changes(&[]).expect("nothing changes"), before);
        let co_run = changed("strix-point", &["co_run.gpu0.npu0.keep=[0.5, 0.4]"]).expect("valid");
        assert_eq!(co_run.keeps("npu0", "gpu0"), 0.4);
    }

    #[test]
    fn what_cannot_be_changed_is_named_with_the_nearest() {
        let fail =
            |change: &str| changed("desktop-radeon", &[change]).expect_err(change).to_string();
        for (change, near) in [
            ("gpu1.memory.bandwidth=1e9", "\"gpu0\""),
            ("gpu0.memori.bandwidth=1e9", "\"memory\""),
            ("gpu0.memory.bandwith=1e9", "\"bandwidth\""),
            ("ram.sise=1GiB", "\"size\""),
            ("link.ram.vram.latency=1", "\"ram.vram0\""),
            ("base_powr=1", "\"base_power\""),
            ("gpu0.compute.weights.q4_kk=1e12", "\"q4_k\""),
            ("gpu0.domain=vram", "\"vram0\""),
        ] {
            let got = fail(change);
            assert!(
                got.contains(change) && got.contains(&format!("did you mean {near}?")),
                "{got}"
            );
        }
        for (change, part) in [
            ("gpu0", "KEY=VALUE"),
            ("gpu0.=1", "KEY=VALUE"),
            ("=1", "KEY=VALUE"),
            ("gpu0=1", "holds several values"),
            ("gpu0.memory=1", "holds several values: "),
            ("gpu0.launch.more=1", "one value"),
            ("gpu0.weight_copy.most=0.5", "not set"),
            ("link=1", "has no"),
            ("gpu0.memory.bandwidth=300", "1e7 to 1e14 bytes per second, got 300"),
            ("gpu0.memory.bandwidth=fast", "fast"),
            ("ram.size=plenty", "plenty"),
            ("ram.usable=1.5", "as a share"),
            ("gpu0.compute.peak=1e9", "at most the peak"),
            ("gpu0.compute.rows=[[4, 0.1], [1, 1]]", "compute.rows"),
            ("gpu0.static_rows=[0]", "static_rows"),
            ("gpu0.refuses=['atention']", "did you mean \"attention\"?"),
        ] {
            let got = fail(change);
            assert!(got.contains(part), "{change}: {got}");
        }
    }
}
