//! The device.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use trefoil_devices_api::{
    AllocRequest, Bucket, Buffer, CompileError, Completion, Device, DeviceError, DeviceInfo,
    DeviceKind, DomainId, DomainInfo, Dropped, Job, Limits, Link, MemoryManager, OpQuery, Program,
    Sample, Submission, SubmissionId, Support, WorkQueue, check_segment,
};
use trefoil_devices_host::HostSide;
use trefoil_graph::{LayerGraph, Segment};
use trefoil_kernels_npu::{
    KERNEL_SET, NumericForm, Part, PartWeights, Stage, describe, identity, model, refusal, stages,
};
use trefoil_telemetry::{Bytes, Clock, Nanos};

use crate::cache::Cache;
use crate::compile::{Keep, Source, compile};
use crate::program::NpuProgram;
use crate::provider::{Chosen, choose};
use crate::refusals::{Refusals, RefusedSegment};
use crate::rows::sizes;
use crate::search::{Surroundings, find};
use crate::session::Compiled;
use crate::worker::NpuWorker;
use crate::{NpuError, NpuOptions, runtime};

/// An NPU: segments are compiled for static row counts and run through ONNX Runtime, on tensors in host
/// memory.
#[derive(Debug)]
pub struct NpuDevice {
    info: DeviceInfo,
    side: HostSide,
    provider: Chosen,
    form: NumericForm,
    shapes: Vec<usize>,
    compile_limit: Nanos,
    cache: Option<Cache>,
    refusals: Refusals,
    /// Compiled models that a program still holds: the same part of the same rows is compiled once.
    compiled: Mutex<HashMap<blake3::Hash, Weak<Compiled>>>,
}

impl NpuDevice {
    /// Finds ONNX Runtime and the provider, and starts the device's queue under `name` (`npu0`).
    ///
    /// # Errors
    /// What is missing, where it was looked for, and how to mend it.
    pub fn open(
        name: &str,
        options: &NpuOptions,
        memory: MemoryManager,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, NpuError> {
        options.check()?;
        let folder = options.local.then(std::env::current_dir).and_then(Result::ok);
        let around = Surroundings { variable: &|name| std::env::var_os(name), folder };
        let found = find(options.runtime.as_deref(), &around)?;
        let runtime = runtime::load(&found)?;
        let provider = choose(options, &runtime)?;
        let identity = provider.identity();
        let device_key = blake3::hash(identity.as_bytes()).to_hex().to_string();
        let kept = options.cache.as_ref().map(|folder| folder.join("npu"));
        let refused = kept.as_ref().map(|f| f.join(format!("refused-{}.json", &device_key[..16])));
        let stand_in = provider.is_stand_in();
        let plays = if stand_in { ", playing an NPU" } else { "" };
        let shown = provider.name();
        let version = &runtime.version;
        // Options may hold keys: only their sum is shown.
        let driver = format!("ONNX Runtime {version}, {shown}, {}", &device_key[..16]);
        Ok(Self {
            info: DeviceInfo {
                name: name.to_owned(),
                kind: DeviceKind::Npu,
                product: format!("{shown} by ONNX Runtime {version}{plays}, {}", options.form),
                uuid: format!("npu-{}", shown.replace(' ', "-")),
                driver,
                kernel_set: format!("{KERNEL_SET}-{}", options.form),
                only_when_named: stand_in,
            },
            side: HostSide::new(name, memory, WorkQueue::start(name, clock, NpuWorker::default)),
            provider,
            form: options.form,
            shapes: options.shapes.clone(),
            compile_limit: options.compile_limit,
            cache: kept.map(|folder| Cache::new(folder, options.cache_limit)),
            refusals: Refusals::new(refused),
            compiled: Mutex::default(),
        })
    }

    /// How products are computed.
    pub fn form(&self) -> NumericForm {
        self.form
    }

    /// Is what it compiled kept for other processes?
    pub fn keeps_compiled(&self) -> bool {
        self.cache.is_some() && self.provider.keeps_compiled()
    }

    /// Segments that the provider refused to compile, now or in earlier processes.
    pub fn refused(&self) -> Vec<RefusedSegment> {
        self.refusals.all()
    }

    /// ONNX Runtime's library.
    pub fn library(&self) -> &Path {
        &self.provider.runtime.library
    }

    /// Compiled models of a part, one for each row count.
    fn part(
        &self,
        graph: &LayerGraph,
        part: &Part,
        sizes: &[usize],
        job: &Job,
    ) -> Result<Vec<Arc<Compiled>>, CompileError> {
        let identity = identity(graph, part, self.form);
        // Packed when the first model needs them, and only held until the last is made.
        let mut weights = None;
        let models = sizes.iter().map(|&rows| {
            let mut hasher = blake3::Hasher::new();
            hasher.update(identity.as_bytes()).update(&(rows as u64).to_le_bytes());
            hasher.update(self.info.driver.as_bytes());
            let key = hasher.finalize();
            if let Some(known) = self.compiled.lock().get(&key).and_then(Weak::upgrade) {
                return Ok(known);
            }
            let weights: &PartWeights = weights.get_or_insert_with(|| self.pack(graph, part));
            let made = Arc::new(self.model(graph, part, weights, rows, key, job)?);
            let mut compiled = self.compiled.lock();
            compiled.retain(|_, model| model.strong_count() > 0);
            compiled.insert(key, Arc::downgrade(&made));
            Ok(made)
        });
        models.collect()
    }

    fn pack(&self, graph: &LayerGraph, part: &Part) -> PartWeights {
        let weights = PartWeights::pack(graph, part, self.form);
        if weights.error > 0.0 {
            let (ops, error) = (describe(graph, part), weights.error);
            tracing::debug!(
                "{}: weights as {}: NMSE {error:.1e}: {ops}",
                self.info.name,
                self.form
            );
        }
        weights
    }

    fn model(
        &self,
        graph: &LayerGraph,
        part: &Part,
        weights: &PartWeights,
        rows: usize,
        key: blake3::Hash,
        job: &Job,
    ) -> Result<Compiled, CompileError> {
        let what = format!("{} ({rows} rows, {})", describe(graph, part), self.form);
        if let Some(reason) = self.refusals.find(&what) {
            return Err(CompileError::Refused { what, reason });
        }
        let weight_bytes = weights.data.len() as u64;
        let memory = self.side.memory().reserve(DomainId::HOST, Bytes(weight_bytes), "weights")?;
        let written = Arc::new(model(graph, part, weights, rows));
        let source = Source { model: written.clone(), weights: weights.data.clone() };
        let cache = self.cache.as_ref().filter(|_| self.provider.keeps_compiled());
        let keep = cache.map(|cache| Keep { cache: cache.clone(), key });
        let limit = job.limit.unwrap_or(self.compile_limit);
        let made = compile(&self.provider, &source, keep.as_ref(), job, limit)?;
        let made = made.and_then(|session| Compiled::new(session, &written, weight_bytes, memory));
        made.map_err(|reason| {
            self.refusals.add(&what, &reason);
            CompileError::Refused { what, reason }
        })
    }
}

impl Device for NpuDevice {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn domains(&self) -> &[DomainInfo] {
        self.side.domains()
    }

    fn link(&self, from: DomainId, to: DomainId) -> Link {
        self.side.link(from, to)
    }

    fn limits(&self) -> &Limits {
        self.side.limits()
    }

    /// Which ops have an ONNX form; whether the provider takes a segment of them only compiling tells.
    fn support(&self, query: &OpQuery<'_>) -> Support {
        match refusal(query.graph, query.node) {
            Some(reason) => Support::No(reason),
            None => Support::Native,
        }
    }

    fn compile(
        &self,
        graph: &Arc<LayerGraph>,
        segment: &Segment,
        bucket: Bucket,
        job: &Job,
    ) -> Result<Arc<dyn Program>, CompileError> {
        check_segment(self, graph, segment, bucket, job)?;
        let stages = stages(graph, segment).into_iter().map(|stage| {
            let models = match &stage {
                Stage::Select { .. } => Vec::new(),
                Stage::Run(part) => {
                    let sizes = sizes(bucket, part.rows, &self.shapes);
                    self.part(graph, part, &sizes, job)?
                }
            };
            Ok((stage, models))
        });
        let stages = stages.collect::<Result<Vec<_>, CompileError>>()?;
        Ok(Arc::new(NpuProgram::new(graph, segment, bucket, stages)))
    }

    fn alloc(&self, request: AllocRequest) -> Result<Buffer, DeviceError> {
        self.side.alloc(request)
    }

    fn import(&self, foreign: &Buffer) -> Result<Buffer, DeviceError> {
        self.side.import(foreign)
    }

    fn submit(&self, queue: usize, work: Submission) -> Result<SubmissionId, DeviceError> {
        self.side.submit(queue, work)
    }

    fn drain(&self, out: &mut Vec<Completion>) -> Dropped {
        self.side.drain(out)
    }

    fn sample(&self) -> Sample {
        self.side.sample()
    }

    fn reset(&self) -> Result<(), DeviceError> {
        self.side.reset()
    }
}
