//! What all handlers share.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use trefoil_devices_api::{Device, MemoryManager, Phase};
use trefoil_engine::backends::{Backends, Refused};
use trefoil_engine::calibrate::{Costs, Predictor};
use trefoil_engine::embedding::Embedder;
use trefoil_engine::live::{Live, Measured};
use trefoil_engine::loaded::{Loaded, TextSide};
use trefoil_engine::model::Lowered;
use trefoil_engine::service::{Forecast, History, Meters, Service, ServiceOptions};
use trefoil_graph::Origin;
use trefoil_scheduler::Plan;
use trefoil_scheduler::policy::Resolved;
use trefoil_telemetry::Metrics;

use super::inspect::LastLook;
use crate::config::Config;

use super::socket::UnderWay;

/// How the server behaves.
#[derive(Clone, Debug)]
pub(crate) struct ServerOptions {
    /// Address that it listens on.
    pub(crate) host: String,
    /// Key that clients must send.
    pub(crate) api_key: Option<String>,
    /// More names that the Host header may have.
    pub(crate) allowed_hosts: Vec<String>,
    /// Origins whose pages may call.
    pub(crate) allowed_origins: Vec<String>,
    /// Largest body in bytes.
    pub(crate) max_body: usize,
    /// Most replies to one request.
    pub(crate) max_n: u32,
    /// Time within which a body must be in.
    pub(crate) body_timeout: Duration,
    /// Silence after which a stream gets a sign of life.
    pub(crate) sse_ping: Duration,
    /// Time between two pings over a WebSocket.
    pub(crate) socket_ping: Duration,
    /// Time after which a stream's status is sent although it still waits.
    pub(crate) status_after: Duration,
    /// Are unknown fields refused?
    pub(crate) strict_fields: bool,
    /// Time that running requests get at shutdown.
    pub(crate) shutdown_grace: Duration,
    /// Longest time of a request.
    pub(crate) request_timeout: Option<Duration>,
    /// Is there `/metrics`?
    pub(crate) metrics: bool,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".to_owned(),
            api_key: None,
            allowed_hosts: Vec::new(),
            allowed_origins: Vec::new(),
            max_body: 32 << 20,
            max_n: 8,
            body_timeout: Duration::from_secs(30),
            sse_ping: Duration::from_secs(15),
            socket_ping: Duration::from_secs(20),
            status_after: Duration::from_secs(10),
            strict_fields: false,
            shutdown_grace: Duration::from_secs(10),
            request_timeout: None,
            metrics: true,
        }
    }
}

/// What a model does.
enum Work {
    Replies(Service),
    Embeddings(Embedder),
}

/// A model that is served.
pub(crate) struct ServedModel {
    pub(crate) id: String,
    /// More names that requests may use.
    aliases: Vec<String>,
    work: Work,
    pub(crate) text: Arc<TextSide>,
    /// File and layer graph.
    pub(crate) lowered: Lowered,
    pub(crate) plan: Plan,
    /// Number of the plan in force: the first is 1.
    pub(crate) plan_version: u64,
    /// What the plan was made for.
    pub(crate) policy: Resolved,
    /// What the devices' work costs, where that is known.
    pub(crate) costs: Option<Costs>,
    /// Time that making the plan took.
    pub(crate) planning: Duration,
    /// Measured steps.
    live: Arc<Live>,
    /// The last requests.
    pub(crate) history: Arc<History>,
    /// Bytes of one stored key or value element.
    pub(crate) kv_element_bytes: usize,
    /// Tokens of a KV page.
    pub(crate) page_tokens: usize,
    /// Most tokens of a prompt chunk.
    pub(crate) chunk: usize,
    /// Sequences that run together.
    pub(crate) sequences: usize,
    pub(crate) prefill_devices: Vec<String>,
    pub(crate) decode_devices: Vec<String>,
    pub(crate) context: usize,
    pub(crate) max_context: usize,
    pub(crate) vocabulary: usize,
    pub(crate) parameters: u64,
    pub(crate) bytes: u64,
    pub(crate) quantization: String,
    pub(crate) format: &'static str,
    pub(crate) architecture: String,
    /// Hash of model, build and plan: equal fingerprints, equal replies.
    pub(crate) fingerprint: String,
    pub(crate) generative: bool,
    pub(crate) created: u64,
    pub(crate) took: Duration,
}

impl ServedModel {
    /// Puts a model that was loaded under `policy` into service under `id`. What its plan predicts is
    /// added to `options`, and where it counts what happens.
    pub(crate) fn new(
        id: String,
        loaded: Loaded,
        policy: Resolved,
        options: &ServiceOptions,
        metrics: &Metrics,
    ) -> std::io::Result<Self> {
        let meters = Meters::new(metrics, &id);
        let (live, history) = (meters.live().clone(), meters.history().clone());
        let options = ServiceOptions {
            forecast: Forecast::of(&loaded.plan),
            meters: Some(meters),
            ..options.clone()
        };
        let layout = loaded.runner.executor.kv.layout();
        let (half, page_tokens) = (layout.half, layout.page_tokens);
        let names = |phase| loaded.devices(phase).into_iter().map(|(name, _)| name).collect();
        let (prefill_devices, decode_devices) = (names(Phase::Prefill), names(Phase::Decode));
        let file = &loaded.lowered.file;
        let tensors = file.tensors.values();
        let bytes = tensors.clone().map(trefoil_graph::Tensor::len_bytes).sum();
        let parameters = tensors.clone().map(|t| t.shape.iter().product::<u64>()).sum();
        let mut by_type = std::collections::BTreeMap::<&str, u64>::new();
        for tensor in tensors {
            *by_type.entry(tensor.block.name()).or_default() += tensor.len_bytes();
        }
        let largest = by_type.into_iter().max_by_key(|(_, bytes)| *bytes);
        let class = blake3::hash(
            format!(
                "{} {} {}",
                loaded.lowered.fingerprint,
                env!("CARGO_PKG_VERSION"),
                loaded.plan.to_json()
            )
            .as_bytes(),
        );
        Ok(Self {
            text: loaded.text.clone(),
            context: loaded.runner.context(),
            max_context: loaded.lowered.hyper.context,
            vocabulary: loaded.lowered.vocabulary(),
            parameters,
            bytes,
            quantization: largest.map_or(String::new(), |(name, _)| name.to_owned()),
            format: match file.origin {
                Origin::Gguf => "gguf",
                Origin::HuggingFace => "safetensors",
                Origin::Onnx => "onnx",
            },
            architecture: loaded.lowered.hyper.architecture.clone(),
            fingerprint: format!("fp_{}", &class.to_hex()[..16]),
            generative: loaded.lowered.hyper.causal,
            created: super::id::unix_time(),
            took: loaded.took,
            planning: loaded.planning,
            plan: loaded.plan,
            plan_version: 1,
            policy,
            costs: loaded.costs,
            live,
            history,
            kv_element_bytes: if half { 2 } else { 4 },
            page_tokens,
            chunk: loaded.runner.chunk(),
            sequences: options.sequences,
            work: if loaded.lowered.hyper.causal {
                Work::Replies(Service::start(loaded.runner, loaded.text, options)?)
            } else {
                Work::Embeddings(Embedder::start(loaded.runner, options.queue)?)
            },
            lowered: loaded.lowered,
            id,
            aliases: Vec::new(),
            prefill_devices,
            decode_devices,
        })
    }
}

impl ServedModel {
    /// The same with more names that requests may use.
    pub(crate) fn with_aliases(self, aliases: Vec<String>) -> Self {
        Self { aliases, ..self }
    }

    /// What makes replies, if it is a model that does.
    pub(crate) fn service(&self) -> Option<&Service> {
        match &self.work {
            Work::Replies(service) => Some(service),
            Work::Embeddings(_) => None,
        }
    }

    /// What makes embeddings, if it is a model that does.
    pub(crate) fn embedder(&self) -> Option<&Embedder> {
        match &self.work {
            Work::Replies(_) => None,
            Work::Embeddings(embedder) => Some(embedder),
        }
    }

    /// What its steps took; `None` for one that makes embeddings, whose steps are not measured.
    pub(crate) fn measured(&self) -> Option<Measured> {
        self.service().map(|_| self.live.measured())
    }

    /// What predicts its steps, where costs are known.
    pub(crate) fn predictor(&self) -> Option<Predictor<'_>> {
        let kv_element_bytes = self.kv_element_bytes as f64;
        let (costs, graph) = (self.costs.as_ref()?, &self.lowered.graph);
        Some(Predictor { costs, graph, kv_element_bytes })
    }

    /// Is it meant by this name?
    pub(crate) fn has_name(&self, name: &str) -> bool {
        self.id == name || self.aliases.iter().any(|alias| alias == name)
    }
}

/// What all handlers share.
pub(crate) struct AppState {
    pub(crate) options: ServerOptions,
    /// Sorted by id.
    pub(crate) models: Vec<ServedModel>,
    /// Id that `default` means.
    pub(crate) default_model: String,
    pub(crate) devices: Vec<Arc<dyn Device>>,
    /// Devices that are here and may not be used.
    pub(crate) refused: Vec<Refused>,
    /// Who holds how much memory.
    pub(crate) memory: MemoryManager,
    /// Policies by name.
    pub(crate) config: Config,
    pub(crate) metrics: Metrics,
    /// What the last look at the metrics saw.
    pub(crate) last_look: Mutex<LastLook>,
    /// Room to plan: for one at a time.
    pub(crate) planning: Arc<Semaphore>,
    pub(crate) started: Instant,
    /// What goes on over WebSockets.
    pub(crate) sockets: UnderWay,
}

impl AppState {
    /// What is served from now on; the first of `models` is the default one.
    pub(crate) fn new(
        options: ServerOptions,
        mut models: Vec<ServedModel>,
        backends: &Backends,
        config: Config,
        metrics: Metrics,
    ) -> Self {
        let default_model = models.first().map_or_else(String::new, |model| model.id.clone());
        models.sort_by(|a, b| a.id.cmp(&b.id));
        Self {
            options,
            models,
            default_model,
            devices: backends.devices.clone(),
            refused: backends.refused.clone(),
            memory: backends.memory.clone(),
            config,
            metrics,
            last_look: Mutex::new(LastLook::now(&backends.devices)),
            planning: Arc::new(Semaphore::new(1)),
            started: Instant::now(),
            sockets: UnderWay::default(),
        }
    }

    /// The model of a name: its id, or `default`.
    pub(crate) fn model(&self, name: &str) -> Option<&ServedModel> {
        let id = if name == "default" { &self.default_model } else { name };
        self.models.iter().find(|model| model.has_name(id))
    }
}
