//! `trefoil calibrate`, and what is planned from what it measured.

use std::path::Path;

use serde_json::Value;

use crate::support::program::{Ran, command, run, trefoil};

/// Runs the program with a cache folder of its own.
fn with_cache(cache: &Path, args: &[&str]) -> Ran {
    run(command().env("XDG_CACHE_HOME", cache).args(args), "")
}

fn kept(cache: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(cache.join("trefoil/calibration")).expect("was made");
    entries.map(|entry| entry.expect("listed").path()).collect()
}

#[test]
fn a_machine_is_measured_and_what_it_does_is_predicted() {
    let cache = tempfile::tempdir().expect("a folder");
    let profile = cache.path().join("me.toml");
    let file = profile.to_str().expect("UTF-8");
    let quick = ["calibrate", "demo", "--quick", "--device", "cpu0"];
    let document =
        with_cache(cache.path(), &[&quick[..], &["--json", "--output", file]].concat()).json();
    let device = &document["profile"]["device"][0];
    assert_eq!(device["name"], "cpu0");
    for key in ["launch", "handoff"] {
        let seconds = device[key].as_f64().expect("a number");
        assert!((0.0..0.01).contains(&seconds), "{key}: {seconds}");
    }
    let rate = device["compute"]["weights"]["q4_k"].as_f64().expect("the demo has it");
    assert!(rate > 1e8, "{rate}");
    let source = device["memory"]["source"].as_str().expect("text");
    assert!(source.starts_with("measured on 20") && source.contains(" samples"), "{source}");
    assert!(document["seconds"].as_f64().expect("a number") < 60.0);
    assert!(document["devices"][0]["samples"]["ops"].as_array().expect("a list").len() > 20);
    assert_eq!(kept(cache.path()).len(), 1);

    // The profile is one that plans are made for.
    let plan = trefoil(&["plan", "demo", "--profile", file, "--json"]).json();
    assert_eq!(plan["profile"], "this-machine");
    assert!(plan["buckets"][0]["predicted_seconds"].as_f64().expect("predicted") > 0.0);

    // A run holds its segments against it, at their own rows.
    let trace = cache.path().join("trace.json");
    let trace = trace.to_str().expect("UTF-8");
    let reply = ["run", "demo", "Hello", "-n", "4", "--temp", "0", "--device", "cpu0"];
    let ran = with_cache(cache.path(), &[&reply[..], &["-v", "--trace", trace]].concat());
    assert!(ran.stderr.contains(", predicted "), "{}", ran.stderr);
    assert!(ran.stderr.contains("cpu0   decode embed..head: "), "{}", ran.stderr);
    assert!(ran.stderr.contains("learned: cpu0 takes "), "{}", ran.stderr);
    ran.ok();
    let text = std::fs::read_to_string(trace).expect("written");
    let trace: Value = serde_json::from_str(&text).expect("JSON");
    let events = trace["traceEvents"].as_array().expect("a list");
    let spans: Vec<&Value> = events.iter().filter(|event| event["cat"] == "decode").collect();
    assert!(!spans.is_empty());
    for span in spans {
        assert_eq!(span["args"]["predicted_for"], "step", "{span}");
        assert!(span["args"]["predicted_seconds"].as_f64().expect("a number") > 0.0, "{span}");
    }

    // A damaged file is not believed, and measured again.
    let path = &kept(cache.path())[0];
    let text = std::fs::read_to_string(path).expect("reads");
    std::fs::write(path, text.replacen("\"seconds\":", "\"seconds\":9", 1)).expect("writes");
    let ran = with_cache(cache.path(), &[&reply[..], &["-v"]].concat());
    assert!(ran.stderr.contains("damaged"), "{}", ran.stderr);
    assert!(!ran.stderr.contains("predicted"), "{}", ran.stderr);
    ran.ok();
    with_cache(cache.path(), &quick).ok();
    let ran = with_cache(cache.path(), &[&reply[..], &["-v"]].concat());
    assert!(ran.stderr.contains("predicted"), "{}", ran.stderr);
}

#[test]
fn a_model_is_planned_by_cost_over_devices_that_are_named() {
    let cache = tempfile::tempdir().expect("a folder");
    // The interpreter is a device like any other, and a slow one.
    let plan = ["plan", "demo", "--device", "cpu0,ref0", "--policy", "latency", "--json"];
    let config = cache.path().join("trefoil.toml");
    std::fs::write(&config, "[policies.latency]\nobjective = \"latency\"\n").expect("writes");
    let config_file = config.to_str().expect("UTF-8");
    let plan = |more: &[&str]| {
        with_cache(cache.path(), &[&plan[..], &["--config", config_file], more].concat())
    };
    let first = plan(&[]);
    assert!(first.stderr.contains("measuring cpu0, ref0"), "{}", first.stderr);
    let first = first.json();
    assert_eq!(first["profile"], "this-machine");
    let reasons = first["reasons"].to_string();
    assert!(reasons.contains("as measured on this machine"), "{reasons}");
    assert!(reasons.contains("by a quick probe"), "{reasons}");
    let names = first["prediction"]["alternatives"].to_string();
    assert!(names.contains("ref0 alone"), "{names}");
    for unit in first["buckets"][0]["units"].as_array().expect("a list") {
        assert_eq!(unit["device"], "cpu0", "{unit}");
    }
    // What was measured is kept: the next plan is made from it.
    let second = plan(&[]);
    assert!(!second.stderr.contains("measuring"), "{}", second.stderr);
    assert_eq!(second.json()["profile"], "this-machine");
    // The plan runs.
    let file = cache.path().join("plan.json");
    std::fs::write(&file, first.to_string()).expect("writes");
    let run = ["run", "demo", "Hello", "-n", "2", "--plan", file.to_str().expect("UTF-8")];
    with_cache(cache.path(), &run).ok();

    // Never means never, and the plan says so.
    let never = "[telemetry]\ncalibrate = \"never\"\n[policies.latency]\nobjective = \"latency\"\n";
    std::fs::write(&config, never).expect("writes");
    let empty = tempfile::tempdir().expect("a folder");
    let args = ["plan", "demo", "--device", "cpu0,ref0", "--json", "--config", config_file];
    let plan = with_cache(empty.path(), &args);
    assert!(!plan.stderr.contains("measuring"), "{}", plan.stderr);
    let plan = plan.json();
    assert_eq!(plan["profile"], Value::Null);
    assert!(plan["reasons"].to_string().contains("no device's costs are known"), "{plan}");
}

#[test]
fn what_cannot_be_measured_is_said() {
    let cache = tempfile::tempdir().expect("a folder");
    let calibrate = |args: &[&str]| with_cache(cache.path(), &[&["calibrate"], args].concat());
    let got = calibrate(&["demo", "--devices", "cpu0,gpu7"]).fails(4);
    assert!(got.contains("gpu7"), "{got}");
    let got = calibrate(&["/nowhere/model.gguf"]).fails(3);
    assert!(got.contains("is not here"), "{got}");
    let config = cache.path().join("model");
    std::fs::create_dir(&config).expect("makes");
    std::fs::write(config.join("config.json"), "{}").expect("writes");
    let got = calibrate(&[config.to_str().expect("UTF-8")]).fails(3);
    assert!(got.contains("there are no weights"), "{got}");
    let quick = ["demo", "--quick", "--device", "cpu0", "--output", "/nowhere/at/all.toml"];
    let got = calibrate(&quick).fails(1);
    assert!(got.contains("/nowhere/at/all.toml"), "{got}");
}
