//! A segment on a device, ready to be run and timed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use trefoil_devices_api::{
    AllocRequest, Bucket, BufferRef, Completion, Device, Job, KvPages, Point, Points, Program,
    Purpose, Role, RunArgs, Submission, SubmissionId, Timeline, Work,
};
use trefoil_graph::{KvShape, LayerGraph, Segment, StepInputs};
use trefoil_kernels::cases::Random;

use crate::host_access::write_buffer;
use crate::self_test::{CaseError, kv_bytes};

/// Longer than what is between two measurements.
const AWAKE: Duration = Duration::from_millis(100);

/// Tokens per KV page while measuring.
pub(super) const PAGE_TOKENS: usize = 16;

/// KV pages that a measurement needs.
#[derive(Clone, Copy, Debug)]
pub(super) struct KvNeed {
    /// Tokens of one sequence, the step's own included.
    pub(super) tokens: usize,
    /// Are elements f16 (else f32)?
    pub(super) half: bool,
}

/// How long a run took, in seconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Took {
    /// The device's work, by its own clock where it has one.
    pub(super) work: f64,
    /// From the submission to the end of the wait for it.
    pub(super) wall: f64,
}

/// Programs of the same work with their arguments, which take turns.
#[derive(Debug)]
pub(super) struct Ready {
    device: Arc<dyn Device>,
    programs: Vec<(Arc<dyn Program>, Arc<RunArgs>)>,
    timeline: Arc<Timeline>,
    reached: u64,
    done: Vec<Completion>,
}

impl Ready {
    /// Compiles segments of the same work and gives them inputs that are neither zero nor all the same.
    pub(super) fn new(
        device: &Arc<dyn Device>,
        graph: &Arc<LayerGraph>,
        segments: &[Segment],
        bucket: Bucket,
        kv: KvNeed,
    ) -> Result<Self, CaseError> {
        let programs = segments.iter().map(|segment| prepare(device, graph, segment, bucket, kv));
        Ok(Self {
            device: device.clone(),
            programs: programs.collect::<Result<_, _>>()?,
            timeline: Arc::default(),
            reached: 0,
            done: Vec::new(),
        })
    }

    /// Runs the next program on a step.
    pub(super) fn run(&mut self, step: &Arc<StepInputs>) -> Result<Took, CaseError> {
        let start = Instant::now();
        let id = self.start(step)?;
        self.timeline.wait(self.reached).map_err(CaseError::Failed)?;
        let wall = start.elapsed().as_secs_f64();
        self.done.clear();
        self.device.drain(&mut self.done);
        let own = self.done.iter().find(|completion| completion.id == id);
        let time = |done: &Completion| done.device_time.unwrap_or(done.end.since(done.start));
        Ok(Took { work: own.map_or(wall, |done| time(done).seconds()), wall })
    }

    /// Submits the next program with a step, and does not wait.
    pub(super) fn start(&mut self, step: &Arc<StepInputs>) -> Result<SubmissionId, CaseError> {
        let (program, args) = &self.programs[self.reached as usize % self.programs.len()];
        self.reached += 1;
        // As it is in a plan of several devices; in a plan of one, work is always there.
        self.device.keep_awake(AWAKE);
        let point = Point { timeline: self.timeline.clone(), value: self.reached };
        let submission = Submission {
            waits: Points::new(),
            signals: Points::from_iter([point]),
            work: Work::Run { program: program.clone(), args: args.clone(), step: step.clone() },
            label: "calibration".into(),
        };
        Ok(self.device.submit(0, submission)?)
    }
}

fn prepare(
    device: &Arc<dyn Device>,
    graph: &Arc<LayerGraph>,
    segment: &Segment,
    bucket: Bucket,
    kv: KvNeed,
) -> Result<(Arc<dyn Program>, Arc<RunArgs>), CaseError> {
    let program = device.compile(graph, segment, bucket, &Job::default())?;
    let pages = KvPages {
        page_tokens: PAGE_TOKENS,
        pages: kv.tokens.div_ceil(PAGE_TOKENS),
        half: kv.half,
        shapes: graph.kv().to_vec(),
    };
    let domain = device.domains()[0].id;
    let mut buffers: Vec<BufferRef> = Vec::new();
    for binding in program.bindings() {
        let (bytes, purpose) = match binding.role {
            Role::Input(node) | Role::Output(node) => {
                (bucket.tensor_bytes(graph, node), Purpose::Activations)
            }
            Role::Kv(layer) => (kv_len(&pages, pages.shapes[layer]), Purpose::Kv),
        };
        let buffer = device.alloc(AllocRequest { domain, bytes, purpose })?;
        match binding.role {
            Role::Input(_) => {
                write_buffer(device.as_ref(), &buffer, bytemuck::cast_slice(&values(bytes / 4)))?;
            }
            Role::Kv(_) => write_buffer(device.as_ref(), &buffer, &kv_bytes(bytes, kv.half))?,
            Role::Output(_) => {}
        }
        buffers.push(buffer.whole());
    }
    Ok((program, Arc::new(RunArgs { buffers, kv: pages })))
}

impl Drop for Ready {
    fn drop(&mut self) {
        // The records of this work are nobody else's.
        self.device.drain(&mut Vec::new());
    }
}

fn kv_len(pages: &KvPages, shape: KvShape) -> usize {
    let element = if pages.half { 2 } else { 4 };
    pages.pages * pages.page_tokens * shape.elements_per_token() * element
}

/// Numbers near those of activations.
fn values(len: usize) -> Vec<f32> {
    const DIFFERENT: usize = 4099;
    let mut random = Random::new(11);
    let some: Vec<f32> = (0..len.min(DIFFERENT)).map(|_| random.signed()).collect();
    some.iter().copied().cycle().take(len).collect()
}

/// The rows of a step of one sequence: `tokens` of them after `past` others, `outputs` wanted.
pub(super) fn step(tokens: usize, past: usize, outputs: usize, vocabulary: usize) -> StepInputs {
    let mut step = StepInputs { page_tokens: PAGE_TOKENS as u32, ..StepInputs::default() };
    let ids: Vec<u32> =
        (0..tokens).map(|row| ((row * 7919 + 13) % vocabulary.max(1)) as u32).collect();
    let pages: Vec<u32> = (0..(past + tokens).div_ceil(PAGE_TOKENS) as u32).collect();
    let first = tokens.saturating_sub(outputs) as u32;
    step.push_sequence(&ids, past as u32, &pages, false, first..tokens as u32);
    step
}
