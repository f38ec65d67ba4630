//! The body of POST /v1/chat/completions, read and checked field by field (API.md section 3).

use serde_json::{Map, Value, json};

use super::error::ApiError;
use super::fields::{Fields, element};
use super::format::{self, Format};
use super::request_fields;
use super::tools::{self, Layout, Tools};
use crate::sampling::Overrides;

/// A chat request that passed all checks.
#[derive(Clone, Debug)]
pub(crate) struct ChatRequest {
    pub(crate) model: String,
    /// Messages as the template takes them.
    pub(crate) messages: Value,
    pub(crate) max_tokens: Option<usize>,
    pub(crate) sampling: Overrides,
    pub(crate) stop: Vec<String>,
    pub(crate) n: u32,
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
    /// Best tokens whose log probabilities are wanted; `Some(0)` for the chosen one only.
    pub(crate) logprobs: Option<usize>,
    /// What the text must be.
    pub(crate) format: Format,
    /// What it may call.
    pub(crate) tools: Tools,
    pub(crate) template_variables: Map<String, Value>,
    pub(crate) metadata: Option<Value>,
    pub(crate) return_tokens: bool,
    /// Place in the queue: higher ones first.
    pub(crate) priority: i32,
    /// May pages of other requests serve it, and its own others?
    pub(crate) cache_prompt: bool,
    /// Fields that were not known or had no effect worth silence.
    pub(crate) ignored: Vec<String>,
}

/// Fields that are taken and change nothing.
const NO_EFFECT: [&str; 10] = [
    "user",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "prompt_cache_options",
    "prediction",
    "verbosity",
    "store",
    "service_tier",
    "keep_alive",
];

/// Fields that would change the answer and are not there yet, or never will be.
const REFUSED: [&str; 14] = [
    "functions",
    "function_call",
    "audio",
    "web_search_options",
    "moderation",
    "id_slot",
    "mirostat",
    "mirostat_tau",
    "mirostat_eta",
    "samplers",
    "lora",
    "n_keep",
    "best_of",
    "continue_final_message",
];

pub(super) const MOST_MESSAGES: usize = 2048;
const MOST_METADATA: usize = 16;

impl ChatRequest {
    /// Reads and checks a body. `vocabulary` bounds token ids once the model is known.
    pub(crate) fn read(body: &[u8], most_choices: u32, strict: bool) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let model = request_fields::model(&mut fields)?;
        let messages = messages(&mut fields)?;
        let max_tokens = request_fields::max_tokens(&mut fields)?;
        let sampling = request_fields::overrides(&mut fields)?;
        let stop = request_fields::stops(&mut fields)?;
        let n = fields.integer("n", 1..=i64::from(most_choices))?.unwrap_or(1) as u32;
        let stream = fields.bool("stream")?.unwrap_or(false);
        let include_usage = request_fields::stream_options(&mut fields, stream)?;
        let logprobs = logprobs(&mut fields)?;
        let format = format::read(&mut fields)?;
        let tools = tools::read(&mut fields, Layout::Chat)?;
        modalities(&mut fields)?;
        let mut template_variables = template_variables(&mut fields)?;
        if let Some(named) = fields.string("reasoning_effort")? {
            effort(&mut template_variables, &named);
        }
        let metadata = metadata(&mut fields)?;
        let return_tokens = fields.bool("return_tokens")?.unwrap_or(false);
        let priority = fields.integer("priority", -10..=10)?.unwrap_or(0) as i32;
        let cache_prompt = fields.bool("cache_prompt")?.unwrap_or(true);
        let mut ignored = request_fields::rest(&mut fields, &NO_EFFECT, &REFUSED, strict)?;
        ignored.extend(format.ignored.iter().chain(&tools.ignored).cloned());
        Ok(Self {
            model,
            messages,
            max_tokens,
            sampling,
            stop,
            n,
            stream,
            include_usage,
            logprobs,
            format,
            tools,
            template_variables,
            metadata,
            return_tokens,
            priority,
            cache_prompt,
            ignored,
        })
    }
}

/// Variables of the template that the request sets.
pub(super) fn template_variables(fields: &mut Fields) -> Result<Map<String, Value>, ApiError> {
    Ok(fields.object("chat_template_kwargs")?.map(Fields::rest).unwrap_or_default())
}

/// Tells the template how much thought is wanted.
pub(super) fn effort(variables: &mut Map<String, Value>, effort: &str) {
    variables.entry("enable_thinking").or_insert(json!(effort != "none"));
    variables.entry("reasoning_effort").or_insert(json!(effort));
}

fn logprobs(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    let wanted = fields.bool("logprobs")?.unwrap_or(false);
    let top = fields.integer("top_logprobs", 0..=20)?;
    match (wanted, top) {
        (false, Some(_)) => {
            Err(fields.invalid("top_logprobs", "'logprobs': true beside it", "none"))
        }
        (false, None) => Ok(None),
        (true, top) => Ok(Some(top.unwrap_or(0) as usize)),
    }
}

fn modalities(fields: &mut Fields) -> Result<(), ApiError> {
    let modalities = fields.strings("modalities")?.unwrap_or_default();
    if modalities.iter().any(|modality| modality != "text") {
        return Err(ApiError::unsupported("modalities"));
    }
    Ok(())
}

pub(super) fn metadata(fields: &mut Fields) -> Result<Option<Value>, ApiError> {
    let Some(metadata) = fields.object("metadata")? else { return Ok(None) };
    let metadata = metadata.rest();
    if metadata.len() > MOST_METADATA {
        let got = metadata.len().to_string();
        return Err(fields.invalid("metadata", &format!("at most {MOST_METADATA} pairs"), &got));
    }
    Ok(Some(Value::Object(metadata)))
}

fn messages(fields: &mut Fields) -> Result<Value, ApiError> {
    let messages = fields.array("messages")?.ok_or_else(|| fields.missing("messages"))?;
    if messages.is_empty() || messages.len() > MOST_MESSAGES {
        let expected = format!("1 to {MOST_MESSAGES} messages");
        return Err(fields.invalid("messages", &expected, &messages.len().to_string()));
    }
    let messages = messages.into_iter().enumerate();
    let messages = messages.map(|(index, value)| message(value, format!("messages[{index}]")));
    Ok(Value::Array(messages.collect::<Result<_, _>>()?))
}

/// One message as templates take it: role, content as one string, what belongs to tools.
fn message(value: Value, path: String) -> Result<Value, ApiError> {
    let mut fields = element(value, path.clone())?;
    let role = fields.string("role")?.ok_or_else(|| fields.missing("role"))?;
    let role = match role.as_str() {
        // Developer messages are what system messages were called before.
        "developer" => "system",
        "system" | "user" | "assistant" | "tool" => role.as_str(),
        _ => {
            let expected = "system, developer, user, assistant or tool";
            return Err(fields.invalid("role", expected, &format!("{role:?}")));
        }
    };
    let mut message = Map::new();
    message.insert("role".to_owned(), json!(role));
    let calls = tool_calls(&mut fields, &path)?;
    match content(&mut fields, &path)? {
        Some(text) => message.insert("content".to_owned(), json!(text)),
        None if role == "assistant" && calls.is_some() => {
            message.insert("content".to_owned(), Value::Null)
        }
        None => return Err(fields.missing("content")),
    };
    if let Some(calls) = calls {
        message.insert("tool_calls".to_owned(), Value::Array(calls));
    }
    if role == "tool" {
        let id = fields.string("tool_call_id")?.ok_or_else(|| fields.missing("tool_call_id"))?;
        message.insert("tool_call_id".to_owned(), json!(id));
    }
    for name in ["name", "reasoning_content"] {
        if let Some(text) = fields.string(name)? {
            message.insert(name.to_owned(), json!(text));
        }
    }
    Ok(Value::Object(message))
}

/// The calls of an earlier reply: each names a function.
fn tool_calls(fields: &mut Fields, path: &str) -> Result<Option<Vec<Value>>, ApiError> {
    let Some(calls) = fields.array("tool_calls")? else { return Ok(None) };
    let call = |(index, call): (usize, Value)| {
        let mut call = element(call, format!("{path}.tool_calls[{index}]"))?;
        call.take("type");
        let id = call.string("id")?.unwrap_or_default();
        let mut function = call.object("function")?.ok_or_else(|| call.missing("function"))?;
        let name = function.string("name")?.ok_or_else(|| function.missing("name"))?;
        let arguments = function.string("arguments")?.unwrap_or_else(|| "{}".to_owned());
        Ok(tools::call_object(&id, &name, &arguments))
    };
    calls.into_iter().enumerate().map(call).collect::<Result<_, _>>().map(Some)
}

/// A message's text: a string, or text parts joined in order.
fn content(fields: &mut Fields, path: &str) -> Result<Option<String>, ApiError> {
    let parts = match fields.take("content") {
        None => return Ok(None),
        Some(Value::String(text)) => return Ok(Some(text)),
        Some(Value::Array(parts)) => parts,
        Some(other) => {
            let name = format!("{path}.content");
            let message = format!("'{name}': expected a string or an array of parts, got {other}.");
            return Err(ApiError::field("invalid_type", &name, message));
        }
    };
    let mut text = String::new();
    for (index, part) in parts.into_iter().enumerate() {
        let name = format!("{path}.content[{index}]");
        let mut part = element(part, name.clone())?;
        let kind = part.string("type")?.ok_or_else(|| part.missing("type"))?;
        let field = match kind.as_str() {
            "text" => "text",
            "refusal" => "refusal",
            _ => {
                let message = format!("'{name}': this model takes text only, got a part {kind:?}.");
                return Err(ApiError::field("unsupported_value", &name, message));
            }
        };
        let piece = part.string(field)?.ok_or_else(|| part.missing(field))?;
        text.push_str(&piece);
    }
    Ok(Some(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(extra: &str) -> Result<ChatRequest, ApiError> {
        let body = format!(
            r#"{{"model":"m","messages":[{{"role":"user","content":"hi"}}]{}{extra}}}"#,
            if extra.is_empty() { "" } else { "," }
        );
        ChatRequest::read(body.as_bytes(), 8, false)
    }

    #[test]
    fn parts_are_joined_and_developers_speak_for_the_system() {
        let body = br#"{"model":"m","messages":[
            {"role":"developer","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]},
            {"role":"assistant","content":null,"tool_calls":[]}]}"#;
        let request = ChatRequest::read(body, 8, false).expect("valid");
        assert_eq!(request.messages[0], json!({"role": "system", "content": "ab"}));
        assert_eq!(request.messages[1]["content"], Value::Null);
    }

    #[test]
    fn every_refusal_names_its_field() {
        for (extra, code, param) in [
            (r#""temperature":3"#, "invalid_value", "temperature"),
            (r#""temperature":"1""#, "invalid_type", "temperature"),
            (r#""max_tokens":0"#, "invalid_value", "max_tokens"),
            (r#""max_tokens":5,"max_completion_tokens":6"#, "invalid_value", "max_tokens"),
            (r#""stop":["",""]"#, "invalid_value", "stop"),
            (r#""priority":11"#, "invalid_value", "priority"),
            (r#""cache_prompt":"no""#, "invalid_type", "cache_prompt"),
            (r#""top_logprobs":3"#, "invalid_value", "top_logprobs"),
            (r#""stream_options":{}"#, "invalid_value", "stream_options"),
            (r#""functions":[]"#, "unsupported_parameter", "functions"),
            (r#""tools":[{}]"#, "missing_required_parameter", "tools[0].type"),
            (r#""logit_bias":{"x":1}"#, "invalid_value", "logit_bias"),
            (r#""n":9"#, "invalid_value", "n"),
            (r#""response_format":{"type":"xml"}"#, "unsupported_value", "response_format"),
            (
                r#""response_format":{"type":"json_schema"}"#,
                "missing_required_parameter",
                "response_format.json_schema",
            ),
            (
                r#""response_format":{"type":"json_object"},"grammar":"x""#,
                "invalid_value",
                "grammar",
            ),
            (r#""json_schema":{"type":"x"}"#, "invalid_value", "/type"),
        ] {
            let error = read(extra).expect_err(extra);
            assert_eq!((error.code, error.param.as_deref()), (code, Some(param)), "{extra}");
        }
    }

    #[test]
    fn unknown_fields_are_named_or_refused() {
        assert_eq!(read(r#""foo":1,"seed":3"#).expect("ignored").ignored, ["foo"]);
        let body = br#"{"model":"m","messages":[{"role":"user","content":"x"}],"foo":1}"#;
        assert_eq!(ChatRequest::read(body, 8, true).expect_err("strict").code, "unknown_parameter");
        assert!(read(r#""max_tokens":null,"stop":null"#).is_ok(), "null is absent");
    }
}
