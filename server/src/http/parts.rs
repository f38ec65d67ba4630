//! The parts of one reply, as its text comes: thought, text, calls.

use trefoil_engine::text::thinking::{Thinking, Thought};
use trefoil_engine::text::tools::{CallEvent, CallParser};

/// A part of a reply that is known.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Part {
    Reasoning(String),
    Text(String),
    Call { index: usize, id: String, name: String, arguments: String },
}

/// Tells the parts of one reply from each other.
#[derive(Debug)]
pub(crate) struct Finder {
    thinking: Option<Thinking>,
    parser: Option<CallParser>,
    /// Calls found so far.
    pub(crate) calls: usize,
    /// Tokens of thought so far.
    pub(crate) reasoning_tokens: usize,
}

impl Finder {
    /// Without either of both, a reply is text.
    pub(crate) fn new(thinking: Option<Thinking>, parser: Option<CallParser>) -> Self {
        Self { thinking, parser, calls: 0, reasoning_tokens: 0 }
    }

    /// Counts a token, before its text is pushed.
    pub(crate) fn count(&mut self) {
        let inside = self.thinking.as_ref().is_some_and(Thinking::is_inside);
        self.reasoning_tokens += usize::from(inside);
    }

    /// Takes the next piece of text; tells what it makes clear.
    pub(crate) fn push(&mut self, text: &str) -> Vec<Part> {
        let mut thoughts = Vec::new();
        match &mut self.thinking {
            _ if text.is_empty() => {}
            Some(thinking) => thinking.push(text, &mut thoughts),
            None => thoughts.push(Thought::Text(text.to_owned())),
        }
        self.parts(thoughts)
    }

    /// Ends the reply.
    pub(crate) fn finish(&mut self) -> Vec<Part> {
        let mut thoughts = Vec::new();
        if let Some(thinking) = &mut self.thinking {
            thinking.finish(&mut thoughts);
        }
        let mut parts = self.parts(thoughts);
        let mut events = Vec::new();
        if let Some(parser) = &mut self.parser {
            parser.finish(&mut events);
        }
        parts.extend(events.into_iter().map(|event| self.part(event)));
        parts
    }

    fn parts(&mut self, thoughts: Vec<Thought>) -> Vec<Part> {
        let mut parts = Vec::new();
        for thought in thoughts {
            match (thought, &mut self.parser) {
                (Thought::Reasoning(text), _) => parts.push(Part::Reasoning(text)),
                (Thought::Text(text), None) => parts.push(Part::Text(text)),
                (Thought::Text(text), Some(parser)) => {
                    let mut events = Vec::new();
                    parser.push(&text, &mut events);
                    parts.extend(events.into_iter().map(|event| self.part(event)));
                }
            }
        }
        parts
    }

    fn part(&mut self, event: CallEvent) -> Part {
        match event {
            CallEvent::Text(text) => Part::Text(text),
            CallEvent::Call { name, arguments } => {
                let (index, id) = (self.calls, super::id::new("call_"));
                self.calls += 1;
                Part::Call { index, id, name, arguments }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use trefoil_engine::text::tools::CallForm;

    use super::*;

    #[test]
    fn thought_comes_before_text_and_calls() {
        let parser = CallParser::new(CallForm::Tagged, vec!["f".to_owned()], 9);
        let mut finder = Finder::new(Some(Thinking::new(false)), Some(parser));
        let reply = "<think>{</think>Yes.<tool_call>{\"name\":\"f\",\"arguments\":{}}</tool_call>";
        let mut parts = Vec::new();
        for character in reply.chars() {
            finder.count();
            parts.extend(finder.push(&character.to_string()));
        }
        parts.extend(finder.finish());
        assert_eq!(parts[0], Part::Reasoning("{".to_owned()));
        let text: String = parts
            .iter()
            .filter_map(|part| if let Part::Text(text) = part { Some(text.as_str()) } else { None })
            .collect();
        assert_eq!((text.as_str(), finder.calls), ("Yes.", 1));
        assert!(matches!(&parts[parts.len() - 1], Part::Call { name, .. } if name == "f"));
        assert!(finder.reasoning_tokens >= 8, "{}", finder.reasoning_tokens);
        let mut plain = Finder::new(None, None);
        assert_eq!(plain.push("<think>"), [Part::Text("<think>".to_owned())]);
        assert_eq!(plain.push(""), []);
    }
}
