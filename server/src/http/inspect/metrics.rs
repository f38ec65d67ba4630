//! GET /metrics: what is, set when somebody looks, beside what happened, counted where it does.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use trefoil_devices_api::{Device, Phase};
use trefoil_engine::live::Measured;
use trefoil_engine::service::MOST_SEGMENTS;
use trefoil_telemetry::{Metrics, Nanos, resident_memory};

use super::devices::Pool;
use super::placement::{Segment, layers_by_op};
use super::plan::last_steps;
use crate::http::state::{AppState, ServedModel};

/// Tokens of the prompt for which times are predicted.
const PREDICTED_PROMPT: usize = 512;

/// What the last look saw, so that the next can say what was in between.
#[derive(Debug)]
pub(crate) struct LastLook {
    /// When, and how long each device had worked by then.
    busy: BTreeMap<String, (Instant, Nanos)>,
}

impl LastLook {
    /// At the devices as they are now: what they did before counts for nothing.
    pub(crate) fn now(devices: &[Arc<dyn Device>]) -> Self {
        let now = Instant::now();
        let busy = devices.iter().filter_map(|device| {
            Some((device.info().name.clone(), (now, device.sample().busy_time?)))
        });
        Self { busy: busy.collect() }
    }
}

/// Lets a counter follow a sum that is kept elsewhere.
fn follow(counter: &trefoil_telemetry::Counter, sum: f64) {
    counter.inc_by((sum - counter.get()).max(0.0));
}

impl AppState {
    /// Sets the metrics that tell what is, not what happened.
    pub(crate) fn refresh_metrics(&self) {
        // Two at a time would count twice what came since the last one.
        let mut last = self.last_look.lock();
        let metrics = &self.metrics;
        let mut links: BTreeMap<(String, String), (u64, f64)> = BTreeMap::new();
        let mut rows: BTreeMap<String, [u64; 2]> = BTreeMap::new();
        for model in &self.models {
            load(metrics, model);
            let Some(measured) = model.measured() else { continue };
            segments(metrics, model, &measured);
            for link in &measured.links {
                let sum = links.entry((link.from.to_string(), link.to.to_string())).or_default();
                *sum = (sum.0 + link.bytes, sum.1 + link.seconds);
            }
            for device in &measured.devices {
                let sum = rows.entry(device.device.to_string()).or_default();
                *sum = [sum[0] + device.rows[0], sum[1] + device.rows[1]];
            }
        }
        for ((from, to), (bytes, seconds)) in links {
            let labels = [from.as_str(), to.as_str()];
            follow(&metrics.transfer_bytes_total.with_label_values(&labels), bytes as f64);
            follow(&metrics.transfer_seconds_total.with_label_values(&labels), seconds);
        }
        for (device, rows) in rows {
            for (phase, rows) in [Phase::Prefill, Phase::Decode].into_iter().zip(rows) {
                let labels = [device.as_str(), phase.name()];
                follow(&metrics.device_tokens_total.with_label_values(&labels), rows as f64);
            }
        }
        self.devices_now(&mut last);
        if let Some(bytes) = resident_memory() {
            metrics
                .process_resident_memory_bytes
                .with_label_values::<&str>(&[])
                .set(bytes.0 as f64);
        }
    }

    fn devices_now(&self, last: &mut LastLook) {
        let metrics = &self.metrics;
        for device in &self.devices {
            let name = device.info().name.as_str();
            let sample = device.sample();
            let now = Instant::now();
            if let Some(busy) = sample.busy_time {
                follow(
                    &metrics.device_busy_seconds_total.with_label_values(&[name]),
                    busy.seconds(),
                );
                let seen = last.busy.insert(name.to_owned(), (now, busy));
                let since = seen.map(|(since, before)| {
                    (now.duration_since(since).as_secs_f64(), busy.since(before).seconds())
                });
                if let Some((span, worked)) = since.filter(|(span, _)| *span > 0.0) {
                    let share = (worked / span).clamp(0.0, 1.0);
                    metrics.device_utilization_ratio.with_label_values(&[name]).set(share);
                }
            }
            if let Some(watts) = sample.watts {
                metrics.device_power_watts.with_label_values(&[name]).set(watts);
            }
            if let Some(hertz) = sample.clock_hertz {
                metrics.device_clock_hertz.with_label_values(&[name, "core"]).set(hertz);
            }
            if let Some(free) = sample.free {
                metrics.device_memory_free_bytes.with_label_values(&[name]).set(free.0 as f64);
            }
            let Pool { domain, total, used } = Pool::of(self, device.as_ref());
            let pool = domain.to_string();
            let labels = [name, pool.as_str()];
            metrics.device_memory_used_bytes.with_label_values(&labels).set(used.0 as f64);
            if let Some(total) = total {
                metrics.device_memory_total_bytes.with_label_values(&labels).set(total.0 as f64);
            }
        }
    }

    /// Sets the metrics that do not change while the plans are in force.
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
            placement(metrics, model);
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

/// Queue, batch and pages.
fn load(metrics: &Metrics, model: &ServedModel) {
    let id = model.id.as_str();
    let Some(service) = model.service() else { return };
    let load = service.load();
    let waiting = service.waiting();
    metrics.requests_waiting.with_label_values(&[id]).set(waiting as f64);
    metrics.requests_running.with_label_values(&[id]).set(load.running() as f64);
    let pages = load.pages();
    for (state, count) in [("used", pages.used), ("cached", pages.cached), ("free", pages.free)] {
        metrics.kv_pages.with_label_values(&[id, state]).set(count as f64);
    }
    let evictions = metrics.kv_evictions_total.with_label_values(&[id]);
    follow(&evictions, load.evicted() as f64);
}

/// What the last steps took, beside what they should have.
fn segments(metrics: &Metrics, model: &ServedModel, measured: &Measured) {
    for bucket in &model.plan.buckets {
        let phase = bucket.bucket.phase.name();
        for index in 0..bucket.segments().len().min(MOST_SEGMENTS) {
            let last = last_steps(model, bucket, index, measured);
            let Some((last, predicted)) = last.and_then(|l| Some((l, l.predicted_seconds?))) else {
                continue;
            };
            let number = index.to_string();
            let labels = [model.id.as_str(), phase, &number];
            metrics.segment_predicted_seconds.with_label_values(&labels).set(predicted);
            if let Some(error) = last.error_ratio() {
                metrics.segment_prediction_error_ratio.with_label_values(&labels).set(error);
            }
        }
    }
}

/// The plan in force, and what it was made for.
fn placement(metrics: &Metrics, model: &ServedModel) {
    let (id, graph) = (model.id.as_str(), &model.lowered.graph);
    metrics.plan_version.with_label_values(&[id]).set(model.plan_version as f64);
    metrics.plan_timestamp_seconds.with_label_values(&[id]).set(model.created as f64);
    let planning = metrics.plan_duration_seconds.with_label_values::<&str>(&[]);
    planning.observe(model.planning.as_secs_f64());
    let objective = model.policy.policy.objective.name();
    let origin = model.policy.origin("objective");
    metrics.policy_info.with_label_values(&[objective, super::source(&origin)]).set(1.0);
    let predicted = model.costs.as_ref().and_then(|costs| {
        let bytes = model.kv_element_bytes as f64;
        let prompt = (PREDICTED_PROMPT.min(model.context), model.chunk);
        costs.request(graph, &model.plan, prompt, prompt.0, bytes)
    });
    for (phase, seconds) in
        [Phase::Prefill, Phase::Decode].into_iter().zip(predicted.iter().flatten())
    {
        metrics.plan_predicted_seconds.with_label_values(&[id, phase.name()]).set(*seconds);
    }
    for memory in &model.plan.memory {
        let pool = memory.domain.to_string();
        for (kind, bytes) in [
            ("weights", memory.weights),
            ("kv", memory.kv),
            ("activations", memory.activations),
            ("streaming", memory.streaming),
        ] {
            let labels = [id, pool.as_str(), kind];
            metrics.model_memory_bytes.with_label_values(&labels).set(bytes.0 as f64);
        }
    }
    for bucket in &model.plan.buckets {
        let phase = bucket.bucket.phase.name();
        for (device, units) in bucket.units_per_device() {
            let labels = [id, phase, device];
            metrics.placement_units.with_label_values(&labels).set(units as f64);
        }
        for ((op, device), layers) in layers_by_op(graph, bucket) {
            let labels = [id, phase, op, device];
            metrics.placement_layers.with_label_values(&labels).set(layers as f64);
        }
        for segment in Segment::all(graph, bucket).into_iter().take(MOST_SEGMENTS) {
            let (number, layers) = (segment.index.to_string(), segment.layer_range());
            let ops = segment.ops.join(" ");
            let labels = [id, phase, &number, &segment.device, &layers, &ops];
            metrics.placement_segment_info.with_label_values(&labels).set(1.0);
        }
    }
}
