//! What a profile must hold beyond the form of its text: names that exist, curves that rise.

use trefoil_graph::BlockType;

use super::Profile;
use crate::nearest;
use crate::toml_text::TomlError;

/// A profile that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProfileError {
    /// Form, unknown keys, numbers that no machine has.
    #[error(transparent)]
    Text(#[from] TomlError),
    /// A value that does not fit the others.
    #[error("profile {profile}: {key}: expected {expected}, got {got}{}", hint(.near))]
    Value {
        /// The profile.
        profile: String,
        /// Path of the key.
        key: String,
        /// What would be right.
        expected: String,
        /// What it says.
        got: String,
        /// The most similar valid value.
        near: Option<String>,
    },
    /// No such shipped profile.
    #[error("profile {got:?} is not known; known are: {known}{}", hint(.near))]
    Unknown {
        /// What was asked for.
        got: String,
        /// All that are shipped.
        known: String,
        /// The most similar one.
        near: Option<String>,
    },
}

fn hint(near: &Option<String>) -> String {
    near.as_ref().map(|name| format!("; did you mean {name:?}?")).unwrap_or_default()
}

/// All kinds of ops, as `refuses` names them.
const OP_KINDS: [&str; 16] = [
    "embed",
    "norm",
    "linear",
    "rope",
    "kv_write",
    "attention",
    "gate",
    "activation",
    "add",
    "scale",
    "soft_cap",
    "route",
    "experts",
    "select_rows",
    "pool",
    "normalise",
];

impl Profile {
    /// Are names known, curves rising, links complete?
    pub(crate) fn check(&self) -> Result<(), ProfileError> {
        let domains: Vec<&str> = self.domains.iter().map(|domain| domain.name.as_str()).collect();
        let devices: Vec<&str> = self.devices.iter().map(|device| device.name.as_str()).collect();
        self.distinct("domain", &domains)?;
        self.distinct("device", &devices)?;
        for device in &self.devices {
            let key = |name: &str| format!("device {}.{name}", device.name);
            self.one_of(&key("domain"), &device.domain, &domains)?;
            for other in &device.addresses {
                self.one_of(&key("addresses"), other, &domains)?;
            }
            for kind in &device.refuses {
                self.one_of(&key("refuses"), kind, &OP_KINDS)?;
            }
            self.check_compute(device)?;
            if let Some(rows) = &device.static_rows {
                let ascending = rows.windows(2).all(|pair| pair[0] < pair[1]);
                if rows.is_empty() || rows[0] == 0 || !ascending {
                    let got = format!("{rows:?}");
                    return Err(self.value(&key("static_rows"), "row counts that rise", got));
                }
            }
        }
        for link in &self.links {
            let key = format!("link {} -> {}", link.from, link.to);
            self.one_of(&key, &link.from, &domains)?;
            self.one_of(&key, &link.to, &domains)?;
        }
        for from in &domains {
            for to in domains.iter().filter(|to| *to != from) {
                let links = self.links.iter();
                if links.filter(|link| link.from == *from && link.to == *to).count() != 1 {
                    let key = format!("link {from} -> {to}");
                    return Err(self.value(&key, "exactly one", "none or several".to_owned()));
                }
            }
        }
        for pair in &self.co_run {
            for name in [&pair.devices.0, &pair.devices.1] {
                self.one_of("co_run.devices", name, &devices)?;
            }
        }
        let machines: Vec<&str> = self.machines.iter().map(|m| m.name.as_str()).collect();
        for published in &self.published {
            self.one_of("published.device", &published.device, &devices)?;
            self.one_of("published.machine", &published.machine, &machines)?;
        }
        Ok(())
    }

    fn check_compute(&self, device: &super::DeviceProfile) -> Result<(), ProfileError> {
        let key = |name: &str| format!("device {}.compute.{name}", device.name);
        let formats = trefoil_graph::BLOCK_TABLE.iter().map(|row| row.name.to_lowercase());
        let formats: Vec<String> = formats.chain(["other".to_owned()]).collect();
        let formats: Vec<&str> = formats.iter().map(String::as_str).collect();
        for (format, rate) in &device.compute.weights {
            if BlockType::from_name(format).is_none() {
                self.one_of(&key("weights"), format, &formats)?;
            }
            if rate.get() > device.compute.peak.get() {
                let expected = format!("at most the peak, {:e}", device.compute.peak.get());
                return Err(self.value(
                    &key(&format!("weights.{format}")),
                    &expected,
                    format!("{:e}", rate.get()),
                ));
            }
        }
        if !device.compute.weights.contains_key("other") {
            return Err(self.value(&key("weights.other"), "a rate", "nothing".to_owned()));
        }
        self.check_rows(&key("rows"), &device.compute.rows)?;
        for (format, rows) in &device.compute.rows_of {
            if BlockType::from_name(format).is_none() {
                self.one_of(&key("rows_of"), format, &formats)?;
            }
            self.check_rows(&key(&format!("rows_of.{format}")), rows)?;
        }
        Ok(())
    }

    fn check_rows(&self, key: &str, rows: &[(f64, super::Share)]) -> Result<(), ProfileError> {
        let rising = rows.windows(2).all(|pair| pair[0].0 < pair[1].0);
        let positive = rows.iter().all(|(at, share)| *at >= 1.0 && share.get() > 0.0);
        if rows.is_empty() || !rising || !positive {
            let expected = "[rows, share] points, rows from 1 rising, shares above 0";
            return Err(self.value(key, expected, format!("{rows:?}")));
        }
        Ok(())
    }

    fn value(&self, key: &str, expected: &str, got: String) -> ProfileError {
        ProfileError::Value {
            profile: self.name.clone(),
            key: key.to_owned(),
            expected: expected.to_owned(),
            got,
            near: None,
        }
    }

    fn one_of(&self, key: &str, got: &str, known: &[&str]) -> Result<(), ProfileError> {
        if known.contains(&got) {
            return Ok(());
        }
        Err(ProfileError::Value {
            profile: self.name.clone(),
            key: key.to_owned(),
            expected: format!("one of {}", known.join(", ")),
            got: format!("{got:?}"),
            near: nearest(got, known.iter().copied()).map(str::to_owned),
        })
    }

    fn distinct(&self, key: &str, names: &[&str]) -> Result<(), ProfileError> {
        if names.is_empty() {
            return Err(self.value(key, "at least one", "none".to_owned()));
        }
        for (index, name) in names.iter().enumerate() {
            if names[..index].contains(name) {
                return Err(self.value(key, "names of their own", format!("{name:?} twice")));
            }
        }
        Ok(())
    }
}
