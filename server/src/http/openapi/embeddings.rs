//! POST /v1/embeddings.

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

#[derive(Serialize, ToSchema)]
pub(super) struct EmbeddingRequest {
    /// Id or alias of a model that makes embeddings, or `default`.
    model: String,
    input: Input,
    encoding_format: Option<Encoding>,
    /// No effect.
    user: Option<Value>,
}

/// A text, up to 2048 of them, token ids, or up to 2048 lists of them. None is empty.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
enum Input {
    Text(String),
    Texts(Vec<String>),
    Tokens(Vec<u32>),
    Lists(Vec<Vec<u32>>),
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum Encoding {
    Float,
    /// Little-endian numbers in single precision.
    Base64,
}

#[derive(Serialize, ToSchema)]
pub(super) struct Embeddings {
    object: ListObject,
    /// In the order of the texts.
    data: Vec<Embedding>,
    model: String,
    usage: EmbeddingUsage,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum ListObject {
    List,
}

#[derive(Serialize, ToSchema)]
struct Embedding {
    object: EmbeddingObject,
    index: u64,
    embedding: Numbers,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum EmbeddingObject {
    Embedding,
}

/// Of length 1.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
enum Numbers {
    Float(Vec<f32>),
    Base64(String),
}

#[derive(Serialize, ToSchema)]
struct EmbeddingUsage {
    prompt_tokens: u64,
    total_tokens: u64,
}

/// Embeddings of texts, by an encoder.
#[utoipa::path(
    post,
    path = "/v1/embeddings",
    tag = super::GENERATION,
    operation_id = "embed",
    request_body(
        content = EmbeddingRequest,
        example = json!({
            "model": "default",
            "input": ["A lemon tree", "A fast car"],
            "encoding_format": "float"
        })
    ),
    responses((status = 200, description = "An embedding of each text.", body = Embeddings))
)]
pub(super) fn create() {}
