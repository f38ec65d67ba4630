//! Round trips and refusals.

use std::path::{Path, PathBuf};

use super::*;
use crate::metadata::{Array, Metadata, Value};
use crate::{BlockType, ModelFile};

/// The golden data beside the workspace, where it is there.
fn golden() -> Option<PathBuf> {
    let shared = std::env::var_os("TREFOIL_SHARED")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared"), PathBuf::from);
    Some(shared.join("golden")).filter(|path| path.is_dir())
}

fn gguf_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            gguf_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "gguf") {
            found.push(path);
        }
    }
}

#[test]
fn golden_files_open_and_are_written_again_byte_for_byte() {
    let Some(golden) = golden() else { return };
    let mut files = Vec::new();
    gguf_files(&golden, &mut files);
    assert!(files.len() > 40, "{} golden files", files.len());
    for path in files {
        let storage = crate::Storage::map(&path).unwrap();
        let part = read(&storage).unwrap();
        let tensors: Vec<_> = part
            .tensors
            .iter()
            .map(|t| (TensorSpec::new(t.name.clone(), t.block, t.shape.clone()), t.bytes()))
            .collect();
        let again = to_bytes(&part.metadata, &tensors).unwrap();
        assert!(again == storage.bytes(), "{}", path.display());
    }
}

fn every_type() -> Metadata {
    let nested = Array::Array(vec![
        Array::U8(vec![1]),
        Array::Array(vec![Array::String(vec!["deep".into()])]),
    ]);
    [
        ("u8", Value::U8(1)),
        ("i8", Value::I8(-1)),
        ("u16", Value::U16(2)),
        ("i16", Value::I16(-2)),
        ("u32", Value::U32(3)),
        ("i32", Value::I32(-3)),
        ("u64", Value::U64(u64::MAX)),
        ("i64", Value::I64(i64::MIN)),
        ("f32", Value::F32(0.5)),
        ("f64", Value::F64(0.25)),
        ("bool", Value::Bool(true)),
        ("string", Value::from("naïve")),
        ("u8s", Value::from(vec![1u8, 2])),
        ("i8s", Value::from(vec![-1i8, 2])),
        ("u16s", Value::from(vec![1u16, 2])),
        ("i16s", Value::from(vec![-1i16, 2])),
        ("u32s", Value::from(vec![1u32, 2])),
        ("i32s", Value::from(vec![-1i32, 2])),
        ("u64s", Value::from(vec![1u64, 2])),
        ("i64s", Value::from(vec![-1i64, 2])),
        ("f32s", Value::from(vec![1.5f32])),
        ("f64s", Value::from(vec![1.5f64])),
        ("bools", Value::from(vec![true, false])),
        ("strings", Value::from(vec!["a".to_owned(), String::new()])),
        ("nested", Value::Array(nested)),
        ("empty", Value::Array(Array::Array(Vec::new()))),
    ]
    .into_iter()
    .collect()
}

#[test]
fn every_value_type_survives_a_round_trip() {
    let metadata = every_type();
    let spec = TensorSpec::new("t", BlockType::F32, [2, 3]);
    let data: Vec<u8> = (0..24).collect();
    let bytes = to_bytes(&metadata, &[(spec, &data)]).unwrap();
    let model = ModelFile::from_static(bytes.leak(), "test").unwrap();
    assert_eq!(model.metadata, metadata);
    let tensor = &model.tensors["t"];
    assert_eq!((tensor.shape.as_slice(), tensor.bytes()), (&[2, 3][..], &data[..]));
    let weight = tensor.weight();
    assert_eq!((weight.rows, weight.cols, weight.row(1)), (2, 3, &data[12..]));
    assert_eq!(model.fingerprint().len(), 64);
}
