//! A model as it lies in files, whatever their format: metadata and named tensors.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::gguf::{self, GgufError, SplitName};
use crate::huggingface::{self, HuggingFaceError, Weights};
use crate::metadata::Metadata;
use crate::onnx::{OnnxError, OnnxFiles};
use crate::safetensors::SafetensorsError;
use crate::{BlockType, Storage, Weight};

/// What kind of files a model came from; names and hyper-parameters are the same for both, but
/// values can be stored differently (rotary halves interleaved or not, norms with or without one
/// added), which an architecture settles by the origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// One or more GGUF files.
    Gguf,
    /// A folder with `config.json` and safetensors.
    HuggingFace,
    /// An ONNX model, with its configuration beside it.
    Onnx,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gguf => "GGUF",
            Self::HuggingFace => "Hugging Face folder",
            Self::Onnx => "ONNX model",
        })
    }
}

/// A stored tensor, checked to lie within its storage.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Tensor {
    /// Internal (GGUF style) name.
    pub name: Arc<str>,
    /// Element layout.
    pub block: BlockType,
    /// Dimensions, outermost first; none for a single value.
    pub shape: Vec<u64>,
    /// What it is a view of.
    pub storage: Arc<Storage>,
    /// First byte in the storage.
    pub offset: u64,
}

impl Tensor {
    /// Rows and columns as [`weight`](Self::weight) gives them: the innermost dimension is a row,
    /// all others are flattened (a stack of experts is one matrix of experts x rows).
    pub fn rows_and_columns(&self) -> (u64, u64) {
        match self.shape.split_last() {
            Some((&columns, outer)) => (outer.iter().product(), columns),
            None => (1, 1),
        }
    }

    /// Bytes of the tensor's data.
    pub fn len_bytes(&self) -> u64 {
        let (rows, columns) = self.rows_and_columns();
        rows * self.block.row_bytes(columns).expect("importers check that rows are whole blocks")
    }

    /// The tensor's data.
    pub fn bytes(&self) -> &[u8] {
        // Importers check that the data lies within the storage, so both fit in a usize.
        let start = self.offset as usize;
        &self.storage.bytes()[start..start + self.len_bytes() as usize]
    }

    /// The tensor as a matrix view; a vector is one row.
    pub fn weight(&self) -> Weight {
        let (rows, columns) = self.rows_and_columns();
        Weight::new(
            self.name.clone(),
            self.block,
            rows as usize,
            columns as usize,
            self.storage.clone(),
            self.offset as usize,
        )
        .expect("importers check that the data lies within the storage")
    }
}

/// Why a model could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelFileError {
    /// The file could not be read at all.
    #[error("{}: cannot be read", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// Neither a model file nor a folder with one.
    #[error("{}: expected {expected}, got {got}", path.display())]
    NotAModel {
        /// What was given.
        path: PathBuf,
        /// What could have been opened.
        expected: &'static str,
        /// What it is.
        got: String,
    },
    /// A damaged or unsupported GGUF file.
    #[error("{file}: not a usable GGUF file")]
    Gguf {
        /// The file.
        file: String,
        /// What is wrong with it.
        #[source]
        source: GgufError,
    },
    /// A damaged or unsupported safetensors file.
    #[error("{}: not a usable safetensors file", file.display())]
    Safetensors {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        #[source]
        source: SafetensorsError,
    },
    /// Another file of a Hugging Face folder, or a tensor that does not belong.
    #[error("{}: not usable as part of a Hugging Face model", file.display())]
    HuggingFace {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        #[source]
        source: HuggingFaceError,
    },
    /// A damaged ONNX model, or one with an op that is not known.
    #[error("{}: not usable as an ONNX model", file.display())]
    Onnx {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Box<OnnxError>,
    },
    /// A model in several parts of which one is not there.
    #[error("{}: part {number} of {count} is missing; put all parts in one folder", file.display())]
    MissingPart {
        /// Where it should be.
        file: PathBuf,
        /// Its number, from 1.
        number: u64,
        /// Number of parts.
        count: u64,
    },
}

impl ModelFileError {
    pub(crate) fn gguf(file: &Path, source: GgufError) -> Self {
        Self::Gguf { file: file.display().to_string(), source }
    }

    pub(crate) fn io(file: &Path, source: std::io::Error) -> Self {
        Self::Io { file: file.to_path_buf(), source }
    }
}

/// Maps a regular file; anything else (a pipe would block) is refused.
pub(crate) fn map(path: &Path) -> Result<Arc<Storage>, ModelFileError> {
    let facts = std::fs::metadata(path).map_err(|source| ModelFileError::io(path, source))?;
    if !facts.is_file() {
        return Err(ModelFileError::NotAModel {
            path: path.to_path_buf(),
            expected: "a regular file",
            got: if facts.is_dir() { "a folder" } else { "a device or pipe" }.to_owned(),
        });
    }
    Storage::map(path).map_err(|source| ModelFileError::io(path, source))
}

/// An opened model: what both importers give.
#[derive(Debug)]
#[non_exhaustive]
pub struct ModelFile {
    /// Kind of files.
    pub origin: Origin,
    /// Path or name for messages.
    pub label: String,
    /// GGUF style keys: `general.architecture`, `llama.block_count`, ...
    pub metadata: Metadata,
    /// All tensors by internal (GGUF style) name.
    pub tensors: BTreeMap<Arc<str>, Tensor>,
    /// The folder of a Hugging Face or ONNX model, where `tokenizer.json`, `tokenizer_config.json`,
    /// `generation_config.json` and `chat_template.jinja` lie.
    pub folder: Option<PathBuf>,
}

const EXPECTED: &str = "a .gguf file, a folder with config.json and safetensors, a folder with one GGUF \
                        model, or one with an ONNX model";

impl ModelFile {
    /// Opens a GGUF file (any part of a split one), a folder with `config.json` and safetensors (or
    /// a safetensors file in one), a folder with an ONNX model (or a `.onnx` file), or a folder that
    /// holds exactly one GGUF model. Of a folder with several the first of these is taken.
    pub fn open(path: &Path) -> Result<Self, ModelFileError> {
        let facts = std::fs::metadata(path).map_err(|source| ModelFileError::io(path, source))?;
        let is = |wanted: &str| path.extension().is_some_and(|extension| extension == wanted);
        let (safetensors, onnx) = (is("safetensors"), is("onnx"));
        let (folder, given) = match path.parent() {
            _ if facts.is_dir() => (path, None),
            // The parent of a bare file name is empty.
            Some(folder) if (safetensors || onnx) && folder.as_os_str().is_empty() => {
                (Path::new("."), Some(path))
            }
            Some(folder) if safetensors || onnx => (folder, Some(path)),
            _ => return Self::open_gguf(path),
        };
        if onnx && given.is_some() {
            let files = OnnxFiles::find(folder, given)?;
            return files.map_or_else(|| Self::open_gguf(path), |files| Self::open_onnx(&files));
        }
        match Weights::find(folder, given)? {
            Some(weights) => {
                let (metadata, tensors) = huggingface::open(folder, &weights)?;
                Ok(Self {
                    origin: Origin::HuggingFace,
                    label: folder.display().to_string(),
                    metadata,
                    tensors,
                    folder: Some(folder.to_path_buf()),
                })
            }
            None if safetensors => Err(ModelFileError::NotAModel {
                path: path.to_path_buf(),
                expected: "config.json in the same folder",
                got: "a safetensors file alone".to_owned(),
            }),
            None => match OnnxFiles::find(folder, None)? {
                Some(files) => Self::open_onnx(&files),
                None => Self::open_gguf(&only_gguf(folder)?),
            },
        }
    }

    fn open_onnx(files: &OnnxFiles) -> Result<Self, ModelFileError> {
        let (metadata, tensors) = files.open()?;
        Ok(Self {
            origin: Origin::Onnx,
            label: files.folder.display().to_string(),
            metadata,
            tensors,
            folder: Some(files.folder.clone()),
        })
    }

    /// A model by its `config.json` alone: its tensors have the formats that `format` says for a name
    /// and a shape, and hold nothing. Enough to lower, to count and to plan.
    pub fn from_config(
        path: &Path,
        format: impl Fn(&str, &[u64]) -> BlockType,
    ) -> Result<Self, ModelFileError> {
        let (mut metadata, shapes) = huggingface::shapes(path)?;
        let fail = |source| ModelFileError::io(path, source);
        let tensors = crate::shape::reserve(&path.display().to_string(), shapes, format);
        let absolute = std::path::absolute(path).map_err(fail)?;
        let folder = absolute.parent().map(Path::to_path_buf);
        let name = folder.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy());
        if let Some(name) = name.filter(|_| !metadata.contains("general.name")) {
            metadata.set("general.name", &*name);
        }
        Ok(Self {
            origin: Origin::HuggingFace,
            label: path.display().to_string(),
            metadata,
            tensors: tensors.map_err(fail)?,
            folder,
        })
    }

    fn open_gguf(file: &Path) -> Result<Self, ModelFileError> {
        let (metadata, tensors) = gguf::open(file)?;
        Ok(Self::from_gguf(file.display().to_string(), metadata, tensors))
    }

    /// Opens a GGUF file that is part of the program.
    pub fn from_static(bytes: &'static [u8], label: &str) -> Result<Self, ModelFileError> {
        Self::from_storage(Arc::new(Storage::Static(bytes)), label)
    }

    /// Opens a GGUF file in any storage.
    pub fn from_storage(storage: Arc<Storage>, label: &str) -> Result<Self, ModelFileError> {
        let fail = |source| ModelFileError::Gguf { file: label.to_owned(), source };
        let part = gguf::read(&storage).map_err(fail)?;
        let count = part.metadata.u64("split.count").map_err(|error| fail(error.into()))?;
        if count.is_some_and(|count| count > 1) {
            return Err(fail(GgufError::SplitInMemory));
        }
        Ok(Self::from_gguf(label.to_owned(), part.metadata, part.tensors))
    }

    fn from_gguf(label: String, metadata: Metadata, tensors: Vec<Tensor>) -> Self {
        let tensors = tensors.into_iter().map(|tensor| (tensor.name.clone(), tensor)).collect();
        Self { origin: Origin::Gguf, label, metadata, tensors, folder: None }
    }

    /// A hash (BLAKE3, hexadecimal) that tells models apart quickly: over the metadata, the tensor
    /// table (names, layouts, shapes) and up to three sampled pieces of [`SAMPLE`] bytes of each
    /// tensor (start, middle, end), but not all weights. It does not depend on the path, nor on
    /// whether a GGUF model is in one file or several.
    pub fn fingerprint(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        let mut entry = Vec::new();
        for (key, value) in self.metadata.iter() {
            entry.clear();
            gguf::encode_entry(&mut entry, key, value);
            hasher.update(&entry);
        }
        // Each sample may cost a read from disk: models with very many tensors get fewer.
        let samples = (6_000 / self.tensors.len().max(1)).clamp(1, 3);
        for tensor in self.tensors.values() {
            hasher
                .update(format!("{} {} {:?};", tensor.name, tensor.block, tensor.shape).as_bytes());
            let bytes = tensor.bytes();
            let last = bytes.len().saturating_sub(SAMPLE);
            for start in [0, last / 2, last].into_iter().take(samples) {
                hasher.update(&bytes[start..bytes.len().min(start + SAMPLE)]);
            }
        }
        hasher.finalize().to_hex().to_string()
    }
}

/// Bytes of one sample of [`ModelFile::fingerprint`].
pub const SAMPLE: usize = 1024;

/// The one GGUF model in a folder: its only file, or the first part of its only set.
fn only_gguf(folder: &Path) -> Result<PathBuf, ModelFileError> {
    let fail = |source| ModelFileError::io(folder, source);
    let mut models = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let later_part = SplitName::parse(&name).is_some_and(|name| name.number > 1);
        if name.ends_with(".gguf") && !name.starts_with('.') && !later_part {
            models.push(path);
        }
    }
    models.sort();
    match models.as_slice() {
        [only] => Ok(only.clone()),
        [] => Err(ModelFileError::NotAModel {
            path: folder.to_path_buf(),
            expected: EXPECTED,
            got: "a folder with neither".to_owned(),
        }),
        [first, second, ..] => Err(ModelFileError::NotAModel {
            path: folder.to_path_buf(),
            expected: EXPECTED,
            got: format!(
                "a folder with {} GGUF models ({}, {}, ...); name one of them",
                models.len(),
                first.file_name().unwrap_or_default().to_string_lossy(),
                second.file_name().unwrap_or_default().to_string_lossy(),
            ),
        }),
    }
}
