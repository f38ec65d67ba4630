//! `trefoil plan` for a machine by its profile.

use serde_json::Value;

use crate::support::program::trefoil;

/// A small model on a machine with a card.
const CARD: [&str; 5] = ["plan", "--shape", "qwen3-0.6b", "--profile", "desktop-radeon"];

#[test]
fn a_known_shape_is_planned_on_a_shipped_machine() {
    let text = trefoil(&CARD).ok();
    for part in ["predicted for a prompt of 512", "gpu0 alone", "cpu0 alone", "lower bound", "why:"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    let plan = trefoil(&[&CARD[..], &["--json", "--objective", "latency"]].concat()).json();
    assert_eq!(plan["profile"], "desktop-radeon");
    assert!(plan["prediction"]["gap"].as_f64().expect("a number") <= 0.01);
    let both = trefoil(&[&CARD[..], &["--problem"]].concat()).json();
    let units = both["problem"]["units"].as_array().expect("a list").len();
    assert_eq!(both["solution"]["homes"].as_array().expect("a list").len(), units);
    assert_eq!(units, 2 + 4 * 28);
}

#[test]
fn unknown_names_are_answered_with_the_nearest() {
    let plan = |args: &[&str]| trefoil(&[&["plan"], args].concat());
    let got = plan(&["--shape", "qwen3-8", "--profile", "phoenix"]).fails(2);
    assert!(got.contains("did you mean qwen3-8b?"), "{got}");
    let got = plan(&["demo", "--profile", "phoenixx"]).fails(2);
    assert!(got.contains("did you mean \"phoenix\"?"), "{got}");
    let got = plan(&["demo", "--profile", "phoenix", "--device", "gpu1"]).fails(2);
    assert!(got.contains("did you mean gpu0?"), "{got}");
    let got = plan(&["--shape", "qwen2.5-32b", "--quant", "F16", "--profile", "krackan"]).fails(4);
    assert!(got.contains("does not fit") && got.contains("ram has"), "{got}");
    let got = plan(&["demo", "--profile", "phoenix", "--policy", "latenci"]).fails(2);
    assert!(got.contains("did you mean \"latency\"?"), "{got}");
    let got = plan(&["demo", "--profile", "phoenix", "--pin", "blk.*.fnn=gpu0"]).fails(2);
    assert!(got.contains("names no unit or op") && got.contains("did you mean blk."), "{got}");
    for flag in ["--simulate", "--problem", "--what-if=ram.size=1GiB", "--objective=energy"] {
        let got = plan(&["demo", flag]).fails(2);
        assert!(got.contains("--profile") && got.contains("strix-point"), "{got}");
    }
    let got = plan(&["demo", "--quant", "Q8_0", "--profile", "phoenix"]).fails(2);
    assert!(got.contains("--quant") && got.contains("own types"), "{got}");
}

#[test]
fn a_change_of_the_machine_is_shown_against_the_machine_as_it_is() {
    let plan = |args: &[&str]| trefoil(&[&CARD[..], &["--policy", "latency"], args].concat());
    let slow = plan(&["--what-if", "gpu0.memory.bandwidth=1e10", "--what-if", "ram.size=64GiB"]);
    let text = slow.ok();
    for part in
        ["gpu0.memory.bandwidth=1e10", "tokens/s", "before", "decode, up to 1", "gpu0 -> cpu0"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    let both = plan(&["--what-if", "gpu0.memory.bandwidth=1e10", "--json"]).json();
    let seconds =
        |of: &str| both[of]["prediction"]["totals"]["token_seconds"].as_f64().expect("a number");
    assert!(seconds("after") > 1.1 * seconds("before"), "{both}");
    let same = plan(&["--what-if", "ram.size=64GiB"]).ok();
    assert_eq!(same.matches("placed as before").count(), 2, "{same}");
    assert!(same.contains("+0.0 %"), "{same}");
    let got = plan(&["--what-if", "gpu0.memory.bandwith=1"]).fails(2);
    assert!(got.contains("did you mean \"bandwidth\"?"), "{got}");
    let got = plan(&["--what-if", "gpu0"]).fails(2);
    assert!(got.contains("KEY=VALUE"), "{got}");
    let got = plan(&["--what-if", "ram.size=1MiB", "--what-if", "vram0.size=1MiB"]).fails(4);
    assert!(got.contains("does not fit"), "{got}");
}

#[test]
fn machines_and_policies_are_compared_in_one_table() {
    let plan = |list: &str, more: &[&str]| {
        trefoil(&[&["plan", "--shape", "qwen3-8b", "--compare", list], more].concat())
    };
    let text = plan("strix-point,krackan,latency,energy", &[]).ok();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 5, "{text}");
    assert!(lines[0].starts_with("profile") && lines[0].ends_with("gap"), "{text}");
    assert!(lines[1].starts_with("strix-point") && lines[4].starts_with("krackan"), "{text}");
    let rows = plan("strix-point,latency,energy", &["--json"]).json();
    let of = |row: usize, key: &str| rows[row]["totals"][key].as_f64().expect("a number");
    assert!(of(0, "token_seconds") <= of(1, "token_seconds") * 1.01, "{rows}");
    assert!(of(1, "token_joules") <= of(0, "token_joules") * 1.01, "{rows}");
    let one = plan("energy", &["--profile", "krackan", "--json"]).json();
    assert_eq!(one[0]["profile"], "krackan");
    // What cannot be done is a line of the table; nothing but such lines is a failure.
    let big = ["plan", "--shape", "qwen2.5-32b", "--quant", "Q6_K", "--compare"];
    let text = trefoil(&[&big[..], &["strix-halo,krackan"]].concat()).ok();
    assert!(text.lines().any(|line| line.starts_with("krackan") && line.contains("does not fit")));
    trefoil(&[&big[..], &["krackan"]].concat()).fails(4);
    let got = plan("strix-pont", &[]).fails(2);
    assert!(got.contains("did you mean \"strix-point\"?"), "{got}");
    let got = plan("energy", &[]).fails(2);
    assert!(got.contains("expected a profile"), "{got}");
}

#[test]
fn the_placement_is_drawn() {
    let text = trefoil(&[&CARD[..], &["--dot", "--pin", "blk.3.ffn=cpu0"]].concat()).ok();
    assert_eq!(text.matches("subgraph cluster_").count(), 2);
    assert_eq!(text.matches("fillcolor").count(), 2 * (2 + 4 * 28));
    assert_eq!(text.matches('{').count(), text.matches('}').count());
    assert!(text.contains("\"blk.3.ffn\\ncpu0\""), "{text}");
    // To the processor and back, in both phases.
    assert_eq!(text.matches("penwidth").count() % 2, 0);
    assert!(text.matches("penwidth").count() >= 4, "{text}");
    let here = trefoil(&["plan", "demo", "--dot", "--pin", "head=ref0"]).ok();
    assert!(here.contains("\"head\\nref0\"") && !here.contains("penwidth"), "{here}");
}

#[test]
fn a_plan_is_simulated_and_traced() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("trace.json");
    let file = path.to_str().expect("a plain path");
    let base = ["plan", "--shape", "qwen3-0.6b", "--profile", "strix-point", "--prompt", "1100"];
    let flags = ["--simulate", "--pin", "prefill:blk.1*=npu0", "--trace", file];
    let all = [&base[..], &["--generate", "3", "--policy", "latency"], &flags].concat();
    let text = trefoil(&all).ok();
    for part in ["in 3 chunks", "chunks in turn", "chunks overlapped", "npu0", "waiting"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let trace = std::fs::read_to_string(&path).expect("was written");
    let trace: Value = serde_json::from_str(&trace).expect("JSON");
    let events = trace["traceEvents"].as_array().expect("a list");
    assert!(events.iter().any(|event| event["ph"] == "X" && event["cat"] == "decode"));
    let json = trefoil(&[&all[..], &["--json"]].concat()).json();
    let total = |of: &str| json[of]["totals"]["first_token_seconds"].as_f64().expect("a number");
    assert!(total("overlapped") <= total("in_turn"), "{json}");
    let predicted = json["predicted"]["first_token_seconds"].as_f64().expect("a number");
    assert!((total("in_turn") / predicted - 1.0).abs() < 0.1, "{json}");
    let long = [&base[..], &["--generate", "9000000", "--simulate"]].concat();
    assert!(trefoil(&long).fails(2).contains("fewer tokens"));
    let bad = [&base[..], &["--simulate", "--trace", "/nowhere/trace.json"]].concat();
    assert!(trefoil(&bad).fails(1).contains("/nowhere/trace.json"));
}

#[test]
fn a_configuration_of_a_model_is_planned_without_its_weights() {
    let folder = tempfile::tempdir().expect("a folder");
    let carried = trefoil_tests::golden::data().join("models/qwen3moe/config.json");
    let path = folder.path().join("config.json");
    std::fs::copy(carried, &path).expect("copies");
    for model in [folder.path(), &path] {
        let model = model.to_str().expect("a plain path");
        let plan =
            trefoil(&["plan", model, "--profile", "phoenix", "--quant", "F16", "--json"]).json();
        assert_eq!(plan["model"]["architecture"], "qwen3moe");
        assert_eq!(plan["buckets"][0]["units"].as_array().expect("a list").len(), 2 + 4 * 2);
        let got = trefoil(&["plan", model]).fails(2);
        assert!(got.contains("no weights") && got.contains("--profile"), "{got}");
    }
    std::fs::write(&path, "{\"model_type\": \"lama\"}").expect("writes");
    let got = trefoil(&["plan", path.to_str().expect("plain"), "--profile", "phoenix"]).fails(3);
    assert!(got.contains("model_type") && got.contains("lama"), "{got}");
}

#[test]
fn what_is_wrong_with_a_profile_a_policy_or_a_plan_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("writes");
        path.to_str().expect("a plain path").to_owned()
    };
    let good = include_str!("../../scheduler/profiles/krackan.toml");
    for (from, to, parts) in [
        ("size = \"32GiB\"", "size = \"lots\"", ["line", "lots"]),
        ("base_power = ", "base_powr = ", ["line 3", "did you mean \"base_power\"?"]),
        ("domain = \"ram\"", "domain = \"rom\"", ["cpu0.domain", "did you mean \"ram\"?"]),
        ("peak = ", "peak = -", ["line", "operations per second"]),
        ("kind = \"npu\"", "kind = \"nqu\"", ["nqu", "did you mean \"npu\"?"]),
        ("usable = 0.75", "", ["line", "missing field `usable`"]),
    ] {
        assert!(good.contains(from), "{from}");
        let file = write("own.toml", &good.replacen(from, to, 1));
        let got = trefoil(&["plan", "demo", "--profile", &file]).fails(2);
        assert!(parts.iter().all(|part| got.contains(part)), "{from}: {got}");
        assert!(got.contains("own.toml") || got.contains("profile krackan"), "{got}");
    }
    let got = trefoil(&["plan", "demo", "--profile", "/nowhere/x.toml"]).fails(2);
    assert!(got.contains("/nowhere/x.toml"), "{got}");

    let config = |text: &str, code: i32| {
        let file = write("trefoil.toml", text);
        trefoil(&["plan", "demo", "--profile", "krackan", "--config", &file]).fails(code)
    };
    let got = config("[policy]\nmax_device_memory = { ram = '1MiB' }", 4);
    assert!(got.contains("does not fit") && got.contains("ram has"), "{got}");
    let got = config("[policy]\nmax_device_memory = { rum = '1MiB' }", 2);
    assert!(got.contains("max_device_memory") && got.contains("did you mean \"ram\"?"), "{got}");
    let got = config("[policy]\nmax_power_watts = 1", 2);
    assert!(got.contains("limits that leave one of") && got.contains("at most 1 W"), "{got}");
    let got = config("[policy]\npins = [{ match = 'blk.*.fnn', device = 'gpu0' }]", 2);
    assert!(got.contains("blk.*.fnn") && got.contains("did you mean blk."), "{got}");
    let got = config("[policy]\npins = [{ match = 'head', device = 'gpu1' }]", 2);
    assert!(got.contains("gpu1") && got.contains("did you mean gpu0?"), "{got}");

    let plan = trefoil(&["plan", "demo", "--json"]).ok();
    let run = |text: &str| {
        let file = write("plan.json", text);
        trefoil(&["run", "demo", "hi", "-n", "1", "--plan", &file]).fails(2)
    };
    let got = run(&plan.replacen("\"version\": 1", "\"version\": 7", 1));
    assert!(got.contains("expected version 1, got 7") && got.contains("trefoil plan"), "{got}");
    let other = trefoil(&["plan", "--shape", "qwen3-0.6b", "--profile", "krackan", "--json"]).ok();
    let got = run(&other);
    assert!(got.contains("expected model") && got.contains("for this model"), "{got}");
    let got = run(&plan.replace("cpu0", "gpu0x"));
    assert!(got.contains("gpu0x") && got.contains("did you mean cpu0?"), "{got}");
}
