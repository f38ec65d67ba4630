//! `trefoil devices`.

use std::io::{Write, stdout};

use serde_json::json;
use trefoil_engine::backends::npu::{NpuDevice, Provider};
use trefoil_engine::backends::{BackendOptions, Backends, Gpus, Npus};
use trefoil_engine::cache;
use trefoil_telemetry::host_memory;

use crate::cli::{DevicesArgs, Global};
use crate::config::Config;
use crate::exit::Outcome;

/// How the devices are looked for: all of them; the NPU as the configuration says.
fn options(config: &Config) -> BackendOptions {
    let mut npu = config.npu();
    let searched = npu.provider == Provider::Auto;
    // Nobody asked for an NPU: libraries of the current folder are left alone.
    npu.local = !searched;
    // A stand-in that is configured is shown as well.
    let named = if searched { Vec::new() } else { vec!["npu0".to_owned()] };
    BackendOptions {
        gpus: Gpus::All,
        npus: Npus::All,
        npu,
        named,
        cache: cache::user_folder(),
        ..BackendOptions::default()
    }
}

pub(crate) fn run(args: &DevicesArgs, global: &Global, config: &Config) -> Outcome {
    let backends = Backends::detect(options(config));
    let memory = host_memory();
    if args.json {
        let devices: Vec<_> = backends
            .devices
            .iter()
            .map(|device| {
                let sample = device.sample();
                json!({
                    "info": device.info(),
                    "domains": device.domains().iter().map(|d| json!({
                        "domain": d.id.to_string(), "bytes": d.size.map(|b| b.0),
                    })).collect::<Vec<_>>(),
                    "free_bytes": sample.free.map(|b| b.0),
                })
            })
            .collect();
        let document = json!({
            "devices": devices,
            "refused": backends.refused,
            "npu": backends.npu.as_ref().map(|npu| json!({
                "library": npu.library(), "form": npu.form().name(), "refused": npu.refused(),
            })),
            "vulkan": backends.adapters.iter().map(|(name, adapter)| json!({
                "name": name, "adapter": adapter,
            })).collect::<Vec<_>>(),
            "ram": {"total": memory.total.map(|b| b.0), "available": memory.available.map(|b| b.0)},
        });
        writeln!(stdout(), "{}", serde_json::to_string_pretty(&document)?)?;
        return Ok(());
    }
    for device in &backends.devices {
        let info = device.info();
        let mark = if info.only_when_named { "  (only when named)" } else { "" };
        writeln!(stdout(), "{:<6} {}{mark}", info.name, info.product)?;
    }
    for refused in &backends.refused {
        writeln!(stdout(), "{:<6} not used: {}", refused.name, refused.reason)?;
    }
    for (name, adapter) in &backends.adapters {
        writeln!(stdout(), "{name:<6} {}: {}", adapter.name, adapter.summary())?;
    }
    if let Some(npu) = backends.npu.as_ref().filter(|_| global.verbose > 0) {
        about_npu(npu)?;
    }
    if let (Some(total), Some(available)) = (memory.total, memory.available) {
        writeln!(stdout(), "{:<6} {total}, {available} available", "ram")?;
    }
    Ok(())
}

/// What is known of the NPU, and what its provider refused to compile so far.
fn about_npu(npu: &NpuDevice) -> std::io::Result<()> {
    let mut out = stdout().lock();
    let kept = if npu.keeps_compiled() { "kept" } else { "compiled anew by every process" };
    writeln!(out, "       {}; segments are {kept}", npu.library().display())?;
    let refused = npu.refused();
    if refused.is_empty() {
        writeln!(
            out,
            "       refused no segment so far; `trefoil prepare MODEL` asks for a model's"
        )?;
    }
    for refused in refused {
        writeln!(out, "       refused: {}: {}", refused.segment, refused.reason)?;
    }
    Ok(())
}
