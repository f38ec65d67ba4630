//! What the device's queue thread does: lays out a step, replays its recording, copies.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use trefoil_devices_api::{
    Backing, Buffer, BufferId, BufferRef, Columns, DeviceError, MemoryManager, RunArgs, Work,
    Worker,
};
use trefoil_graph::StepInputs;
use trefoil_kernels_vulkan::{Counts, Place, Program as Kernels, SPLIT, StepField};
use trefoil_telemetry::{Bytes, Nanos};

use crate::awake::Wakefulness;
use crate::context::Context;
use crate::largest::LargestRecording;
use crate::memory::{Allocation, Kind};
use crate::pipelines::Pipelines;
use crate::profile::Profile;
use crate::program::{RECORDINGS, VulkanSegment};
use crate::recording::{Recording, RecordingKey, record};
use crate::stopwatch::Stopwatch;
use crate::transfer::{Commands, Transfers};

/// Boundary between parts of a shared buffer.
const PART: u64 = 256;

/// A buffer that is remade when it becomes too small. Older ones live as long as recordings use them.
#[derive(Debug, Default)]
struct Growing {
    now: Option<Arc<Allocation>>,
    generation: u64,
}

impl Growing {
    fn at_least(
        &mut self,
        len: u64,
        make: impl FnOnce(u64) -> Result<Allocation, DeviceError>,
    ) -> Result<Arc<Allocation>, DeviceError> {
        match &self.now {
            Some(now) if now.len >= len => Ok(now.clone()),
            _ => {
                // A little more than is needed, so that the next need is often met too.
                let made = Arc::new(make(len.next_multiple_of(len.next_power_of_two() / 32))?);
                self.generation += 1;
                self.now = Some(made.clone());
                Ok(made)
            }
        }
    }
}

/// Where the parts of scratch memory begin or how long they are in a step of these sizes: end of the slots,
/// of attention's parts, of experts' lists; bytes of the rows as halves, and of a matrix as halves.
fn places(kernels: &Kernels, counts: &Counts) -> [u64; 5] {
    let slots: u64 = kernels.slots().iter().map(|bytes| bytes.next_multiple_of(PART)).sum();
    let partials = slots + kernels.partial_bytes(counts).next_multiple_of(PART);
    let groups = partials + kernels.group_bytes(counts).next_multiple_of(PART);
    let [halves, unpacked] = kernels.half_bytes(counts).map(|b| b.next_multiple_of(PART));
    [slots, partials, groups, halves, unpacked]
}

/// Bytes of scratch memory that a program takes in a step of these sizes.
pub(crate) fn scratch_bytes(kernels: &Kernels, counts: &Counts) -> u64 {
    let [_, _, groups, halves, unpacked] = places(kernels, counts);
    groups + halves + 2 * unpacked
}

/// State of the queue's thread.
pub(crate) struct VulkanWorker {
    pub(crate) context: Arc<Context>,
    pub(crate) pipelines: Arc<Pipelines>,
    pub(crate) transfers: Arc<Transfers>,
    pub(crate) memory: MemoryManager,
    /// Most scratch memory that a compiled program needs.
    pub(crate) most_scratch: Arc<AtomicU64>,
    /// Says when the queue is at work, where the card is kept awake meanwhile.
    pub(crate) wakefulness: Option<Arc<Wakefulness>>,
    pub(crate) state: WorkerState,
}

#[derive(Default)]
pub(crate) struct WorkerState {
    scratch: Growing,
    /// Counters of attention: zero between runs, for every run leaves them so.
    counters: Growing,
    step: Growing,
    words: Vec<u32>,
    pub(crate) largest: Option<LargestRecording>,
    /// Host buffers that recordings use; each import holds its buffer.
    imports: HashMap<BufferId, Weak<Allocation>>,
}

impl Worker for VulkanWorker {
    fn run(&mut self, work: Work) -> Result<Option<Nanos>, DeviceError> {
        self.context.check()?;
        let wakefulness = self.wakefulness.clone();
        let _working = wakefulness.as_ref().map(|wakefulness| wakefulness.work());
        match work {
            Work::Barrier => Ok(None),
            Work::LoadWeights { .. } => {
                Err(bad("work of this queue", "anything but weights to load", "weights"))
            }
            Work::Copy { from, to } => self.copy(&from, &to).map(|()| None),
            Work::CopyColumns { from, to, columns } => {
                self.copy_columns(&from, &to, columns).map(|()| None)
            }
            Work::CopyPages { from, to, page_bytes, runs } => {
                for views in Work::page_views(&from, &to, page_bytes, &runs) {
                    let [from, to] = views?;
                    self.copy(&from, &to)?;
                }
                Ok(None)
            }
            Work::Largest { from, width, count, to } => self.largest(&from, width, count, &to),
            Work::Run { program, args, step } => {
                let segment: &VulkanSegment = program
                    .as_any()
                    .downcast_ref()
                    .ok_or_else(|| bad("program", "one of this device", "another's"))?;
                self.step(segment, &args, &step)
            }
        }
    }
}

pub(crate) fn bad(what: &str, expected: impl ToString, got: impl ToString) -> DeviceError {
    DeviceError::BadRequest {
        what: what.to_owned(),
        expected: expected.to_string(),
        got: got.to_string(),
    }
}

/// Where each list of a step begins, in words.
#[derive(Clone, Copy)]
struct StepLayout {
    tokens: u64,
    sequences: u64,
    outputs: u64,
}

impl StepLayout {
    fn offset(self, field: StepField) -> u64 {
        let Self { tokens, sequences, outputs } = self;
        4 * match field {
            StepField::Tokens => 0,
            StepField::Positions => tokens,
            StepField::RowSequences => 2 * tokens,
            StepField::RowsOut => 3 * tokens,
            StepField::Sequences => 3 * tokens + outputs,
            StepField::Pages => 3 * tokens + outputs + 6 * sequences,
        }
    }
}

/// Lays a step out in words, in the order of [`StepLayout`].
fn lay_out(step: &StepInputs, words: &mut Vec<u32>) {
    words.clear();
    words.extend(&step.tokens);
    words.extend(&step.positions);
    for (index, sequence) in step.sequences.iter().enumerate() {
        words.extend((0..sequence.rows).map(|_| index as u32));
    }
    words.extend(&step.rows_out);
    for s in &step.sequences {
        let long = u32::from(s.long_rope);
        words.extend([s.first_row, s.rows, s.past, s.first_page, s.pages, long]);
    }
    words.extend(&step.page_table);
}

impl VulkanWorker {
    fn counts(&self, args: &RunArgs, step: &StepInputs) -> Counts {
        let longest = step.sequences.iter().map(|s| s.past + s.rows).max().unwrap_or(1);
        Counts {
            tokens: step.tokens.len() as u32,
            outputs: step.rows_out.len() as u32,
            sequences: step.sequences.len() as u32,
            splits: longest.div_ceil(SPLIT).next_power_of_two(),
            page_tokens: args.kv.page_tokens.max(1) as u32,
            half: args.kv.half,
        }
    }

    fn step(
        &mut self,
        segment: &VulkanSegment,
        args: &Arc<RunArgs>,
        step: &StepInputs,
    ) -> Result<Option<Nanos>, DeviceError> {
        step.check().map_err(|problem| bad("step", "consistent rows", problem))?;
        if args.buffers.len() != segment.bindings.len() {
            return Err(bad("arguments", segment.bindings.len(), args.buffers.len()));
        }
        let counts = self.counts(args, step);
        lay_out(step, &mut self.state.words);
        let bytes: &[u8] = bytemuck::cast_slice(&self.state.words);
        let context = &self.context;
        // Room for longer page tables, so that a growing sequence needs no new buffer.
        let step_buffer =
            self.state.step.at_least((bytes.len() as u64 * 2).max(1 << 16), |len| {
                Allocation::new(context, len, Kind::Arguments, None)
            })?;
        step_buffer.write(0, bytes);
        let mut key = RecordingKey {
            counts,
            args: args.clone(),
            generation: (self.state.scratch.generation, self.state.step.generation),
        };
        let mut recordings = segment.recordings.lock();
        match recordings.iter().position(|recording| recording.key.same(&key)) {
            Some(found) => recordings[found..].rotate_left(1),
            None => {
                let parts = self.parts(segment, &counts, step_buffer)?;
                key.generation.0 = self.state.scratch.generation;
                if recordings.len() == RECORDINGS {
                    recordings.remove(0);
                }
                let recording = self.record(segment, key, &parts)?;
                recordings.push(recording);
            }
        }
        let recording = recordings.last().expect("found or made");
        recording.commands.run()?;
        if let Some(profile) = &recording.profile {
            profile.log(&format!("{} rows", recording.key.counts.tokens));
        }
        Ok(recording.stopwatch.as_ref().and_then(Stopwatch::took))
    }

    /// Places in scratch memory for a step of these sizes; makes it larger if it must be.
    fn parts(
        &mut self,
        segment: &VulkanSegment,
        counts: &Counts,
        step: Arc<Allocation>,
    ) -> Result<Parts, DeviceError> {
        let kernels = &segment.kernels;
        let [slots, partials, groups, halves, unpacked] = places(kernels, counts);
        let need = scratch_bytes(kernels, counts);
        // All that any program will need, so that it is taken once.
        let most = self.most_scratch.load(Ordering::Relaxed);
        let (context, memory, transfers) = (&self.context, &self.memory, &self.transfers);
        let scratch = self.state.scratch.at_least(need.max(most).max(1 << 16), |len| {
            let reservation = memory.reserve(context.domain, Bytes(len), "scratch")?;
            transfers.local(len, Some(reservation))
        })?;
        let counters =
            self.state.counters.at_least(kernels.counter_bytes(counts).max(1 << 12), |len| {
                let reservation = memory.reserve(context.domain, Bytes(len), "scratch")?;
                let made = transfers.local(len, Some(reservation))?;
                transfers.zero(&made)?;
                Ok(made)
            })?;
        let layout = StepLayout {
            tokens: u64::from(counts.tokens),
            sequences: u64::from(counts.sequences),
            outputs: u64::from(counts.outputs),
        };
        let halves = (groups, groups + halves, unpacked);
        Ok(Parts { layout, scratch, counters, step, slots, partials, halves })
    }

    fn record(
        &mut self,
        segment: &VulkanSegment,
        key: RecordingKey,
        parts: &Parts,
    ) -> Result<Recording, DeviceError> {
        let mut bound = Vec::with_capacity(key.args.buffers.len());
        let mut kept = vec![parts.scratch.clone(), parts.counters.clone(), parts.step.clone()];
        for view in &key.args.buffers {
            let allocation = self.allocation(&view.buffer)?;
            bound.push(allocation.address + view.range.start as u64);
            kept.push(allocation);
        }
        let slot_at: Vec<u64> = segment
            .kernels
            .slots()
            .iter()
            .scan(0, |at, bytes| {
                let here = *at;
                *at += bytes.next_multiple_of(PART);
                Some(here)
            })
            .collect();
        let (inputs, outputs) = (segment.inputs, segment.outputs);
        let constants = segment.constants.address;
        let scratch = parts.scratch.address;
        let address = |place: Place| {
            Ok(match place {
                Place::Input(k) => bound[k],
                Place::Output(k) => bound[inputs + k],
                Place::Kv(k) => bound[inputs + outputs + k],
                Place::Slot(k) => scratch + slot_at[k],
                Place::Counters => parts.counters.address,
                Place::Partials => scratch + parts.slots,
                Place::Groups => scratch + parts.partials,
                Place::Halves => scratch + parts.halves.0,
                Place::Unpacked(k) => scratch + parts.halves.1 + k as u64 * parts.halves.2,
                Place::Weight(k) => segment.weights.addresses[k],
                Place::Constants => constants,
                Place::List(k) => constants + segment.lists[k],
                Place::Turns(k) => segment.turns[k].address,
                Place::Tables => segment.tables.address,
                Place::Step(field) => parts.step.address + parts.layout.offset(field),
            })
        };
        let dispatches = segment.kernels.dispatches(&key.counts);
        let commands = Commands::new(&self.context)?;
        let profile = Profile::wanted(&self.context, &dispatches)?;
        let stopwatch = Stopwatch::new(&self.context)?;
        let barriers = record(
            &self.context,
            &self.pipelines,
            &commands,
            (profile.as_ref(), stopwatch.as_ref()),
            &dispatches,
            &address,
        )?;
        let size = (dispatches.len(), barriers);
        tracing::debug!(dispatches = size.0, barriers, counts = ?key.counts, "recorded");
        Ok(Recording { key, commands, profile, stopwatch, size, _kept: kept })
    }

    /// The device's view of a buffer: its own memory, or host memory that is imported.
    pub(crate) fn allocation(&mut self, buffer: &Buffer) -> Result<Arc<Allocation>, DeviceError> {
        let bytes = match buffer.backing() {
            Backing::Device(handle) => {
                return handle.clone().downcast::<Allocation>().map_err(|_| {
                    bad("buffer", format!("memory of {}", self.context.adapter.name), buffer.domain)
                });
            }
            Backing::Host(bytes) => bytes,
        };
        let imports = &mut self.state.imports;
        imports.retain(|_, import| import.strong_count() > 0);
        if let Some(import) = imports.get(&buffer.id).and_then(Weak::upgrade) {
            return Ok(import);
        }
        let boundary = self.context.adapter.host_import.unwrap_or(4096);
        let guard = bytes.try_read().ok_or_else(|| {
            bad("buffer", "fences that keep its users apart", "two users at once")
        })?;
        let len = (guard.len().max(1) as u64).next_multiple_of(boundary);
        // SAFETY: the bytes lie on pages of their own, which live as long as the buffer that the
        // import is given to hold; the length is whole pages.
        let import = unsafe { Allocation::import(&self.context, guard.as_ptr(), len) };
        let import = import.ok_or_else(|| {
            bad("buffer", format!("memory that {} takes", self.context.adapter.name), "the host's")
        })?;
        let import = Arc::new(import.holding(buffer.clone()));
        imports.insert(buffer.id, Arc::downgrade(&import));
        Ok(import)
    }

    /// Copies rows to columns, both in memory of the host or both in the device's.
    fn copy_columns(
        &mut self,
        from: &BufferRef,
        to: &Buffer,
        columns: Columns,
    ) -> Result<(), DeviceError> {
        let ranges = Work::column_ranges(from, to, columns)?;
        match (from.buffer.backing(), to.backing()) {
            (Backing::Host(_), Backing::Host(_)) => {
                let (source, mut target) = (from.buffer.read()?, to.write()?);
                ranges.for_each(|[from, to]| target[to].copy_from_slice(&source[from]));
                Ok(())
            }
            (Backing::Device(_), Backing::Device(_)) => {
                let source = self.allocation(&from.buffer)?;
                let target = self.allocation(to)?;
                let regions: Vec<_> = ranges
                    .map(|[from, to]| (from.start as u64, to.start as u64, from.len() as u64))
                    .collect();
                self.transfers.regions(&source, &target, &regions)
            }
            _ => Err(bad("copy of columns", "two buffers of one domain", "two domains")),
        }
    }

    fn copy(&mut self, from: &BufferRef, to: &BufferRef) -> Result<(), DeviceError> {
        if from.range.len() != to.range.len() {
            return Err(bad("copy", format!("{} bytes", from.range.len()), to.range.len()));
        }
        let (from_at, to_at) = (from.range.start as u64, to.range.start as u64);
        match (from.buffer.backing(), to.buffer.backing()) {
            (Backing::Host(_), Backing::Host(_)) => {
                let source = from.buffer.read()?;
                let mut target = to.buffer.write()?;
                target[to.range.clone()].copy_from_slice(&source[from.range.clone()]);
                Ok(())
            }
            (Backing::Host(_), Backing::Device(_)) => {
                let target = self.allocation(&to.buffer)?;
                let source = from.buffer.read()?;
                self.transfers.upload(&target, to_at, &source[from.range.clone()])
            }
            (Backing::Device(_), Backing::Host(_)) => {
                let source = self.allocation(&from.buffer)?;
                let mut target = to.buffer.write()?;
                self.transfers.download(&source, from_at, &mut target[to.range.clone()])
            }
            (Backing::Device(_), Backing::Device(_)) => {
                let (source, target) =
                    (self.allocation(&from.buffer)?, self.allocation(&to.buffer)?);
                let len = from.range.len() as u64;
                self.transfers.within((&source, from_at), (&target, to_at), len)
            }
        }
    }
}

/// Where a recording's shared parts are.
struct Parts {
    layout: StepLayout,
    scratch: Arc<Allocation>,
    counters: Arc<Allocation>,
    step: Arc<Allocation>,
    /// Offsets in `scratch`: end of the slots, end of attention's parts.
    slots: u64,
    partials: u64,
    /// Offsets of the rows and of the matrices as halves, and bytes of each matrix.
    halves: (u64, u64, u64),
}
