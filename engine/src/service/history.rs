//! The last requests and sums over all, without a word of what they said.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use crate::generate::Summary;

/// Requests that are remembered.
pub const REMEMBERED: usize = 50;

/// Seconds since 1970.
fn unix_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

/// A request that ended. Figures that it did not come to are absent.
#[derive(Clone, Debug, PartialEq)]
pub struct Ended {
    /// When it ended, in seconds since 1970.
    pub at: f64,
    /// `stop`, `length`, `cancelled`, `error`, …
    pub outcome: &'static str,
    /// Tokens of its prompt.
    pub prompt_tokens: usize,
    /// Those of them that did not have to be read.
    pub cached_tokens: usize,
    /// Tokens that were made.
    pub generated_tokens: usize,
    /// Is it a further reply to a prompt, which counts once?
    pub further: bool,
    /// Time in the queue.
    pub queued: Option<Duration>,
    /// Time from its arrival to its first token.
    pub first_token: Option<Duration>,
    /// Time to read its prompt.
    pub prefill: Option<Duration>,
    /// Time from the first token to the end.
    pub decode: Option<Duration>,
    /// Time from its arrival to its end.
    pub total: Duration,
}

/// How far a request came, for [`History`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Course {
    /// Tokens of its prompt.
    pub prompt_tokens: usize,
    /// Is it a further reply to a prompt, which counts once?
    pub further: bool,
    /// Time in the queue; absent if it never left it.
    pub queued: Option<Duration>,
    /// Time from its arrival to its first token.
    pub first_token: Option<Duration>,
    /// Time from its arrival to its end.
    pub total: Duration,
}

impl Ended {
    /// A request that ended now. Without a summary nothing is known of its tokens but the prompt's.
    pub fn now(outcome: &'static str, course: Course, summary: Option<&Summary>) -> Self {
        Self {
            at: unix_time(),
            outcome,
            prompt_tokens: course.prompt_tokens,
            cached_tokens: summary.map_or(0, |summary| summary.cached_tokens),
            generated_tokens: summary.map_or(0, |summary| summary.generated_tokens),
            further: course.further,
            queued: course.queued,
            first_token: course.first_token,
            prefill: summary.map(|summary| summary.prefill),
            decode: summary.map(|summary| summary.decode),
            total: course.total,
        }
    }
}

/// Sums over all requests that ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// Requests.
    pub requests: u64,
    /// Tokens of their prompts.
    pub prompt_tokens: u64,
    /// Those of them that did not have to be read.
    pub cached_tokens: u64,
    /// Tokens that were made.
    pub generated_tokens: u64,
}

/// The last requests of a model, and sums over all.
#[derive(Debug, Default)]
pub struct History {
    kept: Mutex<(VecDeque<Ended>, Sums)>,
    /// Bits of the time of the last use; 0: none yet.
    last_use: AtomicU64,
}

impl History {
    /// A request begins.
    pub fn used(&self) {
        self.last_use.store(unix_time().to_bits(), Ordering::Relaxed);
    }

    /// When a request began or ended last, in seconds since 1970; `None` if none did.
    pub fn last_use(&self) -> Option<f64> {
        Some(f64::from_bits(self.last_use.load(Ordering::Relaxed))).filter(|&time| time > 0.0)
    }

    /// A request ended.
    pub fn push(&self, ended: Ended) {
        self.last_use.store(ended.at.to_bits(), Ordering::Relaxed);
        let (last, sums) = &mut *self.kept.lock();
        if !ended.further {
            sums.requests += 1;
            sums.prompt_tokens += ended.prompt_tokens as u64;
            sums.cached_tokens += ended.cached_tokens as u64;
        }
        sums.generated_tokens += ended.generated_tokens as u64;
        if last.len() == REMEMBERED {
            last.pop_front();
        }
        last.push_back(ended);
    }

    /// The last requests, the oldest first.
    pub fn last(&self) -> Vec<Ended> {
        self.kept.lock().0.iter().cloned().collect()
    }

    /// Sums over all requests.
    pub fn sums(&self) -> Sums {
        self.kept.lock().1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_are_remembered_and_all_are_summed() {
        let history = History::default();
        assert_eq!((history.last_use(), history.last().len()), (None, 0));
        for prompt_tokens in 0..REMEMBERED + 10 {
            let course = Course { prompt_tokens, ..Course::default() };
            history.push(Ended::now("error", course, None));
        }
        let last = history.last();
        assert_eq!((last.len(), last[0].prompt_tokens), (REMEMBERED, 10));
        assert_eq!(history.sums().requests, 60);
        assert_eq!(history.sums().prompt_tokens, 59 * 60 / 2);
        assert_eq!(history.last_use(), last.last().map(|ended| ended.at));
    }
}
