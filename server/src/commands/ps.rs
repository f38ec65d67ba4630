//! `trefoil ps`: what a server that runs has loaded, and where.

use std::io::{Write, stdout};
use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};
use trefoil_telemetry::Bytes;

use super::serve::api_key;
use crate::client::Client;
use crate::config::Config;
use crate::exit::Outcome;

#[derive(Debug, Args)]
pub(crate) struct PsArgs {
    /// Address of the server [default: server.host, 127.0.0.1]
    #[arg(long)]
    host: Option<String>,
    /// Its port [default: server.port, 9378]
    #[arg(long)]
    port: Option<u16>,
    /// Its key; better in TREFOIL_API_KEY or a file
    #[arg(long, value_name = "KEY")]
    api_key: Option<String>,
    /// File that holds the key
    #[arg(long, value_name = "FILE", conflicts_with = "api_key")]
    api_key_file: Option<PathBuf>,
    /// Print one JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

pub(crate) fn run(args: &PsArgs, config: &Config) -> Outcome {
    let server = &config.sections.server;
    let key = api_key(args.api_key_file.as_deref(), args.api_key.as_deref(), server)?;
    let host = args.host.as_deref().unwrap_or(&server.host);
    let client = Client::new(host, args.port.unwrap_or(server.port), key);
    let models = client.get("/v1/models")?;
    let stats = client.get("/v1/stats")?;
    let mut loaded = Vec::new();
    for model in list(&models["data"]) {
        let id = model["id"].as_str().unwrap_or_default();
        let plan = client.get(&format!("/v1/plan?model={}", escaped(id)))?;
        let own = list(&stats["trefoil"]["models"]).iter().find(|own| own["model"] == id);
        let load = own.map_or(&Value::Null, |own| &own["load"]);
        loaded.push(describe(model, &plan, load));
    }
    let mut out = stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&json!({"models": loaded}))?)?;
        return Ok(());
    }
    for model in &loaded {
        writeln!(out, "{}", line(model))?;
    }
    Ok(())
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// A model as JSON: what it is, the share of its parts on each device in both phases, its load.
fn describe(model: &Value, plan: &Value, load: &Value) -> Value {
    let placement = list(&plan["phases"]).iter().filter_map(|phase| {
        let counts = phase["units_per_device"].as_object()?;
        let all: f64 = counts.values().filter_map(Value::as_f64).sum();
        let share = |count: &Value| json!(count.as_f64().unwrap_or(0.0) / all.max(1.0));
        let shares = counts.iter().map(|(device, count)| (device.clone(), share(count)));
        Some((phase["phase"].as_str()?.to_owned(), Value::Object(shares.collect())))
    });
    json!({
        "model": model["id"],
        "size_bytes": model["trefoil"]["size_bytes"],
        "context_length": model["trefoil"]["context_length"],
        "plan_version": plan["version"],
        "placement": Value::Object(placement.collect()),
        "running": load["running"],
        "waiting": load["waiting"],
    })
}

/// `npu0`, or `gpu0 62% cpu0 38%`, the larger shares first.
fn devices(shares: &Value) -> String {
    let shares = shares.as_object().into_iter().flatten();
    let mut shares: Vec<(&String, f64)> =
        shares.map(|(device, share)| (device, share.as_f64().unwrap_or(0.0))).collect();
    shares.sort_by(|a, b| b.1.total_cmp(&a.1));
    match &shares[..] {
        [(device, _)] => (*device).clone(),
        _ => {
            let parts =
                shares.iter().map(|(device, share)| format!("{device} {:.0}%", share * 100.0));
            parts.collect::<Vec<_>>().join(" ")
        }
    }
}

/// `demo  17.4 MiB  context 2048  prefill npu0 · decode gpu0 62% cpu0 38%  1 running, 0 waiting`
fn line(model: &Value) -> String {
    let text = |name: &str| model[name].as_str().unwrap_or_default().to_owned();
    let count = |name: &str| model[name].as_u64();
    let phases = model["placement"].as_object().into_iter().flatten();
    // The prompt comes first.
    let mut phases: Vec<(&String, &Value)> = phases.collect();
    phases.sort_by(|a, b| b.0.cmp(a.0));
    let placement = phases.iter().map(|(phase, shares)| format!("{phase} {}", devices(shares)));
    let mut parts = vec![text("model")];
    parts.extend(count("size_bytes").map(|bytes| Bytes(bytes).to_string()));
    parts.extend(count("context_length").map(|tokens| format!("context {tokens}")));
    parts.push(placement.collect::<Vec<_>>().join(" · "));
    if let (Some(running), Some(waiting)) = (count("running"), count("waiting")) {
        parts.push(format!("{running} running, {waiting} waiting"));
    }
    parts.join("  ")
}

/// An id as it may stand in a query.
fn escaped(id: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    id.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_one_line() {
        let plan = json!({"version": 1, "phases": [
            {"phase": "prefill", "units_per_device": {"npu0": 34}},
            {"phase": "decode", "units_per_device": {"cpu0": 13, "gpu0": 21}},
        ]});
        let model = json!({"id": "demo", "trefoil": {"size_bytes": 2048, "context_length": 99}});
        let load = json!({"running": 2, "waiting": 0});
        assert_eq!(
            line(&describe(&model, &plan, &load)),
            "demo  2.0 KiB  context 99  prefill npu0 · decode gpu0 62% cpu0 38%  2 running, 0 waiting"
        );
        // An encoder has no queue that is told of.
        let alone = describe(&model, &plan, &Value::Null);
        assert!(line(&alone).ends_with("cpu0 38%"), "{}", line(&alone));
        assert_eq!(escaped("a/b c:é"), "a%2Fb%20c%3A%C3%A9");
    }
}
