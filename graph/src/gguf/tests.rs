//! Round trips and refusals.

use std::path::{Path, PathBuf};

use super::*;
use crate::metadata::{Array, Metadata, Value};
use crate::test_data;
use crate::{BlockType, ModelFile};

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
    let mut files = Vec::new();
    gguf_files(&test_data::part("models"), &mut files);
    gguf_files(&test_data::part("quants"), &mut files);
    assert!(files.len() > 10, "{} golden files", files.len());
    for path in files {
        let storage = crate::Storage::map(&path).unwrap();
        let file = read(&storage).unwrap();
        let tensors: Vec<_> = file
            .tensors
            .iter()
            .map(|t| (TensorSpec::new(t.name.clone(), t.block, t.shape.clone()), t.bytes()))
            .collect();
        let again = to_bytes(&file.metadata, &tensors).unwrap();
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

/// Builds files field by field, so that each field can be wrong.
#[derive(Clone, Default)]
struct Raw(Vec<u8>);

impl Raw {
    fn header(version: u32, tensors: u64, keys: u64) -> Self {
        Self(b"GGUF".to_vec()).u32(version).u64(tensors).u64(keys)
    }

    fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    fn text(self, text: impl AsRef<[u8]>) -> Self {
        self.u64(text.as_ref().len() as u64).bytes(text.as_ref())
    }

    /// A key with a value of this type, up to the value.
    fn key(self, key: &str, kind: u32) -> Self {
        self.text(key).u32(kind)
    }

    fn tensor(self, name: &str, dimensions: &[u64], id: u32, offset: u64) -> Self {
        let start = self.text(name).u32(dimensions.len() as u32);
        dimensions.iter().fold(start, |raw, &d| raw.u64(d)).u32(id).u64(offset)
    }

    /// Pads the header and appends data.
    fn data(mut self, bytes: usize) -> Self {
        let start = self.0.len().next_multiple_of(32);
        self.0.resize(start + bytes, 0);
        self
    }

    fn read(self) -> Result<Part, GgufError> {
        read(&std::sync::Arc::new(crate::Storage::Owned(self.0)))
    }

    /// Must be refused with a message that holds all `parts`.
    #[track_caller]
    fn refused(self, parts: &[&str]) {
        let text = self.read().expect_err("read").to_string();
        for part in parts {
            assert!(text.contains(part), "no {part:?} in: {text}");
        }
    }
}

#[test]
fn other_files_and_versions_are_refused() {
    Raw(b"PK\x03\x04....".to_vec()).refused(&["magic", "GGUF", "PK\\x03\\x04"]);
    Raw(Vec::new()).refused(&["magic", "4 more bytes at offset 0", "0 before the end"]);
    Raw::header(1, 0, 0).refused(&["version", "2 or 3", "got 1", "convert"]);
    Raw::header(4, 0, 0).refused(&["version", "got 4"]);
    Raw::header(3u32.swap_bytes(), 0, 0).refused(&["version 3", "big-endian", "little-endian"]);
    assert_eq!(Raw::header(2, 0, 0).read().unwrap().version, 2);
    assert_eq!(Raw::header(3, 0, 0).read().unwrap().version, 3);
}

#[test]
fn counts_beyond_the_file_are_refused_before_anything_is_allocated() {
    for huge in [u64::MAX, 1 << 60, 1000] {
        let got = huge.to_string();
        Raw::header(3, huge, 0).refused(&["tensor count", "at most 0", &got]);
        Raw::header(3, 0, huge).refused(&["metadata count", "at most 0", &got]);
        Raw::header(3, 0, 1).u64(huge).bytes(&[0; 9]).refused(&["metadata key number 0", &got]);
        let key = |kind| Raw::header(3, 0, 1).key("some.key", kind);
        key(8).u64(huge).refused(&["some.key", &got]);
        for element in 0..13 {
            key(9).u32(element).u64(huge).refused(&["some.key", "at most 0", &got]);
        }
    }
    Raw::header(3, 0, 1).key("a", 9).u32(9).u64(u64::MAX / 12).refused(&["`a`", "at most 0"]);
}

#[test]
fn metadata_that_makes_no_sense_is_refused() {
    let key = |kind| Raw::header(3, 0, 1).key("some.key", kind);
    key(13).bytes(&[0; 8]).refused(&["some.key", "0 to 12", "got 13"]);
    key(4).bytes(&[1, 2]).refused(&["some.key", "4 more bytes", "got 2", "truncated"]);
    key(7).bytes(&[2]).refused(&["some.key", "0 or 1", "got 2"]);
    key(9).u32(7).u64(2).bytes(&[1, 3]).refused(&["some.key", "0 or 1", "got 3"]);
    key(8).text(b"ab\xff").refused(&["some.key", "UTF-8", "byte 2"]);
    key(9).u32(8).u64(1).text(b"\xc3").refused(&["some.key", "UTF-8"]);
    key(9).u32(77).u64(0).refused(&["some.key", "0 to 12", "got 77"]);
    Raw::header(3, 0, 1).text(b"\xff\xff").u32(0).bytes(&[0]).refused(&["key number 0", "UTF-8"]);
    Raw::header(3, 0, 1).key("", 4).u32(0).refused(&["key number 0", "empty"]);
    Raw::header(3, 0, 1).key(&"k".repeat(70_000), 4).u32(0).refused(&["at most 65535", "70000"]);
    let twice = Raw::header(3, 0, 2).key("a.b", 4).u32(1).key("a.b", 4).u32(1);
    twice.refused(&["`a.b`", "once", "twice"]);
}

#[test]
fn deep_nesting_is_refused() {
    // `depth` arrays of one array each, the innermost an empty one of u8.
    let nested = |depth: usize| {
        let outermost = Raw::header(3, 0, 1).key("deep", 9);
        (0..depth).fold(outermost, |raw, _| raw.u32(9).u64(1)).u32(0).u64(0)
    };
    assert!(nested(3).read().is_ok());
    nested(4).refused(&["deep", "nested at most 4"]);
    nested(100_000).refused(&["deep", "nested at most 4"]);
}

#[test]
fn alignment_is_checked() {
    let alignment = |value: u32| Raw::header(3, 0, 1).key("general.alignment", 4).u32(value);
    for bad in [0, 1, 3, 4, 48, 131_072] {
        alignment(bad).refused(&["general.alignment", "power of two", &bad.to_string()]);
    }
    let text = Raw::header(3, 0, 1).key("general.alignment", 8).text("32");
    text.refused(&["general.alignment", "string \"32\""]);
    assert_eq!(alignment(64).read().unwrap().alignment, 64);
}

#[test]
fn tensor_records_that_make_no_sense_are_refused() {
    const F32: u32 = 0;
    let one = |dimensions: &[u64], id, offset, data| {
        Raw::header(3, 1, 0).tensor("a.weight", dimensions, id, offset).data(data)
    };
    assert!(one(&[8], F32, 0, 32).read().is_ok());
    assert_eq!(one(&[], F32, 0, 32).read().unwrap().tensors[0].len_bytes(), 4);
    one(&[8], F32, 0, 31).refused(&["a.weight", "32 bytes at offset 0", "31 bytes of data"]);
    one(&[8], F32, 32, 32).refused(&["a.weight", "offset 32", "truncated"]);
    one(&[8], F32, u64::MAX - 31, 32).refused(&["a.weight", "outside the file"]);
    one(&[8], F32, 1 << 33, 32).refused(&["a.weight", "8589934592"]);
    one(&[8], F32, 8, 64).refused(&["a.weight", "multiple of 32", "got 8"]);
    one(&[8, 1, 1, 1, 1], F32, 0, 32).refused(&["a.weight", "4 dimensions", "got 5"]);
    one(&[8, 0], F32, 0, 32).refused(&["a.weight", "at least 1", "[8, 0]"]);
    one(&[1 << 32, 1 << 32], F32, 0, 32).refused(&["a.weight", "overflow"]);
    one(&[1 << 62, 1], F32, 0, 32).refused(&["a.weight", "overflow"]);
    one(&[1 << 32, 1 << 31, 2], 2, 0, 32).refused(&["a.weight", "overflow"]);
    one(&[8], 4, 0, 32).refused(&["a.weight", "type 4 is not", "convert or quantise"]);
    one(&[8], u32::MAX, 0, 32).refused(&["a.weight", "type 4294967295"]);
    one(&[33], 2, 0, 64).refused(&["a.weight", "Q4_0", "multiple of 32", "got 33"]);
    let huge_rank = Raw::header(3, 1, 0).text("a").u32(u32::MAX).bytes(&[0; 40]);
    huge_rank.refused(&["`a`", "4 dimensions", "4294967295"]);
    let empty = Raw::header(3, 1, 0).tensor("", &[8], F32, 0).data(32);
    empty.refused(&["tensor number 0", "empty name"]);
    let cut = Raw::header(3, 1, 0).text("a").u32(2).u64(1).bytes(&[0; 6]);
    cut.refused(&["record of tensor `a`", "16 more bytes", "got 14"]);
    let two = |second: &str, offset| {
        let first = Raw::header(3, 2, 0).tensor("a.weight", &[12], F32, 0);
        first.tensor(second, &[8], F32, offset).data(128)
    };
    assert!(two("b.weight", 64).read().is_ok());
    two("a.weight", 64).refused(&["a.weight", "once", "twice"]);
    two("b.weight", 32).refused(&["a.weight", "b.weight", "share bytes"]);
    two("b.weight", 0).refused(&["a.weight", "b.weight", "share bytes"]);
}

/// A sparse file with a tensor beyond 4 GiB.
#[test]
fn offsets_beyond_four_gibibytes_work() {
    use std::io::{Seek, SeekFrom, Write};
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.gguf");
    let first = TensorSpec::new("first", BlockType::I8, [5 << 30]);
    let last = TensorSpec::new("last", BlockType::F32, [2]);
    let mut file = std::fs::File::create(&path).unwrap();
    let mut header = Vec::new();
    assert!(Writer::new(&mut header, &Metadata::new(), &[first, last]).is_ok());
    file.write_all(&header).unwrap();
    file.seek(SeekFrom::Current(5 << 30)).unwrap();
    file.write_all(&[1, 2, 3, 4, 5, 6, 7, 8]).unwrap();
    drop(file);
    let model = ModelFile::open(&path).unwrap();
    assert!(model.tensors["last"].offset > 5 << 30);
    assert_eq!(model.tensors["last"].weight().bytes(), [1, 2, 3, 4, 5, 6, 7, 8]);
}

/// Writes part `number` of `count`, with one tensor.
fn part(path: &Path, number: u16, count: u16, total: i32, tensor: &str) {
    let metadata: Metadata = [
        ("general.architecture", Value::from("llama")),
        ("split.no", Value::U16(number)),
        ("split.count", Value::U16(count)),
        ("split.tensors.count", Value::I32(total)),
    ]
    .into_iter()
    .collect();
    let spec = TensorSpec::new(tensor, BlockType::F32, [2]);
    let mut writer = FileWriter::create(path, &metadata, &[spec]).unwrap();
    writer.write(tensor, &[number as u8; 5]).unwrap();
    writer.write(tensor, &[number as u8; 3]).unwrap();
    writer.finish().unwrap();
}

#[track_caller]
fn open_refused(path: &Path, parts: &[&str]) {
    let error = ModelFile::open(path).expect_err("opened");
    let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
    let text = format!("{error}: {source}");
    for part in parts {
        assert!(text.contains(part), "no {part:?} in: {text}");
    }
}

#[test]
fn any_part_of_a_split_model_opens_it_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = |number| folder.path().join(format!("m-{number:05}-of-00003.gguf"));
    for number in 0..3u16 {
        part(&path(number + 1), number, 3, 3, &format!("t{number}"));
    }
    let first = ModelFile::open(&path(1)).unwrap();
    for model in [ModelFile::open(&path(3)).unwrap(), ModelFile::open(folder.path()).unwrap()] {
        let names: Vec<_> = model.tensors.keys().map(|name| &**name).collect();
        assert_eq!(names, ["t0", "t1", "t2"]);
        assert_eq!(model.tensors["t2"].bytes(), [2; 8]);
        assert_eq!(model.fingerprint(), first.fingerprint());
        assert_eq!(model.metadata.len(), 1);
    }

    part(&path(2), 1, 3, 3, "t0");
    open_refused(&path(1), &["m-00002-of-00003.gguf", "`t0`", "twice"]);
    part(&path(2), 2, 3, 3, "t1");
    open_refused(&path(1), &["m-00002-of-00003.gguf", "part 3 of 3 by its metadata", "part 2"]);
    part(&path(2), 1, 4, 3, "t1");
    open_refused(&path(1), &["m-00002", "part 2 of 4 by its metadata", "part 2 of 3 by its name"]);
    std::fs::remove_file(path(2)).unwrap();
    open_refused(&path(3), &["m-00002-of-00003.gguf", "part 2 of 3 is missing"]);
    part(&path(2), 1, 3, 3, "t1");
    part(&path(1), 0, 3, 7, "t0");
    open_refused(&path(1), &["split.tensors.count", "expected 7", "got 3"]);
    let renamed = folder.path().join("renamed.gguf");
    std::fs::rename(path(1), &renamed).unwrap();
    open_refused(&renamed, &["part 1 of 3", "NAME-00001-of-00003.gguf"]);
    let bytes = std::fs::read(&renamed).unwrap().leak();
    let error = ModelFile::from_static(bytes, "inside").unwrap_err();
    assert!(std::error::Error::source(&error).unwrap().to_string().contains("several parts"));
}

#[test]
fn a_folder_must_hold_one_model() {
    let folder = tempfile::tempdir().unwrap();
    open_refused(folder.path(), &["a folder with neither"]);
    part(&folder.path().join("a.gguf"), 0, 1, 1, "t");
    assert!(ModelFile::open(folder.path()).is_ok());
    part(&folder.path().join("b.gguf"), 0, 1, 1, "t");
    open_refused(folder.path(), &["2 GGUF models", "a.gguf", "b.gguf", "name one"]);
}

#[test]
fn writing_is_checked_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let specs =
        [TensorSpec::new("a", BlockType::F32, [2]), TensorSpec::new("b", BlockType::F32, [1])];
    let metadata = every_type();
    let mut writer = FileWriter::create(&path, &metadata, &specs).unwrap();
    assert!(writer.write("b", &[0; 4]).unwrap_err().to_string().contains("turn of `a`"));
    let error = writer.write("a", &[0; 9]).unwrap_err().to_string();
    assert!(error.contains("expected 8 bytes, got 9"), "{error}");
    writer.write("a", &[1; 8]).unwrap();
    assert!(writer.finish().unwrap_err().to_string().contains("`b`: expected 4 bytes, got 0"));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);

    let mut writer = FileWriter::create(&path, &metadata, &specs).unwrap();
    writer.write("a", &[1; 8]).unwrap();
    assert!(!path.exists());
    writer.write("b", &[2; 4]).unwrap();
    assert!(writer.write("c", &[0]).unwrap_err().to_string().contains("written already"));
    writer.finish().unwrap();
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    assert_eq!(ModelFile::open(&path).unwrap().tensors["b"].bytes(), [2; 4]);

    for bad in
        [TensorSpec::new("a", BlockType::Q4_K, [100]), TensorSpec::new("a", BlockType::F32, [1; 5])]
    {
        assert!(to_bytes(&metadata, &[(bad, &[])]).is_err());
    }
}

#[test]
fn fingerprints_tell_models_apart() {
    let metadata = every_type();
    let spec = TensorSpec::new("t", BlockType::I8, [100_000]);
    let mut data = vec![0u8; 100_000];
    let print = |metadata: &Metadata, spec: &TensorSpec, data: &[u8]| {
        let bytes = to_bytes(metadata, &[(spec.clone(), data)]).unwrap();
        let storage = std::sync::Arc::new(crate::Storage::Owned(bytes));
        ModelFile::from_storage(storage, "test").unwrap().fingerprint()
    };
    let original = print(&metadata, &spec, &data);
    assert_eq!(original, print(&metadata, &spec, &data));
    for position in [0, 50_000, 99_999] {
        data[position] = 1;
        assert_ne!(original, print(&metadata, &spec, &data), "{position}");
        data[position] = 0;
    }
    let mut other = metadata.clone();
    other.set("u8", 9u8);
    assert_ne!(original, print(&other, &spec, &data));
    let spec = TensorSpec::new("t", BlockType::I8, [1000, 100]);
    assert_ne!(original, print(&metadata, &spec, &data));
}
