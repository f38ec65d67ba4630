//! Measurements that are kept: a file per device and per pair of devices, under a key of all that
//! would make them wrong. What is damaged, or of another version, is not there.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use trefoil_devices_api::{Device, DeviceInfo};
use trefoil_scheduler::fit::{DeviceSamples, LinkSample, PairSample};

use super::Effort;

/// Version of the files' form and of what is measured how.
const FORMAT: u32 = 2;
/// Files kept; the ones that were not used for longest go first.
const MOST_FILES: usize = 64;

/// What is kept of a device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceEntry {
    /// How much was measured.
    pub effort: Effort,
    /// Models that were measured: fingerprints.
    pub models: Vec<String>,
    /// Ops, units, launches.
    pub samples: DeviceSamples,
    /// Copies between its memory and the host's.
    pub links: Vec<LinkSample>,
}

/// A folder of measurements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Store {
    folder: PathBuf,
}

/// Measurements that cannot be kept.
#[derive(Debug, thiserror::Error)]
#[error("{path}: cannot keep measurements: {source}; is there room, and may it be written?")]
pub struct StoreError {
    /// The file.
    pub path: String,
    /// What the system says.
    pub source: std::io::Error,
}

/// The first line of a file.
#[derive(Serialize, Deserialize)]
struct Head {
    format: u32,
    key: String,
    /// blake3 of the rest.
    hash: String,
}

impl Store {
    /// `calibration` in the cache folder.
    pub fn new(cache: &Path) -> Self {
        Self { folder: cache.join("calibration") }
    }

    /// What is kept of a device.
    pub fn device(&self, device: &dyn Device) -> Option<DeviceEntry> {
        self.read(&device_key(device.info()))
    }

    /// Keeps what was measured of a device, in place of what was there.
    pub fn put_device(&self, device: &dyn Device, entry: &DeviceEntry) -> Result<(), StoreError> {
        self.write(&device_key(device.info()), entry)
    }

    /// What is kept of a pair.
    pub fn pair(&self, pair: [&dyn Device; 2]) -> Option<PairSample> {
        self.read(&pair_key(pair.map(Device::info)))
    }

    /// Keeps what was measured of a pair.
    pub fn put_pair(&self, pair: [&dyn Device; 2], sample: &PairSample) -> Result<(), StoreError> {
        self.write(&pair_key(pair.map(Device::info)), sample)
    }

    fn path(&self, key: &str) -> PathBuf {
        self.folder.join(format!("{key}.json"))
    }

    fn read<T: DeserializeOwned>(&self, key: &str) -> Option<T> {
        let path = self.path(key);
        let text = std::fs::read(&path).ok()?;
        let parsed = parse(key, &text);
        match &parsed {
            // The time tells which files are in use.
            Some(_) => drop(
                std::fs::File::open(&path).and_then(|file| file.set_modified(SystemTime::now())),
            ),
            None => tracing::warn!(
                "{}: damaged or of another version: will be measured again",
                path.display()
            ),
        }
        parsed
    }

    fn write<T: Serialize>(&self, key: &str, value: &T) -> Result<(), StoreError> {
        let path = self.path(key);
        let fail = |source| StoreError { path: path.display().to_string(), source };
        std::fs::create_dir_all(&self.folder).map_err(fail)?;
        let body = serde_json::to_string(value).map_err(|error| fail(error.into()))?;
        let hash = blake3::hash(body.as_bytes()).to_hex().to_string();
        let head = serde_json::to_string(&Head { format: FORMAT, key: key.to_owned(), hash });
        let head = head.map_err(|error| fail(error.into()))?;
        // Whole or not at all, whoever else writes at the time.
        let temporary = self.folder.join(format!("{key}.{}.tmp", std::process::id()));
        std::fs::write(&temporary, format!("{head}\n{body}\n")).map_err(fail)?;
        if let Err(error) = std::fs::rename(&temporary, &path) {
            // What is left of it is of no use; that it cannot be removed changes nothing.
            let _ = std::fs::remove_file(&temporary);
            return Err(fail(error));
        }
        self.evict();
        Ok(())
    }

    /// Removes the files that were not used for longest.
    fn evict(&self) {
        let Ok(entries) = std::fs::read_dir(&self.folder) else { return };
        let files = entries.filter_map(Result::ok).filter_map(|entry| {
            let path = entry.path();
            let is_kept = path.extension().is_some_and(|extension| extension == "json");
            is_kept.then_some((entry.metadata().ok()?.modified().ok()?, path))
        });
        let mut files: Vec<(SystemTime, PathBuf)> = files.collect();
        files.sort();
        let many = files.len().saturating_sub(MOST_FILES);
        for (_, path) in files.into_iter().take(many) {
            // Somebody else may have been faster.
            let _ = std::fs::remove_file(path);
        }
    }
}

fn parse<T: DeserializeOwned>(key: &str, text: &[u8]) -> Option<T> {
    let text = std::str::from_utf8(text).ok()?;
    let (head, body) = text.split_once('\n')?;
    let body = body.trim_end();
    let head: Head = serde_json::from_str(head).ok()?;
    let whole = head.hash == blake3::hash(body.as_bytes()).to_hex().as_str();
    (whole && head.format == FORMAT && head.key == key).then(|| serde_json::from_str(body).ok())?
}

/// Key of all that times on a device depend on: the hardware, its driver, the kernels with their
/// numeric form, and the product's text, which has the threads and the level of a processor.
fn device_key(info: &DeviceInfo) -> String {
    let mut hash = blake3::Hasher::new();
    hash.update(&FORMAT.to_le_bytes());
    for part in [&info.name, &info.uuid, &info.driver, &info.kernel_set, &info.product] {
        hash.update(&(part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    hash.finalize().to_hex()[..32].to_owned()
}

fn pair_key(pair: [&DeviceInfo; 2]) -> String {
    let mut hash = blake3::Hasher::new();
    pair.map(device_key).iter().for_each(|key| {
        hash.update(key.as_bytes());
    });
    hash.finalize().to_hex()[..32].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use trefoil_devices_api::DeviceKind;

    fn info(driver: &str) -> DeviceInfo {
        DeviceInfo {
            name: "gpu0".to_owned(),
            kind: DeviceKind::Gpu,
            product: "a card".to_owned(),
            uuid: "1234".to_owned(),
            driver: driver.to_owned(),
            kernel_set: "7".to_owned(),
            only_when_named: false,
        }
    }

    #[test]
    fn what_is_kept_comes_back_and_what_is_damaged_does_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::new(folder.path());
        let keep = [0.123_456_789_012_345_67, 1.0 / 3.0];
        let devices = ["cpu0".to_owned(), "gpu0".to_owned()];
        let sample = PairSample { devices, keep, date: "today".to_owned() };
        store.write("key", &sample).expect("writes");
        assert_eq!(store.read::<PairSample>("key"), Some(sample.clone()));
        assert_eq!(store.read::<PairSample>("other"), None);
        let path = store.path("key");
        let text = std::fs::read_to_string(&path).expect("reads");
        for damaged in [
            text.replace("today", "yester"),
            text.replace(&format!("\"format\":{FORMAT}"), "\"format\":0"),
            text[..text.len() / 2].to_owned(),
            String::new(),
            "\u{0}\n{}".to_owned(),
        ] {
            std::fs::write(&path, &damaged).expect("writes");
            assert_eq!(store.read::<PairSample>("key"), None, "{damaged}");
        }
        // A file under the name of another key is not believed either.
        std::fs::write(store.path("stolen"), &text).expect("writes");
        assert_eq!(store.read::<PairSample>("stolen"), None);
        for number in 0..MOST_FILES + 5 {
            store.write(&format!("key{number}"), &sample).expect("writes");
        }
        let kept = std::fs::read_dir(&store.folder).expect("a folder").count();
        assert_eq!(kept, MOST_FILES);
    }

    #[test]
    fn keys_change_with_the_driver_and_the_order_of_a_pair_counts() {
        assert_ne!(device_key(&info("1")), device_key(&info("2")));
        assert_eq!(device_key(&info("1")), device_key(&info("1")));
        let (a, b) = (info("1"), info("2"));
        assert_ne!(pair_key([&a, &b]), pair_key([&b, &a]));
    }
}
