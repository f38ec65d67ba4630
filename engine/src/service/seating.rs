//! Who gets a seat: those put aside for others, replies to a prompt that was read, the queue.

use std::rc::Rc;

use super::batch::Turns;
use super::queue::Rank;
use super::seat::{Group, Seat};
use super::{ServiceError, Update};
use crate::generate::Reply;
use crate::runner::RunError;

/// Who is seated next.
enum Next {
    Parked(usize),
    Fork(usize),
    /// The first of the queue, which needs so many pages.
    Queued(usize),
}

impl Turns {
    /// Seats the first in rank of those that wait, if there is room; returns its place.
    pub(super) fn seat_next(&mut self) -> Option<usize> {
        while self.seats.len() < self.options.sequences.max(1) {
            let (rank, next) = self.first_in_rank()?;
            let need = match next {
                Next::Parked(index) => self.missing(&self.parked[index].tokens),
                Next::Fork(index) => self.missing_to_fork(&self.forks[index].0),
                Next::Queued(need) => need,
            };
            if !self.has_pages(need) {
                return None;
            }
            let seat = match next {
                Next::Parked(index) => Some(self.parked.remove(index)),
                Next::Fork(index) => {
                    let (group, choice) = self.forks.remove(index);
                    self.reply(group, choice)
                }
                Next::Queued(_) => self.take_job(rank),
            };
            let Some(mut seat) = seat else { continue };
            self.begin(&mut seat);
            self.seats.push(seat);
            self.load.set(self.running(), &self.runner.executor.kv);
            return Some(self.seats.len() - 1);
        }
        None
    }

    fn first_in_rank(&self) -> Option<(Rank, Next)> {
        let parked = self.parked.iter().enumerate();
        let parked = parked.map(|(index, seat)| (seat.group.rank, Next::Parked(index)));
        let forks = self.forks.iter().enumerate();
        let forks = forks.map(|(index, (group, _))| (group.rank, Next::Fork(index)));
        let queued = self
            .queue
            .peek(|job| (job.rank(), Next::Queued(self.missing(&job.order.request.prompt))));
        // The first of those alike: what was under way before.
        let all = parked.chain(forks).chain(queued);
        all.reduce(|best, one| if one.0 > best.0 { one } else { best })
    }

    /// Pages that a sequence with these tokens needs beside those that others hold for it.
    fn missing(&self, tokens: &[u32]) -> usize {
        let held = if self.options.prefix_cache { self.runner.pages_held(tokens) } else { 0 };
        self.pages(tokens.len()) - held
    }

    /// Pages that another reply to a prompt needs.
    fn missing_to_fork(&self, group: &Rc<Group>) -> usize {
        let prompt = &group.request.prompt;
        match self.sibling(group) {
            Some(sibling) => {
                let shared = self.runner.pages_to_fork(&sibling.sequence, prompt.len());
                self.pages(prompt.len()) - shared
            }
            None => self.missing(prompt),
        }
    }

    /// A reply to the same prompt that has read it.
    fn sibling(&self, group: &Rc<Group>) -> Option<&Seat> {
        let mut read = self.seats.iter().filter(|seat| seat.sequence.len() >= seat.prompt_len());
        read.find(|seat| Rc::ptr_eq(&seat.group, group))
    }

    fn pages(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.runner.executor.kv.layout().page_tokens)
    }

    /// Are there so many pages, and some for those who decode?
    fn has_pages(&self, need: usize) -> bool {
        let need = need + 1 + self.seats.len();
        // Nobody else would give pages back.
        need <= self.runner.executor.kv.available_pages() || self.seats.is_empty()
    }

    /// Takes a job from the queue.
    fn take_job(&mut self, rank: Rank) -> Option<Seat> {
        let job = self.queue.pop(rank)?;
        let choices = job.order.choices.max(1);
        let group = Group::new(job);
        let queued = group.age();
        // A caller that is gone says so at once, before the prompt is read.
        if !group.tell(0, Update::Started(queued)) {
            self.refuse(&group, 0..choices, &ServiceError::Cancelled);
            return None;
        }
        if let Some(meters) = &self.options.meters {
            meters.started(queued);
        }
        if let Err(error) = self.runner.check_prompt(&group.request.prompt) {
            self.refuse(&group, 0..choices, &error.into());
            return None;
        }
        self.forks.extend((1..choices).map(|choice| (group.clone(), choice)));
        self.reply(group, 0)
    }

    /// A seat for a reply, with nothing in its sequence.
    fn reply(&mut self, group: Rc<Group>, choice: u32) -> Option<Seat> {
        let width = self.runner.executor.output_width();
        match Reply::new(&self.text, &group.request, u64::from(choice), width) {
            Ok(reply) => {
                let sequence = self.runner.begin(self.runner.context());
                Some(Seat::new(group, choice, reply, sequence))
            }
            Err(error) => {
                self.refuse(&group, choice..choice + 1, &error.into());
                None
            }
        }
    }

    /// Gives a seat's sequence what others have read of its tokens, and the pages for the rest.
    fn begin(&mut self, seat: &mut Seat) {
        let prompt = seat.prompt_len();
        let fresh = seat.reply.generated() == 0;
        let capacity = seat.sequence.capacity();
        // Tokens that were made come out of chunks as they did of steps, or go through those again.
        seat.goal = if self.runner.has_steady_rows() { seat.tokens.len() } else { prompt };
        let cache = self.options.prefix_cache && seat.group.cache;
        let seats = self.seats.iter().filter(|_| fresh);
        let mut siblings = seats.filter(|other| Rc::ptr_eq(&other.group, &seat.group));
        let old = match siblings.find(|other| other.sequence.len() >= prompt) {
            Some(sibling) => {
                let fork = self.runner.fork(&sibling.sequence, prompt);
                std::mem::replace(&mut seat.sequence, fork)
            }
            None if cache => {
                let found = self.runner.begin_with(capacity, &seat.tokens[..seat.goal]);
                if fresh && seat.is_leader() {
                    seat.cached = found.len();
                    if let Some(meters) = &self.options.meters {
                        meters.looked_up(prompt, found.len());
                    }
                }
                std::mem::replace(&mut seat.sequence, found)
            }
            None => return self.reserve(seat),
        };
        self.runner.end(old);
        self.reserve(seat);
    }

    fn reserve(&mut self, seat: &mut Seat) {
        if !self.runner.reserve(&mut seat.sequence, seat.goal) {
            let kv = &self.runner.executor.kv;
            let (free, total) = (kv.available_pages(), kv.total_pages());
            seat.end = Some(Err(RunError::NoPages { free, total }.into()));
        }
    }
}
