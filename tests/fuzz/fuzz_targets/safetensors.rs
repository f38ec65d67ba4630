//! Safetensors files.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use trefoil_fuzz::Folder;

static FOLDER: LazyLock<Folder> = LazyLock::new(|| Folder::new("part.safetensors"));

fuzz_target!(|bytes: &[u8]| FOLDER.open(bytes));
