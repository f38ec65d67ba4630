//! The tokenizer and the chat template of a model file, wherever it keeps them.

use std::path::{Path, PathBuf};

use serde_json::Value;
use trefoil_graph::ModelFile;

use super::template::{ChatTemplate, TemplateError, builtin};
use super::tokenizer::{Tokenizer, TokenizerError};

/// Largest configuration file that is read, in bytes. Those with all added tokens have 200 kB.
const CONFIG_BYTES_MAX: u64 = 1 << 24;

/// Why a model's chat template could not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelTemplateError {
    /// It does not compile, or it fails on the messages.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// A key of the file has another type.
    #[error(transparent)]
    Metadata(#[from] trefoil_graph::MetadataError),
    /// A file cannot be read.
    #[error("{}: cannot be read as text of at most {CONFIG_BYTES_MAX} bytes", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is not JSON.
    #[error("{}: expected a JSON object", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
}

/// The tokenizer of a model: from `tokenizer.json` if the model is a folder, else from the
/// metadata.
///
/// # Errors
/// See [`Tokenizer::from_folder`] and [`Tokenizer::from_metadata`].
pub fn tokenizer(file: &ModelFile) -> Result<Tokenizer, TokenizerError> {
    match &file.folder {
        Some(folder) if folder.join("tokenizer.json").exists() => Tokenizer::from_folder(folder),
        _ => Tokenizer::from_metadata(&file.metadata),
    }
}

/// The chat template of a model, or a built-in one that its vocabulary suggests; in that case
/// with its name.
///
/// # Errors
/// The template cannot be read or does not compile.
pub fn chat_template(
    file: &ModelFile,
    tokenizer: &Tokenizer,
) -> Result<(ChatTemplate, Option<&'static str>), ModelTemplateError> {
    let text = |id: Option<u32>| id.map_or("", |id| tokenizer.token_text(id));
    let (bos, eos) = (text(tokenizer.bos()), text(tokenizer.eos()));
    Ok(match chat_template_source(file)? {
        Some(source) => (ChatTemplate::new(&source, bos, eos)?, None),
        None => {
            let builtin = builtin(|token| tokenizer.id_of(token).is_some());
            (ChatTemplate::new(builtin.source, bos, eos)?, Some(builtin.name))
        }
    })
}

/// The Jinja source of a model's chat template: a GGUF file's `tokenizer.chat_template`, or a
/// folder's `chat_template.jinja`, `chat_template.json` or `tokenizer_config.json`.
///
/// # Errors
/// A file is there but cannot be read.
pub fn chat_template_source(file: &ModelFile) -> Result<Option<String>, ModelTemplateError> {
    if let Some(source) = file.metadata.str("tokenizer.chat_template")? {
        return Ok(Some(source.to_owned()));
    }
    let Some(folder) = &file.folder else { return Ok(None) };
    if let Some(source) = read(&folder.join("chat_template.jinja"))? {
        return Ok(Some(source));
    }
    for name in ["chat_template.json", "tokenizer_config.json"] {
        let path = folder.join(name);
        let Some(text) = read(&path)? else { continue };
        let config: Value = serde_json::from_str(&text)
            .map_err(|source| ModelTemplateError::Json { path, source })?;
        if let Some(source) = in_config(&config) {
            return Ok(Some(source.to_owned()));
        }
    }
    Ok(None)
}

/// `chat_template` of a configuration: a text, or several with names of which `default` is meant.
fn in_config(config: &Value) -> Option<&str> {
    match config.get("chat_template")? {
        Value::String(source) => Some(source),
        Value::Array(named) => {
            let default = named.iter().find(|entry| entry["name"] == "default");
            default.or(named.first())?.get("template")?.as_str()
        }
        _ => None,
    }
}

/// The text of a file; `None` where there is none.
fn read(path: &Path) -> Result<Option<String>, ModelTemplateError> {
    let fail = |source| ModelTemplateError::Read { path: path.to_path_buf(), source };
    if !path.exists() {
        return Ok(None);
    }
    let bytes = std::fs::metadata(path).map_err(fail)?.len();
    if bytes > CONFIG_BYTES_MAX {
        return Err(fail(std::io::ErrorKind::FileTooLarge.into()));
    }
    std::fs::read_to_string(path).map(Some).map_err(fail)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::in_config;

    #[test]
    fn configurations_name_a_template_in_two_ways() {
        assert_eq!(in_config(&json!({"chat_template": "a"})), Some("a"));
        let named = json!({"chat_template": [
            {"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}
        ]});
        assert_eq!(in_config(&named), Some("d"));
        assert_eq!(in_config(&json!({"chat_template": null})), None);
        assert_eq!(in_config(&json!({})), None);
    }
}
