//! Generation of one reply: prompt, sampling, stop, events.

mod reply;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::grammar::{Grammar, GrammarError};
use crate::loaded::TextSide;
use crate::runner::{RunError, Runner, Sequence};
use crate::text::sampling::{Logprob, ParamError, SamplingParams};
use crate::text::stop::StopError;
pub use reply::Reply;

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
    /// What the reply follows, if anything.
    pub grammar: Option<Grammar>,
    /// Control tokens that are part of the text: marks of tool calls. Others leave none.
    pub shown: Arc<[u32]>,
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
    /// The grammar that the reply follows.
    #[error(transparent)]
    Grammar(#[from] GrammarError),
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
    /// Those of them that did not have to be read: another request had begun alike.
    pub cached_tokens: usize,
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
        (self.prompt_tokens - self.cached_tokens) as f64 / self.prefill.as_secs_f64().max(1e-9)
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
    runner.check_prompt(&request.prompt)?;
    let mut reply = Reply::new(text, request, 0, runner.executor.output_width())?;
    let mut sequence = runner.begin(runner.context());
    let result = alone(runner, &mut reply, &mut sequence, (request, cancel), sink);
    runner.end(sequence);
    result
}

/// Drives one reply with steps of its own.
fn alone(
    runner: &mut Runner,
    reply: &mut Reply,
    sequence: &mut Sequence,
    (request, cancel): (&Request, &Cancel),
    sink: &mut dyn FnMut(Event) -> bool,
) -> Result<Summary, GenerateError> {
    let start = Instant::now();
    let room = runner.context() - request.prompt.len();
    let mut logits = Vec::new();
    let mut step = |reply: &mut Reply, tokens: &[u32]| {
        let go_on = || !cancel.is_cancelled();
        runner.feed_for_largest(sequence, tokens, reply.largest(), go_on, |row| {
            logits.clear();
            logits.extend_from_slice(row);
        })?;
        reply.choose(&mut logits)?;
        Ok::<_, GenerateError>(())
    };
    let cancelled = |reply: &Reply, prefill| Ok(reply.summary(Finish::Cancelled, prefill, None));
    match step(reply, &request.prompt) {
        Err(GenerateError::Run(RunError::Cancelled)) => return cancelled(reply, start.elapsed()),
        result => result?,
    }
    let first = Instant::now();
    let prefill = first - start;
    if !sink(Event::PromptRead(prefill)) {
        return cancelled(reply, prefill);
    }
    let finish = loop {
        if let Some(finish) = reply.tell(room, sink) {
            break finish;
        }
        if cancel.is_cancelled() {
            break Finish::Cancelled;
        }
        match step(reply, &[reply.next()]) {
            Err(GenerateError::Run(RunError::Cancelled)) => break Finish::Cancelled,
            result => result?,
        }
    };
    Ok(reply.summary(finish, prefill, Some(first.elapsed())))
}
