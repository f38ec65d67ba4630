//! Routes and metrics that let people see what happens.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::support::http::Response;
use crate::support::program::{command, run};
use crate::support::server::Server;

fn question(max_tokens: u64) -> Value {
    json!({"model": "demo", "temperature": 0, "max_tokens": max_tokens, "ignore_eos": true,
        "messages": [{"role": "user", "content": "Tell me a story about a lemon tree."}]})
}

fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap_or_else(|| panic!("not a list: {value}"))
}

#[track_caller]
fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("not a number: {value}"))
}

fn ask(server: &Server, body: &Value) -> Response {
    server.call("POST", "/v1/plan").json(body).send()
}

fn phase<'a>(plan: &'a Value, name: &str) -> &'a Value {
    list(&plan["phases"]).iter().find(|phase| phase["phase"] == name).expect("both are there")
}

/// Devices of a phase's units, by unit.
fn device<'a>(phase: &'a Value, unit: &str) -> &'a Value {
    let mut units = list(&phase["units"]).iter();
    &units.find(|one| one["unit"] == unit).expect("the demo has it")["device"]
}

#[test]
fn a_plan_says_what_runs_where_and_what_it_took() {
    // Costs that are kept on this machine would make predictions.
    let cache = tempfile::tempdir().expect("a folder");
    let folder = cache.path().to_str().expect("UTF-8");
    let pins = ["--device", "cpu0", "--pin", "decode:blk.3.ffn=ref0"];
    let server = Server::with_settings(&[("XDG_CACHE_HOME", folder)], &pins);
    let before = server.get("/v1/plan").ok();
    assert_eq!(before["object"], "plan");
    assert_eq!((&before["model"], &before["version"]), (&json!("demo"), &json!(1)));
    assert_eq!((&before["cause"], &before["objective"]), (&json!("load"), &json!("balanced")));
    assert_eq!(before["prediction"], Value::Null);
    assert!(number(&before["planning_seconds"]) >= 0.0);
    assert_eq!(list(&before["pins"])[0]["placed"], 1);
    let (prefill, decode) = (phase(&before, "prefill"), phase(&before, "decode"));
    assert_eq!(list(&prefill["segments"]).len(), 1);
    assert_eq!(prefill["measured"], Value::Null);
    assert_eq!(device(decode, "blk.3.ffn"), "ref0");
    assert_eq!(device(decode, "blk.3.attn"), "cpu0");
    assert_eq!(device(prefill, "blk.3.ffn"), "cpu0");
    let segments = list(&decode["segments"]);
    let devices: Vec<&Value> = segments.iter().map(|segment| &segment["device"]).collect();
    assert_eq!(devices, ["cpu0", "ref0", "cpu0"]);
    assert_eq!(
        (&segments[1]["first"], &segments[1]["layers"]),
        (&json!("blk.3.ffn"), &json!([3, 3]))
    );
    assert_eq!(segments[1]["ops"], json!(["norm", "mlp"]));
    // Every weight of the model is somewhere, once in each phase.
    let weights = |phase: &Value| -> f64 {
        list(&phase["segments"]).iter().map(|segment| number(&segment["weight_bytes"])).sum()
    };
    assert_eq!(weights(prefill), weights(decode));
    let memory = &list(&before["memory"])[0];
    assert_eq!((&memory["domain"], &memory["devices"]), (&json!("ram"), &json!(["cpu0", "ref0"])));
    assert!(number(&memory["kv_bytes"]) > 0.0);

    let usage = server.chat(&question(12)).ok()["usage"].clone();
    let after = server.get("/v1/plan?model=default").ok();
    // The first of the tokens came out of the prompt's last step.
    let decode = phase(&after, "decode");
    assert_eq!(decode["measured"]["steps"], 11);
    for segment in list(&decode["segments"]) {
        let measured = &segment["measured"];
        assert_eq!(measured["devices"][0]["steps"], 11, "{measured}");
        assert_eq!(measured["last"]["steps"], 8);
        assert!(number(&measured["last"]["seconds"]) > 0.0);
        assert_eq!(measured["last"]["predicted_seconds"], Value::Null);
    }
    let prompt = &phase(&after, "prefill")["measured"];
    assert_eq!(prompt["tokens"], usage["prompt_tokens"]);
    figures(&server, &usage);
    measured_in_metrics(&server);
    assert!(!server.log().contains("panicked"), "{}", server.log());
}

/// What stats, devices and health tell after one request.
fn figures(server: &Server, usage: &Value) {
    let stats = server.get("/v1/stats").ok();
    assert_eq!(stats["output_tokens"], usage["completion_tokens"]);
    assert_eq!(stats["prompt_tokens"], usage["prompt_tokens"]);
    assert_eq!(stats["input_tokens"], usage["prompt_tokens"]);
    assert_eq!((&stats["cache_tokens"], &stats["requests_total"]), (&json!(0), &json!(1)));
    assert!(number(&stats["time_to_first_token"]) > 0.0);
    assert!(number(&stats["tokens_per_second"]) > 0.0);
    let recent = list(&stats["trefoil"]["recent"]);
    assert_eq!(recent.len(), 1);
    let one = &recent[0];
    assert_eq!((&one["outcome"], &one["model"]), (&json!("length"), &json!("demo")));
    let total = number(&one["total_seconds"]);
    let parts =
        ["queue_seconds", "prefill_seconds", "decode_seconds"].map(|name| number(&one[name]));
    assert!((parts.iter().sum::<f64>() - total).abs() < 0.05 * total + 0.005, "{one}");
    assert!(number(&one["time_to_first_token"]) < total);
    // Never a word of what was said.
    assert!(!stats.to_string().contains("lemon"), "{stats}");
    let model = &stats["trefoil"]["models"][0];
    assert_eq!((&model["load"]["running"], &model["load"]["waiting"]), (&json!(0), &json!(0)));
    assert_eq!(model["steps"]["decode"]["steps"], 11);
    let devices = server.get("/v1/devices").ok();
    for name in ["cpu0", "ref0"] {
        let mut all = list(&devices["data"]).iter();
        let one = all.find(|one| one["id"] == name).expect("it is listed");
        assert_eq!(one["tokens_total"]["decode"], 11, "{one}");
        assert!(number(&one["busy_seconds_total"]) > 0.0);
        assert_eq!(one["power_watts"], Value::Null, "no sensor, no number");
        assert!(number(&one["memory"]["used_bytes"]) > 0.0);
    }
    let health = server.get("/v1/health").ok();
    let loaded = &health["all_models_loaded"][0];
    assert_eq!((&loaded["type"], &loaded["device"]), (&json!("llm"), &json!("cpu ref0")));
    let last_use = number(&loaded["last_use"]);
    assert!((last_use - number(&one["ended"])).abs() < 2.0, "{health}");
}

fn measured_in_metrics(server: &Server) {
    let of = "model=\"demo\"";
    for (segment, device) in [("0", "cpu0"), ("1", "ref0"), ("2", "cpu0")] {
        let count = format!(
            "trefoil_segment_duration_seconds_count{{device=\"{device}\",{of},phase=\"decode\",\
             segment=\"{segment}\"}}"
        );
        assert_eq!(server.metric(&count), 11.0);
    }
    let info = format!(
        "trefoil_placement_segment_info{{device=\"ref0\",layers=\"3\",{of},ops=\"norm mlp\",\
         phase=\"decode\",segment=\"1\"}}"
    );
    assert_eq!(server.metric(&info), 1.0);
    let layers = |op: &str, device: &str| {
        server.metric(&format!(
            "trefoil_placement_layers{{device=\"{device}\",{of},op=\"{op}\",phase=\"decode\"}}"
        ))
    };
    assert_eq!((layers("mlp", "cpu0"), layers("mlp", "ref0")), (7.0, 1.0));
    assert_eq!((layers("attention", "cpu0"), layers("attention", "ref0")), (8.0, 0.0));
    assert_eq!(server.metric("trefoil_plan_version{model=\"demo\"}"), 1.0);
    let policy = "trefoil_policy_info{objective=\"balanced\",source=\"default\"}";
    assert_eq!(server.metric(policy), 1.0);
    assert!(server.metric("trefoil_device_busy_seconds_total{device=\"ref0\"}") > 0.0);
    let tokens = "trefoil_device_tokens_total{device=\"ref0\",phase=\"decode\"}";
    assert_eq!(server.metric(tokens), 11.0);
    // Two looks at once count nothing twice.
    let scrapes: Vec<_> = std::thread::scope(|scope| {
        let one = || server.get("/metrics").status;
        let looks: Vec<_> = (0..8).map(|_| scope.spawn(one)).collect();
        looks.into_iter().map(|look| look.join().expect("answers")).collect()
    });
    assert!(scrapes.iter().all(|status| *status == 200));
    assert_eq!(server.metric(tokens), 11.0);
}

#[test]
fn other_policies_and_machines_can_be_asked_about() {
    let cache = tempfile::tempdir().expect("a folder");
    let folder = cache.path().to_str().expect("UTF-8");
    let server = Server::with_settings(&[("XDG_CACHE_HOME", folder)], &["--device", "cpu0"]);
    let answer = ask(&server, &json!({"policy": "energy"}));
    let error = answer.json()["error"].clone();
    assert_eq!((answer.status, &error["code"]), (409, &json!("costs_unknown")));
    assert_eq!(answer.header("x-should-retry"), Some("false"));
    assert!(error["message"].as_str().is_some_and(|m| m.contains("trefoil calibrate")), "{error}");

    let shape = json!({"prompt_tokens": 2048, "generated_tokens": 64});
    let body = json!({"model": "demo", "policy": "latency", "profile": "strix-point",
        "phase_shape": shape});
    let plan = ask(&server, &body).ok();
    assert_eq!((&plan["cause"], &plan["version"]), (&json!("what_if"), &Value::Null));
    assert_eq!((&plan["objective"], &plan["profile"]), (&json!("latency"), &json!("strix-point")));
    assert_eq!(plan["prediction"]["prompt_tokens"], 2048);
    assert!(!list(&plan["rejected"]).is_empty());
    let used = |plan: &Value| -> BTreeSet<String> {
        let phases = list(&plan["phases"]).iter();
        phases
            .flat_map(|phase| phase["units_per_device"].as_object().expect("a map").keys().cloned())
            .collect()
    };
    let all = used(&plan);
    assert!(
        all.iter().all(|device| ["cpu0", "gpu0", "npu0"].contains(&device.as_str())),
        "{all:?}"
    );
    let keys = json!({"objective": "latency", "deny_devices": ["gpu0", "npu0"]});
    let denied = ask(&server, &json!({"policy": keys, "profile": "strix-point"})).ok();
    assert_eq!(used(&denied).into_iter().collect::<Vec<_>>(), ["cpu0"]);
    // Nothing changed by asking.
    assert_eq!(server.get("/v1/plan").ok()["version"], 1);
    assert_eq!(server.get("/v1/policy").ok()["objective"], "balanced");

    for (body, code, param) in [
        (json!({"policy": "enrgy"}), "invalid_value", "policy"),
        (json!({"policy": {"objctive": "latency"}}), "invalid_value", "policy"),
        (json!({"policy": {"weights": {"ttft": -1}}}), "invalid_value", "policy"),
        (json!({"policy": 3}), "invalid_type", "policy"),
        (json!({"profile": "strix"}), "invalid_value", "profile"),
        (
            json!({"phase_shape": {"prompt_tokens": 0}}),
            "invalid_value",
            "phase_shape.prompt_tokens",
        ),
        (json!({"phase_shape": 1}), "invalid_type", "phase_shape"),
        (
            json!({"policy": {"allow_devices": ["gpu7"]}, "profile": "strix-point"}),
            "invalid_value",
            "policy",
        ),
    ] {
        let error = ask(&server, &body).error(400, code);
        assert_eq!(error["param"], param, "{body}");
    }
    ask(&server, &json!({"model": "other"})).error(404, "model_not_found");
    for path in ["/v1/plan?model=other", "/v1/policy?model=other"] {
        server.get(path).error(404, "model_not_found");
    }
    // Errors are of one form whatever is wrong.
    server.get("/v1/plan?model=a&model=b").error(400, "invalid_value");
    let pins: Vec<Value> = vec![json!({"match": "*", "device": "cpu0"}); 300];
    let many = ask(&server, &json!({"policy": {"pins": pins}, "profile": "strix-point"}));
    many.error(400, "invalid_value");
    let long = json!({"profile": "strix-point", "phase_shape":
        {"prompt_tokens": 1 << 20, "generated_tokens": 1 << 20}});
    assert!(number(&ask(&server, &long).ok()["planning_seconds"]) < 30.0);
    let odd = ask(&server, &json!({"profile": "strix-point", "colour": "red"}));
    assert_eq!((odd.status, odd.header("x-trefoil-ignored")), (200, Some("colour")));
    assert!(!server.log().contains("panicked"), "{}", server.log());
}

#[test]
fn known_costs_are_held_against_what_happens() {
    let cache = tempfile::tempdir().expect("a folder");
    let folder = cache.path().to_str().expect("UTF-8");
    let mut calibrate = command();
    calibrate.env("XDG_CACHE_HOME", folder);
    run(calibrate.args(["calibrate", "demo", "--quick", "--device", "cpu0"]), "").ok();
    let server = Server::with_settings(&[("XDG_CACHE_HOME", folder)], &["--device", "cpu0"]);
    server.chat(&question(24)).ok();
    let plan = server.get("/v1/plan").ok();
    for name in ["prefill", "decode"] {
        let last = &list(&phase(&plan, name)["segments"])[0]["measured"]["last"];
        let (measured, predicted) = (number(&last["seconds"]), number(&last["predicted_seconds"]));
        assert!(measured > 0.0 && predicted > 0.0, "{last}");
        let error = number(&last["error_ratio"]);
        assert!((error - (measured / predicted - 1.0)).abs() < 1e-9, "{last}");
        let labels = format!("{{model=\"demo\",phase=\"{name}\",segment=\"0\"}}");
        assert_eq!(server.metric(&format!("trefoil_segment_predicted_seconds{labels}")), predicted);
        let ratio = format!("trefoil_segment_prediction_error_ratio{labels}");
        assert_eq!(server.metric(&ratio), error);
        let whole = format!("trefoil_plan_predicted_seconds{{model=\"demo\",phase=\"{name}\"}}");
        assert!(server.metric(&whole) > 0.0);
    }
    let here = ask(&server, &json!({"policy": "latency"})).ok();
    assert_eq!(here["profile"], "this-machine");
    assert!(number(&here["prediction"]["totals"]["token_seconds"]) > 0.0);
    let reasons = here["reasons"].to_string();
    assert!(reasons.contains("measured on this machine"), "{reasons}");
}

#[test]
fn requests_of_every_end_are_remembered() {
    let server = Server::start(&["--max-sequences", "1", "--exact"]);
    server
        .chat(&json!({"model": "demo", "max_tokens": 2, "n": 2,
        "messages": [{"role": "user", "content": "hi"}]}))
        .ok();
    let mut endless = question(1500);
    endless["stream"] = json!(true);
    let mut gone = server.call("POST", "/v1/chat/completions").json(&endless).open();
    assert!(gone.event().is_some());
    drop(gone);
    server.wait_for_metric("trefoil_requests_total{model=\"demo\",outcome=\"cancelled\"}", 1.0);
    let stats = server.get("/v1/stats").ok();
    let recent = list(&stats["trefoil"]["recent"]);
    let outcomes: Vec<&Value> = recent.iter().map(|one| &one["outcome"]).collect();
    assert_eq!(outcomes[0], "cancelled");
    assert_eq!(recent.len(), 3);
    // Two replies to one prompt are one request, and its prompt counts once.
    assert_eq!(stats["requests_total"], 2);
    let prompts = number(&recent[0]["prompt_tokens"]) + number(&recent[1]["prompt_tokens"]);
    assert_eq!(number(&stats["prompt_tokens_total"]), prompts);
}

#[test]
fn the_page_is_open_and_what_it_shows_is_not() {
    let server = Server::start(&["--api-key", "s3cret"]);
    for (path, media) in [
        ("/", "text/html"),
        ("/page/app.js", "text/javascript"),
        ("/page/style.css", "text/css"),
        ("/page/icon.svg", "image/svg+xml"),
    ] {
        let answer = server.get(path);
        assert_eq!(answer.status, 200, "{path}");
        assert!(answer.header("content-type").is_some_and(|own| own.starts_with(media)), "{path}");
        let policy = answer.header("content-security-policy").unwrap_or_default();
        assert!(policy.starts_with("default-src 'self';"), "{policy}");
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
    }
    for path in ["plan", "policy", "devices", "system-info", "stats", "health", "models"] {
        server.get(&format!("/v1/{path}")).error(401, "invalid_api_key");
        let call = server.call("GET", &format!("/v1/{path}"));
        assert_eq!(call.header("authorization", "Bearer s3cret").send().status, 200, "{path}");
    }
    server.get("/page/").error(401, "invalid_api_key");
    server.get("/page/other.js").error(401, "invalid_api_key");
    // A page of this server may call it, under whatever name it is reached.
    let named = Server::start(&["--allowed-host", "box.lan"]);
    let from = |origin: &str| {
        let call = named.call("GET", "/v1/models").header("host", "box.lan:9378");
        call.header("origin", origin).send().status
    };
    assert_eq!(from("http://box.lan:9378"), 200);
    assert_eq!(from("http://box.lan:80"), 403);
}

#[test]
fn machines_are_described_as_lemonade_s_clients_read_them() {
    let server = Server::start(&["--device", "cpu0"]);
    let info = server.get("/v1/system-info").ok();
    assert!(info["OS Version"].as_str().is_some_and(|os| os.contains(std::env::consts::ARCH)));
    let cpu = &info["devices"]["cpu"];
    assert_eq!(cpu["available"], true);
    assert!(number(&cpu["threads"]) >= 1.0);
    assert!(list(&info["devices"]["amd_dgpu"]).is_empty());
    let stats = server.get("/api/v1/stats").ok();
    assert_eq!(stats["time_to_first_token"], Value::Null, "nothing was measured yet");
    assert_eq!(stats["prompt_tokens_total"], 0);
}
