//! Whole GGUF files.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use trefoil_graph::{ModelFile, Storage};

fuzz_target!(|bytes: &[u8]| {
    let storage = Arc::new(Storage::Owned(bytes.to_vec()));
    if let Ok(model) = ModelFile::from_storage(storage, "fuzz") {
        trefoil_fuzz::touch(&model);
    }
});
