//! Configuration beside an ONNX model: `genai_config.json`, and what other files add.

use serde_json::Value;

use super::OnnxError;
use crate::metadata::Metadata;

/// Largest configuration that is read, in bytes.
pub(super) const MOST_BYTES: u64 = 1 << 20;

const FILE: &str = "genai_config.json";

/// `genai_config.json`, or nothing.
pub(super) struct Genai(Value);

impl Genai {
    /// Parses the file.
    pub(super) fn parse(text: &[u8]) -> Result<Self, OnnxError> {
        serde_json::from_slice(text).map(Self).map_err(OnnxError::Json)
    }

    fn field(&self, path: &str) -> Option<&Value> {
        let mut value = &self.0;
        for name in path.split('.') {
            value = value.get(name)?;
        }
        Some(value).filter(|value| !value.is_null())
    }

    fn error(&self, path: &str, expected: impl Into<String>, got: &Value) -> OnnxError {
        let got: String = got.to_string().chars().take(60).collect();
        OnnxError::Config { file: FILE, field: path.to_owned(), expected: expected.into(), got }
    }

    fn count(&self, path: &str) -> Result<Option<u32>, OnnxError> {
        let Some(value) = self.field(path) else { return Ok(None) };
        let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
        number.map(Some).ok_or_else(|| self.error(path, "an integer from 0 to 4294967295", value))
    }

    fn text(&self, path: &str) -> Result<Option<&str>, OnnxError> {
        let Some(value) = self.field(path) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.error(path, "a text", value))
    }

    /// Name of the decoder's file.
    pub(super) fn file_name(&self) -> Result<Option<&str>, OnnxError> {
        if let Some(value) = self.field("model.decoder.pipeline") {
            return Err(self.error("model.decoder.pipeline", "one file, not several", value));
        }
        self.text("model.decoder.filename")
    }

    /// The model's type.
    pub(super) fn kind(&self) -> Result<Option<&str>, OnnxError> {
        self.text("model.type")
    }

    /// Adds keys, and compares sizes with those that were found in the graph.
    pub(super) fn apply(&self, metadata: &mut Metadata) -> Result<(), OnnxError> {
        let name = metadata.str("general.architecture").ok().flatten().unwrap_or("").to_owned();
        for (path, key) in [
            ("model.vocab_size", "vocab_size"),
            ("model.decoder.num_hidden_layers", "block_count"),
            ("model.decoder.hidden_size", "embedding_length"),
            ("model.decoder.num_attention_heads", "attention.head_count"),
            ("model.decoder.num_key_value_heads", "attention.head_count_kv"),
            ("model.decoder.head_size", "attention.key_length"),
        ] {
            let (Some(got), Some(value)) = (self.count(path)?, self.field(path)) else { continue };
            let want = metadata.u32(&format!("{name}.{key}")).ok().flatten();
            // The table may have more rows than there are tokens.
            let padded = key == "vocab_size" && want.is_some_and(|want| want >= got);
            if let Some(want) = want.filter(|&want| want != got && !padded) {
                return Err(self.error(path, format!("{want}, as in the graph"), value));
            }
        }
        if let Some(context) = self.count("model.context_length")?.filter(|&context| context > 0) {
            metadata.set(&format!("{name}.context_length"), context);
        }
        for (field, key) in [
            ("model.bos_token_id", "tokenizer.ggml.bos_token_id"),
            ("model.eos_token_id", "tokenizer.ggml.eos_token_id"),
            ("model.pad_token_id", "tokenizer.ggml.padding_token_id"),
        ] {
            self.token_ids(field, key, metadata)?;
        }
        Ok(())
    }

    /// One id, or a list of which the first stands for all and all are kept beside it.
    fn token_ids(&self, path: &str, key: &str, metadata: &mut Metadata) -> Result<(), OnnxError> {
        let Some(value) = self.field(path) else { return Ok(()) };
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids: Option<Vec<u32>> = match value {
            Value::Array(list) => list.iter().map(id).collect(),
            // Some models write -1 for none.
            Value::Number(number) if number.as_i64() == Some(-1) => return Ok(()),
            one => id(one).map(|id| vec![id]),
        };
        let ids = ids.ok_or_else(|| self.error(path, "a token id or a list of them", value))?;
        if let Some(&first) = ids.first() {
            metadata.set(key, first);
        }
        if ids.len() > 1 {
            metadata.set(&format!("{key}s"), ids);
        }
        Ok(())
    }
}
