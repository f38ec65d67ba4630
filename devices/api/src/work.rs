//! What queues are given, and what they tell of it: plain data.

use std::ops::Range;
use std::sync::Arc;

use trefoil_graph::{KvShape, StepInputs};
use trefoil_telemetry::Nanos;

use crate::{Buffer, BufferRef, DeviceError, Point, Program};

/// Arguments of a program, recorded once and used in every step.
#[derive(Debug)]
pub struct RunArgs {
    /// One view per binding, in the program's order.
    pub buffers: Vec<BufferRef>,
    /// Layout of the KV pages behind [`crate::Role::Kv`] bindings.
    pub kv: KvPages,
}

/// Layout of KV pages: page `p` of a layer holds its keys, then its values, each as
/// `[kv_heads][page_tokens][head_dim]`.
#[derive(Clone, Debug, Default)]
pub struct KvPages {
    /// Tokens per page (power of two).
    pub page_tokens: usize,
    /// Pages per layer.
    pub pages: usize,
    /// Is each element an f16 (else f32)?
    pub half: bool,
    /// Heads and their width, by layer.
    pub shapes: Vec<KvShape>,
}

/// What a submission does.
#[derive(Clone, Debug)]
pub enum Work {
    /// Runs a program on the rows of a step.
    Run {
        /// The program; made by this device.
        program: Arc<dyn Program>,
        /// Its arguments.
        args: Arc<RunArgs>,
        /// The rows.
        step: Arc<StepInputs>,
    },
    /// Copies bytes between buffers of equal length.
    Copy {
        /// Source.
        from: BufferRef,
        /// Target.
        to: BufferRef,
    },
    /// Copies pages between buffers of the same layout, each to its own place.
    CopyPages {
        /// Source.
        from: Buffer,
        /// Target.
        to: Buffer,
        /// Bytes of a page.
        page_bytes: usize,
        /// Numbers of the pages.
        runs: Arc<[Range<u32>]>,
    },
    /// Copies rows that lie next to each other to columns of a wider tensor.
    CopyColumns {
        /// Source: whole rows.
        from: BufferRef,
        /// Target.
        to: Buffer,
        /// Where the columns are.
        columns: Columns,
    },
    /// Finds the largest elements of each row of f32, so that the rest need not leave the device.
    Largest {
        /// Whole rows, in the device's own memory.
        from: BufferRef,
        /// Elements of a row.
        width: usize,
        /// How many of each row are wanted: at most [`crate::Limits::largest`], and no more than it has.
        count: usize,
        /// [`Candidate`]s in host memory, `count` for each row: the largest first, the lower place first
        /// among equals.
        to: BufferRef,
    },
    /// Copies the weights of a program that [`crate::Device::compile_streamed`] made to where it
    /// reads them. Goes to the device's queue for that ([`crate::Limits::load_queue`]).
    LoadWeights {
        /// The program; made by this device.
        program: Arc<dyn Program>,
    },
    /// Nothing: orders fences.
    Barrier,
}

/// Columns of a tensor, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Columns {
    /// Bytes of the columns in one row.
    pub width: usize,
    /// Bytes of a row of the tensor.
    pub row: usize,
    /// Bytes before the first of the columns.
    pub offset: usize,
}

impl Work {
    /// Source and target, in bytes from their buffers' begin, of each row of a [`Work::CopyColumns`].
    ///
    /// # Errors
    /// Rows that are not whole, or columns that leave their row or the target.
    pub fn column_ranges(
        from: &BufferRef,
        to: &Buffer,
        columns: Columns,
    ) -> Result<impl Iterator<Item = [Range<usize>; 2]> + use<>, DeviceError> {
        let Columns { width, row, offset } = columns;
        let rows = from.range.len() / width.max(1);
        let inside = offset.checked_add(width).is_some_and(|end| end <= row);
        let whole = rows * width == from.range.len();
        let fits = row.checked_mul(rows).is_some_and(|end| end <= to.len);
        if !(inside && whole && fits) {
            return Err(DeviceError::BadRequest {
                what: "copy of columns".to_owned(),
                expected: format!("whole rows of {width} bytes within {row} and {} bytes", to.len),
                got: format!("{} bytes to offset {offset}", from.range.len()),
            });
        }
        let start = from.range.start;
        Ok((0..rows).map(move |index| {
            let (source, target) = (start + index * width, index * row + offset);
            [source..source + width, target..target + width]
        }))
    }

    /// Source and target of each run of pages of a [`Work::CopyPages`]; an error where one leaves its
    /// buffer.
    pub fn page_views(
        from: &Buffer,
        to: &Buffer,
        page_bytes: usize,
        runs: &[Range<u32>],
    ) -> impl Iterator<Item = Result<[BufferRef; 2], DeviceError>> {
        runs.iter().map(move |run| {
            let at = |page: u32| (page as usize).saturating_mul(page_bytes);
            let bytes = at(run.start)..at(run.end);
            Ok([from.view(bytes.clone())?, to.view(bytes)?])
        })
    }
}

/// A few points, kept without memory of their own.
pub type Points = smallvec::SmallVec<[Point; 4]>;

/// Work for a queue. Queues run their submissions in order.
#[derive(Clone, Debug)]
pub struct Submission {
    /// Points that must be reached first.
    pub waits: Points,
    /// Points that this reaches, or fails.
    pub signals: Points,
    /// What to do.
    pub work: Work,
    /// Reaches traces and errors: `decode blk.0.attn_in..head`.
    pub label: Arc<str>,
}

/// Identity of a submission on its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubmissionId(pub u64);

/// Finished work.
#[derive(Clone, Debug)]
pub struct Completion {
    /// Which.
    pub id: SubmissionId,
    /// Its label.
    pub label: Arc<str>,
    /// When it was submitted, by the clock that the device was made with.
    pub queued: Nanos,
    /// When it began, by the same clock: its waits were reached and the device was free.
    pub start: Nanos,
    /// When it ended, by the same clock.
    pub end: Nanos,
    /// Time that it took by the processor's own clock, without the way there and back; absent where
    /// it has none, and for work that is not measured by it.
    pub device_time: Option<Nanos>,
}

/// Number of completions that were thrown away because nobody drained them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dropped(pub u64);

/// An element of a row: its place and its value.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Candidate {
    /// Place in the row.
    pub id: u32,
    /// Value.
    pub value: f32,
}
