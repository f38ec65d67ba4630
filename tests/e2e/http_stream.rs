//! Streamed answers: order, joined text, usage, signs of life.

use serde_json::{Value, json};

use crate::support::demo::{replies, safe_reply};
use crate::support::http::{Answer, Event};
use crate::support::server::Server;

fn open(server: &Server, body: &Value) -> Answer {
    let answer = server.call("POST", "/v1/chat/completions").json(body).open();
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), Some("text/event-stream; charset=utf-8"));
    assert_eq!(answer.header("cache-control"), Some("no-cache, no-transform"));
    assert_eq!(answer.header("x-accel-buffering"), Some("no"));
    assert!(answer.header("x-request-id").is_some());
    answer
}

/// The chunks of a stream that went well.
fn chunks(answer: Answer) -> Vec<Value> {
    let mut events = answer.events();
    assert_eq!(events.pop(), Some(Event::Done));
    let chunks = events.into_iter().filter_map(|event| match event {
        Event::Data(chunk) => Some(chunk),
        Event::Comment(_) => None,
        Event::Done => panic!("[DONE] comes once"),
    });
    chunks.collect()
}

/// Text of a choice, joined from its chunks, which must come in the right order.
fn joined(chunks: &[Value], index: usize) -> (String, Value) {
    let mut text = String::new();
    let mut finish = Value::Null;
    let own = chunks.iter().filter_map(|chunk| {
        let choice = &chunk["choices"][0];
        (choice["index"] == index).then_some(choice)
    });
    for (at, choice) in own.enumerate() {
        let delta = &choice["delta"];
        assert!(finish.is_null(), "nothing follows the finish reason");
        if at == 0 {
            assert_eq!(*delta, json!({"role": "assistant", "content": ""}));
            continue;
        }
        assert!(delta["role"].is_null(), "the role is told once");
        finish = choice["finish_reason"].clone();
        if !finish.is_null() {
            assert_eq!(*delta, json!({}));
        } else if let Some(piece) = delta["content"].as_str() {
            assert!(!piece.is_empty(), "no empty content but the first");
            text.push_str(piece);
        }
    }
    assert!(!finish.is_null(), "every choice ends");
    (text, finish)
}

#[test]
fn streams_say_what_whole_answers_say() {
    let server = Server::start(&[]);
    let reply = safe_reply();
    let greedy = json!({"temperature": 0, "messages": [{"role": "user", "content": reply.prompt}]});
    let story = replies().swap_remove(0).prompt;
    let random = json!({"temperature": 1.2, "seed": 5, "n": 2, "max_tokens": 12,
        "messages": [{"role": "user", "content": story}]});
    // Byte-level tokens at a high temperature: parts of characters come one by one.
    let broken = json!({"temperature": 2, "seed": 3, "max_tokens": 24, "logit_bias": {"2": -100},
        "messages": [{"role": "user", "content": "naïve 世界 🦀🦀"}]});
    let middle = reply.text.len() / 2;
    let stopped = json!({"temperature": 0, "stop": [&reply.text[middle - 2..middle + 3]],
        "messages": [{"role": "user", "content": reply.prompt}]});
    for body in [greedy, random, broken, stopped] {
        let mut body = body;
        body["model"] = json!("demo");
        let whole = server.chat(&body).ok();
        body["stream"] = json!(true);
        let chunks = chunks(open(&server, &body));
        for (index, choice) in whole["choices"].as_array().expect("a list").iter().enumerate() {
            let (text, finish) = joined(&chunks, index);
            assert_eq!(text, choice["message"]["content"], "{body}");
            assert_eq!(finish, choice["finish_reason"]);
        }
        for chunk in &chunks {
            assert_eq!(chunk["object"], "chat.completion.chunk");
            for same in ["id", "created", "model", "system_fingerprint"] {
                assert_eq!(chunk[same], chunks[0][same]);
            }
            assert!(chunk.get("usage").is_none(), "usage only when asked for");
        }
        let (last, others) = chunks.split_last().expect("there are chunks");
        assert!(others.iter().all(|chunk| chunk.get("trefoil").is_none()));
        assert_eq!(last["trefoil"]["stop_reason"], whole["trefoil"]["stop_reason"]);
        assert_eq!(last["timings"]["predicted_n"], whole["timings"]["predicted_n"]);
    }
}

#[test]
fn usage_and_logprobs_come_when_asked_for() {
    let server = Server::start(&[]);
    let reply = safe_reply();
    let mut body = json!({
        "model": "demo", "temperature": 0, "logprobs": true, "top_logprobs": 2, "max_tokens": 6,
        "return_tokens": true, "messages": [{"role": "user", "content": reply.prompt}],
    });
    let whole = server.chat(&body).ok();
    body["stream"] = json!(true);
    body["stream_options"] = json!({"include_usage": true, "include_obfuscation": false});
    let chunks = chunks(open(&server, &body));
    let (last, others) = chunks.split_last().expect("there are chunks");
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"], whole["usage"]);
    assert_eq!(last["timings"]["predicted_n"], 6);
    assert!(last["trefoil"]["seed"].is_number());
    for chunk in others {
        assert_eq!(chunk.get("usage"), Some(&Value::Null), "null until the last");
    }
    let collect = |field: fn(&Value) -> &Value| -> Vec<Value> {
        let lists = others.iter().map(|chunk| field(&chunk["choices"][0]));
        lists.filter_map(Value::as_array).flatten().cloned().collect()
    };
    assert_eq!(
        Value::Array(collect(|choice| &choice["logprobs"]["content"])),
        whole["choices"][0]["logprobs"]["content"]
    );
    assert_eq!(Value::Array(collect(|choice| &choice["tokens"])), whole["choices"][0]["tokens"]);
    // Errors before the first event keep their status.
    body["model"] = json!("dmo");
    server.chat(&body).error(404, "model_not_found");
    body["model"] = json!("demo");
    body["max_tokens"] = json!(4000);
    server.chat(&body).error(400, "context_length_exceeded");
}

#[test]
fn silence_is_broken_by_comments() {
    // The reference device is slow: it reads a prompt for longer than the silence that is allowed.
    let server = Server::start(&["--device", "ref0", "--sse-ping", "0.02"]);
    let body = json!({
        "model": "demo", "temperature": 0, "max_tokens": 1, "stream": true,
        "messages": [{"role": "user", "content": "one two three four five six seven ".repeat(4)}],
    });
    let events = open(&server, &body).events();
    let comments = events.iter().filter(|event| **event == Event::Comment("ping".to_owned()));
    assert!(comments.count() >= 1, "{events:?}");
    assert_eq!(events.last(), Some(&Event::Done));
}
