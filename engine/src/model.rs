//! A model ready to run: file, graph, plan, executor.

use std::path::Path;
use std::sync::Arc;

use trefoil_devices_api::{Bucket, Device, DeviceError, DeviceKind, Phase};
use trefoil_graph::{
    Hyper, LayerGraph, LowerError, LowerOptions, ModelFile, ModelFileError, lower, ops::Op,
};
use trefoil_scheduler::planner::{Goal, PlannerError};
use trefoil_scheduler::policy::{PolicyError, Resolved};
use trefoil_scheduler::{
    BucketPlan, DeviceFacts, ModelRef, Pin, PlaceError, Plan, PlanError, Request, place,
};

use crate::backends::Backends;
use crate::calibrate::{CalibrateError, CalibrationOptions, CostRequest, Costs};
use crate::executor::{ExecuteError, Executor};
use crate::kv::{KvPool, KvType};
use crate::npu_fallback::{NpuFallback, pins_beside};
use crate::runner::Runner;

/// Name of the model inside the program.
pub const DEMO: &str = "demo";

/// Bytes at an address that every element may have, as a file's pages are.
#[repr(C, align(64))]
struct Aligned<B: ?Sized>(B);
static DEMO_FILE: &Aligned<[u8]> =
    &Aligned(*include_bytes!("../../assets/trefoil-demo-Q4_K_M.gguf"));

/// A model that cannot be made ready.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The file.
    #[error(transparent)]
    File(#[from] ModelFileError),
    /// The graph.
    #[error(transparent)]
    Lower(#[from] LowerError),
    /// The placement.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// A plan made elsewhere.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// No plan by cost.
    #[error(transparent)]
    Planner(Box<PlannerError>),
    /// A policy that cannot be followed on this machine.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// Costs that the user gave and that cannot be used.
    #[error(transparent)]
    Costs(Box<CalibrateError>),
    /// Memory.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Programs.
    #[error(transparent)]
    Execute(#[from] ExecuteError),
    /// A device that was named and is here, or would be, but cannot be used.
    #[error("device {device:?} cannot be used: {reason}; `trefoil devices` says what can")]
    Unusable {
        /// Its name.
        device: String,
        /// Why.
        reason: String,
    },
    /// Nothing of that name.
    #[error(
        "model {name:?} is not here: expected a .gguf file, a folder with config.json and \
         *.safetensors or with an ONNX model, or {DEMO:?}"
    )]
    NotFound {
        /// What the user wrote.
        name: String,
    },
}

impl From<PlannerError> for ModelError {
    fn from(error: PlannerError) -> Self {
        Self::Planner(Box::new(error))
    }
}

impl ModelError {
    /// The error, with the reason where a device is missing because it was refused.
    fn with_refusal(self, backends: &Backends) -> Self {
        let (Self::Plan(PlanError::Device { got, .. })
        | Self::Place(PlaceError::Plan(PlanError::Device { got, .. }))) = &self
        else {
            return self;
        };
        match backends.refusal(got) {
            Some(reason) => Self::Unusable { device: got.clone(), reason: reason.to_owned() },
            None => self,
        }
    }
}

/// How a model is run.
#[derive(Clone, Debug)]
pub struct ModelOptions {
    /// Device that takes what no pin names.
    pub device: Option<String>,
    /// Devices to choose from by cost; where there are none, all that need not be named.
    pub devices: Vec<String>,
    /// How costs come to be known. Without any, and wherever a device or pins are given, everything
    /// that no pin names goes to one device.
    pub calibration: CalibrationOptions,
    /// What a choice by cost follows; balanced if absent.
    pub policy: Option<Arc<Resolved>>,
    /// Pins; the first match wins.
    pub pins: Vec<Pin>,
    /// Where units go that an NPU named as `device` does not take.
    pub npu_fallback: NpuFallback,
    /// A plan made before, instead of placing now.
    pub plan: Option<Plan>,
    /// Tokens of context, at most the model's own; [`DEFAULT_CONTEXT`] if absent.
    pub context: Option<usize>,
    /// Number format of the KV cache.
    pub kv_type: KvType,
    /// Tokens per KV page (power of two).
    pub page_tokens: usize,
    /// Most tokens of a prompt chunk.
    pub chunk: usize,
    /// Sequences that one decode step may carry; at least 1.
    pub decode_batch: usize,
    /// Tokens that the KV cache holds for all sequences together; one context if absent or less.
    pub kv_tokens: Option<usize>,
    /// Choices about the graph.
    pub lower: LowerOptions,
}

/// Context where the user names none and the model allows more.
pub const DEFAULT_CONTEXT: usize = 8192;
/// Most rows of a step whose logits are wanted: bounds the memory of logits.
pub const MAX_OUTPUTS: usize = 64;

impl Default for ModelOptions {
    fn default() -> Self {
        Self {
            device: None,
            devices: Vec::new(),
            calibration: CalibrationOptions::default(),
            policy: None,
            pins: Vec::new(),
            npu_fallback: NpuFallback::default(),
            plan: None,
            context: None,
            kv_type: KvType::F16,
            page_tokens: 16,
            chunk: 512,
            decode_batch: 1,
            kv_tokens: None,
            lower: LowerOptions::default(),
        }
    }
}

/// Opens a model by path, or the built-in one by its name.
pub fn open_file(name: &str) -> Result<ModelFile, ModelError> {
    if name == DEMO {
        return Ok(ModelFile::from_static(&DEMO_FILE.0, "built-in demo model")?);
    }
    let path = Path::new(name);
    if !path.exists() {
        return Err(ModelError::NotFound { name: name.to_owned() });
    }
    Ok(ModelFile::open(path)?)
}

/// A lowered model, before any device is chosen.
#[derive(Debug)]
pub struct Lowered {
    /// The file: metadata and tensors.
    pub file: ModelFile,
    /// Hyper-parameters.
    pub hyper: Hyper,
    /// The layer graph.
    pub graph: Arc<LayerGraph>,
    /// Fingerprint of the file.
    pub fingerprint: String,
}

impl Lowered {
    /// Lowers an opened file.
    pub fn new(file: ModelFile, options: LowerOptions) -> Result<Self, ModelError> {
        let (hyper, graph) = lower(&file, options)?;
        let fingerprint = file.fingerprint();
        Ok(Self { file, hyper, graph: Arc::new(graph), fingerprint })
    }

    /// Rows of the token table: ids that the model can take.
    pub fn vocabulary(&self) -> usize {
        let tables = self.graph.nodes().filter_map(|node| match &self.graph.node(node).op {
            Op::Embed(op) => Some(op.table.rows),
            _ => None,
        });
        tables.max().unwrap_or(0)
    }

    /// Context that a run with `options` gets: at most what the model was trained for, past which
    /// its positions mean nothing (and an encoder has none).
    pub fn context(&self, options: &ModelOptions) -> usize {
        let trained = self.hyper.context;
        let context = options.context.unwrap_or(DEFAULT_CONTEXT);
        if options.context.is_some_and(|wanted| wanted > trained) {
            tracing::warn!("context {context} is more than the model was trained for: {trained}");
        }
        context.clamp(1, trained)
    }

    /// Tokens that the KV pages of a run with `options` hold.
    fn kv_tokens(&self, options: &ModelOptions) -> usize {
        self.context(options).max(options.kv_tokens.unwrap_or(0))
    }

    /// Buckets that programs are compiled for.
    pub fn buckets(&self, options: &ModelOptions) -> [Bucket; 2] {
        // An encoder reads a whole text in one step.
        let chunk = if self.hyper.causal { options.chunk } else { self.context(options) };
        let max_tokens = chunk.clamp(1, self.context(options));
        let max_outputs = if self.hyper.causal { max_tokens.min(MAX_OUTPUTS) } else { max_tokens };
        let batch = options.decode_batch.max(1);
        [
            Bucket { phase: Phase::Prefill, min_tokens: 2, max_tokens, max_outputs },
            Bucket { phase: Phase::Decode, min_tokens: 1, max_tokens: batch, max_outputs: batch },
        ]
    }

    /// Which model a plan of this one is for.
    pub fn model_ref(&self) -> ModelRef {
        ModelRef {
            fingerprint: self.fingerprint.clone(),
            architecture: self.hyper.architecture.clone(),
            name: self.hyper.name.clone(),
        }
    }

    /// Places the model on the devices, or checks the plan that the options carry.
    pub fn plan(&self, backends: &Backends, options: &ModelOptions) -> Result<Plan, ModelError> {
        Ok(self.plan_with_costs(backends, options)?.0)
    }

    /// As [`Self::plan`], with the costs of the plan's devices where they are known. May measure for a
    /// second or two, if the options want it.
    pub fn plan_with_costs(
        &self,
        backends: &Backends,
        options: &ModelOptions,
    ) -> Result<(Plan, Option<Costs>), ModelError> {
        self.plan_on(backends, options).map_err(|error| error.with_refusal(backends))
    }

    fn plan_on(
        &self,
        backends: &Backends,
        options: &ModelOptions,
    ) -> Result<(Plan, Option<Costs>), ModelError> {
        let all = backends.facts();
        if let Some(plan) = &options.plan {
            self.check_plan(plan, &all, options)?;
            return Ok((plan.clone(), self.known_costs(backends, plan, options)));
        }
        let usable = usable(&all, options)?;
        let choice = options.device.is_none() && options.pins.is_empty() && usable.len() > 1;
        let mut why_not = None;
        if choice {
            let devices = devices_named(backends, usable.iter().map(|d| d.name.as_str()));
            match self.costs(&devices, options) {
                Ok(Some(costs)) => {
                    let plan = costs.plan(
                        self,
                        CostRequest {
                            policy: options.policy.as_deref(),
                            buckets: &self.buckets(options),
                            context: self.kv_tokens(options),
                            kv_element_bytes: options.kv_type.bytes(),
                        },
                    )?;
                    return Ok((plan, Some(costs)));
                }
                Ok(None) => {
                    let why = "no device's costs are known: `trefoil calibrate` measures them";
                    why_not = Some(why.to_owned());
                }
                Err(error @ CalibrateError::CostTable { .. }) => {
                    return Err(ModelError::Costs(Box::new(error)));
                }
                Err(error) => {
                    tracing::warn!("costs are not known: {error}");
                    why_not = Some(format!("costs are not known: {error}"));
                }
            }
        }
        let first = options.devices.first().map(String::as_str);
        let (own_pins, beside) =
            pins_beside(&self.graph, backends, options, &self.buckets(options));
        let pins: Vec<Pin> = options.pins.iter().cloned().chain(own_pins).collect();
        let mut plan = place(&Request {
            model: self.model_ref(),
            graph: &self.graph,
            devices: &all,
            device: options.device.as_deref().or(first),
            pins: &pins,
            buckets: &self.buckets(options),
            context: self.kv_tokens(options),
            kv_element_bytes: options.kv_type.bytes(),
        })?;
        plan.reasons.extend(why_not.into_iter().chain(beside));
        let costs = self.known_costs(backends, &plan, options);
        Ok((plan, costs))
    }

    /// Checks a plan that was made elsewhere.
    fn check_plan(
        &self,
        plan: &Plan,
        devices: &[DeviceFacts],
        options: &ModelOptions,
    ) -> Result<(), ModelError> {
        let names: Vec<&str> = devices.iter().map(|device| device.name.as_str()).collect();
        plan.check(&self.fingerprint, &self.graph, &names)?;
        let most = self.hyper.context.max(options.kv_tokens.unwrap_or(0));
        if plan.context > most {
            let (what, expected) = ("context".to_owned(), format!("at most {most}"));
            return Err(PlanError::Size { what, expected, got: plan.context }.into());
        }
        Ok(())
    }

    /// Costs of devices for this model, measured now if the options want it.
    fn costs(
        &self,
        devices: &[Arc<dyn Device>],
        options: &ModelOptions,
    ) -> Result<Option<Costs>, CalibrateError> {
        let form = (options.kv_type.bytes() == 2, options.chunk);
        let mut say = |text: String| tracing::warn!("{text}");
        Costs::find(self, devices, &options.calibration, form, &mut say)
    }

    /// Costs of a plan's devices, if they are known without measuring.
    fn known_costs(
        &self,
        backends: &Backends,
        plan: &Plan,
        options: &ModelOptions,
    ) -> Option<Costs> {
        let mut names: Vec<&str> =
            plan.buckets.iter().flat_map(trefoil_scheduler::BucketPlan::devices).collect();
        names.sort_unstable();
        names.dedup();
        let devices = devices_named(backends, names.into_iter());
        let when = crate::calibrate::When::Never;
        let calibration = CalibrationOptions { when, ..options.calibration.clone() };
        let options = ModelOptions { calibration, ..options.clone() };
        self.costs(&devices, &options).ok()?
    }

    /// Compiles a plan and takes its memory.
    pub fn runner(
        &self,
        backends: &Backends,
        plan: &Plan,
        options: &ModelOptions,
    ) -> Result<Runner, ModelError> {
        let mut kv = KvPool::new(
            &backends.memory,
            &backends.devices,
            self.graph.kv(),
            &plan.kv,
            options.kv_type,
            options.page_tokens,
            plan.context,
        )?;
        if let Some(domains) = &plan.kv_decode {
            kv = kv.with_decode_domains(&backends.memory, &backends.devices, domains)?;
        }
        let mut executor =
            Executor::new(&self.graph, plan, &backends.devices, &backends.memory, kv)?;
        let saves =
            options.policy.as_ref().is_some_and(|policy| policy.policy.objective == Goal::Energy);
        executor.keep_awake(!saves);
        let vocabulary = self.vocabulary();
        // A plan that was given says itself for how long a sequence it is.
        let longest = match (&options.plan, options.context) {
            (Some(_), None) => self.hyper.context,
            _ => self.context(options),
        };
        let context = plan.context.min(longest);
        let runner = Runner::new(executor, &self.hyper, vocabulary, options.chunk, context);
        Ok(runner.with_steady_rows(has_steady_rows(plan, &backends.devices)))
    }
}

/// Do rows come out the same, bit for bit, in steps of any size and in both phases? They do where every
/// unit is on one host device throughout: kernels of GPUs for many rows differ from those for few.
fn has_steady_rows(plan: &Plan, devices: &[Arc<dyn Device>]) -> bool {
    let host = |name: &str| {
        let device = devices.iter().find(|device| device.info().name == name);
        let kind = device.map(|device| device.info().kind);
        matches!(kind, Some(DeviceKind::Cpu | DeviceKind::Reference))
    };
    let mut buckets = plan.buckets.iter();
    let Some(first) = buckets.next() else { return false };
    let same = |bucket: &BucketPlan| {
        let mut units = bucket.units.iter().zip(&first.units);
        units.all(|(a, b)| a.unit == b.unit && a.device == b.device)
    };
    first.units.iter().all(|unit| host(&unit.device))
        && plan.buckets.iter().all(|bucket| bucket.splits.is_empty())
        && buckets.all(same)
}

/// Devices to choose from: those that the options name, else those that need not be named.
fn usable<'d>(
    all: &'d [DeviceFacts],
    options: &ModelOptions,
) -> Result<Vec<&'d DeviceFacts>, PlanError> {
    if options.devices.is_empty() {
        return Ok(all.iter().filter(|device| !device.only_when_named).collect());
    }
    let names: Vec<&str> = all.iter().map(|device| device.name.as_str()).collect();
    let named = options.devices.iter().map(|name| {
        let found = all.iter().find(|device| device.name == *name);
        found.ok_or_else(|| PlanError::unknown_device(name, &names))
    });
    named.collect()
}

fn devices_named<'n>(
    backends: &Backends,
    names: impl Iterator<Item = &'n str>,
) -> Vec<Arc<dyn Device>> {
    let find = |name: &str| backends.devices.iter().find(|device| device.info().name == name);
    names.filter_map(find).cloned().collect()
}
