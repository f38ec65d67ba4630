//! What the text of a reply must be: `response_format`, and the extensions `json_schema` and `grammar`
//! (API.md section 3.3).

use axum::http::StatusCode;
use serde_json::Value;
use trefoil_engine::grammar::{Grammar, GrammarError, GrammarSource, check_schema};

use super::error::ApiError;
use super::fields::Fields;
use super::state::ServedModel;

/// A form that the text of a reply is held to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Format {
    /// What is compiled for it; nothing for free text.
    pub(crate) source: Option<GrammarSource>,
    /// The field that asked for it.
    pub(crate) field: &'static str,
    /// Parts of the schema that are not enforced, as the header names them.
    pub(crate) ignored: Vec<String>,
}

/// Reads the fields of a chat request that say it.
pub(crate) fn read(fields: &mut Fields) -> Result<Format, ApiError> {
    let mut asked = Vec::new();
    if let Some(format) = fields.object("response_format")? {
        asked.push(response_format(format, "response_format")?);
    }
    if let Some(schema) = fields.take("json_schema") {
        asked.push(schema_format("json_schema", &schema, false)?);
    }
    if let Some(text) = fields.string("grammar")? {
        // As llama.cpp tells the two languages apart.
        let source = match text.trim_start().starts_with("%llguidance") {
            true => GrammarSource::Lark(text),
            false => GrammarSource::Gbnf(text),
        };
        asked.push(Format { source: Some(source), field: "grammar", ignored: Vec::new() });
    }
    asked.retain(|format| format.source.is_some());
    if let [_, second, ..] = asked.as_slice() {
        let expected = "one of response_format, json_schema and grammar";
        return Err(fields.invalid(second.field, expected, "two of them"));
    }
    Ok(asked.pop().unwrap_or_default())
}

/// `{"type":"text"|"json_object"|"json_schema", …}`. The schema is in an object `json_schema`, or right
/// here, as the Responses API has it.
pub(crate) fn response_format(mut format: Fields, field: &'static str) -> Result<Format, ApiError> {
    let kind = format.string("type")?.ok_or_else(|| format.missing("type"))?;
    match kind.as_str() {
        "text" => Ok(Format::default()),
        "json_object" => {
            let source = Some(GrammarSource::JsonObject);
            Ok(Format { source, field, ignored: Vec::new() })
        }
        "json_schema" => {
            let mut named = match format.object("json_schema")? {
                Some(inner) => inner,
                None if field == "response_format" => return Err(format.missing("json_schema")),
                None => format,
            };
            let name = named.string("name")?.ok_or_else(|| named.missing("name"))?;
            let of_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
            if name.is_empty() || name.len() > 64 || !name.chars().all(of_name) {
                let expected = "1 to 64 letters, digits, '_' and '-'";
                return Err(named.invalid("name", expected, &format!("{name:?}")));
            }
            named.take("description");
            let strict = named.bool("strict")?.unwrap_or(false);
            let schema = named.take("schema").unwrap_or(Value::Bool(true));
            schema_format(field, &schema, strict)
        }
        other => {
            let message = format!(
                "'{field}': expected the type text, json_object or json_schema, got {other:?}."
            );
            Err(ApiError::field("unsupported_value", field, message))
        }
    }
}

fn schema_format(field: &'static str, schema: &Value, strict: bool) -> Result<Format, ApiError> {
    let checked = check_schema(schema, strict).map_err(|error| grammar_error(&error, field))?;
    let ignored = checked.ignored().iter().map(|pointer| format!("{field}{pointer}")).collect();
    Ok(Format { source: Some(GrammarSource::JsonSchema(checked)), field, ignored })
}

/// What a grammar's error is to a client; `field` is where the grammar came from.
pub(crate) fn grammar_error(error: &GrammarError, field: &str) -> ApiError {
    let message = format!("'{field}': {error}.");
    match error {
        GrammarError::Unsupported { pointer, .. } => {
            ApiError::field("unsupported_schema", pointer, message)
        }
        GrammarError::Invalid { pointer, .. } => {
            let param = if pointer.is_empty() { field } else { pointer };
            ApiError::field("invalid_value", param, message)
        }
        GrammarError::TooComplex(_) => ApiError::field("schema_too_complex", field, message),
        GrammarError::Syntax { .. } | GrammarError::Refused(_) => {
            ApiError::field("invalid_value", field, message)
        }
        GrammarError::Busy => {
            let error = ApiError::new(StatusCode::TOO_MANY_REQUESTS, "queue_timeout", message);
            ApiError { retry_after: Some(1), ..error }
        }
        _ => ApiError::internal(message),
    }
}

/// Compiles a source where waiting is no harm.
pub(crate) async fn compile(
    model: &ServedModel,
    source: GrammarSource,
    field: &'static str,
) -> Result<Grammar, ApiError> {
    let text = model.text.clone();
    let compiled = tokio::task::spawn_blocking(move || text.grammars.compile(&source)).await;
    match compiled {
        Ok(result) => result.map_err(|error| grammar_error(&error, field)),
        Err(_) => Err(ApiError::internal("Compiling the grammar panicked.")),
    }
}
