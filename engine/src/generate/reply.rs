//! One reply as it grows: what happens between two steps of its sequence.

use std::time::Duration;

use super::{Event, Finish, GenerateError, Request, Summary, TokenLogprobs};
use crate::grammar::{Constraint, GrammarError};
use crate::loaded::TextSide;
use crate::text::sampling::{Logprob, Sampler};
use crate::text::{DecodeOptions, Detokenizer, StopStrings, Tokenizer};

/// A reply being made. Whoever drives it feeds a sequence: the prompt, then [`Reply::next`] again and
/// again. After each step, [`Reply::choose`] takes the output of the last row, and [`Reply::tell`] says
/// what came of it.
#[derive(Debug)]
pub struct Reply {
    tokenizer: Tokenizer,
    sampler: Sampler,
    /// What may be chosen, where the reply follows a grammar.
    constraint: Option<Constraint>,
    detokenizer: Detokenizer,
    stop: Vec<String>,
    max_tokens: Option<usize>,
    prompt_tokens: usize,
    /// Largest logits that the choice depends on; 0: all.
    largest: usize,
    /// The token chosen last, and how many were.
    next: u32,
    generated: usize,
}

impl Reply {
    /// Reply number `choice` to a request; `width` is that of a row of the model's output.
    ///
    /// # Errors
    /// A sampling parameter or a stop text that cannot be.
    pub fn new(
        text: &TextSide,
        request: &Request,
        choice: u64,
        width: usize,
    ) -> Result<Self, GenerateError> {
        let vocabulary = text.sampler_vocabulary();
        // Padding might be among the largest.
        let padded = width != vocabulary.tokens;
        let params = request.sampling.clone();
        let sampler = Sampler::new(params, vocabulary, request.seed, choice, &request.prompt)?;
        let stops = StopStrings::new(&request.stop)?;
        let options = DecodeOptions { special: false };
        let constraint = request.grammar.as_ref().map(Constraint::new);
        // A mask may leave none of the largest.
        let few = !padded && constraint.is_none();
        Ok(Self {
            detokenizer: Detokenizer::new(text.tokenizer.clone(), options, stops)
                .showing(request.shown.clone()),
            tokenizer: text.tokenizer.clone(),
            largest: sampler.largest().filter(|_| few).unwrap_or(0),
            sampler,
            constraint,
            stop: request.stop.clone(),
            max_tokens: request.max_tokens,
            prompt_tokens: request.prompt.len(),
            next: 0,
            generated: 0,
        })
    }

    /// How many of the largest elements of a row of output it looks at; 0: all.
    pub fn largest(&self) -> usize {
        self.largest
    }

    /// The token to feed next: the one chosen last.
    pub fn next(&self) -> u32 {
        self.next
    }

    /// Tokens chosen so far.
    pub fn generated(&self) -> usize {
        self.generated
    }

    /// Chooses the next token by the output of the last row, which is changed. Where a grammar is
    /// followed, its mask was made while the devices worked.
    ///
    /// # Errors
    /// The grammar is too complex to go on with.
    pub fn choose(&mut self, logits: &mut [f32]) -> Result<(), GenerateError> {
        self.next = match &mut self.constraint {
            None => self.sampler.sample(logits, None),
            Some(constraint) => {
                let mask = constraint.mask()?;
                let id = self.sampler.sample(logits, Some(mask));
                // The sampler's end token, where it finds no other, may be none of the grammar's.
                let allowed = mask.get(id as usize / 32).is_some_and(|w| w >> (id % 32) & 1 == 1);
                if !self.tokenizer.is_end_of_generation(id) {
                    constraint.advance(id);
                } else if !allowed {
                    let none = "none of those that the grammar allows has a logit";
                    return Err(GrammarError::Stuck(none.to_owned()).into());
                }
                id
            }
        };
        self.generated += 1;
        Ok(())
    }

    /// Tells of the token that was chosen last. `Some` if the reply ends with it; `room` is the number
    /// of tokens that the context has for the reply.
    pub fn tell(&mut self, room: usize, sink: &mut dyn FnMut(Event) -> bool) -> Option<Finish> {
        let finish = self.token(room, sink)?;
        if finish != Finish::Cancelled {
            let text = self.detokenizer.finish().text;
            if !text.is_empty() {
                // Whether somebody still listens changes nothing at the end.
                let _ = sink(Event::Text(text.to_owned()));
            }
        }
        Some(finish)
    }

    fn token(&mut self, room: usize, sink: &mut dyn FnMut(Event) -> bool) -> Option<Finish> {
        let id = self.next;
        // Where a grammar is followed, an end token is chosen only when nothing else may be.
        let heeded = self.constraint.is_some() || !self.sampler.params().ignore_eos;
        if self.tokenizer.is_end_of_generation(id) && heeded {
            return Some(Finish::EndToken(id));
        }
        let piece = self.detokenizer.push(id);
        let logprobs = self.sampler.logprobs().map(|step| TokenLogprobs {
            chosen: Logprob { id, logprob: step.of(id) },
            top: step.top().to_vec(),
        });
        let stop = piece.stop.map(|hit| Finish::StopText(self.stop[hit.index].clone()));
        if !sink(Event::Token { id, text: piece.text.to_owned(), logprobs }) {
            return Some(Finish::Cancelled);
        }
        let most = || self.max_tokens.is_some_and(|most| self.generated >= most);
        match stop {
            Some(stop) => Some(stop),
            None if most() => Some(Finish::MaxTokens),
            // The last token made needs no room: only those that are fed do.
            None => (self.generated > room).then_some(Finish::ContextFull),
        }
    }

    /// Figures of the reply as it is now. `decode`: time since the first token, if there is one.
    pub fn summary(&self, finish: Finish, prefill: Duration, decode: Option<Duration>) -> Summary {
        Summary {
            finish,
            prompt_tokens: self.prompt_tokens,
            cached_tokens: 0,
            generated_tokens: if decode.is_some() { self.generated } else { 0 },
            prefill,
            decode: decode.unwrap_or_default(),
        }
    }
}
