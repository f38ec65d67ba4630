//! The body of POST /v1/completions, read and checked field by field (API.md section 4).

use serde_json::Value;

use super::error::ApiError;
use super::fields::Fields;
use super::request_fields;
use super::text_inputs::{Input, inputs};
use crate::sampling::Overrides;

/// A completion request that passed all checks.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct CompletionRequest {
    pub(crate) model: String,
    /// Texts to go on with; without one the model begins by itself.
    pub(crate) prompts: Option<Vec<Input>>,
    /// Most tokens of a reply, if the request says so.
    pub(crate) max_tokens: Option<usize>,
    pub(crate) sampling: Overrides,
    pub(crate) stop: Vec<String>,
    /// Replies to each prompt.
    pub(crate) n: u32,
    /// Does each text begin with its prompt?
    pub(crate) echo: bool,
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
    /// Best tokens whose log probabilities are wanted, beside the chosen one.
    pub(crate) logprobs: Option<usize>,
    pub(crate) return_tokens: bool,
    /// Place in the queue: higher ones first.
    pub(crate) priority: i32,
    /// May pages of other requests serve it, and its own others?
    pub(crate) cache_prompt: bool,
    /// Fields that were not known.
    pub(crate) ignored: Vec<String>,
}

/// Most tokens of a reply where the request does not say.
pub(crate) const DEFAULT_MAX_TOKENS: usize = 16;

/// Fields that are taken and change nothing.
const NO_EFFECT: [&str; 5] = ["user", "prompt_cache_key", "store", "service_tier", "keep_alive"];

/// Fields that would change the answer and are not there yet, or never will be.
const REFUSED: [&str; 10] = [
    "grammar",
    "json_schema",
    "response_format",
    "id_slot",
    "mirostat",
    "mirostat_tau",
    "mirostat_eta",
    "samplers",
    "lora",
    "n_keep",
];

const MOST_PROMPTS: usize = 128;

impl CompletionRequest {
    /// Reads and checks a body.
    pub(crate) fn read(body: &[u8], most_choices: u32, strict: bool) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let model = request_fields::model(&mut fields)?;
        let prompts =
            fields.take("prompt").map(|value| inputs("prompt", value, MOST_PROMPTS)).transpose()?;
        let max_tokens = request_fields::max_tokens(&mut fields)?;
        let sampling = request_fields::overrides(&mut fields)?;
        let stop = request_fields::stops(&mut fields)?;
        let n = fields.integer("n", 1..=i64::from(most_choices))?.unwrap_or(1) as u32;
        best_of(&mut fields, n)?;
        suffix(&mut fields)?;
        let echo = fields.bool("echo")?.unwrap_or(false);
        let stream = fields.bool("stream")?.unwrap_or(false);
        let include_usage = request_fields::stream_options(&mut fields, stream)?;
        let logprobs = fields.integer("logprobs", 0..=5)?.map(|n| n as usize);
        if echo && logprobs.is_some() {
            let message = "'logprobs' with 'echo' asks for log probabilities of the prompt, which this \
                           server does not compute; leave one of them out.";
            return Err(ApiError::field("unsupported_value", "logprobs", message));
        }
        let return_tokens = fields.bool("return_tokens")?.unwrap_or(false);
        let priority = fields.integer("priority", -10..=10)?.unwrap_or(0) as i32;
        let cache_prompt = fields.bool("cache_prompt")?.unwrap_or(true);
        let ignored = request_fields::rest(&mut fields, &NO_EFFECT, &REFUSED, strict)?;
        Ok(Self {
            model,
            prompts,
            max_tokens,
            sampling,
            stop,
            n,
            echo,
            stream,
            include_usage,
            logprobs,
            return_tokens,
            priority,
            cache_prompt,
            ignored,
        })
    }
}

/// All replies are answered: the best of more cannot be chosen.
fn best_of(fields: &mut Fields, n: u32) -> Result<(), ApiError> {
    match fields.integer("best_of", 1..=i64::MAX)? {
        Some(best) if best != i64::from(n) => {
            let message = format!("'best_of': expected the value of n, {n}, got {best}.");
            Err(ApiError::field("unsupported_value", "best_of", message))
        }
        _ => Ok(()),
    }
}

fn suffix(fields: &mut Fields) -> Result<(), ApiError> {
    match fields.take("suffix") {
        None => Ok(()),
        Some(Value::String(text)) if text.is_empty() => Ok(()),
        Some(_) => {
            let message = "'suffix': no model here fills in the middle of a text; leave it out.";
            Err(ApiError::field("unsupported_value", "suffix", message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(extra: &str) -> Result<CompletionRequest, ApiError> {
        let body = format!(r#"{{"model":"m"{}{extra}}}"#, if extra.is_empty() { "" } else { "," });
        CompletionRequest::read(body.as_bytes(), 8, false)
    }

    #[test]
    fn prompts_have_four_forms_and_may_be_missing() {
        let prompts = |prompt: &str| read(&format!(r#""prompt":{prompt}"#)).map(|r| r.prompts);
        let text = |text: &str| Input::Text(text.to_owned());
        assert_eq!(read("").map(|request| request.prompts), Ok(None));
        assert_eq!(prompts("null"), Ok(None));
        assert_eq!(prompts(r#""a""#), Ok(Some(vec![text("a")])));
        assert_eq!(prompts(r#"["a",""]"#), Ok(Some(vec![text("a"), text("")])));
        assert_eq!(prompts("[1,2]"), Ok(Some(vec![Input::Tokens(vec![1, 2])])));
        let lists = vec![Input::Tokens(vec![1]), Input::Tokens(vec![2, 3])];
        assert_eq!(prompts("[[1],[2,3]]"), Ok(Some(lists)));
        for (bad, code) in [
            ("[]", "invalid_value"),
            ("7", "invalid_type"),
            ("{}", "invalid_type"),
            ("[true]", "invalid_type"),
            (r#"["a",1]"#, "invalid_type"),
            ("[-1]", "invalid_type"),
        ] {
            let error = prompts(bad).expect_err(bad);
            assert_eq!((error.code, error.param.as_deref()), (code, Some("prompt")), "{bad}");
        }
        let many = format!("[{}\"a\"]", "\"a\",".repeat(MOST_PROMPTS));
        assert_eq!(prompts(&many).expect_err("too many").code, "invalid_value");
    }

    #[test]
    fn every_refusal_names_its_field() {
        for (extra, code, param) in [
            (r#""logprobs":6"#, "invalid_value", "logprobs"),
            (r#""logprobs":true"#, "invalid_type", "logprobs"),
            (r#""logprobs":0,"echo":true"#, "unsupported_value", "logprobs"),
            (r#""best_of":2"#, "unsupported_value", "best_of"),
            (r#""suffix":"x""#, "unsupported_value", "suffix"),
            (r#""echo":1"#, "invalid_type", "echo"),
            (r#""max_tokens":0"#, "invalid_value", "max_tokens"),
            (r#""stream_options":{}"#, "invalid_value", "stream_options"),
            (r#""grammar":"x""#, "unsupported_parameter", "grammar"),
            (r#""n":9"#, "invalid_value", "n"),
        ] {
            let error = read(extra).expect_err(extra);
            assert_eq!((error.code, error.param.as_deref()), (code, Some(param)), "{extra}");
        }
        assert_eq!(
            read(r#""best_of":2,"n":2,"suffix":"","foo":1"#).expect("fine").ignored,
            ["foo"]
        );
    }
}
