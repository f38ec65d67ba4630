//! One choice of a completion as it grows: its text, and where in the text each token begins.

use std::collections::VecDeque;

use serde_json::{Map, Value, json};
use trefoil_engine::generate::{Finish, TokenLogprobs};
use trefoil_engine::text::Tokenizer;
use trefoil_engine::text::detokenize::Utf8Decoder;

use super::replies::Part;

/// What came of a choice at one time. Joined, the pieces are the whole.
#[derive(Debug, Default)]
pub(crate) struct Piece {
    pub(crate) text: String,
    /// Of the tokens whose text can be shown.
    pub(crate) logprobs: Lists,
    pub(crate) tokens: Vec<u32>,
    /// How it ended.
    pub(crate) finish: Option<Finish>,
}

impl Piece {
    /// Is there nothing to tell?
    pub(crate) fn is_silent(&self) -> bool {
        self.text.is_empty() && self.logprobs.tokens.is_empty() && self.finish.is_none()
    }

    /// Adds the next one.
    pub(crate) fn append(&mut self, next: Self) {
        self.text.push_str(&next.text);
        self.tokens.extend(next.tokens);
        self.logprobs.append(next.logprobs);
        self.finish = self.finish.take().or(next.finish);
    }
}

/// Log probabilities as completions have them: a list for each kind of fact, an entry for each token.
#[derive(Debug, Default)]
pub(crate) struct Lists {
    tokens: Vec<Value>,
    token_logprobs: Vec<f64>,
    top_logprobs: Vec<Value>,
    text_offset: Vec<usize>,
}

impl Lists {
    fn push(&mut self, entry: Entry) {
        self.tokens.push(entry.token.into());
        self.token_logprobs.push(entry.logprob);
        self.top_logprobs.push(Value::Object(entry.top));
        self.text_offset.push(entry.offset);
    }

    fn append(&mut self, next: Self) {
        self.tokens.extend(next.tokens);
        self.token_logprobs.extend(next.token_logprobs);
        self.top_logprobs.extend(next.top_logprobs);
        self.text_offset.extend(next.text_offset);
    }

    /// As clients read it.
    pub(crate) fn object(&self) -> Value {
        json!({
            "tokens": self.tokens,
            "token_logprobs": self.token_logprobs,
            "top_logprobs": self.top_logprobs,
            "text_offset": self.text_offset,
        })
    }
}

/// A token with its log probability.
#[derive(Debug)]
struct Entry {
    token: String,
    logprob: f64,
    top: Map<String, Value>,
    /// Code points of the choice's text before the one that holds its first byte.
    offset: usize,
}

/// A choice being made.
pub(crate) struct Choice {
    tokenizer: Tokenizer,
    echo: String,
    /// Reads the bytes of all tokens, those of held back text included.
    decoder: Utf8Decoder,
    /// Code points that they make so far, after those of the echo.
    decoded: usize,
    /// Code points that were given out.
    shown: usize,
    /// Tokens whose text is held back: a stop text may cut it off.
    waiting: VecDeque<Entry>,
}

impl Choice {
    /// A choice whose text begins with `echo`.
    pub(crate) fn new(tokenizer: Tokenizer, echo: &str) -> Self {
        let chars = echo.chars().count();
        let (decoder, waiting) = (Utf8Decoder::default(), VecDeque::new());
        Self { tokenizer, echo: echo.to_owned(), decoder, decoded: chars, shown: chars, waiting }
    }

    /// What it begins with.
    pub(crate) fn opening(&mut self) -> Piece {
        Piece { text: std::mem::take(&mut self.echo), ..Piece::default() }
    }

    /// What comes of a part of the reply.
    pub(crate) fn piece(&mut self, part: Part) -> Piece {
        let mut piece = Piece::default();
        match part {
            Part::Token { id, text, logprobs } => {
                piece.tokens.push(id);
                if let Some(logprobs) = logprobs {
                    self.waiting.push_back(self.entry(&logprobs));
                }
                if !self.tokenizer.is_control(id) {
                    let mut made = String::new();
                    self.decoder.push(self.tokenizer.token_bytes(id), &mut made);
                    self.decoded += made.chars().count();
                }
                piece.text = text;
            }
            Part::Text(text) => piece.text = text,
            Part::End(summary) => {
                if matches!(summary.finish, Finish::StopText(_)) {
                    // What begins at or behind the stop text is no part of the reply.
                    self.waiting.retain(|entry| entry.offset < self.shown);
                }
                self.waiting.drain(..).for_each(|entry| piece.logprobs.push(entry));
                piece.finish = Some(summary.finish);
            }
        }
        self.shown += piece.text.chars().count();
        while let Some(entry) = self.waiting.pop_front_if(|entry| entry.offset < self.shown) {
            piece.logprobs.push(entry);
        }
        piece
    }

    fn entry(&self, token: &TokenLogprobs) -> Entry {
        let text = |id| String::from_utf8_lossy(self.tokenizer.token_bytes(id)).into_owned();
        let mut top = Map::new();
        // Different bytes may look the same as text: the most probable one stays.
        for other in token.top.iter().chain([&token.chosen]) {
            top.entry(text(other.id)).or_insert(json!(other.logprob));
        }
        let (token, logprob) = (text(token.chosen.id), token.chosen.logprob);
        Entry { token, logprob, top, offset: self.decoded }
    }
}
