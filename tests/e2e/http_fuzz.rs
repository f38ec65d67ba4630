//! Damaged requests: the server answers each, and is well afterwards.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};
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
    let completion = json!({
        "model": "demo", "prompt": ["a", "ü 世"], "max_tokens": 1, "n": 2, "best_of": 2, "echo": false,
        "logprobs": 2, "stop": "a", "stream": false, "seed": 1,
    });
    let pieces = json!({"prompt": "ü 世", "add_special_tokens": true, "with_pieces": true});
    let ids =
        json!({"tokens": [1, 2, 3000], "note": "damage to this text changes nothing ".repeat(4)});
    let bodies = [
        ("/v1/chat/completions", &whole, 400),
        ("/v1/completions", &completion, 200),
        ("/tokenize", &pieces, 100),
        ("/detokenize", &ids, 100),
    ];
    for (path, body, rounds) in bodies {
        damage(&server, path, body, rounds);
    }
    server.chat(&whole).ok();
    server.call("POST", "/v1/completions").json(&completion).send().ok();
    assert_eq!(server.get("/health").status, 200);
    assert!(!server.log().contains("panicked"), "{}", server.log());
    assert_eq!(server.metric("trefoil_requests_running{model=\"demo\"}"), 0.0);
}

/// Sends a body again and again, each time damaged in another way.
fn damage(server: &Server, path: &str, whole: &Value, rounds: usize) {
    let original = whole.to_string().into_bytes();
    let mut rng = SplitMix64::new(20_261_121);
    let mut statuses = std::collections::BTreeMap::<u16, usize>::new();
    for round in 0..rounds {
        let body = damaged(&original, &mut rng);
        let answer = server
            .call("POST", path)
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
    assert!(statuses.len() > 1, "{path}: some pass, some do not: {statuses:?}");
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
