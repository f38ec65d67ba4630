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

#[test]
fn damaged_schemas_tools_and_items_are_answered() {
    let server = Server::start(&["--ctx-size", "512"]);
    let schema = json!({
        "type": "object", "required": ["a"], "additionalProperties": false,
        "properties": {
            "a": {"type": "array", "items": {"$ref": "#/$defs/x"}, "minItems": 1, "maxItems": 3},
            "b": {"type": "string", "pattern": "^[a-z]{2,4}$", "format": "date"},
        },
        "$defs": {"x": {"anyOf": [{"type": "integer", "minimum": 3}, {"enum": ["p", null]}]}},
    });
    let tool = json!({"type": "function", "function": {
        "name": "f", "description": "d", "strict": true, "parameters": schema,
    }});
    let chat = json!({
        "model": "demo", "max_tokens": 2, "seed": 1, "tools": [tool], "tool_choice": "auto",
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}},
        "messages": [{"role": "user", "content": "x"}],
    });
    damage(&server, "/v1/chat/completions", &chat, 250);
    let grammar = json!({
        "model": "demo", "max_tokens": 2, "messages": [{"role": "user", "content": "x"}],
        "grammar": "root ::= (item \",\" ws)* item\nitem ::= [a-z]{1,9} | \"(\" root \")\"\nws ::= \" \"*",
    });
    damage(&server, "/v1/chat/completions", &grammar, 150);
    let items = json!({
        "model": "demo", "max_output_tokens": 2, "instructions": "i", "temperature": 0.5,
        "text": {"format": {"type": "json_schema", "name": "n", "strict": true, "schema": schema}},
        "input": [{"role": "user", "content": [{"type": "input_text", "text": "ü"}]},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "1"}],
        "include": ["message.output_text.logprobs"], "metadata": {"k": "v"},
    });
    damage(&server, "/v1/responses", &items, 200);
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
