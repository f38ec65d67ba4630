//! Chat templates: from a list of messages to the text that a model was trained on.
//!
//! Models carry their template as Jinja source, written for the environment that Python's
//! transformers library gives it. [`ChatTemplate`] reproduces that environment on minijinja:
//! block trimming, loop controls, the `generation` tag, JSON and numbers written as Python writes
//! them, `raise_exception`, `strftime_now`.

mod builtin;
mod civil_time;
mod environment;
mod json;
mod lexer;
mod markup;
mod methods;
mod python;
mod source;

use std::collections::BTreeSet;

use minijinja::value::Serde;
use minijinja::{Environment, Value};
use serde_json::Value as Json;

pub use builtin::{BuiltinTemplate, builtin};
pub use civil_time::CivilTime;
use environment::Raised;

/// Longest template source that is compiled, in bytes. The longest published ones have 20 kB.
const SOURCE_BYTES_MAX: usize = 1 << 20;

/// The name of a template inside its own environment; it shows in error messages.
const NAME: &str = "chat_template";

/// Variables that are always given; a template that reads another one reads an option.
const GIVEN: [&str; 9] = [
    "messages",
    "tools",
    "documents",
    "add_generation_prompt",
    "bos_token",
    "eos_token",
    "strftime_now",
    "raise_exception",
    "namespace",
];

/// Why a chat template could not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// The source is not a template.
    #[error("chat template: {message} (line {line}); correct it or give another one")]
    Syntax {
        /// What is wrong.
        message: String,
        /// Line in the source, from 1; 0 where unknown.
        line: usize,
    },
    /// The source is longer than any template can be.
    #[error("chat template: expected at most {limit} bytes, got {bytes}; is the file damaged?")]
    TooLong {
        /// Bytes of the source.
        bytes: usize,
        /// Bytes that are accepted.
        limit: usize,
    },
    /// The template itself refused the messages by calling `raise_exception`.
    #[error("the chat template refuses these messages: {message}")]
    Refused {
        /// The template's own words.
        message: String,
    },
    /// The template failed on these messages.
    #[error("the chat template fails on these messages: {message} (line {line})")]
    Failed {
        /// What went wrong.
        message: String,
        /// Line in the source, from 1; 0 where unknown.
        line: usize,
    },
}

/// What a template is rendered with.
#[derive(Debug, Clone, Copy)]
pub struct Conversation<'a> {
    /// Array of messages in the layout of OpenAI's chat API.
    pub messages: &'a Json,
    /// Array of tool definitions in that layout; `None` is given to the template as none.
    pub tools: Option<&'a Json>,
    /// Whether the text ends with the opening of the assistant's turn.
    pub add_generation_prompt: bool,
    /// More variables by name, such as `enable_thinking`; they win over all others.
    pub variables: Option<&'a serde_json::Map<String, Json>>,
    /// What `strftime_now` tells.
    pub now: CivilTime,
}

/// A compiled chat template with the special tokens of its model. Rendering needs only `&self`,
/// so that one template serves all requests.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    bos: String,
    eos: String,
    variables: BTreeSet<String>,
}

impl ChatTemplate {
    /// Compiles `source`. `bos` and `eos` are the texts of the model's first and last token, empty
    /// where it has none.
    ///
    /// # Errors
    /// [`TemplateError::Syntax`] and [`TemplateError::TooLong`].
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<Self, TemplateError> {
        if source.len() > SOURCE_BYTES_MAX {
            let (bytes, limit) = (source.len(), SOURCE_BYTES_MAX);
            return Err(TemplateError::TooLong { bytes, limit });
        }
        let mut environment = environment::python();
        environment
            .add_template_owned(NAME, source::rewrite(source))
            .map_err(|error| syntax_error(&error))?;
        let variables = environment
            .get_template(NAME)
            .map_err(|error| syntax_error(&error))?
            .undeclared_variables(false)
            .into_iter()
            .filter(|name| environment.globals().all(|(global, _)| global != name))
            .collect();
        Ok(Self {
            environment,
            source: source.to_owned(),
            bos: bos.to_owned(),
            eos: eos.to_owned(),
            variables,
        })
    }

    /// The source as it was given.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether the template reads the variable `name`, such as `tools` or `enable_thinking`.
    /// Reading inside a macro counts; a variable that the template itself sets first does not.
    pub fn reads(&self, name: &str) -> bool {
        self.variables.contains(name)
    }

    /// Names of the variables that the template reads beyond those always given: its options.
    pub fn options(&self) -> impl Iterator<Item = &str> {
        self.variables.iter().map(String::as_str).filter(|name| !GIVEN.contains(name))
    }

    /// The text of a conversation.
    ///
    /// # Errors
    /// [`TemplateError::Refused`] where the template does not take these messages,
    /// [`TemplateError::Failed`] where it breaks on them.
    pub fn render(&self, conversation: &Conversation<'_>) -> Result<String, TemplateError> {
        let Conversation { messages, tools, add_generation_prompt, variables, now } = *conversation;
        let mut context: Vec<(String, Value)> = vec![
            ("messages".into(), Value::from(Serde(messages))),
            ("tools".into(), tools.map_or(Value::from(()), |tools| Value::from(Serde(tools)))),
            ("documents".into(), Value::from(())),
            ("add_generation_prompt".into(), Value::from(add_generation_prompt)),
            ("bos_token".into(), Value::from(self.bos.as_str())),
            ("eos_token".into(), Value::from(self.eos.as_str())),
            ("strftime_now".into(), environment::strftime_now(now)),
        ];
        for (name, value) in variables.into_iter().flatten() {
            context.push((name.clone(), Value::from(Serde(value))));
        }
        self.environment
            .get_template(NAME)
            .and_then(|template| template.render(Value::from_pairs(context)))
            .map_err(|error| render_error(&error))
    }
}

fn syntax_error(error: &minijinja::Error) -> TemplateError {
    TemplateError::Syntax { message: describe(error), line: error.line().unwrap_or(0) }
}

fn render_error(error: &minijinja::Error) -> TemplateError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = cause {
        if let Some(Raised(message)) = current.downcast_ref::<Raised>() {
            return TemplateError::Refused { message: message.clone() };
        }
        cause = current.source();
    }
    TemplateError::Failed { message: describe(error), line: error.line().unwrap_or(0) }
}

fn describe(error: &minijinja::Error) -> String {
    match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn render(source: &str, messages: &Json) -> Result<String, TemplateError> {
        ChatTemplate::new(source, "<s>", "</s>")?.render(&Conversation {
            messages,
            tools: None,
            add_generation_prompt: true,
            variables: None,
            now: CivilTime::from_unix(0),
        })
    }

    #[test]
    fn a_refusal_keeps_the_words_of_the_template() {
        let source = "{% macro f() %}{{ raise_exception('no ' + 'way') }}{% endmacro %}{{ f() }}";
        match render(source, &json!([])) {
            Err(TemplateError::Refused { message }) => assert_eq!(message, "no way"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_failure_tells_its_line() {
        match render("a\n{{ 'x' + messages }}", &json!([])) {
            Err(TemplateError::Failed { line, .. }) => assert_eq!(line, 2),
            other => panic!("{other:?}"),
        }
        match render("a\n\n{% if %}", &json!([])) {
            Err(TemplateError::Syntax { line, .. }) => assert_eq!(line, 3),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn python_values_are_printed_as_python_does() {
        let source = "{{ messages }} {{ none }} {{ 1e16 }} {{ 2.0 }} {{ 'a' ~ true ~ 1.5 }}";
        let text = render(source, &json!([{"b": "it's", "a": [1, null, false, 0.00001]}]));
        assert_eq!(
            text.expect("renders"),
            r#"[{'b': "it's", 'a': [1, None, False, 1e-05]}] None 1e+16 2.0 aTrue1.5"#
        );
    }

    #[test]
    fn generation_marks_leave_no_trace() {
        let source = "{% for m in messages %}\n{% generation %}\n{{ m }}{%- endgeneration %}\n|\
                      {% endfor %}";
        assert_eq!(render(source, &json!(["x", "y"])).expect("renders"), "x|y|");
    }

    #[test]
    fn options_are_what_a_template_reads_beyond_the_usual() {
        let template = ChatTemplate::new(
            "{% set a = 1 %}{{ a }}{{ tools }}{% if enable_thinking is defined %}x{% endif %}\
             {{ range(3) }}{{ strftime_now('%Y') }}",
            "",
            "",
        )
        .expect("compiles");
        assert_eq!(template.options().collect::<Vec<_>>(), ["enable_thinking"]);
        assert!(template.reads("tools") && template.reads("enable_thinking"));
        assert!(!template.reads("messages") && !template.reads("a"));
    }

    #[test]
    fn endless_work_is_stopped() {
        let source = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}\
                      {% endfor %}";
        assert!(matches!(render(source, &json!([])), Err(TemplateError::Failed { .. })));
        let source = "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}";
        assert!(matches!(render(source, &json!([])), Err(TemplateError::Failed { .. })));
    }
}
