//! GET /v1/devices and /v1/system-info.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use serde_json::{Map, Value, json};
use trefoil_devices_api::{Device, DeviceKind, DomainId};
use trefoil_telemetry::{Bytes, host_memory, os_version, processor_name};

use crate::http::state::AppState;

/// Memory where a device's data goes: all that may be used, and what trefoil's buffers take of it.
pub(super) struct Pool {
    pub(super) domain: DomainId,
    pub(super) total: Option<Bytes>,
    pub(super) used: Bytes,
}

impl Pool {
    pub(super) fn of(state: &AppState, device: &dyn Device) -> Self {
        let domain = &device.domains()[0];
        let host = || (domain.id == DomainId::HOST).then(|| host_memory().total).flatten();
        Self {
            domain: domain.id,
            total: domain.size.or_else(host),
            used: state.memory.used(domain.id),
        }
    }
}

fn describe(state: &AppState, device: &dyn Device) -> Value {
    let (info, sample) = (device.info(), device.sample());
    let Pool { domain, total, used } = Pool::of(state, device);
    let mut rows = [0; 2];
    let mut work: BTreeMap<&str, Value> = BTreeMap::new();
    for model in &state.models {
        let phases = model.plan.buckets.iter().filter_map(|bucket| {
            let units = *bucket.units_per_device().get(info.name.as_str())?;
            Some((bucket.bucket.phase.name().to_owned(), json!(units)))
        });
        let phases: Map<String, Value> = phases.collect();
        if !phases.is_empty() {
            work.insert(&model.id, Value::Object(phases));
        }
        let measured = model.measured().unwrap_or_default();
        for live in measured.devices.iter().filter(|live| *live.device == *info.name) {
            rows = [rows[0] + live.rows[0], rows[1] + live.rows[1]];
        }
    }
    let holders: Map<String, Value> = state
        .memory
        .holders(domain)
        .into_iter()
        .map(|(name, bytes)| (name, json!(bytes)))
        .collect();
    json!({
        "id": info.name,
        "object": "device",
        "kind": info.kind,
        "product": info.product,
        "driver": info.driver,
        "only_when_named": info.only_when_named,
        "memory": {
            "domain": domain.to_string(),
            "total_bytes": total,
            "used_bytes": used,
            "holders": holders,
            "free_bytes": sample.free,
        },
        "busy_seconds_total": sample.busy_time.map(trefoil_telemetry::Nanos::seconds),
        "power_watts": sample.watts,
        "clock_hertz": sample.clock_hertz,
        "tokens_total": {"prefill": rows[0], "decode": rows[1]},
        "units": work,
    })
}

/// GET /v1/devices
pub(crate) async fn devices(State(state): State<Arc<AppState>>) -> axum::Json<Value> {
    let data: Vec<Value> =
        state.devices.iter().map(|device| describe(&state, device.as_ref())).collect();
    axum::Json(json!({"object": "list", "data": data, "refused": state.refused}))
}

/// GET /v1/system-info, with Lemonade's field names. Devices under names that it does not know are in
/// `trefoil`.
pub(crate) async fn system_info(State(state): State<Arc<AppState>>) -> axum::Json<Value> {
    let mut devices = Map::new();
    let (mut amd, mut nvidia, mut other) = (Vec::new(), Vec::new(), Vec::new());
    for device in &state.devices {
        let info = device.info();
        let memory = device.domains()[0].size.map(|bytes| bytes.0 as f64 / f64::from(1 << 30));
        let known = |more: Value| {
            let mut value = json!({"name": info.product, "available": true});
            super::plan::extend(&mut value, more);
            value
        };
        let gpu = || known(json!({"vram_gb": memory, "driver_version": info.driver}));
        match info.kind {
            DeviceKind::Cpu => {
                let threads = std::thread::available_parallelism().ok().map(usize::from);
                let more = json!({"threads": threads, "family": std::env::consts::ARCH});
                devices.insert("cpu".to_owned(), known(more));
            }
            DeviceKind::Gpu => {
                let shared = device.domains()[0].id == DomainId::HOST;
                let product = info.product.to_lowercase();
                let is_amd = product.contains("amd") || product.contains("radeon");
                match () {
                    () if is_amd && shared => {
                        devices.insert("amd_igpu".to_owned(), gpu());
                    }
                    () if is_amd => amd.push(gpu()),
                    () if product.contains("nvidia") => nvidia.push(gpu()),
                    () => other.push(info.name.clone()),
                }
            }
            DeviceKind::Npu => {
                devices.insert("amd_npu".to_owned(), known(json!({"driver_version": info.driver})));
            }
            DeviceKind::Reference | DeviceKind::Simulated => other.push(info.name.clone()),
        }
    }
    devices.insert("amd_dgpu".to_owned(), Value::Array(amd));
    devices.insert("nvidia_dgpu".to_owned(), Value::Array(nvidia));
    let memory = host_memory().total;
    let memory = memory.map(|bytes| format!("{:.1} GB", bytes.0 as f64 / f64::from(1 << 30)));
    axum::Json(json!({
        "OS Version": os_version(),
        "Processor": processor_name(),
        "Physical Memory": memory,
        "devices": devices,
        "trefoil": {"other_devices": other, "refused": state.refused},
    }))
}
