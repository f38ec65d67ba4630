//! What a model thinks before it answers, told from the answer: `<think>…</think>` at the beginning.

use super::template::ChatTemplate;

/// A part of a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Thought {
    /// Of what it thinks.
    Reasoning(String),
    /// Of what it says.
    Text(String),
}

/// Tells thought from text, however a reply is cut into pieces. The marks, and white space around
/// what is between them, belong to neither.
#[derive(Debug)]
pub struct Thinking {
    held: String,
    place: Place,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    Start,
    /// Right after the mark that opens.
    Opened,
    Inside,
    /// Right after the mark that closes.
    Closed,
    Text,
}

/// The marks.
pub const OPEN: &str = "<think>";
const CLOSE: &str = "</think>";

impl Thinking {
    /// For the reply to a prompt; `None` where the model's template knows no thought.
    pub fn after(template: &ChatTemplate, prompt: &str) -> Option<Self> {
        let open = prompt.trim_end().ends_with(OPEN);
        template.source().contains(CLOSE).then(|| Self::new(open))
    }

    /// For a reply that begins inside of thought if `open`.
    pub fn new(open: bool) -> Self {
        let place = if open { Place::Opened } else { Place::Start };
        Self { held: String::new(), place }
    }

    /// Is what comes next thought, as far as that is known?
    pub fn is_inside(&self) -> bool {
        matches!(self.place, Place::Opened | Place::Inside)
    }

    /// Takes the next piece of text.
    pub fn push(&mut self, text: &str, out: &mut Vec<Thought>) {
        self.held.push_str(text);
        while self.step(out) {}
    }

    /// Ends the reply.
    pub fn finish(&mut self, out: &mut Vec<Thought>) {
        let held = std::mem::take(&mut self.held);
        match self.place {
            _ if held.is_empty() => {}
            Place::Opened | Place::Inside => out.push(Thought::Reasoning(held)),
            _ => out.push(Thought::Text(held)),
        }
    }

    /// Goes on by what is held. False if more text is needed.
    fn step(&mut self, out: &mut Vec<Thought>) -> bool {
        match self.place {
            Place::Start => {
                let text = self.held.trim_start();
                if text.is_empty() || OPEN.starts_with(text) && text.len() < OPEN.len() {
                    return false;
                }
                match text.strip_prefix(OPEN) {
                    Some(rest) => (self.held, self.place) = (rest.to_owned(), Place::Opened),
                    None => self.place = Place::Text,
                }
                true
            }
            Place::Opened | Place::Closed => {
                let text = self.held.trim_start();
                if text.is_empty() {
                    return false;
                }
                self.held = text.to_owned();
                self.place = match self.place {
                    Place::Opened => Place::Inside,
                    _ => Place::Text,
                };
                true
            }
            Place::Inside => {
                let found = self.held.find(CLOSE);
                let partial = (1..CLOSE.len()).rev().find(|n| self.held.ends_with(&CLOSE[..*n]));
                let end = found.unwrap_or(self.held.len() - partial.unwrap_or(0));
                let end = self.held[..end].trim_end().len();
                if end > 0 {
                    out.push(Thought::Reasoning(self.held.drain(..end).collect()));
                }
                if found.is_some() {
                    let rest = self.held.split_once(CLOSE).map_or("", |(_, rest)| rest);
                    (self.held, self.place) = (rest.to_owned(), Place::Closed);
                }
                found.is_some()
            }
            Place::Text => {
                if !self.held.is_empty() {
                    out.push(Thought::Text(std::mem::take(&mut self.held)));
                }
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(open: bool, reply: &str, size: usize) -> (String, String) {
        let mut thinking = Thinking::new(open);
        let mut out = Vec::new();
        let mut rest = reply;
        while !rest.is_empty() {
            let (piece, more) = rest.split_at(rest.ceil_char_boundary(size.min(rest.len())));
            thinking.push(piece, &mut out);
            rest = more;
        }
        thinking.finish(&mut out);
        let (mut thought, mut text) = (String::new(), String::new());
        for part in out {
            match part {
                Thought::Reasoning(piece) => thought.push_str(&piece),
                Thought::Text(piece) => text.push_str(&piece),
            }
        }
        (thought, text)
    }

    #[test]
    fn thought_and_text_are_told_apart_however_they_are_cut() {
        for (open, reply, thought, text) in [
            (false, "Hello.", "", "Hello."),
            (false, "\n<think>\nLet me\n see.\n</think>\n\nYes.", "Let me\n see.", "Yes."),
            (true, "a </th b\n</think> c", "a </th b", "c"),
            (false, "<thin", "", "<thin"),
            (false, "Use <think>.", "", "Use <think>."),
            (true, "never ends ü", "never ends ü", ""),
            (false, "<think></think>x", "", "x"),
        ] {
            for size in [1, 3, 100] {
                let want = (thought.to_owned(), text.to_owned());
                assert_eq!(split(open, reply, size), want, "{reply:?} in {size}");
            }
        }
    }
}
