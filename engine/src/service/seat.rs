//! A reply under way: its place in the batch.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::queue::{Job, Rank};
use super::{Course, Meters, ServiceError, Sink, Update};
use crate::generate::{Cancel, Event, Finish, Reply, Request, Summary};
use crate::runner::Sequence;

/// A request under way, shared by its replies.
pub(super) struct Group {
    pub(super) request: Request,
    pub(super) cache: bool,
    pub(super) cancel: Cancel,
    sink: RefCell<Sink>,
    queued: Instant,
    limit: Option<Duration>,
    pub(super) rank: Rank,
}

impl Group {
    pub(super) fn new(job: Job) -> Rc<Self> {
        let rank = job.rank();
        let Job { order, cancel, sink, queued, .. } = job;
        Rc::new(Self {
            request: order.request,
            cache: order.cache,
            cancel,
            sink: RefCell::new(sink),
            queued,
            limit: order.time_limit,
            rank,
        })
    }

    /// Time since the request came.
    pub(super) fn age(&self) -> Duration {
        self.queued.elapsed()
    }

    /// How far reply number `choice` came; `began` is when it was seated.
    pub(super) fn course(
        &self,
        choice: u32,
        began: Option<Instant>,
        first: Option<Instant>,
    ) -> Course {
        let since = |time: Instant| time - self.queued;
        Course {
            prompt_tokens: self.request.prompt.len(),
            further: choice > 0,
            queued: began.map(since),
            first_token: first.map(since),
            total: self.age(),
        }
    }

    /// Tells the caller. False if nobody listens; a caller that panics does not.
    pub(super) fn tell(&self, choice: u32, update: Update) -> bool {
        let tell = || (self.sink.borrow_mut())(choice, update);
        catch_unwind(AssertUnwindSafe(tell)).unwrap_or_else(|_| {
            tracing::error!("a listener panicked");
            false
        })
    }

    /// Why it must not go on, if that is so.
    pub(super) fn stop(&self, closed: bool) -> Option<Result<Finish, ServiceError>> {
        match self.limit {
            _ if closed => Some(Err(ServiceError::Stopped)),
            _ if self.cancel.is_cancelled() => Some(Ok(Finish::Cancelled)),
            Some(limit) if self.age() > limit => Some(Err(ServiceError::Deadline(limit))),
            _ => None,
        }
    }
}

/// A reply of a group, with its sequence.
pub(super) struct Seat {
    pub(super) group: Rc<Group>,
    pub(super) choice: u32,
    pub(super) reply: Reply,
    pub(super) sequence: Sequence,
    /// The prompt, and the tokens made; all but the last are in the KV cache or on the way there.
    pub(super) tokens: Vec<u32>,
    /// Tokens that are read in chunks: the rest, if there is any, goes through decode steps.
    pub(super) goal: usize,
    /// Prompt tokens that were found.
    pub(super) cached: usize,
    /// When it was seated first.
    began: Instant,
    /// When its first token was chosen.
    first: Option<Instant>,
    /// When its last token was told.
    told: Option<Instant>,
    /// Tokens that were told of.
    counted: usize,
    /// Why it ends.
    pub(super) end: Option<Result<Finish, ServiceError>>,
}

impl Seat {
    pub(super) fn new(group: Rc<Group>, choice: u32, reply: Reply, sequence: Sequence) -> Self {
        let tokens = group.request.prompt.clone();
        Self {
            choice,
            reply,
            sequence,
            goal: tokens.len(),
            tokens,
            cached: 0,
            began: Instant::now(),
            first: None,
            told: None,
            counted: 0,
            end: None,
            group,
        }
    }

    /// Are there tokens left to read in chunks?
    pub(super) fn is_reading(&self) -> bool {
        self.sequence.len() < self.goal
    }

    /// Is it the one whose prompt counts?
    pub(super) fn is_leader(&self) -> bool {
        self.choice == 0
    }

    /// Tokens of its prompt.
    pub(super) fn prompt_len(&self) -> usize {
        self.group.request.prompt.len()
    }

    /// The token of its next decode step, and whether its output is wanted.
    pub(super) fn next(&self) -> (u32, bool) {
        let at = self.sequence.len();
        (self.tokens[at], at + 1 == self.tokens.len())
    }

    /// Chooses a token by a row of output. A panic ends the reply and nothing else.
    pub(super) fn choose(reply: &mut Reply, logits: &mut [f32]) -> Result<(), ServiceError> {
        match catch_unwind(AssertUnwindSafe(|| reply.choose(logits))) {
            Ok(result) => Ok(result?),
            Err(_) => {
                tracing::error!("sampling panicked");
                Err(ServiceError::Panicked)
            }
        }
    }

    /// Tells of the token that was chosen, if one was since the last time. `room`: tokens that the
    /// context has for the reply.
    pub(super) fn tell(&mut self, room: usize, meters: Option<&Meters>) {
        if self.end.is_some() || self.reply.generated() == self.counted {
            return;
        }
        self.counted += 1;
        if let Some(meters) = meters {
            meters.chosen();
        }
        let Self { group, choice, reply, told, first, began, .. } = self;
        if first.is_none() {
            let now = *first.insert(Instant::now());
            if !group.tell(*choice, Update::Event(Event::PromptRead(now - *began))) {
                self.end = Some(Ok(Finish::Cancelled));
                return;
            }
        }
        let mut sink = |event| {
            if let (Event::Token { .. }, Some(meters)) = (&event, meters) {
                let now = Instant::now();
                match told.replace(now) {
                    Some(last) => meters.token(now - last),
                    None => meters.first_token(group.age()),
                }
            }
            group.tell(*choice, Update::Event(event))
        };
        let tell = || reply.tell(room, &mut sink);
        match catch_unwind(AssertUnwindSafe(tell)) {
            Ok(None) => self.tokens.push(self.reply.next()),
            Ok(Some(finish)) => {
                if finish == Finish::Cancelled {
                    self.group.cancel.cancel();
                }
                self.end = Some(Ok(finish));
            }
            Err(_) => {
                tracing::error!("making text panicked");
                self.end = Some(Err(ServiceError::Panicked));
            }
        }
    }

    /// How far it came.
    pub(super) fn course(&self) -> Course {
        self.group.course(self.choice, Some(self.began), self.first)
    }

    /// Figures of how it ended.
    pub(super) fn summary(&self, finish: Finish) -> Summary {
        let prefill = self.first.unwrap_or_else(Instant::now) - self.began;
        let decode = self.first.map(|first| first.elapsed());
        let cached_tokens = self.cached;
        Summary { cached_tokens, ..self.reply.summary(finish, prefill, decode) }
    }
}
