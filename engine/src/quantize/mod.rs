//! Writing a model anew in another number format, tensor by tensor in flat memory.

mod mixture;
mod recipe;
mod recode;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fmt, io};

use serde::Serialize;
use trefoil_graph::gguf::{FileWriter, TensorSpec};
use trefoil_graph::shape::ModelShape;
use trefoil_graph::{BlockType, ModelFile, ModelFileError, Origin, Storage, Tensor};
use trefoil_telemetry::Bytes;

pub use mixture::{Mixture, MixtureFacts, UnknownMixture};
pub(crate) use recipe::Choice;
use recipe::Recipe;
pub use recipe::{Fallback, SMALL, Target, UnknownTarget};
use recode::{Lost, Recoder};

/// Version of the block layouts, as `general.quantization_version` (GGUF specification).
const LAYOUTS: u32 = 2;

/// How a model is quantised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuantizeOptions {
    /// The type.
    pub to: Target,
    /// Threads that encode; 0 for as many as the machine has.
    pub threads: usize,
    /// Is a file that is there replaced?
    pub force: bool,
}

/// A model that was not quantised. No target file is left, or the one that was there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QuantizeError {
    /// The source cannot be opened.
    #[error(transparent)]
    Source(#[from] ModelFileError),
    /// A source that cannot give all that a GGUF file needs.
    #[error(
        "{label}: expected a GGUF model, got a {origin}: its tokenizer cannot be carried over; \
         make a GGUF file in F16 or BF16 of it with its own converter first"
    )]
    NotGguf {
        /// The source.
        label: String,
        /// What it is.
        origin: Origin,
    },
    /// The target is (part of) the source.
    #[error("{}: expected another file than the source; name a new one", target.display())]
    SameFile {
        /// The target.
        target: PathBuf,
    },
    /// The target is there.
    #[error("{}: expected a new file, but it exists; force it to replace the file", target.display())]
    Exists {
        /// The target.
        target: PathBuf,
    },
    /// The target cannot be written: no such folder, no right, no space.
    #[error("{}: cannot be written", target.display())]
    Write {
        /// The target.
        target: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

/// A model of a known shape in a target's types, without weights: enough to plan.
pub fn without_weights(shape: &ModelShape, to: Target) -> io::Result<ModelFile> {
    let plain = shape.without_weights(|_, _| BlockType::F32)?;
    let recipe = Recipe::new(&plain, to);
    shape.without_weights(|name, _| recipe.choose(&plain.tensors[name]).block)
}

/// A model by its `config.json` in a target's types, without weights: enough to plan.
pub fn config_without_weights(path: &Path, to: Target) -> Result<ModelFile, ModelFileError> {
    let plain = ModelFile::from_config(path, |_, _| BlockType::F32)?;
    let recipe = Recipe::new(&plain, to);
    ModelFile::from_config(path, |name, _| recipe.choose(&plain.tensors[name]).block)
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress<'a> {
    /// Tensor at work.
    pub tensor: &'a str,
    /// Bytes of the source that are done.
    pub done: u64,
    /// Bytes of the source.
    pub total: u64,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// The type.
    pub to: Target,
    /// Bytes of the source's tensors.
    pub source: Bytes,
    /// Bytes of the target's tensors.
    pub target: Bytes,
    /// Number and bytes of the target's tensors, by type.
    pub types: BTreeMap<BlockType, (usize, Bytes)>,
    /// Tensors that could not get the type wanted.
    pub fallbacks: Vec<Fallback>,
    /// Number of quantised tensors that became another quantised type, by the type they had.
    pub requantised: BTreeMap<BlockType, usize>,
    /// Values that were infinite or not a number, now the largest number or 0.
    pub not_finite: u64,
    /// Values too large for F16, now its largest.
    pub saturated: u64,
}

impl Summary {
    /// What the user should know, one sentence each.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if !self.requantised.is_empty() {
            let counts =
                self.requantised.iter().map(|(block, count)| format!("{count} of {block}"));
            warnings.push(format!(
                "tensors were quantised before ({}), so errors add up; a source in F16, BF16 or \
                 F32 gives a better model",
                counts.collect::<Vec<_>>().join(", ")
            ));
        }
        let mut kinds: BTreeMap<(BlockType, BlockType), Vec<&Fallback>> = BTreeMap::new();
        for fallback in &self.fallbacks {
            kinds.entry((fallback.wanted, fallback.got)).or_default().push(fallback);
        }
        for ((wanted, got), tensors) in kinds {
            let first = tensors[0];
            warnings.push(format!(
                "{} tensors got {got} instead of {wanted}, whose blocks of {} do not fill their \
                 rows ({}: {} elements)",
                tensors.len(),
                wanted.info().elements,
                first.tensor,
                first.columns
            ));
        }
        if self.not_finite > 0 {
            let count = self.not_finite;
            warnings.push(format!("{count} values were not finite; is the source damaged?"));
        }
        if self.saturated > 0 {
            let count = self.saturated;
            warnings.push(format!("{count} values were too large for F16; BF16 holds them"));
        }
        warnings
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} from {}", self.to, self.target, self.source)?;
        for (block, (tensors, bytes)) in &self.types {
            write!(f, "; {tensors} tensors {block}, {bytes}")?;
        }
        Ok(())
    }
}

/// Writes the GGUF model at `source` (any part of a split one) to the file `target` in another
/// type, all metadata kept. The target appears under its name once it is complete. `progress` is
/// called after each piece of some MiB.
pub fn quantize(
    source: &Path,
    target: &Path,
    options: QuantizeOptions,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Summary, QuantizeError> {
    quantize_file(&ModelFile::open(source)?, target, options, progress)
}

/// [`quantize`] of a model that is open.
pub fn quantize_file(
    file: &ModelFile,
    target: &Path,
    options: QuantizeOptions,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Summary, QuantizeError> {
    if file.origin != Origin::Gguf {
        let (label, origin) = (file.label.clone(), file.origin);
        return Err(QuantizeError::NotGguf { label, origin });
    }
    check_target(file, target, options.force)?;
    let fail = |source| QuantizeError::Write { target: target.to_path_buf(), source };
    let jobs = jobs(file, options.to);
    let mut metadata = file.metadata.clone();
    metadata.set("general.file_type", options.to.file_type());
    metadata.set("general.quantization_version", LAYOUTS);
    let specs: Vec<TensorSpec> = jobs
        .iter()
        .map(|job| TensorSpec::new(job.tensor.name.clone(), job.block, job.tensor.shape.clone()))
        .collect();
    let mut summary = Summary::begin(&jobs, &specs, options.to).map_err(fail)?;
    let mut writer = FileWriter::create(target, &metadata, &specs).map_err(fail)?;
    let threads = match options.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        given => given,
    };
    let (mut done, total, mut buffer) = (0, summary.source.0, Vec::new());
    for job in &jobs {
        let name = &*job.tensor.name;
        let (source, from) = (job.tensor.bytes(), job.tensor.block);
        let recoder = Recoder { source, from, to: job.block, threads };
        let lost = recoder.run(&mut buffer, |bytes, from| {
            writer.write(name, bytes)?;
            done += from;
            progress(Progress { tensor: name, done, total });
            Ok(())
        });
        let Lost { not_finite, saturated } = lost.map_err(fail)?;
        summary.not_finite += not_finite;
        summary.saturated += saturated;
    }
    writer.finish().map_err(fail)?;
    Ok(summary)
}

/// A tensor and what becomes of it.
struct Job<'m> {
    tensor: &'m Tensor,
    block: BlockType,
    fallback: Option<Fallback>,
}

/// All tensors in the order of the source's files, so that these are read from front to back.
fn jobs(file: &ModelFile, to: Target) -> Vec<Job<'_>> {
    let recipe = Recipe::new(file, to);
    let mut tensors: Vec<&Tensor> = file.tensors.values().collect();
    tensors.sort_by_cached_key(|tensor| (tensor.storage.label(), tensor.offset));
    let job = |tensor| {
        let Choice { block, wanted } = recipe.choose(tensor);
        let fallback = wanted.map(|wanted| Fallback {
            tensor: tensor.name.to_string(),
            columns: tensor.rows_and_columns().1,
            wanted,
            got: block,
        });
        Job { tensor, block, fallback }
    };
    tensors.into_iter().map(job).collect()
}

impl Summary {
    /// What is known before the values are seen.
    fn begin(jobs: &[Job<'_>], specs: &[TensorSpec], to: Target) -> io::Result<Self> {
        let mut summary = Self {
            to,
            source: Bytes(0),
            target: Bytes(0),
            types: BTreeMap::new(),
            fallbacks: jobs.iter().filter_map(|job| job.fallback.clone()).collect(),
            requantised: BTreeMap::new(),
            not_finite: 0,
            saturated: 0,
        };
        for (job, spec) in jobs.iter().zip(specs) {
            let bytes = Bytes(spec.bytes()?);
            summary.source = summary.source + Bytes(job.tensor.len_bytes());
            summary.target = summary.target + bytes;
            let row = summary.types.entry(job.block).or_default();
            *row = (row.0 + 1, row.1 + bytes);
            let quantised = |block: BlockType| !block.is_float() && !block.is_integer();
            let from = job.tensor.block;
            if from != job.block && quantised(from) && quantised(job.block) {
                *summary.requantised.entry(from).or_default() += 1;
            }
        }
        Ok(summary)
    }
}

fn check_target(file: &ModelFile, target: &Path, force: bool) -> Result<(), QuantizeError> {
    let target = || target.to_path_buf();
    // Also what a link leads to; a path that leads nowhere is no file of the source.
    if let Ok(real) = target().canonicalize() {
        let is_target = |tensor: &Tensor| match &*tensor.storage {
            Storage::Mapped { path, .. } => path.canonicalize().is_ok_and(|path| path == real),
            _ => false,
        };
        if file.tensors.values().any(is_target) {
            return Err(QuantizeError::SameFile { target: target() });
        }
    }
    match target().symlink_metadata() {
        Ok(facts) if facts.is_dir() => {
            let source = io::Error::from(io::ErrorKind::IsADirectory);
            Err(QuantizeError::Write { target: target(), source })
        }
        Ok(_) if !force => Err(QuantizeError::Exists { target: target() }),
        _ => Ok(()),
    }
}
