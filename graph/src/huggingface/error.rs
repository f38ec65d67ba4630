//! What can be wrong with a Hugging Face folder, safetensors aside.

/// Why a file of a Hugging Face folder was refused. The file's name is added where it was opened
/// ([`ModelFileError`](crate::ModelFileError)).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say what each field is
pub enum HuggingFaceError {
    #[error("expected JSON of the usual form")]
    Json(#[source] serde_json::Error),
    #[error("expected a file of at most {most} bytes, got {got}")]
    TooLarge { most: u64, got: u64 },
    #[error("field `{field}` is missing; expected {expected}")]
    Missing { field: String, expected: &'static str },
    #[error("field `{field}`: expected {expected}, got {got}")]
    Field { field: String, expected: String, got: String },
    #[error(
        "field `model_type`: expected one of {known}, got \"{got}\"; \
         trefoil cannot run this architecture from safetensors"
    )]
    ModelType { got: String, known: String },
    #[error(
        "field `quantization_config`: expected none, got method {method}; \
         use the unquantised model or a GGUF file of it"
    )]
    Quantised { method: String },
    #[error("tensor `{name}` is not one a {architecture} model has")]
    UnknownTensor { name: String, architecture: &'static str },
    #[error("tensors `{first}` and `{second}` are the same part of the model, `{internal}`")]
    SameTensor { first: String, second: String, internal: String },
    #[error(
        "weight_map: expected a file in the model's folder for tensor `{tensor}`, got `{path}`"
    )]
    ShardPath { tensor: String, path: String },
    #[error(
        "weight_map: file `{shard}` is not there (it should hold tensor `{tensor}`); \
         put all files of the model in one folder"
    )]
    MissingShard { shard: String, tensor: String },
    #[error("weight_map: expected tensor `{tensor}` in file `{shard}`, got none of that name")]
    MissingTensor { tensor: String, shard: String },
    #[error("weight_map: expected tensors, got none")]
    NoTensors,
}
