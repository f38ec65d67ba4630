//! A folder of models that were made before.

use std::path::{Path, PathBuf};

use trefoil_telemetry::Bytes;

use super::writer::{Synthetic, SyntheticError};

/// Space that is left free beside a model: for the header, and for whoever else writes.
const MARGIN: u64 = 64 << 20;

/// Where models are kept unless the user names a folder: `trefoil/shapes` in the user's cache.
pub fn default_folder() -> Result<PathBuf, SyntheticError> {
    Ok(crate::cache::user_folder().ok_or(SyntheticError::NoFolder)?.join("shapes"))
}

/// A folder of models by their [`Synthetic::file_name`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cache {
    /// The folder; made when needed.
    pub folder: PathBuf,
}

impl Cache {
    /// Path of a model, which is made if it is not there. Files appear whole or not at all, so that
    /// one that is there is used as it is; `progress` is as for [`Synthetic::write`].
    pub fn provide(
        &self,
        model: &Synthetic,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<PathBuf, SyntheticError> {
        let path = self.folder.join(model.file_name());
        if path.is_file() {
            return Ok(path);
        }
        let fail = |source| SyntheticError::Write { path: path.clone(), source };
        // What cannot be made is found before the disk is touched.
        model.metadata()?;
        let need = Bytes(model.bytes().map_err(fail)? + MARGIN);
        std::fs::create_dir_all(&self.folder).map_err(fail)?;
        if let Some(free) = free_space(&self.folder)
            && free < need
        {
            return Err(SyntheticError::Space { folder: self.folder.clone(), need, free });
        }
        model.write(&path, progress)?;
        Ok(path)
    }
}

/// Bytes that a user may write to the disk of `folder`; `None` where the system does not tell.
#[cfg(unix)]
fn free_space(folder: &Path) -> Option<Bytes> {
    let facts = rustix::fs::statvfs(folder).ok()?;
    Some(Bytes(facts.f_bavail.saturating_mul(facts.f_frsize)))
}

/// Bytes that a user may write to the disk of `folder`: not known here.
#[cfg(not(unix))]
fn free_space(_folder: &Path) -> Option<Bytes> {
    None
}
