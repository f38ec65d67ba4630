//! A model ready to run: file, graph, plan, executor.

use std::path::Path;
use std::sync::Arc;

use trefoil_devices_api::{Bucket, DeviceError, Phase};
use trefoil_graph::{
    Hyper, LayerGraph, LowerError, LowerOptions, ModelFile, ModelFileError, lower, ops::Op,
};
use trefoil_scheduler::{ModelRef, Pin, PlaceError, Plan, PlanError, Request, place};

use crate::backends::Backends;
use crate::executor::{ExecuteError, Executor};
use crate::kv::{KvPool, KvType};
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
         *.safetensors, or {DEMO:?}"
    )]
    NotFound {
        /// What the user wrote.
        name: String,
    },
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
    /// Pins; the first match wins.
    pub pins: Vec<Pin>,
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
            pins: Vec::new(),
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
        self.plan_on(backends, options).map_err(|error| error.with_refusal(backends))
    }

    fn plan_on(&self, backends: &Backends, options: &ModelOptions) -> Result<Plan, ModelError> {
        let devices = backends.facts();
        if let Some(plan) = &options.plan {
            let names: Vec<&str> = devices.iter().map(|device| device.name.as_str()).collect();
            plan.check(&self.fingerprint, &self.graph, &names)?;
            let most = self.hyper.context.max(options.kv_tokens.unwrap_or(0));
            if plan.context > most {
                let (what, expected) = ("context", format!("at most {most}"));
                return Err(
                    PlanError::Size { what: what.to_owned(), expected, got: plan.context }.into()
                );
            }
            return Ok(plan.clone());
        }
        Ok(place(&Request {
            model: self.model_ref(),
            graph: &self.graph,
            devices: &devices,
            device: options.device.as_deref(),
            pins: &options.pins,
            buckets: &self.buckets(options),
            context: self.kv_tokens(options),
            kv_element_bytes: options.kv_type.bytes(),
        })?)
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
        let executor = Executor::new(&self.graph, plan, &backends.devices, &backends.memory, kv)?;
        let vocabulary = self.vocabulary();
        let context = plan.context.min(self.hyper.context);
        Ok(Runner::new(executor, &self.hyper, vocabulary, options.chunk, context))
    }
}
