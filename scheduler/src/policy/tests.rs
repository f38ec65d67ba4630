use trefoil_devices_api::{Bucket, Phase};
use trefoil_graph::shape::{ModelShape, uniform};
use trefoil_graph::{BlockType, LowerOptions, lower};

use super::*;
use crate::ModelRef;
use crate::cost::Corrections;
use crate::planner::{PlanRequest, plan};
use crate::profile::shipped;

const DEFAULTS: &str = r#"
[server]
port = 9378
[policy]
objective = "balanced"
weights = { ttft = 1.0, decode = 1.0, energy = 0.3, memory = 0.1 }
phases = "split"
max_power_watts = 0
max_temperature_celsius = 0
max_device_memory = { gpu0 = "80%", ram = "70%" }
reserve_memory = "1GiB"
min_npu_prompt_tokens = 64
allow_devices = ["*"]
deny_devices = []
pins = []
unmet_pins = "error"
replan = "auto"
replan_min_interval = "10s"
replan_gain = 0.10
drift_threshold = 0.25
"#;

fn file(source: &str, text: &str) -> PolicyFile {
    PolicyFile::parse(source, text).expect("valid")
}

#[test]
fn the_documented_defaults_are_the_defaults() {
    let files = [file("all", DEFAULTS)];
    let resolved = Resolved::new(&files, None, None).expect("valid");
    assert_eq!(resolved.policy, Policy::default());
    let named: Vec<&str> = resolved.origins.keys().copied().collect();
    let mut keys = Policy::KEYS.to_vec();
    keys.sort_unstable();
    assert_eq!(named, keys, "every key is documented");
}

#[test]
fn later_files_names_and_the_battery_are_laid_over_one_another() {
    let system = "[policy]\nobjective = 'throughput'\nreplan_gain = 0.5\n\
                  [policies.quiet]\nobjective = 'energy'\nmax_power_watts = 20\n";
    let user = "[policy]\nreplan_gain = 0.2\n[policy.on_battery]\nobjective = 'energy'\n\
                max_power_watts = 15\nbelow_charge = 0.5\n[policies.fast]\nobjective = 'latency'\n";
    let files = [file("system", system), file("user", user)];
    let resolve = |name, charge| Resolved::new(&files, name, charge).expect("valid");
    let plain = resolve(None, None);
    assert_eq!((plain.policy.objective, plain.policy.replan_gain.get()), (Goal::Throughput, 0.2));
    assert_eq!(plain.origins["objective"], "system [policy]");
    assert_eq!(plain.origins["replan_gain"], "user [policy]");
    assert_eq!((plain.name.as_str(), plain.origins.get("phases")), ("throughput", None));
    let quiet = resolve(Some("quiet"), None);
    assert_eq!(quiet.policy.max_power_watts.get(), 20.0);
    assert_eq!(quiet.origins["objective"], "system [policies.quiet]");
    let battery = resolve(Some("fast"), Some(0.4));
    assert_eq!(battery.policy.objective, Goal::Energy);
    assert_eq!(battery.origins["max_power_watts"], "user [policy.on_battery]");
    assert_eq!(resolve(Some("fast"), Some(0.6)).policy.objective, Goal::Latency);
    let unknown = Resolved::new(&files, Some("quite"), None).expect_err("none").to_string();
    assert!(unknown.ends_with("known are: fast, quiet; did you mean \"quiet\"?"), "{unknown}");
}

#[test]
fn what_is_wrong_is_named_with_its_line_and_the_nearest_key() {
    let fail = |text: &str| PolicyFile::parse("trefoil.toml", text).expect_err("wrong").to_string();
    let got = fail("[policy]\nobjectve = 'latency'");
    assert!(got.contains("line 2") && got.ends_with("did you mean \"objective\"?"), "{got}");
    let got = fail("[policy]\nobjective = 'latenzy'");
    assert!(got.contains("'latenzy'") && got.ends_with("did you mean \"latency\"?"), "{got}");
    let got = fail("[polcy]\nobjective = 'latency'");
    assert!(got.ends_with("did you mean \"policy\"?"), "{got}");
    let got = fail("[policies.x]\nweights = { speed = 1 }");
    assert!(got.contains("unknown field `speed`"), "{got}");
    let got = fail("[policy]\npins = [{ match = 'blk.*', device = 'gpu0', phse = 'decode' }]");
    assert!(got.ends_with("did you mean \"phase\"?"), "{got}");
    for (value, part) in [
        ("max_device_memory = { gpu0 = '120%' }", "120%"),
        ("reserve_memory = 'much'", "much"),
        ("replan_min_interval = '10 parsecs'", "10 parsecs"),
        ("replan_gain = 7", "got 7"),
        ("max_power_watts = -1", "got -1"),
    ] {
        let got = fail(&format!("[policy]\n{value}"));
        assert!(got.contains("line 2") && got.contains(part), "{got}");
    }
    let weights = file("x", "[policy]\nweights = { ttft = 0, decode = 0, energy = 0 }");
    let got = Resolved::new(&[weights], None, None).expect_err("all zero").to_string();
    assert!(got.starts_with("weights (x [policy])"), "{got}");
}

#[test]
fn a_policy_shapes_the_plan() {
    let shape = ModelShape::find("llama-3.2-1b").expect("known");
    let model = shape.without_weights(uniform(BlockType::Q4_K)).expect("reserves");
    let (_, graph) = lower(&model, LowerOptions::default()).expect("lowers");
    let (profile, corrections) = (shipped("strix-point").expect("ships"), Corrections::default());
    let bucket = |phase, max_tokens| Bucket { phase, min_tokens: 1, max_tokens, max_outputs: 1 };
    let buckets = [bucket(Phase::Prefill, 512), bucket(Phase::Decode, 1)];
    let planned = |text: &str| {
        let resolved = Resolved::new(&[file("x", text)], None, None).expect("valid");
        let model =
            ModelRef { fingerprint: String::new(), architecture: String::new(), name: None };
        let mut request = PlanRequest::new(model, &graph, &profile, &corrections, &buckets);
        resolved.apply(&mut request).map_err(|error| error.to_string())?;
        plan(&request).map(|planned| planned.plan).map_err(|error| error.to_string())
    };
    let devices = |text: &str| -> Vec<Vec<String>> {
        let plan = planned(text).expect("fits");
        let of = |bucket: &crate::BucketPlan| {
            bucket.units_per_device().keys().map(|name| (*name).to_owned()).collect()
        };
        plan.buckets.iter().map(of).collect()
    };
    let deny = "[policy]\nobjective = 'latency'\ndeny_devices = ['gpu?', 'npu0']";
    assert_eq!(devices(deny), [["cpu0"], ["cpu0"]]);
    let low = "[policy]\nobjective = 'latency'\nmax_power_watts = 12";
    assert_eq!(devices(low), [["npu0"], ["npu0"]], "only the NPU stays below 12 W");
    let joint = planned("[policy]\nphases = 'joint'\nobjective = 'energy'").expect("fits");
    assert_eq!(joint.buckets[0].units, joint.buckets[1].units);
    let short = "[policy]\nobjective = 'energy'\nmin_npu_prompt_tokens = 4096";
    assert!(!devices(short)[0].contains(&"npu0".to_owned()));
    let error = planned("[policy]\ndeny_devices = ['gpu1']").expect_err("no such device");
    assert!(error.ends_with("did you mean \"gpu0\"?"), "{error}");
    let error = planned("[policy]\nallow_devices = ['npu*']\ndeny_devices = ['*']");
    assert!(error.expect_err("none left").contains("limits that leave one of"));
    let error = planned("[policy]\nmax_device_memory = { rom = '1GiB' }").expect_err("no such");
    assert!(error.ends_with("did you mean \"ram\"?"), "{error}");
    let error = planned("[policy]\nmax_device_memory = { ram = '1GiB' }").expect_err("no room");
    assert!(error.contains("does not fit"), "{error}");
}
