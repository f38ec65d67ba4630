//! What the fuzz targets share.

use std::path::PathBuf;

use tempfile::TempDir;
use trefoil_graph::inspect::{InspectOptions, Report};
use trefoil_graph::{LowerOptions, ModelFile, lower};

/// Reads the first and last byte of each tensor of a model that opened, lowers it and reports on it.
pub fn touch(model: &ModelFile) {
    std::hint::black_box(model.fingerprint());
    for tensor in model.tensors.values() {
        let weight = tensor.weight();
        std::hint::black_box((tensor.bytes().first(), tensor.bytes().last()));
        std::hint::black_box(weight.row(weight.rows - 1).last());
    }
    if let Ok((hyper, graph)) = lower(model, LowerOptions::default()) {
        let options =
            InspectOptions { context: hyper.context, kv_element_bytes: 2.0, budget: None };
        std::hint::black_box(Report::new(model, &hyper, &graph, options).to_text());
    }
}

/// A valid Hugging Face folder of which one file is the fuzzer's.
pub struct Folder {
    folder: TempDir,
    file: PathBuf,
}

impl Folder {
    /// A folder in which `file` will be replaced.
    pub fn new(file: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let put = |name: &str, bytes: &[u8]| {
            std::fs::write(folder.path().join(name), bytes).expect("a file in it");
        };
        put("config.json", include_bytes!("../seeds/config/gemma3.json"));
        put("model.safetensors.index.json", include_bytes!("../seeds/index/one.json"));
        put("part.safetensors", include_bytes!("../seeds/safetensors/norm.safetensors"));
        let file = folder.path().join(file);
        Self { folder, file }
    }

    /// Opens the folder with this content of the file.
    pub fn open(&self, content: &[u8]) {
        std::fs::write(&self.file, content).expect("written");
        if let Ok(model) = ModelFile::open(self.folder.path()) {
            touch(&model);
        }
    }
}
