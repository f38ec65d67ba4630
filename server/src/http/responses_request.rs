//! The body of POST /v1/responses, read and turned into a request for one chat reply (API.md section 6).

use serde_json::{Map, Value, json};

use super::chat_request::{self, ChatRequest};
use super::error::ApiError;
use super::fields::{Fields, element};
use super::format::{self, Format};
use super::request_fields;
use super::tools::{self, Layout};

/// A request that passed all checks.
#[derive(Clone, Debug)]
pub(crate) struct ResponsesRequest {
    /// The same as a chat.
    pub(crate) chat: ChatRequest,
    /// Fields that the answer repeats, as they were given or by default.
    pub(crate) echo: Map<String, Value>,
}

/// Fields that are taken and change nothing.
const NO_EFFECT: [&str; 12] = [
    "store",
    "user",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "service_tier",
    "stream_options",
    "max_tool_calls",
    "image",
    "access_programs",
    "keep_alive",
];

/// Fields that ask for what this server does not keep or have.
const REFUSED: [&str; 6] = [
    "previous_response_id",
    "conversation",
    "background_options",
    "prompt",
    "context_management",
    "moderation",
];

impl ResponsesRequest {
    /// Reads and checks a body.
    pub(crate) fn read(body: &[u8], strict: bool) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let model = request_fields::model(&mut fields)?;
        for field in REFUSED {
            if fields.take(field).is_some() {
                return Err(ApiError::unsupported(field));
            }
        }
        if fields.bool("background")?.unwrap_or(false) {
            return Err(ApiError::unsupported("background"));
        }
        if let Some(truncation) = fields.string("truncation")?
            && truncation != "disabled"
        {
            return Err(fields.invalid("truncation", "disabled", &format!("{truncation:?}")));
        }
        let mut echo = Map::new();
        for field in ["instructions", "text", "tools", "tool_choice", "reasoning"] {
            echo.insert(field.to_owned(), fields.peek(field));
        }
        let instructions = fields.string("instructions")?;
        let input = fields.take("input").ok_or_else(|| fields.missing("input"))?;
        let messages = messages(instructions, input)?;
        let max_tokens = fields.integer("max_output_tokens", 1..=i64::MAX)?;
        echo.insert("max_output_tokens".to_owned(), json!(max_tokens));
        let logprobs = logprobs(&mut fields)?;
        let format = text_format(&mut fields)?;
        let tools = tools::read(&mut fields, Layout::Responses)?;
        let mut template_variables = chat_request::template_variables(&mut fields)?;
        if let Some(mut reasoning) = fields.object("reasoning")? {
            if let Some(effort) = reasoning.string("effort")? {
                chat_request::effort(&mut template_variables, &effort);
            }
            reasoning.take("summary");
        }
        let sampling = request_fields::overrides(&mut fields)?;
        let metadata = chat_request::metadata(&mut fields)?;
        let stream = fields.bool("stream")?.unwrap_or(false);
        let priority = fields.integer("priority", -10..=10)?.unwrap_or(0) as i32;
        let cache_prompt = fields.bool("cache_prompt")?.unwrap_or(true);
        let mut ignored = request_fields::rest(&mut fields, &NO_EFFECT, &[], strict)?;
        ignored.extend(format.ignored.iter().chain(&tools.ignored).cloned());
        echo.insert("metadata".to_owned(), metadata.unwrap_or_else(|| json!({})));
        echo.insert("parallel_tool_calls".to_owned(), json!(tools.parallel()));
        let chat = ChatRequest {
            model,
            messages,
            max_tokens: max_tokens.map(|n| usize::try_from(n).unwrap_or(usize::MAX)),
            sampling,
            stop: Vec::new(),
            n: 1,
            stream,
            include_usage: false,
            logprobs,
            format,
            tools,
            template_variables,
            metadata: None,
            return_tokens: false,
            priority,
            cache_prompt,
            ignored,
        };
        Ok(Self { chat, echo })
    }
}

/// `top_logprobs` counts where `include` asks for them.
fn logprobs(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    let mut wanted = false;
    for include in fields.strings("include")?.unwrap_or_default() {
        match include.as_str() {
            "message.output_text.logprobs" => wanted = true,
            // Nothing is encrypted here, so that there is nothing to include.
            "reasoning.encrypted_content" => {}
            other => {
                let message = format!("'include': {other:?} is not supported; leave it out.");
                return Err(ApiError::field("unsupported_value", "include", message));
            }
        }
    }
    let top = fields.integer("top_logprobs", 0..=20)?.unwrap_or(0) as usize;
    Ok(wanted.then_some(top))
}

fn text_format(fields: &mut Fields) -> Result<Format, ApiError> {
    let mut asked = format::read(fields)?;
    if let Some(mut text) = fields.object("text")? {
        text.take("verbosity");
        if let Some(inner) = text.object("format")? {
            asked = format::response_format(inner, "text.format")?;
        }
    }
    Ok(asked)
}

/// The input as messages of a chat.
fn messages(instructions: Option<String>, input: Value) -> Result<Value, ApiError> {
    let mut list = Vec::new();
    if let Some(text) = instructions {
        list.push(json!({"role": "system", "content": text}));
    }
    match input {
        Value::String(text) => list.push(json!({"role": "user", "content": text})),
        Value::Array(items) if !items.is_empty() && items.len() <= chat_request::MOST_MESSAGES => {
            for (index, item) in items.into_iter().enumerate() {
                read_item(element(item, format!("input[{index}]"))?, &mut list)?;
            }
        }
        other => {
            let message = format!(
                "'input': expected a string or 1 to {} items, got {}.",
                chat_request::MOST_MESSAGES,
                if other.is_array() { "another number of them" } else { "something else" },
            );
            return Err(ApiError::field("invalid_type", "input", message));
        }
    }
    Ok(Value::Array(list))
}

fn read_item(mut item: Fields, list: &mut Vec<Value>) -> Result<(), ApiError> {
    let kind = item.string("type")?.unwrap_or_else(|| "message".to_owned());
    match kind.as_str() {
        "message" => {
            let role = item.string("role")?.ok_or_else(|| item.missing("role"))?;
            let role = match role.as_str() {
                "developer" | "system" => "system",
                "user" | "assistant" => role.as_str(),
                _ => {
                    let expected = "system, developer, user or assistant";
                    return Err(item.invalid("role", expected, &format!("{role:?}")));
                }
            };
            let content = text_of(&mut item, "content")?;
            list.push(json!({"role": role, "content": content}));
        }
        "function_call" => {
            let id = item.string("call_id")?.ok_or_else(|| item.missing("call_id"))?;
            let name = item.string("name")?.ok_or_else(|| item.missing("name"))?;
            let arguments = item.string("arguments")?.unwrap_or_else(|| "{}".to_owned());
            let call = tools::call_object(&id, &name, &arguments);
            // Calls of one turn are one message, with the text before them.
            if list.last().is_none_or(|last| last["role"] != "assistant") {
                list.push(json!({"role": "assistant", "content": null}));
            }
            let last = list.len() - 1;
            match list[last]["tool_calls"].as_array_mut() {
                Some(calls) => calls.push(call),
                None => list[last]["tool_calls"] = json!([call]),
            }
        }
        "function_call_output" => {
            let id = item.string("call_id")?.ok_or_else(|| item.missing("call_id"))?;
            let output = text_of(&mut item, "output")?;
            list.push(json!({"role": "tool", "tool_call_id": id, "content": output}));
        }
        // What a model thought before: templates leave it out of earlier turns.
        "reasoning" => {}
        other => {
            let name = item.place();
            let message = format!("'{name}': an item of type {other:?} is not supported here.");
            return Err(ApiError::field("unsupported_value", &name, message));
        }
    }
    Ok(())
}

/// A text: a string, or text parts joined in order.
fn text_of(item: &mut Fields, field: &'static str) -> Result<String, ApiError> {
    let place = format!("{}.{field}", item.place());
    let parts = match item.take(field) {
        None => return Err(item.missing(field)),
        Some(Value::String(text)) => return Ok(text),
        Some(Value::Array(parts)) => parts,
        Some(_) => {
            let message = format!("'{place}': expected a string or an array of parts.");
            return Err(ApiError::field("invalid_type", &place, message));
        }
    };
    let mut text = String::new();
    for (index, part) in parts.into_iter().enumerate() {
        let name = format!("{place}[{index}]");
        let mut part = element(part, name.clone())?;
        let kind = part.string("type")?.ok_or_else(|| part.missing("type"))?;
        let field = match kind.as_str() {
            "input_text" | "output_text" | "text" => "text",
            "refusal" => "refusal",
            _ => {
                let message = format!("'{name}': this model takes text only, got a part {kind:?}.");
                return Err(ApiError::field("unsupported_value", &name, message));
            }
        };
        text.push_str(&part.string(field)?.ok_or_else(|| part.missing(field))?);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &Value) -> Result<ResponsesRequest, ApiError> {
        ResponsesRequest::read(body.to_string().as_bytes(), false)
    }

    #[test]
    fn items_become_messages() {
        let input = json!([
            {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
            {"type": "message", "role": "assistant", "content": [
                {"type": "output_text", "text": "b", "annotations": []}
            ]},
            {"type": "reasoning", "summary": []},
            {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
            {"type": "function_call", "call_id": "c2", "name": "g", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "1"},
        ]);
        let body =
            json!({"model": "m", "input": input, "instructions": "i", "max_output_tokens": 5});
        let request = read(&body).expect("valid");
        let messages = request.chat.messages;
        let roles: Vec<&str> = (0..4).filter_map(|i| messages[i]["role"].as_str()).collect();
        assert_eq!(roles, ["system", "user", "assistant", "tool"]);
        assert_eq!(messages[2]["tool_calls"][1]["id"], "c2");
        assert_eq!(messages[2]["content"], "b");
        assert_eq!(request.chat.max_tokens, Some(5));
        assert_eq!(request.echo["instructions"], "i");
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        for (extra, code, param) in [
            (json!({"previous_response_id": "r"}), "unsupported_parameter", "previous_response_id"),
            (json!({"background": true}), "unsupported_parameter", "background"),
            (json!({"truncation": "auto"}), "invalid_value", "truncation"),
            (json!({"include": ["file_search_call.results"]}), "unsupported_value", "include"),
            (json!({"tools": [{"type": "web_search"}]}), "unsupported_value", "tools[0]"),
            (json!({"input": []}), "invalid_type", "input"),
            (
                json!({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}),
                "unsupported_value",
                "input[0].content[0]",
            ),
            (json!({"input": [{"type": "item_reference"}]}), "unsupported_value", "input[0]"),
            (json!({"text": {"format": {"type": "xml"}}}), "unsupported_value", "text.format"),
        ] {
            let mut body = json!({"model": "m", "input": "x"});
            for (name, value) in extra.as_object().expect("an object") {
                body[name] = value.clone();
            }
            let error = read(&body).expect_err("refused");
            assert_eq!((error.code, error.param.as_deref()), (code, Some(param)), "{body}");
        }
        assert!(read(&json!({"model": "m"})).is_err(), "no input");
    }
}
