//! The table of metrics: one row each. A metric is added here and used at its emit site.

use prometheus::{
    CounterVec, Encoder, GaugeVec, HistogramOpts, HistogramVec, Opts, Registry, TextEncoder,
};

/// Bounds of histograms of durations, in seconds: 0.005 doubled up to 164.
const SECONDS: &[f64] = &[
    0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92,
    163.84,
];
/// Bounds of the time between two tokens: 0.001 times 1.6 up to 2.
const TOKEN_SECONDS: &[f64] = &[
    0.001, 0.0016, 0.00256, 0.0041, 0.00655, 0.0105, 0.0168, 0.0268, 0.0429, 0.0687, 0.11, 0.176,
    0.281, 0.45, 0.72, 1.15, 1.84,
];
/// Bounds of the time of a step: 0.0005 doubled up to 8.
const STEP_SECONDS: &[f64] = &[
    0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048,
    4.096, 8.192,
];
/// Bounds of the time of a segment: 0.00005 times 2 up to 3.3.
const SEGMENT_SECONDS: &[f64] = &[
    0.00005, 0.0001, 0.0002, 0.0004, 0.0008, 0.0016, 0.0032, 0.0064, 0.0128, 0.0256, 0.0512,
    0.1024, 0.2048, 0.4096, 0.8192, 1.6384, 3.2768,
];
/// Bounds of the time to make a plan: 0.001 times 4 up to 65.
const PLAN_SECONDS: &[f64] = &[0.001, 0.004, 0.016, 0.064, 0.256, 1.024, 4.096, 16.384, 65.536];
/// Bounds of token counts: powers of two.
const TOKENS: &[f64] = &[
    1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0,
    16384.0, 32768.0, 65536.0, 131_072.0,
];

/// Sort of a metric, with its histogram bounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Distribution over these bounds.
    Histogram(&'static [f64]),
}

/// One row of the table.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MetricInfo {
    /// Name with the prefix.
    pub name: &'static str,
    /// Sort.
    pub kind: Kind,
    /// Label names.
    pub labels: &'static [&'static str],
    /// What it tells.
    pub help: &'static str,
}

macro_rules! metrics {
    (@type Counter) => { CounterVec };
    (@type Gauge) => { GaugeVec };
    (@type Histogram) => { HistogramVec };
    (@make Counter $name:expr, $help:expr, $labels:expr) => {
        CounterVec::new(Opts::new($name, $help), $labels)
    };
    (@make Gauge $name:expr, $help:expr, $labels:expr) => {
        GaugeVec::new(Opts::new($name, $help), $labels)
    };
    (@make Histogram $name:expr, $help:expr, $labels:expr, $bounds:expr) => {
        HistogramVec::new(HistogramOpts::new($name, $help).buckets($bounds.to_vec()), $labels)
    };
    ($($field:ident $kind:ident $(($bounds:expr))? [$($label:literal),*] $help:literal;)*) => {
        /// Every metric of the table.
        pub const METRICS: &[MetricInfo] = &[$(MetricInfo {
            name: concat!("trefoil_", stringify!($field)),
            kind: Kind::$kind $(($bounds))?,
            labels: &[$($label),*],
            help: $help,
        }),*];

        /// All metrics, registered.
        #[derive(Debug)]
        #[allow(missing_docs)] // the table's help texts say what each is
        pub struct Metrics {
            registry: Registry,
            $(pub $field: metrics!(@type $kind),)*
        }

        impl Default for Metrics {
            fn default() -> Self {
                let registry = Registry::new();
                $(
                    let $field = metrics!(@make $kind
                        concat!("trefoil_", stringify!($field)), $help, &[$($label),*]
                        $(, $bounds)?)
                        .expect("the table's names are valid");
                    registry.register(Box::new($field.clone())).expect("names are unique");
                )*
                Self { registry, $($field),* }
            }
        }
    };
}

metrics! {
    build_info Gauge ["version"] "Always 1; says which build runs.";
    http_requests_total Counter ["route", "method", "status"] "HTTP requests answered.";
    http_request_duration_seconds Histogram(SECONDS) ["route"]
        "Time until an HTTP answer began.";
    requests_total Counter ["model", "outcome"]
        "Generations ended, by stop, length, cancelled or error.";
    requests_rejected_total Counter ["reason"] "Requests refused before they ran.";
    requests_running Gauge ["model"] "Generations under way.";
    requests_waiting Gauge ["model"] "Generations in the queue.";
    queue_capacity Gauge [] "Places in the queue.";
    request_queue_seconds Histogram(SECONDS) ["model"] "Time in the queue.";
    request_prefill_seconds Histogram(SECONDS) ["model"] "Time reading the prompt.";
    request_decode_seconds Histogram(SECONDS) ["model"] "Time making tokens.";
    time_to_first_token_seconds Histogram(SECONDS) ["model"]
        "Time from arrival to the first token.";
    inter_token_seconds Histogram(TOKEN_SECONDS) ["model"] "Time between two tokens.";
    request_duration_seconds Histogram(SECONDS) ["model"] "Time from arrival to the end.";
    request_prompt_tokens Histogram(TOKENS) ["model"] "Tokens of a prompt.";
    request_generated_tokens Histogram(TOKENS) ["model"] "Tokens made for a request.";
    prompt_tokens_total Counter ["model", "source"] "Prompt tokens, computed or cached.";
    generated_tokens_total Counter ["model"] "Tokens made.";
    steps_total Counter ["model", "phase"] "Steps over the model.";
    step_duration_seconds Histogram(STEP_SECONDS) ["model", "phase"] "Time of a step.";
    batch_sequences Histogram(TOKENS) ["model", "phase"] "Sequences in a step.";
    batch_tokens Histogram(TOKENS) ["model", "phase"] "Tokens in a step.";
    preemptions_total Counter ["model", "reason"]
        "Generations put aside for others and read again later.";
    kv_pages Gauge ["model", "state"]
        "Pages of the KV cache: used by generations, cached for beginnings that come again, free.";
    kv_evictions_total Counter ["model"] "Cached pages given away.";
    prefix_cache_query_tokens_total Counter ["model"]
        "Prompt tokens looked for in the cache of beginnings.";
    prefix_cache_hit_tokens_total Counter ["model"]
        "Prompt tokens found in the cache of beginnings.";
    model_info Gauge ["model", "arch", "format"] "Always 1; says what a model is.";
    model_loaded Gauge ["model"] "1 if the model is ready.";
    model_load_duration_seconds Histogram(SECONDS) ["model"] "Time to make a model ready.";
    device_info Gauge ["device", "kind", "name", "driver"] "Always 1; says what a device is.";
    device_up Gauge ["device"] "1 if the device works.";
    device_utilization_ratio Gauge ["device"]
        "Share of the time since the last scrape that went into trefoil's work.";
    device_busy_seconds_total Counter ["device"] "Time that went into trefoil's work.";
    device_tokens_total Counter ["device", "phase"]
        "Tokens of the steps that the device had a part in.";
    device_memory_total_bytes Gauge ["device", "pool"]
        "Memory where the device's data goes, as far as it may be used.";
    device_memory_used_bytes Gauge ["device", "pool"]
        "What trefoil's buffers take of it; weights in a mapped file do not count.";
    device_memory_free_bytes Gauge ["device"] "Memory that is free, as the system or driver tells.";
    device_power_watts Gauge ["device"] "Power, where the driver tells it.";
    device_clock_hertz Gauge ["device", "domain"] "Clock, where the driver tells it.";
    plan_version Gauge ["model"] "Number of the plan in force; 1 is the first.";
    plan_timestamp_seconds Gauge ["model"] "When the plan in force was made, in seconds since 1970.";
    plan_duration_seconds Histogram(PLAN_SECONDS) [] "Time to make a plan, measurements included.";
    plan_predicted_seconds Gauge ["model", "phase"]
        "Predicted time of a prompt of 512 tokens, and of a token.";
    policy_info Gauge ["objective", "source"] "Always 1; says what plans are made for.";
    placement_units Gauge ["model", "phase", "device"] "Units of the model that run there.";
    placement_layers Gauge ["model", "phase", "op", "device"]
        "Layers whose ops of this sort run there; of embed and head there is one.";
    placement_segment_info Gauge ["model", "phase", "segment", "device", "layers", "ops"]
        "Always 1; says what a segment of the plan holds.";
    segment_duration_seconds Histogram(SEGMENT_SECONDS) ["model", "phase", "segment", "device"]
        "Time of a segment in a step, as measured.";
    segment_predicted_seconds Gauge ["model", "phase", "segment"]
        "Time that the segment should have taken in the last steps, on average.";
    segment_prediction_error_ratio Gauge ["model", "phase", "segment"]
        "Measured time of the last steps by the predicted one, less 1.";
    transfer_bytes_total Counter ["src", "dst"] "Bytes copied between memories.";
    transfer_seconds_total Counter ["src", "dst"] "Time of copies between memories.";
    model_memory_bytes Gauge ["model", "pool", "kind"]
        "Memory that the plan takes: weights, kv, activations, streaming.";
    process_resident_memory_bytes Gauge [] "Memory of this process that is in RAM.";
}

impl Metrics {
    /// All metrics in Prometheus' text form, version 0.0.4.
    pub fn render(&self) -> String {
        let mut out = Vec::new();
        TextEncoder::new()
            .encode(&self.registry.gather(), &mut out)
            .expect("encoding to memory does not fail");
        String::from_utf8(out).expect("the text form is UTF-8")
    }

    /// Counts an HTTP request.
    pub fn http(&self, route: &str, method: &str, status: u16, took: std::time::Duration) {
        let status = status.to_string();
        self.http_requests_total.with_label_values(&[route, method, &status]).inc();
        self.http_request_duration_seconds.with_label_values(&[route]).observe(took.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_follows_the_naming_rules() {
        for metric in METRICS {
            assert!(metric.name.starts_with("trefoil_"), "{}", metric.name);
            let counter = metric.kind == Kind::Counter;
            assert_eq!(counter, metric.name.ends_with("_total"), "{}", metric.name);
            assert!(metric.help.ends_with('.'), "{}", metric.name);
        }
    }

    #[test]
    fn what_was_counted_is_rendered() {
        let metrics = Metrics::default();
        metrics.http("/health", "GET", 200, std::time::Duration::from_millis(3));
        let text = metrics.render();
        let line = "trefoil_http_requests_total{method=\"GET\",route=\"/health\",status=\"200\"} 1";
        assert!(text.contains(line), "{text}");
    }
}
