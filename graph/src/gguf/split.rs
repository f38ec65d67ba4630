//! Models in several files: `NAME-00001-of-00003.gguf` and so on.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use super::{GgufError, Part, read};
use crate::metadata::Metadata;
use crate::model_file::{ModelFileError, map};
use crate::{Storage, Tensor};

/// A part's name taken apart; numbers count from 1.
#[derive(Debug, PartialEq, Eq, Clone)]
pub(crate) struct SplitName {
    pub(crate) prefix: String,
    pub(crate) number: u64,
    pub(crate) count: u64,
}

impl SplitName {
    /// Takes `PREFIX-00001-of-00003.gguf` apart.
    pub(crate) fn parse(file_name: &str) -> Option<Self> {
        let stem = file_name.strip_suffix(".gguf")?;
        let (rest, count) = stem.rsplit_once("-of-")?;
        let (prefix, number) = rest.rsplit_once('-')?;
        let (number, count) = (digits(number)?, digits(count)?);
        (1..=count).contains(&number).then(|| Self { prefix: prefix.to_owned(), number, count })
    }

    fn file_name(&self, number: u64) -> String {
        format!("{}-{number:05}-of-{:05}.gguf", self.prefix, self.count)
    }
}

fn digits(text: &str) -> Option<u64> {
    (text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok())?
}

/// Number of this part (from 0) and how many there are; `None` for a file that is whole.
fn place(metadata: &Metadata) -> Result<Option<(u64, u64)>, GgufError> {
    match metadata.u64("split.count")? {
        None | Some(0 | 1) => Ok(None),
        Some(count) => Ok(Some((metadata.required("split.no")?.u64()?, count))),
    }
}

/// Opens a file and all other parts of the model it belongs to. The metadata is that of the first
/// part, without the keys about the split.
pub(crate) fn open(path: &Path) -> Result<(Metadata, Vec<Tensor>), ModelFileError> {
    let given = read_file(path)?;
    let fail = |source| ModelFileError::gguf(path, source);
    let Some((number, count)) = place(&given.metadata).map_err(fail)? else {
        return Ok((given.metadata, given.tensors));
    };
    let name = path
        .file_name()
        .and_then(|name| SplitName::parse(&name.to_string_lossy()))
        .ok_or_else(|| fail(GgufError::SplitName { number: number.saturating_add(1), count }))?;
    check_name(&name, name.number, number, count).map_err(fail)?;

    let mut given = Some(given);
    let mut joined = Joined::default();
    for number in 1..=name.count {
        let file = path.with_file_name(name.file_name(number));
        let part = match given.take_if(|_| number == name.number) {
            Some(part) => part,
            None => read_part(&file, &name, number)?,
        };
        joined.add(&file, part)?;
    }
    joined.finish(path)
}

fn read_file(path: &Path) -> Result<Part, ModelFileError> {
    let storage: Arc<Storage> = map(path)?;
    read(&storage).map_err(|source| ModelFileError::gguf(path, source))
}

fn read_part(file: &Path, name: &SplitName, number: u64) -> Result<Part, ModelFileError> {
    if !file.exists() {
        return Err(ModelFileError::MissingPart {
            file: file.to_path_buf(),
            number,
            count: name.count,
        });
    }
    let part = read_file(file)?;
    let fail = |source| ModelFileError::gguf(file, source);
    let (no, count) = place(&part.metadata).map_err(fail)?.unwrap_or((0, 1));
    check_name(name, number, no, count).map_err(fail)?;
    Ok(part)
}

/// Does the metadata (`no` counts from 0) say what the name says?
fn check_name(name: &SplitName, named: u64, no: u64, count: u64) -> Result<(), GgufError> {
    if no.checked_add(1) == Some(named) && count == name.count {
        return Ok(());
    }
    Err(GgufError::SplitMismatch {
        number: no.saturating_add(1),
        count,
        named,
        named_count: name.count,
    })
}

#[derive(Default)]
struct Joined {
    metadata: Option<Metadata>,
    tensors: Vec<Tensor>,
    names: HashSet<Arc<str>>,
}

impl Joined {
    fn add(&mut self, file: &Path, part: Part) -> Result<(), ModelFileError> {
        self.metadata.get_or_insert(part.metadata);
        for tensor in part.tensors {
            if !self.names.insert(tensor.name.clone()) {
                let name = tensor.name.to_string();
                return Err(ModelFileError::gguf(file, GgufError::DuplicateTensor { name }));
            }
            self.tensors.push(tensor);
        }
        Ok(())
    }

    fn finish(self, path: &Path) -> Result<(Metadata, Vec<Tensor>), ModelFileError> {
        let fail = |source| ModelFileError::gguf(path, source);
        let mut metadata = self.metadata.unwrap_or_default();
        let got = self.tensors.len() as u64;
        let expected = metadata.u64("split.tensors.count").map_err(|e| fail(e.into()))?;
        if let Some(expected) = expected.filter(|&expected| expected != got) {
            return Err(fail(GgufError::SplitTensors { expected, got }));
        }
        metadata.retain(|key, _| !key.starts_with("split."));
        Ok((metadata, self.tensors))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart() {
        let name = SplitName::parse("a-b-00002-of-00003.gguf").unwrap();
        assert_eq!((name.prefix.as_str(), name.number, name.count), ("a-b", 2, 3));
        assert_eq!(name.file_name(1), "a-b-00001-of-00003.gguf");
        for bad in ["a.gguf", "a-00004-of-00003.gguf", "a-00000-of-00003.gguf", "a-1-of-3.gguf"] {
            assert_eq!(SplitName::parse(bad), None, "{bad}");
        }
    }
}
