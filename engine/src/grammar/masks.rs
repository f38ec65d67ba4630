//! The threads that move parsers on and make masks.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crossbeam::channel::{Receiver, Sender, bounded, unbounded};
use llguidance::Matcher;
use llguidance::toktrie::SimpleVob;

use super::GrammarError;
use super::compile::Grammar;

/// Most threads; masks of more sequences take turns.
const THREADS_MAX: usize = 4;

/// A parser after some tokens, with the mask of the next one.
pub(super) struct Ready {
    pub(super) matcher: Box<Matcher>,
    pub(super) mask: SimpleVob,
}

/// What a mask thread is asked for.
pub(super) enum Ask {
    /// The mask of the first token.
    First(Grammar),
    /// That of the one after this token.
    Next(Box<Matcher>, u32),
}

/// Where the answer goes.
type Answer = Sender<Result<Ready, GrammarError>>;

/// The threads, shared by all grammars of a model; they end with the last of these.
#[derive(Clone, Debug)]
pub(super) struct MaskThreads(Arc<Sender<(Ask, Answer)>>);

impl MaskThreads {
    /// Starts the threads.
    ///
    /// # Errors
    /// The system has no more threads.
    pub(super) fn start() -> std::io::Result<Self> {
        let (sender, receiver) = unbounded();
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        for _ in 0..threads.clamp(1, THREADS_MAX) {
            let receiver: Receiver<(Ask, Answer)> = receiver.clone();
            let work = move || {
                while let Ok((ask, answer)) = receiver.recv() {
                    // Whoever asked may be gone: its reply was cancelled.
                    let _ = answer.send(make(ask));
                }
            };
            std::thread::Builder::new().name("trefoil-masks".to_owned()).spawn(work)?;
        }
        Ok(Self(Arc::new(sender)))
    }

    /// Asks for a mask, which comes through the channel.
    pub(super) fn ask(&self, ask: Ask) -> Receiver<Result<Ready, GrammarError>> {
        let (answer, receiver) = bounded(1);
        // The threads live as long as this sender does; if none does, the channel ends empty.
        let _ = self.0.send((ask, answer));
        receiver
    }
}

fn make(ask: Ask) -> Result<Ready, GrammarError> {
    let work = || {
        let matcher = match ask {
            Ask::First(grammar) => Box::new(grammar.matcher()),
            Ask::Next(mut matcher, token) => {
                matcher.consume_token(token).map_err(|error| GrammarError::Stuck(short(&error)))?;
                matcher
            }
        };
        mask(matcher)
    };
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(GrammarError::Stuck("the parser panicked".to_owned())))
}

fn mask(mut matcher: Box<Matcher>) -> Result<Ready, GrammarError> {
    use llguidance::api::StopReason;
    match matcher.compute_mask_or_eos() {
        Ok(mask) => Ok(Ready { matcher, mask }),
        Err(error) => match matcher.stop_reason() {
            StopReason::LexerTooComplex | StopReason::ParserTooComplex => {
                Err(GrammarError::TooComplex(short(&error)))
            }
            _ => Err(super::compile::classify(&short(&error))),
        },
    }
}

/// What matters of an error: its first line, and the one that says what is wrong where there is one.
pub(super) fn short(error: &dyn std::fmt::Display) -> String {
    let text = error.to_string();
    let lines = || text.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = lines().next().unwrap_or("unknown");
    let cause = lines().skip(1).find(|line| line.starts_with("error:"));
    let line = cause.map_or(first.to_owned(), |cause| format!("{first} {cause}"));
    line.chars().take(300).collect()
}
