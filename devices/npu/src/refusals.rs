//! What the provider refused to compile: asked once, remembered, shown.

use std::collections::BTreeMap;
use std::path::PathBuf;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// Refusals that are remembered at most: a list for people.
const MOST: usize = 256;

/// Ops that the provider refused to compile.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedSegment {
    /// The ops and for how many rows.
    pub segment: String,
    /// What the provider says.
    pub reason: String,
}

/// Refusals of one provider: in this process believed, of earlier ones only shown.
#[derive(Debug)]
pub(crate) struct Refusals {
    known: Mutex<BTreeMap<String, String>>,
    file: Option<PathBuf>,
}

impl Refusals {
    /// None yet; `file` keeps them for [`Self::all`] of later processes.
    pub(crate) fn new(file: Option<PathBuf>) -> Self {
        Self { known: Mutex::default(), file }
    }

    /// Why a segment was refused, if it was.
    pub(crate) fn find(&self, segment: &str) -> Option<String> {
        self.known.lock().get(segment).cloned()
    }

    /// Remembers a refusal.
    pub(crate) fn add(&self, segment: &str, reason: &str) {
        let new = self.known.lock().insert(segment.to_owned(), reason.to_owned()).is_none();
        let Some(file) = self.file.as_ref().filter(|_| new) else { return };
        let mut all = self.all();
        all.truncate(MOST);
        let unfinished = file.with_extension(std::process::id().to_string());
        let text = serde_json::to_vec_pretty(&all).map_err(std::io::Error::other);
        let folder = file.parent().map_or(Ok(()), std::fs::create_dir_all);
        let written = folder.and(text).and_then(|text| std::fs::write(&unfinished, text));
        if let Err(error) = written.and_then(|()| std::fs::rename(&unfinished, file)) {
            tracing::debug!("{}: {error}", file.display());
        }
    }

    /// All that are known: of this process, and of earlier ones with the same provider and driver.
    pub(crate) fn all(&self) -> Vec<RefusedSegment> {
        let known = self.known.lock().clone().into_iter();
        let mut all: Vec<RefusedSegment> =
            known.map(|(segment, reason)| RefusedSegment { segment, reason }).collect();
        let kept = self.file.as_ref().and_then(|file| std::fs::read(file).ok());
        // A damaged list is no list.
        let kept: Vec<RefusedSegment> =
            kept.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        for refused in kept {
            if all.iter().all(|known| known.segment != refused.segment) {
                all.push(refused);
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn earlier_refusals_are_shown_and_not_believed() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("npu").join("refused.json");
        let first = Refusals::new(Some(file.clone()));
        first.add("norm, 8 rows", "no");
        assert_eq!(first.find("norm, 8 rows").as_deref(), Some("no"));
        let later = Refusals::new(Some(file.clone()));
        assert_eq!(later.find("norm, 8 rows"), None);
        assert_eq!(later.all().len(), 1);
        std::fs::write(&file, b"{").expect("a file");
        assert!(later.all().is_empty());
        assert!(Refusals::new(None).all().is_empty());
    }
}
