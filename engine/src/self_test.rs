//! Runs conformance cases on a device, and holds a device against the judge before it is offered.

use std::sync::Arc;

use half::f16;
use trefoil_devices_api::{
    AllocRequest, Bucket, BufferRef, CompileError, Device, DeviceError, Failure, Job, KvPages,
    OpQuery, Phase, Point, Points, Purpose, Role, RunArgs, Submission, Support, Timeline, Work,
};
use trefoil_graph::BlockType;
use trefoil_kernels::cases::{Case, Random, pages_of};

use crate::host_access::{CopyError, read_buffer, write_buffer};

/// Why a case has no result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CaseError {
    /// The device says that it cannot.
    #[error("not supported: {0}")]
    Unsupported(String),
    /// No program.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// A request was refused.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The run failed.
    #[error("{0}")]
    Failed(Arc<Failure>),
    /// Inputs or results could not be moved.
    #[error(transparent)]
    Copy(#[from] CopyError),
}

/// How a device computes: what its results may differ by from the judge's (DESIGN contract 8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arithmetic {
    /// In f32, on a processor's cores.
    Exact,
    /// Activations rounded to 8 bits before products with quantised weights.
    Rounded,
    /// In f32, on a GPU.
    Gpu,
    /// On a GPU, products of many rows in halves.
    GpuHalves,
    /// In f32, as an ahead-of-time compiler orders it.
    Npu,
    /// On an NPU, in halves or bf16.
    NpuHalves,
    /// On an NPU, products with a format's own codes and activations of eight bits or more, all else in
    /// halves or bf16.
    NpuCodes,
    /// On an NPU, products with weights of four bits and activations of eight or more, all else in
    /// halves or bf16.
    NpuInt4,
}

impl Arithmetic {
    /// Is every shape compiled by something that may take its time?
    fn compiles_slowly(self) -> bool {
        matches!(self, Self::Npu | Self::NpuHalves | Self::NpuCodes | Self::NpuInt4)
    }
}

/// Runs one case and returns the op's output, with KV pages in f16 or f32.
pub fn run_case(device: &dyn Device, case: &Case, half: bool) -> Result<Vec<f32>, CaseError> {
    let rows = case.step.tokens.len();
    let bucket =
        Bucket { phase: Phase::Prefill, min_tokens: 1, max_tokens: rows, max_outputs: rows };
    let segment = case.segment();
    for &node in &segment.nodes {
        if let Support::No(reason) = device.support(&OpQuery { graph: &case.graph, node, bucket }) {
            return Err(CaseError::Unsupported(reason));
        }
    }
    let program = device.compile(&case.graph, &segment, bucket, &Job::default())?;
    let kv = KvPages {
        page_tokens: case.step.page_tokens as usize,
        pages: pages_of(&case.step),
        half,
        shapes: case.graph.kv().to_vec(),
    };
    let domain = device.domains()[0].id;
    let mut buffers: Vec<BufferRef> = Vec::new();
    let mut output = None;
    for binding in program.bindings() {
        let (bytes, purpose) = match binding.role {
            Role::Input(node) | Role::Output(node) => {
                (bucket.tensor_bytes(&case.graph, node), Purpose::Activations)
            }
            Role::Kv(layer) => {
                let elements = kv.shapes[layer].elements_per_token();
                let tokens = kv.pages * kv.page_tokens;
                (tokens * elements * if half { 2 } else { 4 }, Purpose::Kv)
            }
        };
        let buffer = device.alloc(AllocRequest { domain, bytes, purpose })?;
        match binding.role {
            Role::Input(node) => {
                write_buffer(device, &buffer, bytemuck::cast_slice(case.input(node)))?;
            }
            Role::Output(node) if node == case.graph.output() => output = Some(buffer.clone()),
            Role::Output(_) => {}
            Role::Kv(_) => write_buffer(device, &buffer, &kv_bytes(bytes, half))?,
        }
        buffers.push(buffer.whole());
    }
    let timeline: Arc<Timeline> = Arc::default();
    let step = Arc::new(case.step.clone());
    device.submit(
        0,
        Submission {
            waits: Points::new(),
            signals: Points::from_iter([Point { timeline: timeline.clone(), value: 1 }]),
            work: Work::Run { program, args: Arc::new(RunArgs { buffers, kv }), step },
            label: case.op.into(),
        },
    )?;
    timeline.wait(1).map_err(CaseError::Failed)?;
    let shape = case.graph.node(case.graph.output()).shape;
    let len = case.step.count(shape.rows) * shape.width;
    let output = output.expect("the op's tensor is bound");
    let bytes = read_buffer(device, &output, len * size_of::<f32>())?;
    Ok(bytemuck::pod_collect_to_vec(&bytes))
}

/// Pseudo-random keys and values, so that a past is worth attending to.
pub(crate) fn kv_bytes(len: usize, half: bool) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut random = Random::new(7);
    if half {
        for pair in bytes.chunks_exact_mut(2) {
            pair.copy_from_slice(&f16::from_f32(random.signed() * 2.0).to_le_bytes());
        }
    } else {
        for word in bytes.chunks_exact_mut(4) {
            word.copy_from_slice(&(random.signed() * 2.0).to_le_bytes());
        }
    }
    bytes
}

/// `sum((want - got)^2) / sum(want^2)` in f64, infinite if a value is not finite.
pub fn nmse(want: &[f32], got: &[f32]) -> f64 {
    if want.len() != got.len() || got.iter().any(|x| !x.is_finite()) {
        return f64::INFINITY;
    }
    let pairs = want.iter().zip(got);
    let error: f64 = pairs.map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum();
    let norm: f64 = want.iter().map(|a| f64::from(*a).powi(2)).sum();
    if norm == 0.0 { error } else { error / norm }
}

/// Largest error that a case may show on a device that computes so.
pub fn tolerance(case: &Case, arithmetic: Arithmetic) -> f64 {
    let quantised = case.format.is_some_and(|format| !format.is_float());
    let products = matches!(case.op, "linear" | "experts");
    match arithmetic {
        Arithmetic::Rounded if quantised && products => 5e-3,
        Arithmetic::Exact | Arithmetic::Rounded => 1e-9,
        Arithmetic::GpuHalves if products || case.op == "attention" => 1e-4,
        Arithmetic::NpuCodes if products => 5e-3,
        Arithmetic::NpuInt4 if products => 1e-2,
        Arithmetic::NpuHalves | Arithmetic::NpuCodes | Arithmetic::NpuInt4 => 1e-4,
        Arithmetic::Gpu | Arithmetic::GpuHalves | Arithmetic::Npu => 1e-6,
    }
}

/// A case that a device got wrong.
#[derive(Debug, thiserror::Error)]
#[error(
    "self-test {op} {shape}: expected an error below {tolerance:e} against the reference, got {got}"
)]
pub struct SelfTestError {
    /// Kind of the op.
    pub op: &'static str,
    /// Its shape.
    pub shape: String,
    /// NMSE allowed.
    pub tolerance: f64,
    /// NMSE, or why there is no result.
    pub got: String,
}

/// Every kind of op, with weights of one quantised format, against the judge: in several shapes, but in
/// one only where each takes time to compile.
pub fn self_test(
    device: &dyn Device,
    judge: &dyn Device,
    arithmetic: Arithmetic,
) -> Result<(), SelfTestError> {
    let format = match arithmetic {
        // The format that it holds exactly.
        Arithmetic::NpuInt4 => BlockType::Q4_0,
        _ => BlockType::Q8_0,
    };
    let mut seen = Vec::new();
    for case in trefoil_kernels::cases::with_formats(vec![format]) {
        if arithmetic.compiles_slowly() && seen.contains(&case.op) {
            continue;
        }
        seen.push(case.op);
        let tolerance = tolerance(&case, arithmetic);
        let fail =
            |got: String| SelfTestError { op: case.op, shape: case.shape.clone(), tolerance, got };
        // Stored keys and values come in two forms, which have kernels of their own.
        let forms: &[bool] = if case.op == "attention" { &[false, true] } else { &[false] };
        for &half in forms {
            let got = match run_case(device, &case, half) {
                Err(CaseError::Unsupported(_)) => continue,
                // Small ops that a compiler does not take are remembered; without products it is of no use.
                Err(CaseError::Compile(CompileError::Refused { .. })) if case.op != "linear" => {
                    continue;
                }
                result => result.map_err(|error| fail(error.to_string()))?,
            };
            let want = run_case(judge, &case, half).map_err(|error| fail(error.to_string()))?;
            let error = nmse(&want, &got);
            if error.is_nan() || error >= tolerance {
                return Err(fail(format!("{error:e}")));
            }
        }
    }
    // The records of this work are nobody else's.
    device.drain(&mut Vec::new());
    judge.drain(&mut Vec::new());
    Ok(())
}
