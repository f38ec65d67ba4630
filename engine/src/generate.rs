//! Generation of one reply: prompt, sampling, stop, events.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::loaded::TextSide;
use crate::runner::{RunError, Runner, Sequence};
use crate::text::sampling::{Logprob, ParamError, Sampler, SamplingParams};
use crate::text::stop::StopError;
use crate::text::{DecodeOptions, Detokenizer, StopStrings};

/// A reply that is asked for.
#[derive(Clone, Debug)]
pub struct Request {
    /// Prompt, special tokens included.
    pub prompt: Vec<u32>,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// Most tokens of the reply; what the context leaves if absent.
    pub max_tokens: Option<usize>,
    /// Texts that end the reply.
    pub stop: Vec<String>,
    /// Seed of the random numbers.
    pub seed: i64,
    /// Number of a reply among several to one prompt: changes its random numbers.
    pub choice: u64,
}

/// Log probabilities of one step.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// The chosen token.
    pub chosen: Logprob,
    /// The most probable ones.
    pub top: Vec<Logprob>,
}

/// A generation that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GenerateError {
    /// A sampling parameter.
    #[error(transparent)]
    Param(#[from] ParamError),
    /// A stop text.
    #[error(transparent)]
    Stop(#[from] StopError),
    /// The runner.
    #[error(transparent)]
    Run(#[from] RunError),
}

/// Stops a generation from outside.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Asks the generation to end; it does within one step.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Was it asked to end?
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// What happens during a generation, in order.
#[derive(Clone, Debug)]
pub enum Event {
    /// The prompt was read in this time; the first token follows.
    PromptRead(Duration),
    /// A token was made.
    Token {
        /// Its id.
        id: u32,
        /// Text that can be shown now: whole code points, nothing that may begin a stop text. Often
        /// that of the token, sometimes empty, sometimes that of several.
        text: String,
        /// Its log probability and that of the best tokens, if asked for.
        logprobs: Option<TokenLogprobs>,
    },
    /// Text that was held back until the end.
    Text(String),
}

/// How a generation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finish {
    /// At this end token.
    EndToken(u32),
    /// At this stop text.
    StopText(String),
    /// All tokens asked for were made.
    MaxTokens,
    /// The context is full.
    ContextFull,
    /// It was cancelled.
    Cancelled,
}

impl Finish {
    /// `stop`, `length` or `cancelled`, as metrics and the API call it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::EndToken(_) | Self::StopText(_) => "stop",
            Self::MaxTokens | Self::ContextFull => "length",
            Self::Cancelled => "cancelled",
        }
    }
}

/// Figures of a finished generation.
#[derive(Clone, Debug)]
pub struct Summary {
    /// How it ended.
    pub finish: Finish,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens sampled, end token included.
    pub generated_tokens: usize,
    /// Time to read the prompt, up to the first token.
    pub prefill: Duration,
    /// Time from the first token to the end.
    pub decode: Duration,
}

impl Summary {
    /// Prompt tokens read per second.
    pub fn prompt_per_second(&self) -> f64 {
        self.prompt_tokens as f64 / self.prefill.as_secs_f64().max(1e-9)
    }

    /// Tokens per second after the first, 0 if there was one only.
    pub fn generated_per_second(&self) -> f64 {
        let after_first = self.generated_tokens.saturating_sub(1);
        after_first as f64 / self.decode.as_secs_f64().max(1e-9)
    }
}

/// Generates a reply. `sink` gets the events; when it returns false the generation is cancelled.
pub fn generate(
    runner: &mut Runner,
    text: &TextSide,
    request: &Request,
    cancel: &Cancel,
    sink: &mut dyn FnMut(Event) -> bool,
) -> Result<Summary, GenerateError> {
    if request.prompt.is_empty() {
        return Err(RunError::EmptyPrompt.into());
    }
    let sampler = Sampler::new(
        request.sampling.clone(),
        text.sampler_vocabulary(),
        request.seed,
        request.choice,
        &request.prompt,
    )?;
    let stops = StopStrings::new(&request.stop)?;
    let detokenizer =
        Detokenizer::new(text.tokenizer.clone(), DecodeOptions { special: false }, stops);
    let mut sequence = runner.begin(runner.context());
    // Padding might be among the largest.
    let padded = runner.executor.output_width() != text.sampler_vocabulary().tokens;
    let largest = sampler.largest().filter(|_| !padded).unwrap_or(0);
    let logits = Vec::new();
    let mut reply = Reply { runner, text, sampler, detokenizer, largest, logits, sink };
    let result = reply.run(&mut sequence, request, cancel);
    runner.end(sequence);
    Ok(result?)
}

/// A reply being made.
struct Reply<'a> {
    runner: &'a mut Runner,
    text: &'a TextSide,
    sampler: Sampler,
    detokenizer: Detokenizer,
    /// Largest logits that the choice depends on; 0: all.
    largest: usize,
    logits: Vec<f32>,
    sink: &'a mut dyn FnMut(Event) -> bool,
}

impl Reply<'_> {
    fn run(
        &mut self,
        sequence: &mut Sequence,
        request: &Request,
        cancel: &Cancel,
    ) -> Result<Summary, RunError> {
        let start = Instant::now();
        let finish_early = |finish, prefill| Summary {
            finish,
            prompt_tokens: request.prompt.len(),
            generated_tokens: 0,
            prefill,
            decode: Duration::ZERO,
        };
        match self.feed(sequence, &request.prompt, cancel) {
            Err(RunError::Cancelled) => {
                return Ok(finish_early(Finish::Cancelled, start.elapsed()));
            }
            result => result?,
        }
        let room = sequence.capacity() - sequence.len();
        let mut next = self.sample();
        let first = Instant::now();
        let prefill = first - start;
        if !(self.sink)(Event::PromptRead(prefill)) {
            return Ok(finish_early(Finish::Cancelled, prefill));
        }
        let mut generated = 1;
        let finish = loop {
            if self.text.tokenizer.is_end_of_generation(next) && !request.sampling.ignore_eos {
                break Finish::EndToken(next);
            }
            if let Some(stop) = self.emit(next, request, cancel) {
                break stop;
            }
            if request.max_tokens.is_some_and(|most| generated >= most) {
                break Finish::MaxTokens;
            }
            // The last token made needs no room: only those that are fed do.
            if generated > room {
                break Finish::ContextFull;
            }
            if cancel.is_cancelled() {
                break Finish::Cancelled;
            }
            self.feed(sequence, &[next], cancel)?;
            next = self.sample();
            generated += 1;
        };
        self.flush(&finish);
        Ok(Summary {
            finish,
            generated_tokens: generated,
            decode: first.elapsed(),
            ..finish_early(Finish::Cancelled, prefill)
        })
    }

    /// Feeds tokens and keeps the logits of the last one.
    fn feed(
        &mut self,
        sequence: &mut Sequence,
        tokens: &[u32],
        cancel: &Cancel,
    ) -> Result<(), RunError> {
        let (logits, largest) = (&mut self.logits, self.largest);
        let go_on = || !cancel.is_cancelled();
        self.runner.feed_for_largest(sequence, tokens, largest, go_on, |row| {
            logits.clear();
            logits.extend_from_slice(row);
        })
    }

    fn sample(&mut self) -> u32 {
        self.sampler.sample(&mut self.logits, None)
    }

    /// Sends a token. `Some` if the reply ends with it.
    fn emit(&mut self, id: u32, request: &Request, cancel: &Cancel) -> Option<Finish> {
        let piece = self.detokenizer.push(id);
        let logprobs = self.sampler.logprobs().map(|step| TokenLogprobs {
            chosen: Logprob { id, logprob: step.of(id) },
            top: step.top().to_vec(),
        });
        let event = Event::Token { id, text: piece.text.to_owned(), logprobs };
        let stop = piece.stop.map(|hit| Finish::StopText(request.stop[hit.index].clone()));
        if !(self.sink)(event) {
            cancel.cancel();
            return Some(Finish::Cancelled);
        }
        stop
    }

    /// Sends what was held back.
    fn flush(&mut self, finish: &Finish) {
        let text = self.detokenizer.finish().text;
        if !text.is_empty() && *finish != Finish::Cancelled {
            // Whether somebody still listens changes nothing at the end.
            let _ = (self.sink)(Event::Text(text.to_owned()));
        }
    }
}
