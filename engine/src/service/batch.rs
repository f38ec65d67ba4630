//! The turns of a service: who joins, what is read, the decode step, who leaves.
//!
//! One prompt is read at a time, the first in rank; between two decode steps no more of it than keeps
//! the time between tokens (`pace.rs`). Where pages run out, the last in rank is put aside: its pages go
//! to the others, and it is read again when there is room, to go on with the same tokens.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use smallvec::SmallVec;
use trefoil_devices_api::Phase;

use super::pace::Pace;
use super::queue::Queue;
use super::seat::{Group, Seat};
use super::{Load, ServiceError, ServiceOptions, Update};
use crate::generate::Finish;
use crate::loaded::TextSide;
use crate::runner::{Outputs, RunError, Runner, Sequence};

/// Sequences of a step for which lists need no memory of their own.
const USUAL: usize = 16;

/// Time after which measurements are handed on.
const OBSERVE_EVERY: Duration = Duration::from_millis(200);

/// What the service's thread is given.
pub(super) struct Batcher {
    runner: Runner,
    text: Arc<TextSide>,
    queue: Arc<Queue>,
    load: Arc<Load>,
    options: ServiceOptions,
}

impl Batcher {
    pub(super) fn new(
        runner: Runner,
        text: Arc<TextSide>,
        queue: Arc<Queue>,
        load: Arc<Load>,
        options: ServiceOptions,
    ) -> Self {
        load.set(0, &runner.executor.kv);
        Self { runner, text, queue, load, options }
    }

    /// On the service's thread: no request is under way yet.
    pub(super) fn start(self) -> Turns {
        let Self { runner, text, queue, load, options } = self;
        let pace = Pace::new(options.inter_token, options.forecast);
        let (seats, parked, forks, logits) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let observed = Instant::now();
        let mut turns = Turns {
            runner,
            text,
            queue,
            load,
            options,
            pace,
            seats,
            parked,
            forks,
            logits,
            observed,
        };
        // What nobody counts need not be measured.
        turns.runner.executor.record(turns.options.meters.is_some());
        turns
    }
}

/// Everything under way.
pub(super) struct Turns {
    pub(super) runner: Runner,
    pub(super) text: Arc<TextSide>,
    pub(super) queue: Arc<Queue>,
    pub(super) load: Arc<Load>,
    pub(super) options: ServiceOptions,
    pace: Pace,
    /// Replies with sequences.
    pub(super) seats: Vec<Seat>,
    /// Replies put aside for lack of pages: their sequences are empty.
    pub(super) parked: Vec<Seat>,
    /// Replies that wait until the prompt that they share was read.
    pub(super) forks: Vec<(Rc<Group>, u32)>,
    /// A row of output.
    logits: Vec<f32>,
    /// When measurements were handed on.
    observed: Instant,
}

impl Turns {
    /// Works until the queue is closed.
    pub(super) fn work(mut self) {
        let turns = || while self.turn() {};
        if catch_unwind(AssertUnwindSafe(turns)).is_err() {
            // Callers hear of it by the end of their channels, new ones by the closed queue.
            tracing::error!("the service panicked and takes no more requests");
            self.queue.close();
            self.queue.give_up(Instant::now());
        }
    }

    /// One turn. False after the last one.
    fn turn(&mut self) -> bool {
        let idle = self.seats.is_empty() && self.parked.is_empty() && self.forks.is_empty();
        self.observe(idle);
        let closed = if idle { !self.queue.wait() } else { self.queue.is_closed() };
        self.leave(closed);
        if closed {
            return false;
        }
        self.read();
        self.decode();
        self.note();
        true
    }

    /// Hands on what was measured of the last steps: a few times a second, and where it must be `now`.
    fn observe(&mut self, now: bool) {
        let Some(meters) = &self.options.meters else { return };
        if now || self.observed.elapsed() >= OBSERVE_EVERY {
            meters.recorded(self.runner.executor.take_finished());
            self.observed = Instant::now();
        }
    }

    /// Tells of what is under way now.
    fn note(&self) {
        self.load.set(self.running(), &self.runner.executor.kv);
        self.load.set_decoded(self.seats.iter().map(|seat| seat.reply.generated()));
    }

    pub(super) fn running(&self) -> usize {
        self.seats.len() + self.parked.len() + self.forks.len()
    }

    /// Sends away whoever must not go on.
    fn leave(&mut self, closed: bool) {
        for (job, error) in self.queue.give_up(Instant::now()) {
            let choices = job.order.choices;
            self.refuse(&Group::new(job), 0..choices, &error);
        }
        let mut forks = std::mem::take(&mut self.forks);
        forks.retain(|(group, choice)| match group.stop(closed) {
            Some(Err(error)) => {
                self.refuse(group, *choice..choice + 1, &error);
                false
            }
            Some(Ok(_)) => {
                self.refuse(group, *choice..choice + 1, &ServiceError::Cancelled);
                false
            }
            None => true,
        });
        self.forks = forks;
        for seat in self.seats.iter_mut().chain(&mut self.parked) {
            seat.end = seat.group.stop(closed);
        }
        self.clear();
        let (gone, parked) = std::mem::take(&mut self.parked)
            .into_iter()
            .partition::<Vec<_>, _>(|seat| seat.end.is_some());
        self.parked = parked;
        gone.into_iter().for_each(|seat| self.end(seat));
    }

    /// Ends replies that never had a seat.
    pub(super) fn refuse(&self, group: &Group, choices: Range<u32>, error: &ServiceError) {
        for choice in choices {
            let result = Err(error.clone());
            if let Some(meters) = &self.options.meters {
                meters.done(&result, group.course(choice, None, None));
            }
            group.tell(choice, Update::Done(result));
        }
    }

    /// Ends the replies that are done.
    fn clear(&mut self) {
        let mut index = 0;
        while index < self.seats.len() {
            if self.seats[index].end.is_some() {
                let seat = self.seats.remove(index);
                self.end(seat);
            } else {
                index += 1;
            }
        }
    }

    fn end(&mut self, mut seat: Seat) {
        let result = match seat.end.take() {
            Some(Ok(finish)) => Ok(seat.summary(finish)),
            Some(Err(error)) => Err(error),
            None => Ok(seat.summary(Finish::Cancelled)),
        };
        let course = seat.course();
        let Seat { group, choice, sequence, .. } = seat;
        self.runner.end(sequence);
        // Whoever hears of the end finds its steps measured.
        self.observe(true);
        if let Some(meters) = &self.options.meters {
            meters.done(&result, course);
        }
        // Whoever hears of the end finds its pages returned.
        self.note();
        group.tell(choice, Update::Done(result));
    }

    /// Reads of prompts what fits before the next decode step.
    fn read(&mut self) {
        let decoding = self.seats.iter().filter(|seat| !seat.is_reading()).count();
        let most = self.options.turn_tokens.saturating_sub(decoding).max(1);
        let mut alone = decoding == 0;
        let mut left = if alone { most } else { most.min(self.pace.chunk()) };
        while left > 0 {
            let reading = self.seats.iter().position(Seat::is_reading);
            let Some(index) = reading.or_else(|| self.seat_next()) else { return };
            let rows = self.chunk(index, left, alone);
            let ended = self.seats[index].end.is_some();
            if !ended && self.seats[index].is_reading() {
                return;
            }
            left = left.saturating_sub(rows);
            if !ended && std::mem::take(&mut alone) {
                // Now somebody waits for the next token.
                left = left.min(self.pace.chunk());
            }
            self.clear();
        }
    }

    /// Reads a chunk of at most about `most` tokens of a seat's prompt, all if nobody waits and chunks
    /// can be under way at once. Returns its rows.
    fn chunk(&mut self, index: usize, most: usize, alone: bool) -> usize {
        let seat = &mut self.seats[index];
        let begin = seat.sequence.len();
        let end = match alone && self.runner.executor.steps_at_once() > 1 {
            true => seat.goal,
            false => self.runner.chunk_end(begin, seat.goal, most),
        };
        let samples = end == seat.tokens.len();
        let start = Instant::now();
        let (runner, logits) = (&mut self.runner, &mut self.logits);
        let Seat { group, reply, sequence, tokens, .. } = seat;
        let go_on = || !group.cancel.is_cancelled();
        let tokens = &tokens[begin..end];
        let feed = || match samples {
            true => runner.feed_for_largest(sequence, tokens, reply.largest(), go_on, |row| {
                logits.clear();
                logits.extend_from_slice(row);
            }),
            false => runner.feed_while(sequence, tokens, Outputs::None, go_on, |_, _| ()),
        };
        let result = catch_unwind(AssertUnwindSafe(feed));
        let took = start.elapsed();
        if let Err(error) = self.judge(result) {
            self.seats[index].end = Some(match error {
                Some(error) => Err(error),
                None => Ok(Finish::Cancelled),
            });
            return end - begin;
        }
        self.pace.read(end - begin, took);
        let (room, cache) = (self.room(index), self.caches(index));
        let meters = self.options.meters.as_ref();
        let seat = &mut self.seats[index];
        if let Some(meters) = meters {
            meters.step(Phase::Prefill, 1, end - begin, took);
            if end == seat.prompt_len() && seat.is_leader() && seat.reply.generated() == 0 {
                meters.prompt(end, seat.cached);
            }
        }
        if cache {
            self.runner.publish(&mut seat.sequence, &seat.tokens);
        }
        if samples {
            match Seat::choose(&mut seat.reply, &mut self.logits) {
                Ok(()) => seat.tell(room, meters),
                Err(error) => seat.end = Some(Err(error)),
            }
        }
        end - begin
    }

    /// A step's result, `Err(None)` if it was cancelled; after a failure no page is believed to hold
    /// what its name says.
    fn judge(
        &mut self,
        result: std::thread::Result<Result<(), RunError>>,
    ) -> Result<(), Option<ServiceError>> {
        let error = match result {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(RunError::Cancelled)) => return Err(None),
            Ok(Err(error)) => error.into(),
            Err(_) => ServiceError::Panicked,
        };
        tracing::error!("a step failed: {error}");
        self.runner.executor.kv.forget_names();
        Err(Some(error))
    }

    /// Tokens that the context has for a seat's reply.
    fn room(&self, index: usize) -> usize {
        self.runner.context() - self.seats[index].prompt_len()
    }

    fn caches(&self, index: usize) -> bool {
        self.options.prefix_cache && self.seats[index].group.cache
    }

    /// A decode step with a row of every sequence that generates, or several where a step takes fewer.
    fn decode(&mut self) {
        self.find_pages();
        let Self { seats, runner, logits, options, pace, .. } = self;
        let meters = options.meters.as_ref();
        let decoding = seats.iter_mut().filter(|seat| !seat.is_reading() && seat.end.is_none());
        let mut rows: SmallVec<[&mut Seat; USUAL]> = decoding.collect();
        if rows.is_empty() {
            return;
        }
        let start = Instant::now();
        let mut failed = false;
        for rows in rows.chunks_mut(runner.decode_batch().max(1)) {
            let begin = Instant::now();
            if step(runner, rows, logits).is_err() {
                failed = true;
                // What one sequence may have caused is not the others' fault: each alone, once.
                for row in rows.iter_mut() {
                    if let Err(error) = step(runner, std::slice::from_mut(row), logits) {
                        tracing::error!("a step failed: {error}");
                        row.end = Some(Err(error));
                    }
                }
            }
            if let Some(meters) = meters {
                meters.step(Phase::Decode, rows.len(), rows.len(), begin.elapsed());
            }
        }
        pace.decoded(start.elapsed());
        drop(rows);
        if failed {
            self.runner.executor.kv.forget_names();
        }
        for index in 0..self.seats.len() {
            let (room, cache) = (self.room(index), self.caches(index));
            let seat = &mut self.seats[index];
            if seat.is_reading() {
                continue;
            }
            if cache && !failed {
                self.runner.publish(&mut seat.sequence, &seat.tokens);
            }
            seat.tell(room, self.options.meters.as_ref());
        }
        self.clear();
    }

    /// Makes room for a token of every sequence that generates; the last in rank give way.
    fn find_pages(&mut self) {
        loop {
            let runner = &mut self.runner;
            let mut decoding = self.seats.iter_mut().filter(|seat| !seat.is_reading());
            let short = decoding.any(|seat| {
                let tokens = seat.sequence.len() + 1;
                !runner.reserve(&mut seat.sequence, tokens)
            });
            if !short {
                return;
            }
            let ranks = self.seats.iter().enumerate();
            let Some((last, _)) = ranks.min_by_key(|(_, seat)| (seat.group.rank, !seat.choice))
            else {
                return;
            };
            if self.seats.len() == 1 {
                let kv = &self.runner.executor.kv;
                let (free, total) = (kv.available_pages(), kv.total_pages());
                self.seats[last].end = Some(Err(RunError::NoPages { free, total }.into()));
                return self.clear();
            }
            let mut seat = self.seats.remove(last);
            let empty = self.runner.begin(seat.sequence.capacity());
            self.runner.end(std::mem::replace(&mut seat.sequence, empty));
            self.parked.push(seat);
            if let Some(meters) = &self.options.meters {
                meters.preempted();
            }
        }
    }
}

/// A decode step with a row of each seat; those whose output is wanted choose their tokens.
fn step(
    runner: &mut Runner,
    rows: &mut [&mut Seat],
    logits: &mut Vec<f32>,
) -> Result<(), ServiceError> {
    let mut sequences: SmallVec<[&mut Sequence; USUAL]> = SmallVec::new();
    let mut replies: SmallVec<[_; USUAL]> = SmallVec::new();
    let mut tokens: SmallVec<[u32; USUAL]> = SmallVec::new();
    let mut largest = Some(0);
    for seat in rows {
        let (token, wanted) = seat.next();
        tokens.push(token);
        let Seat { sequence, reply, end, .. } = &mut **seat;
        sequences.push(sequence);
        if wanted {
            let own = Some(reply.largest()).filter(|&count| count > 0);
            largest = largest.zip(own).map(|(a, b)| a.max(b));
        }
        replies.push(wanted.then_some((reply, end)));
    }
    let step = || {
        runner.decode_for_largest(&mut sequences, &tokens, largest.unwrap_or(0), |row, values| {
            let Some((reply, end)) = &mut replies[row] else { return };
            logits.clear();
            logits.extend_from_slice(values);
            if let Err(error) = Seat::choose(reply, logits) {
                **end = Some(Err(error));
            }
        })
    };
    match catch_unwind(AssertUnwindSafe(step)) {
        Ok(result) => Ok(result?),
        Err(_) => {
            tracing::error!("a step panicked");
            Err(ServiceError::Panicked)
        }
    }
}
