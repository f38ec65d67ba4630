//! A reply's place in its grammar.

use crossbeam::channel::Receiver;

use super::GrammarError;
use super::compile::Grammar;
use super::masks::{Ask, MaskThreads, Ready};

/// Follows one reply through a grammar. Cancelled replies just drop it.
pub(crate) struct Constraint {
    threads: MaskThreads,
    state: State,
}

enum State {
    /// A mask thread has the parser.
    Asked(Receiver<Result<Ready, GrammarError>>),
    Ready(Ready),
    Failed(GrammarError),
}

impl std::fmt::Debug for Constraint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Constraint").finish_non_exhaustive()
    }
}

impl Constraint {
    /// At the beginning of a reply. The first mask is made while its prompt is read.
    pub(crate) fn new(grammar: &Grammar) -> Self {
        let threads = grammar.threads().clone();
        let state = State::Asked(threads.ask(Ask::First(grammar.clone())));
        Self { threads, state }
    }

    /// The tokens that may come next: bit `id % 32` of word `id / 32`. Waits for the mask thread. End
    /// tokens only, where the grammar is at its end.
    ///
    /// # Errors
    /// The grammar turned out to be too complex, or no token of the vocabulary can follow.
    pub(crate) fn mask(&mut self) -> Result<&[u32], GrammarError> {
        if let State::Asked(receiver) = &self.state {
            let lost = || GrammarError::Stuck("the mask thread is gone".to_owned());
            self.state = match receiver.recv().unwrap_or_else(|_| Err(lost())) {
                Ok(ready) => State::Ready(ready),
                Err(error) => State::Failed(error),
            };
        }
        match &self.state {
            State::Ready(ready) => Ok(ready.mask.as_slice()),
            State::Failed(error) => Err(error.clone()),
            State::Asked(_) => unreachable!("it was answered above"),
        }
    }

    /// Goes on by a token that the mask allowed; the next mask is begun.
    pub(crate) fn advance(&mut self, token: u32) {
        let gone = State::Failed(GrammarError::Stuck("the grammar has ended".to_owned()));
        self.state = match std::mem::replace(&mut self.state, gone) {
            State::Ready(ready) => State::Asked(self.threads.ask(Ask::Next(ready.matcher, token))),
            other => other,
        };
    }
}
