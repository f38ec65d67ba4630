//! What all handlers share.

use std::sync::Arc;
use std::time::{Duration, Instant};

use trefoil_devices_api::{Device, Phase};
use trefoil_engine::embedding::Embedder;
use trefoil_engine::loaded::{Loaded, TextSide};
use trefoil_engine::service::{Forecast, Meters, Service, ServiceOptions};
use trefoil_graph::Origin;
use trefoil_scheduler::Plan;
use trefoil_telemetry::{Metrics, resident_memory};

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
    pub(crate) plan: Plan,
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
    /// Puts a loaded model into service under `id`. What its plan predicts is added to `options`, and
    /// where it counts what happens.
    pub(crate) fn new(
        id: String,
        loaded: Loaded,
        options: &ServiceOptions,
        metrics: &Metrics,
    ) -> std::io::Result<Self> {
        let options = ServiceOptions {
            forecast: Forecast::of(&loaded.plan),
            meters: Some(Meters::new(metrics, &id)),
            ..options.clone()
        };
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
            plan: loaded.plan.clone(),
            work: if loaded.lowered.hyper.causal {
                Work::Replies(Service::start(loaded.runner, loaded.text, options)?)
            } else {
                Work::Embeddings(Embedder::start(loaded.runner, options.queue)?)
            },
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
    pub(crate) metrics: Metrics,
    pub(crate) started: Instant,
    /// What goes on over WebSockets.
    pub(crate) sockets: UnderWay,
}

impl AppState {
    /// The model of a name: its id, or `default`.
    pub(crate) fn model(&self, name: &str) -> Option<&ServedModel> {
        let id = if name == "default" { &self.default_model } else { name };
        self.models.iter().find(|model| model.has_name(id))
    }

    /// Sets the metrics that tell what is, not what happened.
    pub(crate) fn refresh_metrics(&self) {
        let metrics = &self.metrics;
        for model in &self.models {
            let id = model.id.as_str();
            let Some(service) = model.service() else { continue };
            let load = service.load();
            let waiting = service.waiting();
            metrics.requests_waiting.with_label_values(&[id]).set(waiting as f64);
            metrics.requests_running.with_label_values(&[id]).set(load.running() as f64);
            let pages = load.pages();
            for (state, count) in
                [("used", pages.used), ("cached", pages.cached), ("free", pages.free)]
            {
                metrics.kv_pages.with_label_values(&[id, state]).set(count as f64);
            }
            let evictions = metrics.kv_evictions_total.with_label_values(&[id]);
            evictions.inc_by((load.evicted() as f64 - evictions.get()).max(0.0));
        }
        for device in &self.devices {
            if let Some(busy) = device.sample().busy {
                let name = device.info().name.as_str();
                metrics.device_utilization_ratio.with_label_values(&[name]).set(busy);
            }
        }
        if let Some(bytes) = resident_memory() {
            metrics
                .process_resident_memory_bytes
                .with_label_values::<&str>(&[])
                .set(bytes.0 as f64);
        }
    }

    /// Sets the metrics that never change.
    pub(crate) fn describe_in_metrics(&self) {
        let metrics = &self.metrics;
        metrics.build_info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1.0);
        for model in &self.models {
            let id = model.id.as_str();
            let info = [id, &model.architecture, model.format];
            metrics.model_info.with_label_values(&info).set(1.0);
            metrics.model_loaded.with_label_values(&[id]).set(1.0);
            let load_time = metrics.model_load_duration_seconds.with_label_values(&[id]);
            load_time.observe(model.took.as_secs_f64());
            for bucket in &model.plan.buckets {
                for (device, units) in bucket.units_per_device() {
                    let labels = [id, bucket.bucket.phase.name(), device];
                    metrics.placement_units.with_label_values(&labels).set(units as f64);
                }
            }
            if let Some(service) = model.service() {
                let capacity = metrics.queue_capacity.with_label_values::<&str>(&[]);
                capacity.set(service.capacity() as f64);
            }
        }
        for device in &self.devices {
            let info = device.info();
            let kind = format!("{:?}", info.kind).to_lowercase();
            let labels = [info.name.as_str(), &kind, &info.product, &info.driver];
            metrics.device_info.with_label_values(&labels).set(1.0);
            metrics.device_up.with_label_values(&[info.name.as_str()]).set(1.0);
        }
    }
}
