use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use parking_lot::{RwLockReadGuard, RwLockWriteGuard};
use smallvec::SmallVec;
use trefoil_devices_api::{AlignedBytes, BufferRef, DeviceError, Program, RunArgs, Work, Worker};
use trefoil_graph::StepInputs;
use trefoil_kernels::host::{HostKernels, HostScratch, KvBytes, KvLayout, Tensors};
use trefoil_telemetry::Nanos;

use crate::device::HostSegment;

/// Runs host programs and copies on the queue's thread.
pub(crate) struct HostWorker {
    pub(crate) kernels: Box<dyn HostKernels>,
    pub(crate) scratch: HostScratch,
}

impl Worker for HostWorker {
    fn run(&mut self, work: Work) -> Result<Option<Nanos>, DeviceError> {
        // The processor's clock is the host's: the queue measures.
        run(work, self.kernels.as_mut(), &mut self.scratch).map(|()| None)
    }
}

fn run(
    work: Work,
    kernels: &mut dyn HostKernels,
    scratch: &mut HostScratch,
) -> Result<(), DeviceError> {
    match move_bytes(work)? {
        None => Ok(()),
        Some(run) => run_program(run.program.as_ref(), &run.args, &run.step, kernels, scratch),
    }
}

/// Work that is more than moving bytes: [`Work::Run`].
#[derive(Clone, Debug)]
pub struct ProgramRun {
    /// The program.
    pub program: Arc<dyn Program>,
    /// Its arguments.
    pub args: Arc<RunArgs>,
    /// The rows.
    pub step: Arc<StepInputs>,
}

/// Does all work that moves bytes between host buffers or only orders fences; what runs a program is
/// given back.
///
/// # Errors
/// Ranges that leave their buffers, buffers in use, and work that devices over host memory do not take.
pub fn move_bytes(work: Work) -> Result<Option<ProgramRun>, DeviceError> {
    match work {
        Work::Barrier => {}
        Work::LoadWeights { .. } => {
            return Err(bad("work", "weights that the device keeps", "weights to load"));
        }
        Work::Copy { from, to } => copy(from, to)?,
        Work::CopyColumns { from, to, columns } => {
            let ranges = Work::column_ranges(&from, &to, columns)?;
            let (source, mut target) = (from.buffer.read()?, to.write()?);
            ranges.for_each(|[from, to]| target[to].copy_from_slice(&source[from]));
        }
        Work::CopyPages { from, to, page_bytes, runs } => {
            let mut views = Work::page_views(&from, &to, page_bytes, &runs);
            views.try_for_each(|views| views.and_then(|[from, to]| copy(from, to)))?;
        }
        Work::Largest { .. } => {
            return Err(bad("largest of rows", "a device that takes it", "this one"));
        }
        Work::Run { program, args, step } => return Ok(Some(ProgramRun { program, args, step })),
    }
    Ok(None)
}

fn copy(from: BufferRef, to: BufferRef) -> Result<(), DeviceError> {
    let source = from.buffer.read()?;
    let mut target = to.buffer.write()?;
    let (from, to) = (&source[from.range], &mut target[to.range]);
    if from.len() != to.len() {
        return Err(bad("copy", format!("{} bytes", from.len()), to.len()));
    }
    to.copy_from_slice(from);
    Ok(())
}

fn bad(what: &str, expected: impl ToString, got: impl ToString) -> DeviceError {
    DeviceError::BadRequest {
        what: what.to_owned(),
        expected: expected.to_string(),
        got: got.to_string(),
    }
}

fn run_program(
    program: &dyn Program,
    args: &RunArgs,
    step: &StepInputs,
    kernels: &mut dyn HostKernels,
    scratch: &mut HostScratch,
) -> Result<(), DeviceError> {
    let segment: &HostSegment = program
        .as_any()
        .downcast_ref()
        .ok_or_else(|| bad("program", "one of this device", "another's"))?;
    step.check().map_err(|problem| bad("step", "consistent rows", problem))?;
    let (reads, rest) = args
        .buffers
        .split_at_checked(segment.inputs)
        .and_then(|(reads, rest)| Some((reads, rest.split_at_checked(segment.outputs)?)))
        .ok_or_else(|| bad("arguments", program.bindings().len(), args.buffers.len()))?;
    let (writes, kv_buffers) = rest;
    let layers = segment.program.kv_layers();
    if kv_buffers.len() != layers.len() {
        return Err(bad("arguments", program.bindings().len(), args.buffers.len()));
    }
    let inputs = reads.iter().map(Floats::read).collect::<Result<SmallVec<[_; 8]>, _>>()?;
    let mut outputs =
        writes.iter().map(FloatsMut::write).collect::<Result<SmallVec<[_; 8]>, _>>()?;
    let mut kv = SmallVec::<[_; 64]>::new();
    for (view, &layer) in kv_buffers.iter().zip(layers) {
        let shape = *args
            .kv
            .shapes
            .get(layer)
            .ok_or_else(|| bad("KV layer", format!("below {}", args.kv.shapes.len()), layer))?;
        let layout = KvLayout { page_tokens: args.kv.page_tokens, shape, half: args.kv.half };
        let guard = view.buffer.write()?;
        kv.push(KvBytes { bytes: Pages { guard, view }, layout });
    }
    let tensors = Tensors { inputs: &inputs, outputs: &mut outputs, kv: &mut kv };
    segment
        .program
        .run(kernels, scratch, step, tensors)
        .map_err(|error| bad(&error.what, error.expected, error.got))
}

/// A buffer's view as numbers, locked for reading.
pub struct Floats<'a> {
    guard: RwLockReadGuard<'a, AlignedBytes>,
    view: &'a BufferRef,
}

impl<'a> Floats<'a> {
    /// Locks it; errors as [`trefoil_devices_api::Buffer::read`].
    pub fn read(view: &'a BufferRef) -> Result<Self, DeviceError> {
        Ok(Self { guard: view.buffer.read()?, view })
    }
}

impl Deref for Floats<'_> {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        bytemuck::cast_slice(&self.guard[self.view.range.clone()])
    }
}

/// A buffer's view as numbers, locked for writing.
pub struct FloatsMut<'a> {
    guard: RwLockWriteGuard<'a, AlignedBytes>,
    view: &'a BufferRef,
}

impl<'a> FloatsMut<'a> {
    /// Locks it; errors as [`trefoil_devices_api::Buffer::write`].
    pub fn write(view: &'a BufferRef) -> Result<Self, DeviceError> {
        Ok(Self { guard: view.buffer.write()?, view })
    }
}

impl Deref for FloatsMut<'_> {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        bytemuck::cast_slice(&self.guard[self.view.range.clone()])
    }
}

impl DerefMut for FloatsMut<'_> {
    fn deref_mut(&mut self) -> &mut [f32] {
        bytemuck::cast_slice_mut(&mut self.guard[self.view.range.clone()])
    }
}

/// A KV layer's pages, locked.
struct Pages<'a> {
    guard: RwLockWriteGuard<'a, AlignedBytes>,
    view: &'a BufferRef,
}

impl Deref for Pages<'_> {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.guard[self.view.range.clone()]
    }
}

impl DerefMut for Pages<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.guard[self.view.range.clone()]
    }
}
