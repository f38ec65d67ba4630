//! Compiled models in a folder: found again by a key of all that they follow from, checked when they are
//! read, the longest unused removed where there are too many.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use trefoil_telemetry::Bytes;

/// What an entry begins with; the number is that of its layout.
const MAGIC: &[u8] = b"trefoil npu 1\n";
/// Bytes of the checksum behind it.
const SUM: usize = blake3::OUT_LEN;
/// Ending of entries.
const ENDING: &str = "compiled";

/// A folder of entries.
#[derive(Clone, Debug)]
pub(crate) struct Cache {
    folder: PathBuf,
    limit: Bytes,
}

impl Cache {
    /// Entries in `folder`, which need not be there yet, of at most `limit` bytes together.
    pub(crate) fn new(folder: PathBuf, limit: Bytes) -> Self {
        Self { folder, limit }
    }

    fn path(&self, key: &blake3::Hash) -> PathBuf {
        self.folder.join(format!("{}.{ENDING}", key.to_hex()))
    }

    /// An entry's bytes. One that is damaged is removed and counts as missing.
    pub(crate) fn load(&self, key: &blake3::Hash) -> Option<Vec<u8>> {
        let path = self.path(key);
        let mut bytes = std::fs::read(&path).ok()?;
        if !is_whole(&bytes) {
            tracing::warn!("{}: damaged, it is made anew", path.display());
            self.remove(key);
            return None;
        }
        bytes.drain(..MAGIC.len() + SUM);
        // Used just now. A folder that cannot be written to still serves what is in it.
        let file = std::fs::File::options().append(true).open(&path);
        let _ = file.and_then(|file| file.set_modified(SystemTime::now()));
        Some(bytes)
    }

    /// Keeps an entry. What goes wrong (a full disk) costs a compilation later, and is only logged.
    pub(crate) fn store(&self, key: &blake3::Hash, bytes: &[u8]) {
        let need = (MAGIC.len() + SUM + bytes.len()) as u64;
        if need > self.limit.0 {
            let (need, limit) = (Bytes(need), self.limit);
            tracing::warn!("a compiled model of {need} is not kept: npu.cache_limit is {limit}");
            return;
        }
        self.make_room(self.limit.0 - need);
        if let Err(error) = self.write(key, bytes) {
            tracing::warn!("{}: a compiled model is not kept: {error}", self.folder.display());
        }
    }

    fn write(&self, key: &blake3::Hash, bytes: &[u8]) -> io::Result<()> {
        std::fs::create_dir_all(&self.folder)?;
        let (path, unfinished) = (self.path(key), self.unfinished(key));
        let written = std::fs::File::create(&unfinished).and_then(|mut file| {
            file.write_all(MAGIC)?;
            file.write_all(blake3::hash(bytes).as_bytes())?;
            file.write_all(bytes)?;
            file.sync_all()
        });
        let named = written.and_then(|()| std::fs::rename(&unfinished, path));
        if named.is_err() {
            // Gone or not, the next try overwrites it.
            let _ = std::fs::remove_file(&unfinished);
        }
        named
    }

    fn unfinished(&self, key: &blake3::Hash) -> PathBuf {
        self.folder.join(format!("{}.{}", key.to_hex(), std::process::id()))
    }

    /// Forgets an entry.
    pub(crate) fn remove(&self, key: &blake3::Hash) {
        // It may be gone already: another process shares the folder.
        let _ = std::fs::remove_file(self.path(key));
    }

    /// Removes the entries that were not used for longest until at most `most` bytes are left.
    fn make_room(&self, most: u64) {
        let mut entries = entries(&self.folder);
        entries.sort();
        let mut total: u64 = entries.iter().map(|(_, bytes, _)| bytes).sum();
        for (_, bytes, path) in entries {
            if total <= most {
                break;
            }
            if std::fs::remove_file(&path).is_ok() {
                total -= bytes;
            }
        }
    }
}

/// Time of the last use, bytes and path of all entries.
fn entries(folder: &Path) -> Vec<(SystemTime, u64, PathBuf)> {
    let Ok(found) = std::fs::read_dir(folder) else { return Vec::new() };
    let paths = found.flatten().map(|entry| entry.path());
    let paths = paths.filter(|path| path.extension().is_some_and(|ending| ending == ENDING));
    let entry = |path: PathBuf| {
        let about = std::fs::metadata(&path).ok()?;
        Some((about.modified().ok()?, about.len(), path))
    };
    paths.filter_map(entry).collect()
}

fn is_whole(bytes: &[u8]) -> bool {
    let rest = bytes.strip_prefix(MAGIC).and_then(|rest| rest.split_at_checked(SUM));
    rest.is_some_and(|(sum, bytes)| blake3::hash(bytes).as_bytes() == sum)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn key(name: &str) -> blake3::Hash {
        blake3::hash(name.as_bytes())
    }

    #[test]
    fn an_entry_comes_back_and_a_damaged_one_does_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = Cache::new(folder.path().join("npu"), Bytes(1 << 20));
        assert_eq!(cache.load(&key("a")), None);
        cache.store(&key("a"), b"compiled");
        assert_eq!(cache.load(&key("a")).as_deref(), Some(&b"compiled"[..]));
        let path = cache.path(&key("a"));
        let whole = std::fs::read(&path).expect("is there");
        for damage in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[damage] ^= 1;
            std::fs::write(&path, &bytes).expect("a file");
            assert_eq!(cache.load(&key("a")), None, "byte {damage}");
            assert!(!path.exists(), "it is removed");
            std::fs::write(&path, &whole[..damage]).expect("a file");
            assert_eq!(cache.load(&key("a")), None, "cut at {damage}");
        }
        cache.store(&key("a"), b"anew");
        assert_eq!(cache.load(&key("a")).as_deref(), Some(&b"anew"[..]));
    }

    #[test]
    fn the_longest_unused_make_room() {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = Cache::new(folder.path().to_path_buf(), Bytes(400));
        let entry = [7; 60];
        let long_ago = SystemTime::now() - Duration::from_secs(3600);
        for (age, name) in ["a", "b", "c"].into_iter().enumerate() {
            cache.store(&key(name), &entry);
            let file = std::fs::File::options().append(true).open(cache.path(&key(name)));
            let time = long_ago + Duration::from_secs(age as u64);
            file.and_then(|file| file.set_modified(time)).expect("a file");
        }
        assert!(cache.load(&key("a")).is_some(), "used now, so that b is the oldest");
        cache.store(&key("d"), &entry);
        let there = ["a", "b", "c", "d"].map(|name| cache.load(&key(name)).is_some());
        assert_eq!(there, [true, false, true, true]);
        cache.store(&key("e"), &[7; 500]);
        assert!(cache.load(&key("e")).is_none(), "larger than all may be together");
        assert!(cache.load(&key("a")).is_some());
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_not_fatal() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("file");
        std::fs::write(&file, b"").expect("a file");
        let cache = Cache::new(file.join("below"), Bytes(1 << 20));
        cache.store(&key("a"), b"compiled");
        assert_eq!(cache.load(&key("a")), None);
        // As on a full disk: the rename finds a folder in its place.
        let cache = Cache::new(folder.path().join("npu"), Bytes(1 << 20));
        std::fs::create_dir_all(cache.path(&key("b"))).expect("a folder");
        cache.store(&key("b"), b"compiled");
        assert_eq!(cache.load(&key("b")), None);
        assert!(!cache.unfinished(&key("b")).exists(), "nothing is left behind");
    }
}
