//! Tool calls as models write them: which form a model was trained on, what its template is given, how
//! calls are found in its replies, and grammars of replies that are calls.

mod conversation;
mod grammar;
mod parser;

use std::sync::Arc;

use super::template::ChatTemplate;
use super::tokenizer::Tokenizer;

pub use conversation::prepare;
pub use grammar::{Bound, Function, call_grammar};
pub use parser::{CallEvent, CallParser};

/// Where a model puts its calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallForm {
    /// `<tool_call>{"name": …, "arguments": {…}}</tool_call>`: Hermes, Qwen, and models without a form.
    Tagged,
    /// The reply is `{"name": …, "parameters": {…}}`, perhaps after `<|python_tag|>`: Llama 3.
    Bare,
    /// `[TOOL_CALLS][{"name": …, "arguments": {…}}, …]`: Mistral.
    List,
    /// `[TOOL_CALLS]name[ARGS]{…}`, again and again: Mistral, later.
    Named,
}

/// How a model calls tools.
#[derive(Clone, Debug)]
pub struct CallStyle {
    /// The form of its calls.
    pub form: CallForm,
    /// Does its template write the tools? If not, they are told in the system message.
    pub told_by_template: bool,
    /// Control tokens that are marks of calls and of thought: part of the text where these are looked
    /// for.
    pub shown: Arc<[u32]>,
}

/// Marks of calls, and of thought, that may be tokens of their own.
const MARKS: [&str; 8] = [
    "<tool_call>",
    "</tool_call>",
    "[TOOL_CALLS]",
    "[ARGS]",
    "[CALL_ID]",
    "<|python_tag|>",
    "<think>",
    "</think>",
];

impl CallStyle {
    /// That of a model, by what its template writes.
    pub fn of(template: &ChatTemplate, tokenizer: &Tokenizer) -> Self {
        let source = template.source();
        let told_by_template = template.reads("tools");
        let form = match told_by_template {
            true if source.contains("[ARGS]") => CallForm::Named,
            true if source.contains("[TOOL_CALLS]") => CallForm::List,
            true if source.contains("<tool_call>") => CallForm::Tagged,
            true if source.contains("python_tag") || source.contains("\"parameters\"") => {
                CallForm::Bare
            }
            _ => CallForm::Tagged,
        };
        let marks = MARKS.iter().filter_map(|mark| tokenizer.id_of(mark));
        let shown = marks.filter(|id| tokenizer.is_control(*id)).collect();
        Self { form, told_by_template, shown }
    }
}
