//! One reply of a chat: as the message it becomes, and as the deltas of its parts.

use serde_json::{Value, json};
use trefoil_engine::generate::Summary;

use super::answer;
use super::chat::Job;
use super::parts::{Finder, Part};
use super::tools::call_object;

/// A reply while it grows.
pub(super) struct Reply {
    text: String,
    reasoning: String,
    calls: Vec<Value>,
    finder: Finder,
    tokens: Vec<u32>,
    pub(super) logprobs: Vec<Value>,
    pub(super) summary: Option<Summary>,
}

impl Reply {
    pub(super) fn new(finder: Finder) -> Self {
        Self {
            text: String::new(),
            reasoning: String::new(),
            calls: Vec::new(),
            finder,
            tokens: Vec::new(),
            logprobs: Vec::new(),
            summary: None,
        }
    }

    /// Takes a token with the text that can be told with it.
    pub(super) fn token(&mut self, id: u32, text: &str) {
        self.tokens.push(id);
        self.finder.count();
        self.push(text);
    }

    pub(super) fn push(&mut self, text: &str) {
        let parts = self.finder.push(text);
        self.take(parts);
    }

    pub(super) fn end(&mut self) {
        let parts = self.finder.finish();
        self.take(parts);
    }

    fn take(&mut self, parts: Vec<Part>) {
        for part in parts {
            match part {
                Part::Reasoning(text) => self.reasoning.push_str(&text),
                Part::Text(text) => self.text.push_str(&text),
                Part::Call { id, name, arguments, .. } => {
                    self.calls.push(call_object(&id, &name, &arguments));
                }
            }
        }
    }

    pub(super) fn reasoning_tokens(&self) -> usize {
        self.finder.reasoning_tokens
    }

    /// The choice of an answer that it is.
    pub(super) fn choice(&self, job: &Job, index: usize) -> Value {
        let finish = self.summary.as_ref().map(|summary| match self.calls.is_empty() {
            true => answer::finish_reason(&summary.finish),
            false => "tool_calls",
        });
        let mut message = json!({"role": "assistant", "content": self.text, "refusal": null});
        if !self.reasoning.is_empty() {
            message["reasoning_content"] = json!(self.reasoning);
        }
        if !self.calls.is_empty() {
            if self.text.is_empty() {
                message["content"] = Value::Null;
            }
            message["tool_calls"] = json!(self.calls);
        }
        let mut value = json!({
            "index": index,
            "message": message,
            "logprobs": job.request.logprobs.map(|_| json!({
                "content": self.logprobs, "refusal": null,
            })),
            "finish_reason": finish,
        });
        if job.request.return_tokens {
            value["tokens"] = json!(self.tokens);
        }
        value
    }
}

/// Parts of a reply as deltas: a call is opened, then gets its arguments.
pub(super) fn deltas(parts: &[Part]) -> Vec<Value> {
    let mut deltas = Vec::new();
    for part in parts {
        match part {
            Part::Reasoning(text) => deltas.push(json!({"reasoning_content": text})),
            Part::Text(text) => deltas.push(json!({"content": text})),
            Part::Call { index, id, name, arguments } => {
                let mut opened = call_object(id, name, "");
                opened["index"] = json!(index);
                deltas.push(json!({"tool_calls": [opened]}));
                let more = json!({"index": index, "function": {"arguments": arguments}});
                deltas.push(json!({"tool_calls": [more]}));
            }
        }
    }
    deltas
}
