//! /tokenize, /detokenize, /apply-template.

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

/// One of `content`, `prompt` and `messages`. With `messages`, the other fields of a chat may stand
/// beside them.
#[derive(Serialize, ToSchema)]
pub(super) struct TokenizeRequest {
    /// Id or alias of a model; the default one if absent.
    model: Option<String>,
    /// A text as it is.
    content: Option<String>,
    /// With `content`: what the model puts around texts too.
    add_special: Option<bool>,
    /// A text with what the model puts around texts.
    prompt: Option<String>,
    /// With `prompt`: false leaves out what the model puts around texts.
    add_special_tokens: Option<bool>,
    /// Are names of special tokens such tokens? True if absent.
    parse_special: Option<bool>,
    /// The text of each token beside its id.
    with_pieces: Option<bool>,
    /// A chat, as it would be read.
    messages: Option<Vec<Value>>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct Tokens {
    tokens: Vec<Token>,
    count: u64,
    /// Tokens that the model's context holds.
    max_model_len: u64,
}

#[derive(Serialize, ToSchema)]
#[serde(untagged)]
enum Token {
    Id(u32),
    Piece(Piece),
}

#[derive(Serialize, ToSchema)]
struct Piece {
    id: u32,
    piece: PieceText,
}

/// The text, or the bytes where they are none.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
enum PieceText {
    Text(String),
    Bytes(Vec<u8>),
}

#[derive(Serialize, ToSchema)]
pub(super) struct DetokenizeRequest {
    /// Id or alias of a model; the default one if absent.
    model: Option<String>,
    tokens: Vec<u32>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct Detokenized {
    content: String,
    /// The same.
    prompt: String,
}

/// The body of a chat; only the fields that the template reads have an effect.
#[derive(Serialize, ToSchema)]
pub(super) struct TemplateRequest {
    /// Id or alias of a model; the default one if absent.
    model: Option<String>,
    #[schema(min_items = 1, max_items = 2048)]
    messages: Vec<Value>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct Rendered {
    prompt: String,
    tokens: Vec<u32>,
}

/// The tokens of a text or of a chat.
#[utoipa::path(
    post,
    path = "/tokenize",
    tag = "text",
    operation_id = "tokenize",
    request_body(
        content = TokenizeRequest,
        example = json!({"content": "A lemon tree", "with_pieces": true})
    ),
    responses((status = 200, description = "Ids, with `with_pieces` also texts.", body = Tokens))
)]
pub(super) fn tokenize() {}

/// The text of tokens.
#[utoipa::path(
    post,
    path = "/detokenize",
    tag = "text",
    operation_id = "detokenize",
    request_body(content = DetokenizeRequest, example = json!({"tokens": [10, 11, 12]})),
    responses((status = 200, description = "The text, under both names.", body = Detokenized))
)]
pub(super) fn detokenize() {}

/// What the model reads of a chat.
#[utoipa::path(
    post,
    path = "/apply-template",
    tag = "text",
    operation_id = "apply_template",
    request_body(
        content = TemplateRequest,
        example = json!({"messages": [{"role": "user", "content": "Who are you?"}]})
    ),
    responses((status = 200, description = "Text and token ids.", body = Rendered))
)]
pub(super) fn apply_template() {}
