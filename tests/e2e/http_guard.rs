//! What every request passes: ids, hosts, origins, keys, content types, sizes; and the small routes.

use serde_json::{Value, json};

use crate::support::program::command;
use crate::support::server::Server;

const CHAT: &str = "/v1/chat/completions";

fn short(extra: Value) -> Value {
    let mut body = json!({
        "model": "demo", "max_tokens": 1, "temperature": 0,
        "messages": [{"role": "user", "content": "hi"}],
    });
    let (Value::Object(body_fields), Value::Object(extra)) = (&mut body, extra) else {
        panic!("expected objects");
    };
    body_fields.extend(extra);
    body
}

#[test]
fn requests_are_checked_before_they_are_read() {
    let server = Server::start(&["--allowed-host", "box.lan"]);
    request_ids(&server);
    hosts_and_origins(&server);
    content_types_and_sizes(&server);
    routes(&server);
    models(&server);
    unknown_fields(&server);
    assert!(!server.log().contains("panicked"), "{}", server.log());
}

fn request_ids(server: &Server) {
    let answer = server.call("GET", "/health").header("x-request-id", "my-id_7").send();
    assert_eq!(answer.header("x-request-id"), Some("my-id_7"));
    let mut seen = std::collections::BTreeSet::new();
    for bad in ["", "with space", "semi;colon", &"x".repeat(65)] {
        let answer = server.call("GET", "/nothing").header("x-request-id", bad).send();
        let made = answer.header("x-request-id").expect("always there").to_owned();
        assert_ne!(made, bad);
        assert!(made.len() <= 64 && made.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'));
        assert!(seen.insert(made), "ids differ");
    }
}

fn hosts_and_origins(server: &Server) {
    for good in ["localhost", "localhost:1", "127.0.0.1:9378", "[::1]:80", "box.lan", "BOX.LAN:5"] {
        assert_eq!(server.call("GET", "/health").header("host", good).send().status, 200, "{good}");
    }
    for bad in ["evil.example", "localhost.evil.example", "10.0.0.1", "box.lan.evil"] {
        let answer = server.call("GET", "/health").header("host", bad).send();
        let error = answer.error(403, "host_not_allowed");
        assert!(error["message"].as_str().is_some_and(|m| m.contains(bad)), "{error}");
    }
    server.call("GET", "/health").header("host", "").send().error(403, "host_not_allowed");
    let with = |origin: &str| server.call("GET", "/v1/models").header("origin", origin).send();
    let answer = with("http://localhost:3000");
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("access-control-allow-origin"), Some("http://localhost:3000"));
    assert_eq!(answer.header("vary").map(str::to_ascii_lowercase).as_deref(), Some("origin"));
    for bad in ["https://evil.example", "null", "http://localhost.evil.example"] {
        let answer = with(bad);
        answer.error(403, "origin_not_allowed");
        assert_eq!(answer.header("access-control-allow-origin"), None);
    }
    let answer = server
        .call("OPTIONS", CHAT)
        .header("origin", "http://127.0.0.1:8000")
        .header("access-control-request-method", "POST")
        .send();
    assert_eq!(answer.status, 204);
    let allowed = answer.header("access-control-allow-headers").unwrap_or_default();
    assert!(allowed.contains("authorization") && allowed.contains("content-type"), "{allowed}");
}

fn content_types_and_sizes(server: &Server) {
    let post = |kind: &str, body: &str| {
        server.call("POST", CHAT).header("content-type", kind).body(body).send()
    };
    for bad in ["", "text/plain", "application/x-www-form-urlencoded", "application/jsonx"] {
        post(bad, "{}").error(415, "unsupported_media_type");
    }
    let body = short(json!({})).to_string();
    for good in ["application/json", "Application/JSON; charset=utf-8"] {
        assert_eq!(post(good, &body).status, 200, "{good}");
    }
    for (bad, code) in [
        ("", "invalid_json"),
        ("{", "invalid_json"),
        ("[]", "invalid_type"),
        ("\"text\"", "invalid_type"),
        ("{\"model\":\"demo\",\"model\":\"demo\"}", "invalid_json"),
        (&"[".repeat(129), "invalid_json"),
        (&format!("{body}x"), "invalid_json"),
        ("{}", "missing_required_parameter"),
    ] {
        post("application/json", bad).error(400, code);
    }
    let answer = server.call("POST", CHAT).header("content-type", "application/json");
    answer.body(b"{\"model\":\"\xff\"}".to_vec()).send().error(400, "invalid_json");
    let huge = vec![b' '; (32 << 20) + 1];
    let answer = server.call("POST", CHAT).header("content-type", "application/json");
    answer.body(huge).send().error(413, "request_too_large");
}

fn routes(server: &Server) {
    server.get("/nothing/here").error(404, "not_found");
    server.get("/v1/audio/speech").error(404, "not_found");
    let answer = server.get(CHAT);
    answer.error(405, "method_not_allowed");
    assert!(answer.header("allow").is_some_and(|allow| allow.contains("POST")));
    server.call("DELETE", "/v1/models").send().error(405, "method_not_allowed");

    for path in ["/health", "/v1/health", "/api/v1/health"] {
        let health = server.get(path).ok();
        assert_eq!((&health["status"], &health["model_loaded"]), (&json!("ok"), &json!("demo")));
        assert!(health["uptime_seconds"].as_f64().is_some_and(|s| s >= 0.0));
        assert_eq!(health["all_models_loaded"][0]["device"], "cpu");
    }
    assert_eq!(server.get("/ready").status, 200);
    let metrics = server.get("/metrics");
    assert!(
        metrics.header("content-type").is_some_and(|t| t.starts_with("text/plain; version=0.0.4"))
    );
    let head = server.call("HEAD", "/metrics").send();
    assert_eq!((head.status, head.header("content-type")), (200, metrics.header("content-type")));
}

fn models(server: &Server) {
    for base in ["/v1", "/api/v1"] {
        let list = server.get(&format!("{base}/models")).ok();
        assert_eq!(list["object"], "list");
        let model = &list["data"][0];
        assert_eq!(*model, server.get(&format!("{base}/models/demo")).ok());
        assert_eq!((&model["id"], &model["object"]), (&json!("demo"), &json!("model")));
        assert_eq!(model["owned_by"], "trefoil");
        assert!(model["created"].is_u64());
        let more = &model["trefoil"];
        assert_eq!((&more["state"], &more["format"]), (&json!("loaded"), &json!("gguf")));
        assert_eq!(
            (&more["context_length"], &more["max_context_length"]),
            (&json!(2048), &json!(2048))
        );
        assert_eq!(more["parameters"], 23_077_376);
    }
    assert_eq!(server.get("/v1/models/default").ok()["id"], "demo");
    for path in ["/v1/models/dmo", "/v1/models/owner/dmo:Q4", "/v1/models/owner%2Fdmo"] {
        let error = server.get(path).error(404, "model_not_found");
        let message = error["message"].as_str().expect("a text");
        assert!(message.contains("dmo") && message.contains("demo"), "{message}");
    }
    let error = server.chat(&short(json!({"model": "dmo"}))).error(404, "model_not_found");
    assert_eq!(error["param"], "model");
    assert!(error["message"].as_str().is_some_and(|m| m.contains("demo")), "{error}");
    assert_eq!(server.chat(&short(json!({"model": "default"}))).ok()["model"], "demo");
    let alias = server.call("POST", "/api/v1/chat/completions").json(&short(json!({}))).send();
    assert_eq!(alias.ok()["object"], "chat.completion");
}

fn unknown_fields(server: &Server) {
    let answer = server.chat(&short(json!({"foo": 1, "seed": 3, "bar": {"a": [1]}})));
    answer.ok();
    assert_eq!(answer.header("x-trefoil-ignored"), Some("foo,bar"));
    assert_eq!(server.chat(&short(json!({"seed": 3}))).header("x-trefoil-ignored"), None);
    // Names that cannot be a header's value do no harm.
    let answer = server.chat(&short(json!({"a\nb": 1, "ü": 2, "plain": 3})));
    answer.ok();
    assert_eq!(answer.header("x-trefoil-ignored"), Some(r"a\nb,\u{fc},plain"));
    let many = (0..2000).map(|n| (format!("field{n}"), json!(n))).collect();
    let answer = server.chat(&short(Value::Object(many)));
    answer.ok();
    let named = answer.header("x-trefoil-ignored").unwrap_or_default();
    assert!(named.starts_with("field0,field1,") && named.ends_with(",..."), "{named:?}");
    assert!(named.len() < 1100, "{}", named.len());
    let stream = short(json!({"foo": 1, "stream": true}));
    let answer = server.call("POST", CHAT).json(&stream).send();
    assert_eq!(answer.header("x-trefoil-ignored"), Some("foo"));
}

#[test]
fn keys_are_asked_for_and_strict_servers_name_the_field() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("key");
    std::fs::write(&file, "s3cret\n").expect("writes");
    let file = file.to_str().expect("a plain path");
    let server = Server::start(&["--api-key-file", file, "--strict-fields"]);
    for open in ["/health", "/ready"] {
        assert_eq!(server.get(open).status, 200, "{open}");
    }
    for path in ["/v1/models", "/metrics", "/v1/health", "/nothing"] {
        for bad in ["", "Bearer wrong", "Bearer s3cre", "Bearer s3crett", "Basic s3cret", "s3cret"]
        {
            let answer = server.call("GET", path).header("authorization", bad).send();
            let error = answer.error(401, "invalid_api_key");
            assert!(!error.to_string().contains("s3cre"), "keys are never told: {error}");
        }
    }
    let bearer = |method, path| server.call(method, path).header("authorization", "Bearer s3cret");
    assert_eq!(bearer("GET", "/v1/models").send().status, 200);
    let lower = server.call("GET", "/v1/models").header("authorization", "bearer s3cret").send();
    assert_eq!(lower.status, 200, "the scheme's case does not matter");
    // Browsers ask without key whether they may send one.
    let answer = server
        .call("OPTIONS", CHAT)
        .header("origin", "http://localhost:3000")
        .header("access-control-request-method", "POST")
        .send();
    assert_eq!(answer.status, 204);
    bearer("POST", CHAT).json(&short(json!({}))).send().ok();
    let error = bearer("POST", CHAT).json(&short(json!({"foo": 1}))).send();
    let error = error.error(400, "unknown_parameter");
    assert_eq!(error["param"], "foo");
    assert!(!server.log().contains("s3cret"), "keys are never printed");
    let metrics = bearer("GET", "/metrics").send().text();
    assert!(metrics.contains("trefoil_requests_rejected_total{reason=\"auth\"} 24"), "{metrics}");
}

#[test]
fn several_models_are_served_under_their_names() {
    let small = trefoil_tests::golden::part("models").join("smollm/model-f32.gguf");
    let small = small.to_str().expect("a plain path");
    let server = Server::of(&[small, "demo"], &["--ctx-size", "64"]);
    let list = server.get("/v1/models").ok();
    let ids: Vec<&str> =
        list["data"].as_array().expect("a list").iter().filter_map(|m| m["id"].as_str()).collect();
    assert_eq!(ids, ["demo", "model-f32"], "sorted by name");
    assert_eq!(server.get("/v1/models/default").ok()["id"], "model-f32", "the first one named");
    for id in ids {
        assert_eq!(server.chat(&short(json!({"model": id}))).ok()["model"], id);
    }
    assert_eq!(list["data"][0]["trefoil"]["context_length"], 64);
}

#[test]
fn without_a_key_any_key_is_taken() {
    let server = Server::start(&[]);
    let answer = server.call("GET", "/v1/models").header("authorization", "Bearer whatever").send();
    assert_eq!(answer.status, 200);
    // The key may come from the environment as well; flags go before.
    let mut other = command();
    other.env("TREFOIL_API_KEY", "").args(["serve", "demo", "--host", "0.0.0.0", "--port", "0"]);
    crate::support::program::run(&mut other, "").fails(2);
}
