//! Damaged requests: the server answers each, and is well afterwards.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::json;
use trefoil_tests::mutation::{SplitMix64, damaged};

use crate::support::server::Server;

#[test]
fn damaged_bodies_are_answered() {
    // A short context bounds what a damaged limit can ask for.
    let server = Server::start(&["--ctx-size", "48"]);
    let whole = json!({
        "model": "demo", "max_tokens": 1, "temperature": 0.5, "top_p": 0.9, "seed": 1, "n": 1,
        "stop": ["a", "b"], "logit_bias": {"5": 1.5}, "logprobs": true, "top_logprobs": 2,
        "stream": false, "metadata": {"k": "v"}, "response_format": {"type": "text"},
        "messages": [{"role": "system", "content": "s"},
            {"role": "user", "content": [{"type": "text", "text": "ü 世"}]}],
    });
    let original = whole.to_string().into_bytes();
    let mut rng = SplitMix64::new(20_261_121);
    let mut statuses = std::collections::BTreeMap::<u16, usize>::new();
    for round in 0..400 {
        let body = damaged(&original, &mut rng);
        let answer = server
            .call("POST", "/v1/chat/completions")
            .header("content-type", "application/json")
            .body(body.clone())
            .send();
        *statuses.entry(answer.status).or_default() += 1;
        let shown = String::from_utf8_lossy(&body);
        match answer.status {
            200 if answer.header("content-type").is_some_and(|t| t.starts_with("text/event")) => {}
            200 => drop(answer.json()),
            400 | 404 => {
                let error = &answer.json()["error"];
                assert!(error["code"].is_string() && error["message"].is_string(), "{shown}");
            }
            status => panic!("round {round}: {status} {} for {shown}", answer.text()),
        }
    }
    assert!(statuses.len() > 1, "some pass, some do not: {statuses:?}");
    server.chat(&whole).ok();
    assert_eq!(server.get("/health").status, 200);
    assert!(!server.log().contains("panicked"), "{}", server.log());
    assert_eq!(server.metric("trefoil_requests_running{model=\"demo\"}"), 0.0);
}

#[test]
fn damaged_requests_do_no_harm() {
    let server = Server::start(&["--ctx-size", "48"]);
    let body = "{\"model\":\"demo\"}";
    let original = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n{body}",
        server.address,
        body.len()
    );
    let mut rng = SplitMix64::new(7);
    for _ in 0..200 {
        let bytes = damaged(original.as_bytes(), &mut rng);
        let mut stream = TcpStream::connect(server.address).expect("the server listens");
        stream.set_read_timeout(Some(Duration::from_millis(200))).expect("not zero");
        // The server may close the connection early, or wait for more: both are fine.
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
    }
    assert_eq!(server.get("/health").status, 200);
    server.chat(&json!({})).error(400, "missing_required_parameter");
    assert!(!server.log().contains("panicked"), "{}", server.log());
}

#[test]
fn damaged_questions_about_plans_are_answered() {
    let server = Server::start(&["--device", "cpu0"]);
    let whole = json!({
        "model": "demo", "profile": "strix-point",
        "policy": {"objective": "balanced", "weights": {"ttft": 1.5, "energy": 0.5},
            "phases": "split", "max_power_watts": 50, "max_device_memory": {"gpu0": "80%"},
            "reserve_memory": "1GiB", "deny_devices": ["npu*"],
            "pins": [{"match": "blk.*.ffn", "device": "cpu0", "phase": "decode"}]},
        "phase_shape": {"prompt_tokens": 512, "generated_tokens": 16},
    });
    let original = whole.to_string().into_bytes();
    let ask = |body: Vec<u8>| {
        let call = server.call("POST", "/v1/plan").header("content-type", "application/json");
        call.body(body).send()
    };
    assert_eq!(ask(original.clone()).status, 200);
    let mut rng = SplitMix64::new(20_261_122);
    for _ in 0..200 {
        let body = damaged(&original, &mut rng);
        let shown = String::from_utf8_lossy(&body).into_owned();
        let answer = ask(body);
        match answer.status {
            200 => assert_eq!(answer.json()["object"], "plan"),
            400 | 404 | 409 => {
                let error = &answer.json()["error"];
                assert!(error["code"].is_string() && error["message"].is_string(), "{shown}");
            }
            other => panic!("{other}: {shown}"),
        }
    }
    assert_eq!(ask(original).status, 200);
    assert!(!server.log().contains("panicked"), "{}", server.log());
}
