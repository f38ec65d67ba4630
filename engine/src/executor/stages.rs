//! Buffers that weights are streamed through, and what is in them.
//!
//! A device has two: while it computes with the weights in one, those of the next piece are copied to
//! the other. The copy waits for the last run that read the buffer, and the next run for the copy; a
//! buffer that still holds what is wanted (for another chunk of the prompt) is not filled again.

use std::collections::BTreeMap;
use std::sync::Arc;

use trefoil_devices_api::{
    AllocRequest, Buffer, CompileError, Device, DeviceError, DomainId, Purpose, Work,
    streamed_bytes,
};
use trefoil_graph::LayerGraph;
use trefoil_scheduler::{BucketPlan, Piece};

use super::ExecuteError;
use super::compile::Segment;
use super::lanes::{Mark, Marks};
use super::queues::{Given, Queues};
use crate::records::CopyKind;

/// Buffers of a device.
const PER_DEVICE: usize = 2;

/// How a segment's weights get to its device.
#[derive(Debug)]
pub(super) struct Load {
    /// Queue that copies them.
    pub(super) lane: usize,
    /// Number of the buffer.
    pub(super) stage: usize,
    pub(super) label: Arc<str>,
    /// Domain of the buffer.
    pub(super) to: DomainId,
    /// Bytes of the copy.
    pub(super) bytes: u64,
}

/// Bucket and segment.
type SegmentKey = (usize, usize);

#[derive(Debug)]
struct Stage {
    device: String,
    buffer: Buffer,
    /// Whose weights are in it, or on the way.
    holds: Option<SegmentKey>,
    /// The copy that brings them.
    loaded: Option<Mark>,
    /// Runs that read them.
    used: Marks,
}

/// Where the next streamed piece of a device goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) index: usize,
    /// Number of the device's queue that copies weights.
    pub(super) queue: usize,
}

/// All buffers that weights are streamed through.
#[derive(Debug, Default)]
pub(super) struct Stages {
    stages: Vec<Stage>,
    /// By device: bytes of its largest streamed piece.
    largest: BTreeMap<String, usize>,
    /// By device: streamed pieces compiled so far.
    count: BTreeMap<String, usize>,
}

impl Stages {
    /// Knows how much the pieces of a plan need; takes memory when the first of them is compiled.
    pub(super) fn of(graph: &LayerGraph, buckets: &[BucketPlan]) -> Self {
        let mut stages = Self::default();
        let buckets = buckets.iter().filter(|bucket| !bucket.streamed.is_empty());
        for piece in buckets.flat_map(|bucket| bucket.pieces(graph)).filter(|p| p.streamed) {
            let most = stages.largest.entry(piece.device).or_default();
            *most = (*most).max(streamed_bytes(graph, &piece.segment));
        }
        stages
    }

    /// The buffer for the next streamed piece of a device: the one that the piece before it has not.
    pub(super) fn next(
        &mut self,
        device: &Arc<dyn Device>,
        graph: &LayerGraph,
        piece: &Piece,
    ) -> Result<(Place, &Buffer), ExecuteError> {
        let info = device.info();
        let Some(queue) = device.limits().load_queue else {
            let source = CompileError::Device(DeviceError::BadRequest {
                what: format!("streamed weights of {}", piece.name),
                expected: "a device with memory of its own that weights can be streamed to".into(),
                got: format!("{}; take the units out of the plan's \"streamed\"", info.name),
            });
            let (device, segment) = (info.name.clone(), piece.name.clone());
            return Err(ExecuteError::Compile { device, segment, source });
        };
        let of_device = |stage: &Stage| stage.device == info.name;
        let first = match self.stages.iter().position(of_device) {
            Some(first) => first,
            None => {
                let need = streamed_bytes(graph, &piece.segment);
                let bytes = self.largest.get(&info.name).copied().unwrap_or(need);
                let domain = device.domains()[0].id;
                for _ in 0..PER_DEVICE {
                    let request = AllocRequest { domain, bytes, purpose: Purpose::Weights };
                    let (device, buffer) = (info.name.clone(), device.alloc(request)?);
                    let used = Marks::default();
                    self.stages.push(Stage { device, buffer, holds: None, loaded: None, used });
                }
                self.stages.len() - PER_DEVICE
            }
        };
        let count = self.count.entry(info.name.clone()).or_default();
        let index = first + *count % PER_DEVICE;
        *count += 1;
        Ok((Place { index, queue }, &self.stages[index].buffer))
    }

    /// Sees to it that a segment's weights are in its buffer or on the way. Whatever read the buffer
    /// before was submitted.
    pub(super) fn load(
        &mut self,
        queues: &mut Queues,
        key: SegmentKey,
        segment: &Segment,
        serial: u64,
    ) -> Result<(), ExecuteError> {
        let Some(load) = &segment.load else { return Ok(()) };
        let stage = &mut self.stages[load.stage];
        if stage.holds == Some(key) {
            return Ok(());
        }
        let work = Work::LoadWeights { program: segment.program.clone() };
        let domains = [DomainId::HOST, load.to];
        let given = Given::Copy { kind: CopyKind::Weights, domains, bytes: load.bytes };
        let mark = queues.give(load.lane, &stage.used, work, &load.label, serial, given)?;
        stage.holds = Some(key);
        stage.loaded = Some(mark);
        stage.used.clear();
        Ok(())
    }

    /// What a segment's run waits for.
    pub(super) fn loaded(&self, segment: &Segment) -> Option<Mark> {
        self.stages[segment.load.as_ref()?.stage].loaded
    }

    /// Notes a run that reads a segment's weights.
    pub(super) fn used(&mut self, segment: &Segment, mark: Mark) {
        if let Some(load) = &segment.load {
            self.stages[load.stage].used.add(mark);
        }
    }

    /// Forgets what was under way and what is where.
    pub(super) fn renew(&mut self) {
        for stage in &mut self.stages {
            (stage.holds, stage.loaded) = (None, None);
            stage.used.clear();
        }
    }
}
