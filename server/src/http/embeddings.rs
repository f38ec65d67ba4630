//! POST /v1/embeddings.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::sync::mpsc::unbounded_channel;
use trefoil_engine::embedding::EmbedError;
use trefoil_engine::runner::RunError;
use trefoil_engine::service::{Course, Ended};

use super::body::{find, name_ignored, read_body};
use super::error::ApiError;
use super::fields::Fields;
use super::replies::{count_rejected, refused};
use super::request_fields;
use super::state::{AppState, ServedModel};
use super::text_inputs::{Input, check_ids, inputs};

/// Most texts of one request.
const MOST_INPUTS: usize = 2048;

/// How embeddings are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encoding {
    /// A list of numbers.
    Float,
    /// Little-endian numbers in single precision, as base64.
    Base64,
}

/// A checked body.
#[derive(Debug)]
struct EmbeddingRequest {
    model: String,
    inputs: Vec<Input>,
    encoding: Encoding,
    ignored: Vec<String>,
}

impl EmbeddingRequest {
    fn read(body: &[u8], strict: bool) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let model = fields.string("model")?.ok_or_else(|| fields.missing("model"))?;
        let input = fields.take("input").ok_or_else(|| fields.missing("input"))?;
        let inputs = inputs("input", input, MOST_INPUTS)?;
        refuse_empty(&inputs)?;
        let encoding = match fields.string("encoding_format")?.as_deref() {
            None | Some("float") => Encoding::Float,
            Some("base64") => Encoding::Base64,
            Some(other) => return Err(fields.invalid("encoding_format", "float or base64", other)),
        };
        // No model here says that a part of its embeddings is one: `dimensions` is refused.
        let ignored = request_fields::rest(&mut fields, &["user"], &["dimensions"], strict)?;
        Ok(Self { model, inputs, encoding, ignored })
    }
}

fn invalid(code: &'static str, message: String) -> ApiError {
    ApiError::field(code, "input", message)
}

fn refuse_empty(inputs: &[Input]) -> Result<(), ApiError> {
    let Some(index) = inputs.iter().position(Input::is_empty) else { return Ok(()) };
    let message = format!("'input[{index}]': expected a text, got nothing.");
    Err(invalid("invalid_value", message))
}

/// The token ids of all texts.
fn tokens(model: &ServedModel, inputs: Vec<Input>) -> Result<Vec<Vec<u32>>, ApiError> {
    let one = |(index, input): (usize, Input)| {
        let tokens = match input {
            Input::Text(text) => model.text.encode_raw(&text),
            Input::Tokens(tokens) => tokens,
        };
        if tokens.len() > model.context {
            let message = format!(
                "This model's maximum context length is {} tokens. However, 'input[{index}]' has {}; \
                 nothing is cut.",
                model.context,
                tokens.len()
            );
            return Err(invalid("context_length_exceeded", message));
        }
        check_ids(model, &format!("input[{index}]"), &tokens)?;
        Ok(tokens)
    };
    inputs.into_iter().enumerate().map(one).collect()
}

fn failed(error: &EmbedError) -> ApiError {
    match error {
        EmbedError::Run(RunError::Execute(error)) => {
            let status = StatusCode::INTERNAL_SERVER_ERROR;
            ApiError::new(status, "device_error", format!("A device failed: {error}."))
        }
        error => ApiError::internal(format!("The embedding failed: {error}.")),
    }
}

fn written(embedding: &[f32], encoding: Encoding) -> Value {
    match encoding {
        Encoding::Float => json!(embedding),
        Encoding::Base64 => {
            let bytes: Vec<u8> = embedding.iter().flat_map(|x| x.to_le_bytes()).collect();
            Value::String(STANDARD.encode(bytes))
        }
    }
}

/// POST /v1/embeddings
pub(crate) async fn create(
    State(state): State<Arc<AppState>>,
    body: Body,
) -> Result<Response, ApiError> {
    let body = read_body(&state, body).await?;
    let rejected = |error: &ApiError| count_rejected(&state, error);
    let strict = state.options.strict_fields;
    let request = EmbeddingRequest::read(&body, strict).inspect_err(rejected)?;
    let model = find(&state, &request.model)?;
    let Some(embedder) = model.embedder() else {
        let message = format!("The model '{}' chats and makes no embeddings.", model.id);
        return Err(ApiError::field("unsupported_value", "model", message));
    };
    let texts = tokens(model, request.inputs).inspect_err(rejected)?;
    let counts: usize = texts.iter().map(Vec::len).sum();
    let expected = texts.len();
    let begin = Instant::now();
    model.history.used();
    let (sender, mut receiver) = unbounded_channel();
    // A send fails when the client is gone: that ends the work.
    let sink = Box::new(move |result| sender.send(result).is_ok());
    embedder.submit(texts, sink).map_err(|error| refused(&error)).inspect_err(rejected)?;
    let mut data = Vec::with_capacity(expected);
    while let Some(result) = receiver.recv().await {
        let embedding = result.map_err(|error| {
            let labels = [model.id.as_str(), "error"];
            state.metrics.requests_total.with_label_values(&labels).inc();
            failed(&error)
        })?;
        data.push(json!({
            "object": "embedding",
            "index": data.len(),
            "embedding": written(&embedding, request.encoding),
        }));
    }
    if data.len() != expected {
        return Err(ApiError::internal("The embedding ended without a result."));
    }
    let id = model.id.as_str();
    state.metrics.requests_total.with_label_values(&[id, "stop"]).inc();
    let read = state.metrics.prompt_tokens_total.with_label_values(&[id, "computed"]);
    read.inc_by(counts as f64);
    let course = Course { prompt_tokens: counts, total: begin.elapsed(), ..Course::default() };
    model.history.push(Ended::now("stop", course, None));
    let usage = json!({"prompt_tokens": counts, "total_tokens": counts});
    let object = json!({"object": "list", "data": data, "model": model.id, "usage": usage});
    let mut response = axum::Json(object).into_response();
    name_ignored(&mut response, &request.ignored);
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &str) -> Result<EmbeddingRequest, ApiError> {
        EmbeddingRequest::read(body.as_bytes(), false)
    }

    #[test]
    fn inputs_of_every_form_are_read() {
        let inputs = |input: &str| {
            read(&format!(r#"{{"model":"m","input":{input}}}"#)).map(|request| request.inputs)
        };
        let text = |text: &str| Input::Text(text.to_owned());
        assert_eq!(inputs(r#""a""#), Ok(vec![text("a")]));
        assert_eq!(inputs(r#"["a","b"]"#), Ok(vec![text("a"), text("b")]));
        assert_eq!(inputs("[1,2]"), Ok(vec![Input::Tokens(vec![1, 2])]));
        let lists = vec![Input::Tokens(vec![1]), Input::Tokens(vec![2, 3])];
        assert_eq!(inputs("[[1],[2,3]]"), Ok(lists));
        for (bad, code) in [
            ("\"\"", "invalid_value"),
            ("[]", "invalid_value"),
            ("[[]]", "invalid_value"),
            ("[\"a\",\"\"]", "invalid_value"),
            ("[\"a\",[1]]", "invalid_type"),
            ("[1,\"a\"]", "invalid_type"),
            ("[-1]", "invalid_type"),
            ("[1.5]", "invalid_type"),
            ("{}", "invalid_type"),
            ("7", "invalid_type"),
            ("null", "missing_required_parameter"),
        ] {
            let error = inputs(bad).expect_err(bad);
            assert_eq!((error.code, error.param.as_deref()), (code, Some("input")), "{bad}");
        }
        let many = format!("[{}1]", "1,".repeat(5000));
        assert_eq!(inputs(&many).expect("one text").len(), 1);
        let many = format!("[{}\"a\"]", "\"a\",".repeat(MOST_INPUTS));
        assert_eq!(inputs(&many).expect_err("too many").code, "invalid_value");
    }

    #[test]
    fn fields_beside_the_input_are_checked() {
        let with = |more: &str| read(&format!(r#"{{"model":"m","input":"a",{more}}}"#));
        assert_eq!(with(r#""user":"u""#).expect("valid").encoding, Encoding::Float);
        let base64 = with(r#""encoding_format":"base64","x":1"#).expect("valid");
        assert_eq!((base64.encoding, base64.ignored), (Encoding::Base64, vec!["x".to_owned()]));
        for (more, param) in
            [(r#""encoding_format":"hex""#, "encoding_format"), (r#""dimensions":8"#, "dimensions")]
        {
            assert_eq!(with(more).expect_err(more).param.as_deref(), Some(param));
        }
        let strict = EmbeddingRequest::read(br#"{"model":"m","input":"a","x":1}"#, true);
        assert_eq!(strict.expect_err("strict").code, "unknown_parameter");
        assert_eq!(written(&[1.0, -2.0], Encoding::Base64), json!("AACAPwAAAMA="));
    }
}
