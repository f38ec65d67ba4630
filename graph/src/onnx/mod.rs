//! ONNX models: `model.onnx` with what lies beside it, lowered to the layer graph where every op on
//! the way to the result is known.
//!
//! Two families are read: encoders as exporters write them (with norms, attention and GELU as single
//! ops, written out, or as ONNX Runtime's fused ones), and decoders as the model builder of
//! onnxruntime-genai writes them. The graph is *understood*, not run: [`walk`] gives each value its
//! meaning, [`encoder`] and [`decoder`] find the model in the meaning of its output, and the result are
//! the keys and tensors that a GGUF file of the same model has. What is not known is refused with the
//! op's name and place.
//!
//! Keys of its own: `onnx.file`, the model's file; `onnx.copied_bytes`, bytes of weights that are copies
//! because the file has them in another layout (`[in, out]` matrices, quantised codes apart from their
//! scales, data at odd addresses); `onnx.scale_rounding`, the largest squared error relative to squared
//! weights of a matrix whose scales were rounded to half precision (see [`blocks`]).

mod blocks;
mod build;
mod config;
mod constants;
mod decoder;
mod encoder;
mod error;
mod fused;
mod parts;
mod plain;
mod products;
mod proto;
mod rope;
mod shapes;
mod value;
mod walk;
mod wire;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use error::OnnxError;

use crate::Tensor;
use crate::huggingface;
use crate::metadata::Metadata;
use crate::model_file::{ModelFileError, map};
use build::Builder;
use config::Genai;
use constants::Loader;
use decoder::Decoder;
use encoder::Encoder;
use value::{Expr, Layout, Value};
use walk::Walk;

/// An ONNX model's file and the folder with its configuration.
pub(crate) struct OnnxFiles {
    /// The model.
    file: PathBuf,
    /// Where configuration and tokenizer lie.
    pub(crate) folder: PathBuf,
    genai: Option<Genai>,
}

impl OnnxFiles {
    /// The ONNX model of a folder; `None` if there is none. `given` is the file that the user named.
    pub(crate) fn find(
        folder: &Path,
        given: Option<&Path>,
    ) -> Result<Option<Self>, ModelFileError> {
        // Exporters put models into a folder of their own below the configuration.
        let inner = folder.file_name().is_some_and(|name| name == "onnx");
        let outer = folder.parent().filter(|outer| {
            inner
                && !folder.join("tokenizer.json").exists()
                && outer.join("tokenizer.json").exists()
        });
        let genai_path = folder.join("genai_config.json");
        let genai = match genai_path.is_file() {
            true => Some(read_genai(&genai_path)?),
            false => None,
        };
        let file = match given {
            Some(file) => Some(file.to_path_buf()),
            None => Self::file_in(folder, genai.as_ref(), &genai_path)?,
        };
        let folder = outer.unwrap_or(folder).to_path_buf();
        Ok(file.map(|file| Self { file, folder, genai }))
    }

    fn file_in(
        folder: &Path,
        genai: Option<&Genai>,
        genai_path: &Path,
    ) -> Result<Option<PathBuf>, ModelFileError> {
        if let Some(genai) = genai
            && let Some(name) = genai.file_name().map_err(at(genai_path))?
        {
            if Path::new(name).file_name().is_none_or(|only| only != name) {
                return Err(at(genai_path)(OnnxError::Config {
                    file: "genai_config.json",
                    field: "model.decoder.filename".to_owned(),
                    expected: "the name of a file in the folder".to_owned(),
                    got: name.to_owned(),
                }));
            }
            return Ok(Some(folder.join(name)));
        }
        for name in ["model.onnx", "onnx/model.onnx"] {
            let file = folder.join(name);
            if file.is_file() {
                return Ok(Some(file));
            }
        }
        let fail = |source| ModelFileError::io(folder, source);
        let mut found = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(fail)? {
            let path = entry.map_err(fail)?.path();
            if path.extension().is_some_and(|extension| extension == "onnx") {
                found.push(path);
            }
        }
        match found.len() {
            0 => Ok(None),
            1 => Ok(found.pop()),
            count => Err(ModelFileError::NotAModel {
                path: folder.to_path_buf(),
                expected: "one .onnx file, or one called model.onnx",
                got: format!("{count} of other names; name one of them"),
            }),
        }
    }

    /// Opens the model.
    pub(crate) fn open(&self) -> Result<(Metadata, BTreeMap<Arc<str>, Tensor>), ModelFileError> {
        let storage = map(&self.file)?;
        // Data in other files is beside the model.
        let folder = match self.file.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let fail = at(&self.file);
        let graph = proto::model(storage.bytes()).map_err(&fail)?;
        let mut loader = Loader::new(&storage, folder);
        let walk = Walk::run(&graph, &mut loader).map_err(&fail)?;
        let mut builder = Builder::new(&walk.constants, loader.file_bytes());
        let mut metadata = Metadata::new();
        let genai = self.genai.as_ref();
        let kind = genai.map_or(Ok(None), Genai::kind).map_err(&fail)?;
        build(&walk, &graph.outputs, &mut builder, &mut metadata, kind).map_err(&fail)?;
        if let Some(genai) = genai {
            genai.apply(&mut metadata).map_err(at(&self.folder.join("genai_config.json")))?;
        }
        huggingface::extras(&self.folder, &mut metadata)?;
        let name = self.file.file_name().unwrap_or_default().to_string_lossy();
        metadata.set("onnx.file", &*name);
        metadata.set("onnx.copied_bytes", builder.copied);
        metadata.set("onnx.scale_rounding", builder.rounding as f32);
        if let Some(name) =
            std::path::absolute(&self.folder).ok().as_deref().and_then(Path::file_name)
        {
            metadata.set("general.name", &*name.to_string_lossy());
        }
        Ok((metadata, builder.tensors))
    }
}

/// Puts the file's name on an error.
fn at(file: &Path) -> impl Fn(OnnxError) -> ModelFileError {
    |source| ModelFileError::Onnx { file: file.to_path_buf(), source: Box::new(source) }
}

fn read_genai(path: &Path) -> Result<Genai, ModelFileError> {
    let fail = |source| ModelFileError::io(path, source);
    let bytes = std::fs::metadata(path).map_err(fail)?.len();
    if bytes > config::MOST_BYTES {
        return Err(at(path)(OnnxError::TooLarge { most: config::MOST_BYTES, got: bytes }));
    }
    let text = std::fs::read(path).map_err(fail)?;
    Genai::parse(&text).map_err(at(path))
}

/// Finds the model in the outputs' meanings and builds its tensors and keys.
fn build(
    walk: &Walk<'_>,
    outputs: &[&str],
    builder: &mut Builder<'_>,
    metadata: &mut Metadata,
    kind: Option<&str>,
) -> Result<(), OnnxError> {
    let mut refusals = Vec::new();
    let (mut encoder, mut pooling) = (None::<Encoder>, None);
    for &name in outputs {
        let value = walk.value(name).ok_or_else(|| OnnxError::Structure {
            place: format!("output `{name}`"),
            expected: "a node that makes it".to_owned(),
            got: "none".to_owned(),
        })?;
        let id = match value {
            Value::Data(id, Layout::Rows | Layout::Pooled) => *id,
            Value::Unknown(first) => {
                let (op, node, why) = (first.op.clone(), first.node.clone(), first.why.clone());
                refusals.push((name, OnnxError::Op { op, node, why }));
                continue;
            }
            _ => continue,
        };
        if matches!(walk.arena.expr(id), Expr::Product { .. }) {
            match Decoder::find(&walk.arena, id) {
                Ok(decoder) => return decoder.build(&walk.constants, builder, metadata, kind),
                // An encoder may have a head of its own beside its hidden states.
                Err(error) => refusals.push((name, error)),
            }
            continue;
        }
        let (hidden, way) = match *walk.arena.expr(id) {
            Expr::Mean(x) => (x, Some(1u32)),
            Expr::First(x) => (x, Some(2)),
            Expr::Last(x) => (x, Some(3)),
            _ => (id, None),
        };
        match Encoder::find(&walk.arena, hidden) {
            Ok(found) => {
                pooling = pooling.or(way);
                // Of several hidden states the last.
                if encoder.as_ref().is_none_or(|other| other.blocks() < found.blocks()) {
                    encoder = Some(found);
                }
            }
            Err(error) => refusals.push((name, error)),
        }
    }
    if let Some(encoder) = encoder {
        encoder.build(builder, metadata)?;
        if let Some(pooling) = pooling {
            metadata.set("bert.pooling_type", pooling);
        }
        return Ok(());
    }
    // The result that users want is called so; else the first that there is.
    let wanted = ["logits", "last_hidden_state"];
    let place = refusals.iter().position(|(name, _)| wanted.contains(name)).unwrap_or(0);
    if refusals.is_empty() {
        let got = outputs.iter().take(5).copied().collect::<Vec<_>>().join(", ");
        return Err(OnnxError::NoOutput { got });
    }
    Err(refusals.swap_remove(place).1)
}
