//! Folders as Hugging Face repositories have them: `config.json` and safetensors, whole or sharded.

mod architectures;
mod config;
mod error;
mod json;
mod names;
mod rope;
#[cfg(test)]
mod tests;
mod without_weights;

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};

pub use error::HuggingFaceError;

use crate::Tensor;
use crate::metadata::Metadata;
use crate::model_file::{ModelFileError, map};
use crate::safetensors;
use architectures::Architecture;
use json::Fields;
use names::Named;

/// Largest `config.json` or the like, in bytes. Real ones stay far below, and parsed JSON can take
/// a hundred times its text.
const MAX_CONFIG: u64 = 1 << 20;
/// Largest index of shards, in bytes: that of a model with a million tensors.
const MAX_INDEX: u64 = 128 << 20;

const INDEX: &str = "model.safetensors.index.json";
const WHOLE: &str = "model.safetensors";

/// Where a folder's tensors lie.
pub(crate) enum Weights {
    /// All in one file.
    Whole(PathBuf),
    /// In the files that an index lists.
    Sharded(PathBuf),
}

impl Weights {
    /// The weights of a folder; `None` if it has no safetensors or no `config.json`. `given` is the
    /// file the user named, if any.
    pub(crate) fn find(
        folder: &Path,
        given: Option<&Path>,
    ) -> Result<Option<Self>, ModelFileError> {
        if !folder.join("config.json").is_file() {
            return Ok(None);
        }
        let index = folder.join(INDEX);
        if let Some(given) = given {
            let name = given.file_name().unwrap_or_default().to_string_lossy();
            let shard = index.is_file() && read_index(&index)?.values().any(|file| *file == name);
            let given = given.to_path_buf();
            return Ok(Some(if shard { Self::Sharded(index) } else { Self::Whole(given) }));
        }
        let whole = folder.join(WHOLE);
        if whole.is_file() {
            return Ok(Some(Self::Whole(whole)));
        }
        if index.is_file() {
            return Ok(Some(Self::Sharded(index)));
        }
        let mut files = Vec::new();
        let fail = |source| ModelFileError::io(folder, source);
        for entry in std::fs::read_dir(folder).map_err(fail)? {
            let path = entry.map_err(fail)?.path();
            if path.extension().is_some_and(|extension| extension == "safetensors") {
                files.push(path);
            }
        }
        match files.len() {
            0 => Ok(None),
            1 => Ok(files.pop().map(Self::Whole)),
            count => Err(ModelFileError::NotAModel {
                path: folder.to_path_buf(),
                expected: "model.safetensors, or shards with model.safetensors.index.json",
                got: format!("{count} safetensors files of other names; name one of them"),
            }),
        }
    }
}

/// Opens a folder's model.
pub(crate) fn open(
    folder: &Path,
    weights: &Weights,
) -> Result<(Metadata, BTreeMap<Arc<str>, Tensor>), ModelFileError> {
    let path = folder.join("config.json");
    let table = read_table(&path)?;
    let (architecture, mut metadata) = config::read(Fields::new(&table)).map_err(at(&path))?;
    extras(folder, &mut metadata)?;
    let mut model = Model { architecture, tensors: BTreeMap::new(), origins: BTreeMap::new() };
    match weights {
        Weights::Whole(file) => {
            model.add(file)?;
        }
        Weights::Sharded(index) => shards(folder, index, &mut model)?,
    }
    Ok((metadata, model.tensors))
}

/// Adds what other files of a folder say about any model in it: tokens that end a reply, pooling.
pub(crate) fn extras(folder: &Path, metadata: &mut Metadata) -> Result<(), ModelFileError> {
    type Extra = fn(Fields<'_>, &mut Metadata) -> Result<(), HuggingFaceError>;
    let extras: [(&str, Extra); 2] = [
        ("generation_config.json", config::generation),
        ("1_Pooling/config.json", config::pooling),
    ];
    for (file, read) in extras {
        let path = folder.join(file);
        if path.is_file() {
            let table = read_table(&path)?;
            read(Fields::new(&table), metadata).map_err(at(&path))?;
        }
    }
    Ok(())
}

/// Metadata of a `config.json`, and names and shapes of the tensors that its model has.
pub(crate) fn shapes(
    path: &Path,
) -> Result<(Metadata, Vec<without_weights::Shaped>), ModelFileError> {
    let table = read_table(path)?;
    without_weights::read(Fields::new(&table)).map_err(at(path))
}

/// Adds the shards of an index and checks that each holds what the index says.
fn shards(folder: &Path, index: &Path, model: &mut Model) -> Result<(), ModelFileError> {
    let weight_map = read_index(index)?;
    let fail = at(index);
    let mut by_shard: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (tensor, shard) in &weight_map {
        if !stays_inside(shard) {
            return Err(fail(HuggingFaceError::ShardPath {
                tensor: tensor.clone(),
                path: shard.clone(),
            }));
        }
        by_shard.entry(shard).or_default().push(tensor);
    }
    if by_shard.is_empty() {
        return Err(fail(HuggingFaceError::NoTensors));
    }
    for (shard, expected) in by_shard {
        let file = folder.join(shard);
        let shard = shard.to_owned();
        if !file.exists() {
            let tensor = expected[0].to_owned();
            return Err(fail(HuggingFaceError::MissingShard { shard, tensor }));
        }
        let found = model.add(&file)?;
        if let Some(tensor) = expected
            .iter()
            .find(|name| found.binary_search_by(|have| have.as_str().cmp(name)).is_err())
        {
            let tensor = (*tensor).to_owned();
            return Err(fail(HuggingFaceError::MissingTensor { tensor, shard }));
        }
    }
    Ok(())
}

struct Model {
    architecture: &'static Architecture,
    tensors: BTreeMap<Arc<str>, Tensor>,
    /// Name in the file by internal name, for messages.
    origins: BTreeMap<Arc<str>, String>,
}

impl Model {
    /// Adds a file's tensors; returns the names it holds, sorted.
    fn add(&mut self, file: &Path) -> Result<Vec<String>, ModelFileError> {
        let storage = map(file)?;
        let bad_file = |source| ModelFileError::Safetensors { file: file.to_path_buf(), source };
        let mut names = Vec::new();
        for record in safetensors::read(&storage).map_err(bad_file)? {
            names.push(record.name.clone());
            let internal: Arc<str> = match names::internal(self.architecture, &record.name) {
                Named::Internal(internal) => internal.into(),
                Named::Ignored => continue,
                Named::Unknown => {
                    return Err(at(file)(HuggingFaceError::UnknownTensor {
                        name: record.name,
                        architecture: self.architecture.name,
                    }));
                }
            };
            if let Some(first) = self.origins.insert(internal.clone(), record.name.clone()) {
                return Err(at(file)(HuggingFaceError::SameTensor {
                    first,
                    second: record.name,
                    internal: internal.to_string(),
                }));
            }
            let tensor = record.tensor(internal.clone(), &storage).map_err(bad_file)?;
            self.tensors.insert(internal, tensor);
        }
        names.sort_unstable();
        Ok(names)
    }
}

/// Puts the file's name on an error.
fn at(file: &Path) -> impl Fn(HuggingFaceError) -> ModelFileError {
    |source| ModelFileError::HuggingFace { file: file.to_path_buf(), source }
}

/// Is this a path to a file in the folder or below it?
fn stays_inside(path: &str) -> bool {
    !path.is_empty()
        && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)))
}

fn read_text(path: &Path, most: u64) -> Result<Vec<u8>, ModelFileError> {
    let facts = std::fs::metadata(path).map_err(|source| ModelFileError::io(path, source))?;
    if facts.len() > most {
        return Err(at(path)(HuggingFaceError::TooLarge { most, got: facts.len() }));
    }
    std::fs::read(path).map_err(|source| ModelFileError::io(path, source))
}

fn read_table(path: &Path) -> Result<Map<String, Value>, ModelFileError> {
    let text = read_text(path, MAX_CONFIG)?;
    serde_json::from_slice(&text).map_err(|source| at(path)(HuggingFaceError::Json(source)))
}

/// The index's map from tensors to files; a tensor that stands in it twice is refused.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>, ModelFileError> {
    #[derive(serde::Deserialize)]
    struct Index {
        #[serde(deserialize_with = "json::unique_keys")]
        weight_map: BTreeMap<String, String>,
    }
    let text = read_text(path, MAX_INDEX)?;
    serde_json::from_slice(&text)
        .map(|index: Index| index.weight_map)
        .map_err(|source| at(path)(HuggingFaceError::Json(source)))
}
