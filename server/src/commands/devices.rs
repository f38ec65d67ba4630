//! `trefoil devices`.

use std::io::{Write, stdout};

use serde_json::json;
use trefoil_engine::backends::{BackendOptions, Backends, Gpus};
use trefoil_engine::cache;
use trefoil_telemetry::host_memory;

use crate::cli::DevicesArgs;
use crate::exit::Outcome;

pub(crate) fn run(args: &DevicesArgs) -> Outcome {
    let backends = Backends::detect(BackendOptions {
        gpus: Gpus::All,
        cache: cache::user_folder(),
        ..BackendOptions::default()
    });
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
    if let (Some(total), Some(available)) = (memory.total, memory.available) {
        writeln!(stdout(), "{:<6} {total}, {available} available", "ram")?;
    }
    Ok(())
}
