//! Finds calls in the text of a reply as it comes.

use serde_json::Value;

use super::CallForm;

/// A part of a reply.
#[derive(Clone, Debug, PartialEq)]
pub enum CallEvent {
    /// Text that belongs to no call.
    Text(String),
    /// A whole call.
    Call {
        /// Name of the function.
        name: String,
        /// Its arguments: an object, as JSON.
        arguments: String,
    },
}

/// Tells calls from text. However a text is cut into pieces, the calls and the joined text are the
/// same. Text that may begin a call is held back until that is clear; what turns out to be none, or
/// names no known function, is text.
#[derive(Debug)]
pub struct CallParser {
    form: CallForm,
    names: Vec<String>,
    /// Calls that may still come.
    left: usize,
    /// Held back.
    held: String,
    place: Place,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    /// Nothing but white space so far.
    Start,
    Text,
    /// After the mark of a call.
    Call,
    /// In a reply that is JSON from its beginning.
    Json,
}

const TAG: &str = "<tool_call>";
const TAG_END: &str = "</tool_call>";
const LIST: &str = "[TOOL_CALLS]";
const ARGS: &str = "[ARGS]";
const CALL_ID: &str = "[CALL_ID]";
const PYTHON: &str = "<|python_tag|>";

impl CallParser {
    /// For replies that may call the functions `names`, at most `most` times.
    pub fn new(form: CallForm, names: Vec<String>, most: usize) -> Self {
        Self { form, names, left: most, held: String::new(), place: Place::Start }
    }

    /// Takes the next piece of text.
    pub fn push(&mut self, text: &str, events: &mut Vec<CallEvent>) {
        self.held.push_str(text);
        while self.step(events) {}
    }

    /// Ends the reply.
    pub fn finish(&mut self, events: &mut Vec<CallEvent>) {
        while self.step(events) {}
        let held = std::mem::take(&mut self.held);
        let calls = match self.place {
            Place::Start | Place::Text => None,
            Place::Json => self.bare(&held),
            Place::Call => match self.form {
                CallForm::Tagged => self.one(&held).map(|call| vec![call]),
                CallForm::Bare => self.bare(&held),
                CallForm::List | CallForm::Named => self.listed(&held),
            },
        };
        match calls {
            Some(calls) => calls.into_iter().for_each(|call| self.tell(call, events)),
            None if self.place == Place::Call => say(&format!("{}{held}", self.mark()), events),
            None => say(&held, events),
        }
        self.place = Place::Text;
    }

    fn mark(&self) -> &'static str {
        match self.form {
            CallForm::Tagged => TAG,
            CallForm::Bare => PYTHON,
            CallForm::List | CallForm::Named => LIST,
        }
    }

    /// Goes on by what is held. False if more text is needed.
    fn step(&mut self, events: &mut Vec<CallEvent>) -> bool {
        match self.place {
            Place::Start => {
                let Some(first) = self.held.trim_start().chars().next() else { return false };
                let json = first == '{' || first == '[' && self.form == CallForm::Bare;
                self.place = if json { Place::Json } else { Place::Text };
                true
            }
            Place::Text => {
                let mark = self.mark();
                if let Some(at) = self.held.find(mark) {
                    // White space before a call only sets it apart.
                    say(self.held[..at].trim_end(), events);
                    self.held.drain(..at + mark.len());
                    self.place = Place::Call;
                    return true;
                }
                let safe = self.held.len() - may_begin(&self.held, mark);
                let safe = self.held[..safe].trim_end().len();
                say(&self.held[..safe], events);
                self.held.drain(..safe);
                false
            }
            Place::Call if self.form == CallForm::Tagged => {
                // An argument may hold the mark of the end: the call ends where it is one.
                let mut ends = self.held.match_indices(TAG_END).map(|(at, _)| at);
                let found = ends.find_map(|at| Some((at, self.one(&self.held[..at])?)));
                let Some((at, call)) = found else { return false };
                self.held.drain(..at + TAG_END.len());
                self.tell(call, events);
                self.place = Place::Text;
                true
            }
            Place::Call | Place::Json => false,
        }
    }

    fn tell(&mut self, call: CallEvent, events: &mut Vec<CallEvent>) {
        if self.left > 0 {
            self.left -= 1;
            events.push(call);
        }
    }

    /// The call that a text is.
    fn one(&self, text: &str) -> Option<CallEvent> {
        self.call(&serde_json::from_str(text.trim()).ok()?)
    }

    fn call(&self, value: &Value) -> Option<CallEvent> {
        let name = value.get("name")?.as_str()?;
        let arguments = value.get("arguments").or(value.get("parameters"))?;
        self.named(name, arguments)
    }

    fn named(&self, name: &str, arguments: &Value) -> Option<CallEvent> {
        let arguments = match arguments {
            // Some models write the arguments as a text that is JSON.
            Value::String(text) => &serde_json::from_str(text).ok()?,
            other => other,
        };
        let known = self.names.iter().any(|known| known == name);
        (known && arguments.is_object())
            .then(|| CallEvent::Call { name: name.to_owned(), arguments: arguments.to_string() })
    }

    /// A text that is calls and nothing else: one, several in a row, or a list.
    fn bare(&self, text: &str) -> Option<Vec<CallEvent>> {
        let mut calls = Vec::new();
        let mut rest = text;
        loop {
            rest = rest.trim_start_matches(|c: char| c.is_whitespace() || c == ';');
            rest = rest.strip_prefix(PYTHON).unwrap_or(rest);
            if rest.is_empty() {
                return (!calls.is_empty()).then_some(calls);
            }
            let mut values = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
            match values.next()?.ok()? {
                Value::Array(list) => {
                    for value in &list {
                        calls.push(self.call(value)?);
                    }
                }
                value => calls.push(self.call(&value)?),
            }
            rest = &rest[values.byte_offset()..];
        }
    }

    /// What follows the mark of a list: a list, or names with arguments.
    fn listed(&self, text: &str) -> Option<Vec<CallEvent>> {
        if text.trim_start().starts_with(['[', '{']) {
            return self.bare(text);
        }
        let calls = text.split(LIST).map(|call| {
            let (name, rest) = call.split_at(call.find(['[', '{'])?);
            let rest = match rest.strip_prefix(CALL_ID) {
                Some(rest) => rest.split_at(rest.find(['[', '{'])?).1,
                None => rest,
            };
            let rest = rest.strip_prefix(ARGS).unwrap_or(rest);
            self.named(name.trim(), &serde_json::from_str(rest.trim()).ok()?)
        });
        calls.collect()
    }
}

fn say(text: &str, events: &mut Vec<CallEvent>) {
    if !text.is_empty() {
        events.push(CallEvent::Text(text.to_owned()));
    }
}

/// Bytes at the end of a text that may begin a mark.
fn may_begin(text: &str, mark: &str) -> usize {
    let most = (mark.len() - 1).min(text.len());
    (1..=most)
        .rev()
        .find(|&count| text.as_bytes().ends_with(&mark.as_bytes()[..count]))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Text, and calls as `name arguments`, of a reply in pieces of `size` bytes.
    fn parse(form: CallForm, reply: &str, size: usize) -> (String, Vec<String>) {
        let mut parser = CallParser::new(form, vec!["add".to_owned(), "now".to_owned()], 8);
        let mut events = Vec::new();
        let mut rest = reply;
        while !rest.is_empty() {
            let (piece, more) = rest.split_at(rest.ceil_char_boundary(size.min(rest.len())));
            parser.push(piece, &mut events);
            rest = more;
        }
        parser.finish(&mut events);
        let (mut text, mut calls) = (String::new(), Vec::new());
        for event in events {
            match event {
                CallEvent::Text(piece) => text.push_str(&piece),
                CallEvent::Call { name, arguments } => calls.push(format!("{name} {arguments}")),
            }
        }
        (text, calls)
    }

    #[test]
    fn calls_are_found_however_the_text_is_cut() {
        use CallForm::{Bare, List, Named, Tagged};
        let add = r#"add {"a":1,"b":"x"}"#;
        let now = "now {}";
        for (form, reply, text, calls) in [
            (Tagged, "no call < here <tool", "no call < here <tool", vec![]),
            (
                Tagged,
                "Let me see.\n<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 1, \"b\": \"x\"}}\n\
                 </tool_call>\n<tool_call>{\"name\":\"now\",\"arguments\":{}}</tool_call>\n",
                "Let me see.\n",
                vec![add, now],
            ),
            // The mark of the end inside of an argument; an end that is missing.
            (
                Tagged,
                "<tool_call>{\"name\":\"now\",\"arguments\":{\"</tool_call>\":2}}</tool_call>",
                "",
                vec!["now {\"</tool_call>\":2}"],
            ),
            (Tagged, "<tool_call>{\"name\":\"now\",\"arguments\":{}}", "", vec![now]),
            (Tagged, "{\"name\": \"now\", \"parameters\": {}}", "", vec![now]),
            (Tagged, "<tool_call>{\"name\":", "<tool_call>{\"name\":", vec![]),
            (
                Tagged,
                "<tool_call>{\"name\":\"rm\",\"arguments\":{}}</tool_call> ü",
                "<tool_call>{\"name\":\"rm\",\"arguments\":{}}</tool_call> ü",
                vec![],
            ),
            (
                Bare,
                " {\"name\": \"add\", \"parameters\": {\"a\": 1, \"b\": \"x\"}}; \
                 {\"name\": \"now\", \"parameters\": \"{}\"}",
                "",
                vec![add, now],
            ),
            (Bare, "<|python_tag|>{\"name\": \"now\", \"parameters\": {}}", "", vec![now]),
            (Bare, "{\"answer\": 42}", "{\"answer\": 42}", vec![]),
            (Bare, "[1, 2]", "[1, 2]", vec![]),
            (
                List,
                "Yes. [TOOL_CALLS] [{\"name\": \"add\", \"arguments\": {\"a\": 1, \"b\": \"x\"}}, \
                 {\"name\": \"now\", \"arguments\": {}}]",
                "Yes.",
                vec![add, now],
            ),
            (List, "[TOOL_CALLS][{\"name\": \"add\"", "[TOOL_CALLS][{\"name\": \"add\"", vec![]),
            (
                Named,
                "[TOOL_CALLS]add[ARGS]{\"a\": 1, \"b\": \"x\"}[TOOL_CALLS]now[CALL_ID]q1[ARGS]{}",
                "",
                vec![add, now],
            ),
        ] {
            for size in [1, 2, 7, 1000] {
                let (got, found) = parse(form, reply, size);
                assert_eq!(found, calls, "{form:?} {reply:?} in {size}");
                // White space at the end of a text that was followed by calls does not matter.
                assert_eq!(got.trim_end(), text.trim_end(), "{form:?} {reply:?} in {size}");
                assert_eq!((got, found), parse(form, reply, 1000), "{form:?} {reply:?} in {size}");
            }
        }
    }

    #[test]
    fn no_more_calls_than_wanted() {
        let mut parser = CallParser::new(CallForm::Bare, vec!["now".to_owned()], 1);
        let mut events = Vec::new();
        let call = "{\"name\":\"now\",\"arguments\":{}}";
        parser.push(&format!("{call}{call}"), &mut events);
        parser.finish(&mut events);
        assert_eq!(events.len(), 1);
    }
}
