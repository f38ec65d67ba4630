//! Runs plans: segments compiled to programs, submitted with fences between them. The executor adds
//! nothing to a plan and drops nothing.
//!
//! Every device has a *lane*: its queue, with a timeline that counts what it was given. A segment waits
//! for the one before it in its step, and for what last used its KV layers. Where a plan lets several
//! steps be under way at once ([`trefoil_scheduler::BucketPlan::steps_at_once`]), each has a set of
//! buffers of its own, and their segments are submitted in turns, the older step one segment ahead: so
//! that queues, which work in order, are seldom held up by a step that waits for another device.

mod compile;
mod error;
mod kv_moves;
mod lanes;
mod largest;
mod queues;
mod stages;
mod steps;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use trefoil_devices_api::{Device, DomainId, MemoryManager, Phase, Work};
use trefoil_graph::{LayerGraph, Rows, StepInputs};
use trefoil_scheduler::{BucketPlan, Plan};

use crate::kv::KvPool;
use crate::records::{CopyKind, StepRecord};
use compile::{CompiledBucket, Compiler, TensorCopy};
pub use error::ExecuteError;
use kv_moves::KvMoves;
use lanes::{Mark, Marks};
use largest::Sparse;
use queues::{Given, Queues};
use stages::Stages;
use steps::Single;
pub use steps::{StepOrder, Steps};

/// What a step under way holds; the number of the slot is that of its set of buffers.
#[derive(Debug, Default)]
struct Slot {
    rows: Arc<StepInputs>,
    fetch: Vec<u32>,
    send: Vec<u32>,
    /// Largest elements that are looked at; 0: all of them.
    largest: usize,
    sparse: Sparse,
    taken: bool,
}

/// A step under way.
#[derive(Debug)]
struct Flight {
    slot: usize,
    bucket: usize,
    /// Segments submitted so far.
    submitted: usize,
    /// What its next submission waits for.
    waits: Marks,
    /// Its last submission.
    last: Option<Mark>,
    /// All of them.
    given: Marks,
    serial: u64,
}

impl Flight {
    /// Notes a submission: what comes next waits for it.
    fn gave(&mut self, mark: Mark) {
        self.waits.replace(mark);
        self.last = Some(mark);
        self.given.add(mark);
    }
}

/// A plan on real devices, with the model's KV pages.
#[derive(Debug)]
pub struct Executor {
    graph: Arc<LayerGraph>,
    buckets: Vec<CompiledBucket>,
    /// KV pages of all sequences.
    pub kv: KvPool,
    kv_moves: KvMoves,
    /// What used each KV layer's pages last.
    kv_used: Vec<Marks>,
    queues: Queues,
    stages: Stages,
    slots: Vec<Slot>,
    /// Steps under way, the oldest first.
    flights: VecDeque<Flight>,
    /// Most of them.
    at_once: usize,
    /// The last result that the host waited for: what it does next depends on that.
    seen: Marks,
    failures: u64,
    /// Are devices that wait for others kept awake meanwhile?
    keep_awake: bool,
}

/// A device is kept awake for so long after a segment was given to any: more than a decode step of a large
/// model and what comes between two of them.
const AWAKE: Duration = Duration::from_millis(100);

impl Executor {
    /// Compiles every segment of `plan` and takes the memory that it needs.
    pub fn new(
        graph: &Arc<LayerGraph>,
        plan: &Plan,
        devices: &[Arc<dyn Device>],
        memory: &MemoryManager,
        kv: KvPool,
    ) -> Result<Self, ExecuteError> {
        let mut queues = Queues::default();
        let mut stages = Stages::of(graph, &plan.buckets);
        let mut compiler =
            Compiler::new(graph, devices, memory, &kv, &mut queues.lanes, &mut stages);
        // Largest first: its tensors serve the smaller buckets too.
        let mut order: Vec<&BucketPlan> = plan.buckets.iter().collect();
        order.sort_by_key(|bucket| std::cmp::Reverse(bucket.bucket.max_tokens));
        let buckets = order.into_iter().map(|bucket| compiler.bucket(bucket, plan.context));
        let mut buckets = buckets.collect::<Result<Vec<_>, _>>()?;
        buckets.sort_by_key(|bucket| bucket.bucket.max_tokens);
        let kv_moves = KvMoves::new(&kv, devices, memory, &mut queues.lanes)?;
        let at_once = buckets.iter().map(CompiledBucket::sets).max().unwrap_or(1);
        let keep_awake = queues.lanes.are_of_several();
        Ok(Self {
            graph: graph.clone(),
            buckets,
            kv_used: vec![Marks::default(); graph.kv().len()],
            kv,
            kv_moves,
            queues,
            stages,
            slots: (0..at_once).map(|_| Slot::default()).collect(),
            flights: VecDeque::with_capacity(at_once),
            at_once,
            seen: Marks::default(),
            failures: 0,
            keep_awake,
        })
    }

    /// Most rows of one step in a phase.
    pub fn max_tokens(&self, phase: Phase) -> usize {
        let buckets = self.buckets.iter().filter(|bucket| bucket.bucket.phase == phase);
        buckets.map(|bucket| bucket.bucket.max_tokens).max().unwrap_or(0)
    }

    /// Most rows of one step whose output can be asked for.
    pub fn max_outputs(&self, phase: Phase) -> usize {
        let buckets = self.buckets.iter().filter(|bucket| bucket.bucket.phase == phase);
        buckets.map(|bucket| bucket.bucket.max_outputs).max().unwrap_or(0)
    }

    /// Most steps that are under way at once.
    pub fn steps_at_once(&self) -> usize {
        self.at_once
    }

    /// Lets at most `most` steps be under way at once, at least 1 and no more than the plan's memory
    /// is for. Results do not depend on it.
    pub fn limit_steps_at_once(&mut self, most: usize) {
        self.at_once = most.clamp(1, self.slots.len());
    }

    /// Are devices kept awake while they wait for each other ([`Device::keep_awake`])? At first they
    /// are; there is nothing to do where the plan has only one.
    pub fn keep_awake(&mut self, on: bool) {
        self.keep_awake = on && self.queues.lanes.are_of_several();
    }

    /// Failures so far. Whoever counts on work that goes on behind a step ([`StepOrder::send`]) looks
    /// if there was one since.
    pub fn failures(&self) -> u64 {
        self.failures
    }

    /// Elements of a row of the result.
    pub fn output_width(&self) -> usize {
        self.graph.node(self.graph.output()).shape.width
    }

    /// Begins to keep records of steps, or ends and forgets them. Takes the devices' completions for
    /// itself while it is on: two executors that record on one device at a time disturb each other.
    pub fn record(&mut self, on: bool) {
        let names = self.queues.lanes.names().map(Arc::from).collect();
        self.queues.recorder.switch(on, names);
        // What finished before is nobody's any more.
        self.queues.collect();
    }

    /// The records of all steps since they were last taken, the oldest first, and the number of older
    /// ones that were dropped because nobody took them. Waits for moves of KV pages under way.
    pub fn take_records(&mut self) -> (Vec<StepRecord>, u64) {
        if !self.queues.recorder.is_on() {
            return (Vec::new(), 0);
        }
        if !self.queues.lanes.is_idle() {
            self.queues.lanes.settle();
        }
        self.queues.collect();
        self.queues.recorder.take()
    }

    /// As [`Self::take_records`] without the number of those dropped, and without waiting: nothing as
    /// long as work is under way behind the last step.
    pub fn take_finished(&mut self) -> Vec<StepRecord> {
        if !self.queues.recorder.is_on() || !self.queues.lanes.is_idle() {
            return Vec::new();
        }
        self.queues.collect();
        self.queues.recorder.take().0
    }

    /// Runs one step: `fill` writes its rows, `read` gets the result, `[rows, width]`.
    pub fn step<T>(
        &mut self,
        phase: Phase,
        fill: impl FnOnce(&mut StepInputs),
        read: impl FnOnce(&[f32]) -> T,
    ) -> Result<T, ExecuteError> {
        let (fill, read) = (Some(fill), Some(read));
        let mut single = Single { phase, fill, read, result: None };
        self.run(&mut single)?;
        Ok(single.result.expect("a step that ran was read"))
    }

    /// Runs steps, as many at once as the plan lets.
    ///
    /// # Errors
    /// The first failure; nothing is under way then, results that were not told are lost, and the next
    /// call begins anew.
    pub fn run(&mut self, steps: &mut dyn Steps) -> Result<(), ExecuteError> {
        if !self.flights.is_empty() {
            // A caller's panic left them.
            self.abandon();
        }
        let result = self.run_all(steps);
        if result.is_err() {
            self.abandon();
        }
        result
    }

    fn run_all(&mut self, steps: &mut dyn Steps) -> Result<(), ExecuteError> {
        let mut more = true;
        loop {
            if more && self.flights.len() < self.at_once {
                more = self.begin(steps)?;
            }
            if self.flights.is_empty() {
                return Ok(());
            }
            if !self.advance(more)? {
                self.finish(steps)?;
            }
        }
    }

    /// Waits for what is under way and forgets it, failed or not.
    fn abandon(&mut self) {
        self.queues.lanes.settle();
        self.queues.collect();
        self.queues.lanes.renew();
        self.flights.clear();
        self.slots.iter_mut().for_each(|slot| slot.taken = false);
        self.kv_used.iter_mut().for_each(Marks::clear);
        self.kv_moves.renew();
        self.stages.renew();
        self.seen.clear();
        self.failures += 1;
    }

    /// Takes the next step on board. False if there is none.
    fn begin(&mut self, steps: &mut dyn Steps) -> Result<bool, ExecuteError> {
        let mut slot = self.slots.iter().position(|slot| !slot.taken).expect("fewer flights");
        let page_tokens = self.kv.layout().page_tokens as u32;
        let Slot { rows, fetch, send, largest, .. } = &mut self.slots[slot];
        if Arc::get_mut(rows).is_none() {
            // A device still holds the last step: only after a failure.
            *rows = Arc::default();
        }
        let step = Arc::get_mut(rows).expect("nobody else holds it");
        step.clear();
        step.page_tokens = page_tokens;
        fetch.clear();
        send.clear();
        *largest = 0;
        let Some(phase) = steps.next(StepOrder { rows: step, fetch, send, largest }) else {
            return Ok(false);
        };
        let (tokens, outputs) = (step.count(Rows::Tokens), step.count(Rows::Outputs));
        let Some(bucket) = self.bucket_for(phase, tokens, outputs) else {
            let most = self.max_tokens(phase);
            return Err(ExecuteError::TooManyRows { phase: phase.name(), most, got: tokens });
        };
        // Only steps of one bucket go side by side, and no more than it has sets of buffers.
        let sets = self.buckets[bucket].sets();
        let alike = self.flights.iter().all(|flight| flight.bucket == bucket);
        if !alike || self.flights.len() >= sets {
            while !self.flights.is_empty() {
                if !self.advance(false)? {
                    self.finish(steps)?;
                }
            }
        }
        if slot >= sets {
            // Its slots are the first ones, and one of them is free.
            let free = self.slots.iter().position(|slot| !slot.taken).expect("waited for");
            self.slots.swap(free, slot);
            slot = free;
        }
        let Queues { recorder, .. } = &mut self.queues;
        let slot_held = &mut self.slots[slot];
        slot_held.taken = true;
        let bucket_shape = self.buckets[bucket].bucket;
        let serial =
            if recorder.is_on() { recorder.begin(bucket_shape, &slot_held.rows) } else { 0 };
        let pages = &slot_held.fetch;
        self.kv_moves.submit(&mut self.queues, &mut self.kv_used, pages, phase, serial)?;
        let (waits, given) = (self.seen.clone(), Marks::default());
        let (submitted, last) = (0, None);
        self.flights.push_back(Flight { slot, bucket, submitted, waits, last, given, serial });
        Ok(true)
    }

    fn bucket_for(&self, phase: Phase, tokens: usize, outputs: usize) -> Option<usize> {
        self.buckets.iter().position(|compiled| {
            let bucket = compiled.bucket;
            bucket.phase == phase && bucket.max_tokens >= tokens && bucket.max_outputs >= outputs
        })
    }

    /// Submits one segment of each step under way that is behind the one before it, the younger steps
    /// first. False if nothing may be submitted now.
    ///
    /// While the oldest step only has to end and another waits for its place, the queue of the new
    /// step's first segment gets nothing that may have to wait for longer than that.
    fn advance(&mut self, more: bool) -> Result<bool, ExecuteError> {
        let Some(oldest) = self.flights.front() else { return Ok(false) };
        let segments = &self.buckets[oldest.bucket].segments;
        let (all, first) = (segments.len(), segments[0].lane);
        let kept = (more && oldest.submitted == all).then_some(first);
        let mut any = false;
        for index in (0..self.flights.len()).rev() {
            let submitted = self.flights[index].submitted;
            // Steps under way are of one bucket.
            let Some(next) = self.buckets[self.flights[index].bucket].segments.get(submitted)
            else {
                continue;
            };
            let older = index.checked_sub(1).map(|older| self.flights[older].submitted);
            let in_order = older.is_none_or(|older| submitted < older);
            let flight = &self.flights[index];
            let soon = || flight.last.is_none_or(|mark| self.flights[0].given.covers(mark));
            if in_order && (kept != Some(next.lane) || soon()) {
                self.submit_segment(index)?;
                any = true;
            }
        }
        Ok(any)
    }

    /// Submits the next segment of a flight, and what comes after its last.
    fn submit_segment(&mut self, index: usize) -> Result<(), ExecuteError> {
        if self.keep_awake {
            self.queues.lanes.keep_awake(AWAKE);
        }
        let flight = &mut self.flights[index];
        let compiled = &self.buckets[flight.bucket];
        let segment = &compiled.segments[flight.submitted];
        let slot = &self.slots[flight.slot];
        let (serial, before) = (flight.serial, flight.waits.clone());
        let mut parts = Marks::default();
        let key = (flight.bucket, flight.submitted);
        self.stages.load(&mut self.queues, key, segment, serial)?;
        for part in std::iter::once(segment).chain(&segment.beside) {
            let bound = &part.sets[flight.slot];
            flight.waits.clone_from(&before);
            submit_copies(&mut self.queues, flight, &bound.copies, &slot.rows)?;
            let mut waits = flight.waits.clone();
            for &layer in &part.kv {
                waits.add_all(&self.kv_used[layer]);
            }
            if let Some(loaded) = self.stages.loaded(part) {
                waits.add(loaded);
            }
            let work = Work::Run {
                program: part.program.clone(),
                args: bound.args.clone(),
                step: slot.rows.clone(),
            };
            let given = Given::Segment(part.index);
            let mark = self.queues.give(part.lane, &waits, work, &part.label, serial, given)?;
            for &layer in &part.kv {
                self.kv_used[layer].replace(mark);
            }
            self.stages.used(part, mark);
            flight.gave(mark);
            parts.add(mark);
        }
        flight.waits = parts;
        for part in std::iter::once(segment).chain(&segment.beside) {
            submit_copies(&mut self.queues, flight, &part.sets[flight.slot].joins, &slot.rows)?;
        }
        flight.submitted += 1;
        // The copy of the next streamed weights goes on beside this segment's run.
        let later = compiled.segments.iter().enumerate().skip(flight.submitted);
        if let Some((index, next)) = later.into_iter().find(|(_, next)| next.load.is_some()) {
            self.stages.load(&mut self.queues, (flight.bucket, index), next, serial)?;
        }
        if flight.submitted == compiled.segments.len() {
            let output = &compiled.outputs[flight.slot];
            match output.largest.as_ref().filter(|of| of.takes(slot.largest)) {
                Some(of) => {
                    let given = Given::Copy {
                        kind: CopyKind::Tensor,
                        domains: [of.domain(), DomainId::HOST],
                        bytes: of.bytes(slot.largest, &slot.rows) as u64,
                    };
                    let work = of.work(slot.largest, &slot.rows)?;
                    let waits = &flight.waits;
                    let mark = self.queues.give(of.lane, waits, work, &of.label, serial, given)?;
                    flight.gave(mark);
                }
                None => submit_copies(&mut self.queues, flight, &output.copies, &slot.rows)?,
            }
            let to = match compiled.bucket.phase {
                Phase::Prefill => Phase::Decode,
                Phase::Decode => Phase::Prefill,
            };
            let used = &mut self.kv_used;
            self.kv_moves.submit(&mut self.queues, used, &slot.send, to, serial)?;
        }
        Ok(())
    }

    /// Waits for the oldest step and tells its result.
    fn finish(&mut self, steps: &mut dyn Steps) -> Result<(), ExecuteError> {
        let flight = self.flights.front().expect("a step is under way");
        let last = flight.last.expect("plans have segments");
        self.queues.lanes.wait(last).map_err(ExecuteError::Failed)?;
        self.seen.replace(last);
        let (slot, bucket) = (flight.slot, flight.bucket);
        self.flights.pop_front();
        self.slots[slot].taken = false;
        self.queues.collect();
        let shape = self.graph.node(self.graph.output()).shape;
        let output = &self.buckets[bucket].outputs[slot];
        let slot = &mut self.slots[slot];
        let rows = slot.rows.count(shape.rows);
        match output.largest.as_ref().filter(|of| of.takes(slot.largest)) {
            Some(of) => of.spread(slot.largest, rows, &output.buffer, &mut slot.sparse)?,
            None => slot.sparse.overwritten(),
        }
        let len = rows * shape.width;
        let bytes = output.buffer.read()?;
        steps.done(bytemuck::cast_slice(&bytes[..len * size_of::<f32>()]));
        Ok(())
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        // Moves behind the last step hold memory that the caller expects to be free.
        if !self.queues.lanes.is_idle() {
            self.queues.lanes.settle();
        }
    }
}

/// Submits moves of tensors, each after what the flight did before.
fn submit_copies(
    queues: &mut Queues,
    flight: &mut Flight,
    copies: &[TensorCopy],
    rows: &StepInputs,
) -> Result<(), ExecuteError> {
    for copy in copies {
        let given = Given::Copy {
            kind: CopyKind::Tensor,
            domains: [copy.from.domain, copy.to.domain],
            bytes: copy.bytes(rows) as u64,
        };
        let (work, serial) = (copy.work(rows)?, flight.serial);
        let mark = queues.give(copy.lane, &flight.waits, work, &copy.label, serial, given)?;
        flight.gave(mark);
    }
    Ok(())
}
