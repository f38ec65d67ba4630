//! Every key of `trefoil.toml` outside of policies: its type, default, meaning, and whether something
//! uses it yet.

use std::collections::BTreeMap;
use std::num::{NonZeroU32, NonZeroUsize};

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use super::values::{Hidden, KeepAlive, MemoryOf, PageTokens, Period};
use trefoil_scheduler::Size;
use trefoil_scheduler::policy::Span;
use trefoil_telemetry::Bytes;

/// Who reads a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// The program, wherever the key means something.
    Full,
    /// Only what is said.
    Only(&'static str),
    /// Nothing yet: it is read and checked.
    NotYet,
}

impl Use {
    /// What is said beside a key; empty if there is nothing to say.
    pub(crate) fn note(self) -> &'static str {
        match self {
            Self::Full => "",
            Self::Only(what) => what,
            Self::NotYet => "not used yet",
        }
    }
}

/// A key of a section.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Key {
    /// Its name in the section.
    pub(crate) name: &'static str,
    /// What it means.
    pub(crate) meaning: &'static str,
    /// Who reads it.
    pub(crate) used: Use,
}

macro_rules! sections {
    ($($(#[$about:meta])* $section:ident {
        $($(#[doc = $meaning:literal])+ $key:ident: $type:ty = $default:expr, $used:expr;)*
    })*) => {$(
        $(#[$about])*
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub(crate) struct $section {
            $($(#[doc = $meaning])+ pub(crate) $key: $type,)*
        }

        impl Default for $section {
            fn default() -> Self {
                Self { $($key: $default,)* }
            }
        }

        impl $section {
            pub(crate) const KEYS: &[Key] = &[$(Key {
                name: stringify!($key),
                meaning: concat!($($meaning),+),
                used: $used,
            }),*];
        }
    )*};
}

/// Number format of stored keys and values, as configurations name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum KvName {
    F32,
    F16,
    #[serde(rename = "q8_0")]
    Q80,
}

macro_rules! choices {
    ($($(#[$about:meta])* $name:ident { $($choice:ident),* })*) => {$(
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        pub(crate) enum $name { $($choice),* }
    )*};
}

choices! {
    /// How much a log says.
    Level { Error, Warn, Info, Debug, Trace }
    /// Form of log lines.
    Form { Text, Json }
    /// May replies differ with what else runs?
    Determinism { Strict, Fast }
    /// Yes, no, or as the model and machine are.
    Switch { Auto, On, Off }
    /// What GPUs are reached through.
    GpuApi { Auto, Hip, Vulkan, Off }
    /// Runtime of NPUs.
    Provider { Auto, Vitisai, Ryzenai, Openvino, Qnn, Plugin, Cpu }
    /// How an NPU computes products.
    NpuForm { F32, F16, Codes, Int4 }
    /// Where work of an NPU that refuses it goes.
    Fallback { Gpu, Cpu, Error }
    /// When a machine is measured.
    Calibrate { FirstRun, Never, Always }
}

fn number(number: usize) -> NonZeroUsize {
    NonZeroUsize::new(number).expect("defaults are above 0")
}

const SERVE: Use = Use::Full;
const NO: Use = Use::NotYet;

sections! {
    /// `[server]`.
    Server {
        /// Address to listen on.
        host: String = "127.0.0.1".to_owned(), SERVE;
        /// Port to listen on; 0 for any free one.
        port: u16 = 9378, SERVE;
        /// Key that clients must send; never printed.
        api_key: Hidden = Hidden::default(), SERVE;
        /// File that holds the key.
        api_key_file: String = String::new(), SERVE;
        /// Key of administrators' requests; never printed.
        admin_api_key: Hidden = Hidden::default(), NO;
        /// More names that the Host header may have.
        allowed_hosts: Vec<String> = Vec::new(), SERVE;
        /// Origins whose pages may call.
        allowed_origins: Vec<String> = Vec::new(), SERVE;
        /// Largest body of a request.
        max_body: Size = Size(Bytes(32 << 20)), SERVE;
        /// Requests that may wait; more are answered with 429.
        max_queue: NonZeroUsize = number(256), SERVE;
        /// Longest wait, then 429.
        queue_timeout: Span = Span::seconds(120), SERVE;
        /// Longest time of a request, then 504; 0s for none.
        request_timeout: Span = Span::seconds(0), SERVE;
        /// Silence after which a stream gets a sign of life.
        sse_ping: Period = Period(Span::seconds(15)), SERVE;
        /// Time that running requests get when the server stops.
        shutdown_grace: Span = Span::seconds(10), SERVE;
        /// Refuse bodies with unknown fields instead of naming them in a header.
        strict_fields: bool = false, SERVE;
        /// Never use the network except to serve.
        offline: bool = false, NO;
        /// How much the server logs: error, warn, info, debug or trace.
        log_level: Level = Level::Info, Use::Only("`serve`; other commands take -q, -v and TREFOIL_LOG");
        /// Form of log lines: text or json. Prompts are never logged.
        log_format: Form = Form::Text, Use::Only("`serve`; other commands take --log-format");
        /// Serve /metrics.
        metrics: bool = true, SERVE;
    }

    /// `[engine]`.
    Engine {
        /// Folder of models; "" for the platform's data folder.
        models_dir: String = String::new(), NO;
        /// More folders of models, which are only read.
        extra_models_dirs: Vec<String> = Vec::new(), NO;
        /// Models that may be loaded at once.
        max_loaded_models: NonZeroUsize = number(2), NO;
        /// Time after which an unused model is unloaded; "-1" for never.
        keep_alive: KeepAlive = KeepAlive::After(Span::seconds(600)), NO;
        /// Sequences that run together.
        max_sequences: NonZeroUsize = number(16), SERVE;
        /// Most tokens of a step.
        max_batch_tokens: NonZeroUsize = number(2048), SERVE;
        /// Most prompt tokens read in one step.
        prefill_chunk: NonZeroUsize = number(512), Use::Full;
        /// Tokens per page of the KV cache; a power of two.
        kv_page_tokens: PageTokens = PageTokens::default(), Use::Full;
        /// Tokens that the KV cache of a served model holds for all its sequences; 0 for max_sequences
        /// contexts, at most 32768 tokens or one context.
        kv_tokens: usize = 0, SERVE;
        /// Number format of stored keys and values: f32 or f16 (q8_0 is not there yet).
        kv_type: KvName = KvName::F16, Use::Full;
        /// Keep the pages of shared beginnings.
        prefix_cache: bool = true, SERVE;
        /// Tokens of context where a model allows more.
        default_ctx: NonZeroUsize = number(8192), Use::Full;
        /// Most replies to one request.
        max_n: NonZeroU32 = NonZeroU32::new(8).expect("not 0"), SERVE;
        /// Threads of the CPU device; 0 for one per physical core.
        threads: usize = 0, Use::Full;
        /// Map model files instead of reading them.
        mmap: bool = true, NO;
        /// strict: replies do not depend on what else runs; fast: they may.
        determinism: Determinism = Determinism::Strict, NO;
        /// Take sampling defaults from the model.
        use_model_sampling: bool = true, Use::Full;
    }

    /// `[models.NAME]`; NAME is the id that it is served under, and what `run` and others take for it.
    Model {
        /// File or folder; "" where NAME is that of a file or folder that is given.
        path: String = String::new(), Use::Full;
        /// More names.
        aliases: Vec<String> = Vec::new(), SERVE;
        /// Serve it when `serve` is given no models.
        preload: bool = false, SERVE;
        /// Never unload it.
        pinned: bool = false, NO;
        /// Tokens of context; 0 for the default.
        ctx: u32 = 0, Use::Full;
        /// File with a chat template.
        chat_template: String = String::new(), Use::Full;
        /// Does it think before it answers: auto, on or off?
        reasoning: Switch = Switch::Auto, NO;
        /// How an encoder makes one vector of many.
        pooling: String = "auto".to_owned(), NO;
        /// Name of a policy, as for --policy; "" for `[policy]`.
        policy: String = String::new(), Use::Full;
        /// `[models.NAME.sampling]`.
        sampling: Sampling = Sampling::default(), NO;
    }

    /// `[models.NAME.sampling]`: what requests do not say.
    Sampling {
        /// Randomness.
        temperature: Option<f64> = None, Use::Full;
        /// Keep the most probable tokens that together reach this.
        top_p: Option<f64> = None, Use::Full;
        /// Keep this many of the most probable tokens.
        top_k: Option<i64> = None, Use::Full;
        /// Keep tokens at least this many times as probable as the best.
        min_p: Option<f64> = None, Use::Full;
        /// Keep the most typical tokens that together reach this.
        typical_p: Option<f64> = None, Use::Full;
        /// Make tokens that came before less likely.
        repeat_penalty: Option<f64> = None, Use::Full;
        /// Tokens that count as before.
        repeat_last_n: Option<i64> = None, Use::Full;
    }

    /// `[devices.NAME]`.
    Device {
        /// Memory to use: auto, or bytes.
        memory: MemoryOf = MemoryOf::Auto, NO;
        /// File of costs instead of the calibrated ones.
        cost_table: String = String::new(), Use::Full;
    }

    /// `[npu]`.
    Npu {
        /// What reaches the NPU: vitisai, ryzenai, openvino, qnn, plugin, auto, or cpu to play one.
        provider: Provider = Provider::Auto, Use::Full;
        /// Name of the provider in provider_library, for provider = "plugin".
        provider_name: String = String::new(), Use::Full;
        /// Library of the provider, for "plugin" and "ryzenai".
        provider_library: String = String::new(), Use::Full;
        /// Options of the provider by their names there, such as { device_type = "NPU" }.
        provider_options: BTreeMap<String, String> = BTreeMap::new(), Use::Full;
        /// Library or folder of ONNX Runtime; "" to look for it.
        runtime_path: String = String::new(), Use::Full;
        /// How products are computed: f32, f16, codes or int4.
        form: NpuForm = NpuForm::F32, Use::Full;
        /// Folder of compiled models; "" for the user's cache.
        cache_dir: String = String::new(), Use::Full;
        /// Most bytes of compiled models; the longest unused are removed.
        cache_limit: Size = Size(Bytes(8 << 30)), Use::Full;
        /// Static prompt lengths, padded up to.
        shapes: Vec<usize> = vec![128, 512, 2048], Use::Full;
        /// Longest time of a compilation.
        compile_timeout: Span = Span::seconds(300), Use::Full;
        /// Where units go that an NPU named as --device does not take: gpu, cpu or error.
        fallback: Fallback = Fallback::Gpu, Use::Full;
    }

    /// `[telemetry]`.
    Telemetry {
        /// Time between two readings.
        interval: Period = Period(Span(trefoil_telemetry::Nanos(500_000_000))), NO;
        /// What is read: auto, or some of amdgpu, hwmon, amdxdna, rapl, upower.
        sources: Vec<String> = vec!["auto".to_owned()], NO;
        /// How long readings are kept.
        history: Span = Span::seconds(600), NO;
        /// When the machine is measured: first-run, never or always.
        calibrate: Calibrate = Calibrate::FirstRun, Use::Full;
        /// Metrics per layer.
        per_layer_metrics: bool = false, NO;
    }
}

/// `[devices]`, with a table per device beside its keys.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Devices {
    pub(crate) gpu_api: GpuApi,
    pub(crate) cpu: bool,
    pub(crate) npu: Switch,
    pub(crate) visible: Vec<String>,
    #[serde(flatten)]
    pub(crate) each: BTreeMap<String, Device>,
}

impl Default for Devices {
    fn default() -> Self {
        Self {
            gpu_api: GpuApi::Auto,
            cpu: true,
            npu: Switch::Auto,
            visible: Vec::new(),
            each: BTreeMap::new(),
        }
    }
}

impl Devices {
    pub(crate) const KEYS: &[Key] = &[
        Key {
            name: "gpu_api",
            meaning: " What GPUs are reached through: auto, hip, vulkan or off.",
            used: Use::Only("off, auto and vulkan; there is no hip yet"),
        },
        Key { name: "cpu", meaning: " May the CPU run models?", used: Use::Full },
        Key {
            name: "npu",
            meaning: " May the NPU run models: off, on, or auto: if npu.provider names one or it is named.",
            used: Use::Full,
        },
        Key {
            name: "visible",
            meaning: " Names of the devices that may be used; [] for all.",
            used: Use::Full,
        },
    ];
}

/// Keys of policies, and who reads them; `policy` has types and defaults.
pub(crate) const POLICY_KEYS: &[Key] = &[
    policy("objective", " What counts: latency, throughput, energy or balanced.", PLAN),
    policy("weights", " Weights of the balanced objective.", PLAN),
    policy("phases", " split: prefill and decode are placed apart; joint: together.", PLAN),
    policy(
        "max_power_watts",
        " Devices that draw the machine over this are not used; 0: any.",
        PLAN,
    ),
    policy("max_temperature_celsius", " Slow down above this; 0 for never.", NO),
    policy("max_device_memory", " Most memory of a device or a domain: bytes or a share.", PLAN),
    policy("reserve_memory", " Kept free in every domain for other programs.", PLAN),
    policy("min_npu_prompt_tokens", " Shorter prompts are not read by an NPU.", PLAN),
    policy("allow_devices", " Patterns of devices that may be used.", Use::Full),
    policy("deny_devices", " Patterns of devices that may not be used.", Use::Full),
    policy("pins", " Units on devices by hand; the first match wins.", Use::Full),
    policy("unmet_pins", " A pin that its device refuses: error, or relax to leave it out.", PLAN),
    policy("replan", " When plans change while models run: auto, manual or off.", NO),
    policy("replan_min_interval", " Shortest time between two changes.", NO),
    policy("replan_gain", " A plan must be better by this share to be changed to.", NO),
    policy("drift_threshold", " Measured and predicted times may differ by this share.", NO),
];

/// `[policy.on_battery]` has one key more.
pub(crate) const BELOW_CHARGE: Key = policy(
    "below_charge",
    " The section holds while the battery's charge is at most this share.",
    NO,
);

const PLAN: Use = Use::Only("plans by a profile (`plan --profile`)");

const fn policy(name: &'static str, meaning: &'static str, used: Use) -> Key {
    Key { name, meaning, used }
}

/// A whole configuration; policies are read by the scheduler.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Sections {
    pub(crate) server: Server,
    pub(crate) engine: Engine,
    pub(crate) models: BTreeMap<String, Model>,
    pub(crate) devices: Devices,
    pub(crate) npu: Npu,
    pub(crate) telemetry: Telemetry,
    #[serde(skip_serializing)]
    policy: IgnoredAny,
    #[serde(skip_serializing)]
    policies: IgnoredAny,
}
