//! Many requests, clients that leave, and what the metrics tell of it.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::demo::safe_reply;
use crate::support::http::Event;
use crate::support::server::Server;

/// A request that would go on for more than a thousand tokens.
fn endless() -> Value {
    json!({
        "model": "demo", "temperature": 0, "ignore_eos": true, "max_tokens": 1800, "stream": true,
        "messages": [{"role": "user", "content": "Tell me a story about a lemon tree."}],
    })
}

fn quick() -> Value {
    json!({"model": "demo", "temperature": 0, "max_tokens": 1,
        "messages": [{"role": "user", "content": "hi"}]})
}

#[test]
fn a_full_queue_says_come_back() {
    let server = Server::start(&["--max-queue", "1", "--max-sequences", "1", "--exact"]);
    assert_eq!(server.metric("trefoil_queue_capacity"), 1.0);
    let mut running = server.call("POST", "/v1/chat/completions").json(&endless()).open();
    assert!(running.event().is_some());
    let waiting = std::thread::spawn({
        let call = server.call("POST", "/v1/chat/completions").json(&quick());
        move || call.send()
    });
    server.wait_for_metric("trefoil_requests_waiting{model=\"demo\"}", 1.0);
    assert_eq!(server.metric("trefoil_requests_running{model=\"demo\"}"), 1.0);
    for body in [quick(), endless()] {
        let answer = server.chat(&body);
        answer.error(429, "queue_full");
        let seconds: u32 = answer
            .header("retry-after")
            .and_then(|seconds| seconds.parse().ok())
            .expect("whole seconds");
        assert!((1..=60).contains(&seconds));
    }
    assert_eq!(server.metric("trefoil_requests_rejected_total{reason=\"queue_full\"}"), 2.0);
    // The client leaves: its place is free within a step, and the next one runs.
    let left = Instant::now();
    drop(running);
    assert_eq!(waiting.join().expect("the thread ends").status, 200);
    assert!(left.elapsed() < Duration::from_secs(20), "{:?}", left.elapsed());
    server.wait_for_metric("trefoil_requests_total{model=\"demo\",outcome=\"cancelled\"}", 1.0);
    server.wait_for_metric("trefoil_requests_running{model=\"demo\"}", 0.0);
    server.wait_for_metric("trefoil_kv_pages{model=\"demo\",state=\"used\"}", 0.0);
}

#[test]
fn clients_that_leave_are_forgotten_wherever_they_are() {
    let server = Server::start(&["--max-sequences", "1", "--exact"]);
    // One leaves while its answer is made as a whole, one while it streams, one from the queue.
    let mut whole = endless();
    whole["stream"] = json!(false);
    let first = connect(&server, &whole);
    server.wait_for_metric("trefoil_requests_running{model=\"demo\"}", 1.0);
    let second = connect(&server, &endless());
    server.wait_for_metric("trefoil_requests_waiting{model=\"demo\"}", 1.0);
    drop(second);
    drop(first);
    let mut third = server.call("POST", "/v1/chat/completions").json(&endless()).open();
    assert!(third.event().is_some());
    drop(third);
    let begin = Instant::now();
    server.chat(&quick()).ok();
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
    server.wait_for_metric("trefoil_requests_total{model=\"demo\",outcome=\"cancelled\"}", 3.0);
    assert_eq!(server.metric("trefoil_requests_waiting{model=\"demo\"}"), 0.0);
    assert_eq!(server.metric("trefoil_kv_pages{model=\"demo\",state=\"used\"}"), 0.0);
}

/// Sends a request without waiting for any of the answer.
fn connect(server: &Server, body: &Value) -> std::net::TcpStream {
    use std::io::Write;
    let body = body.to_string();
    let mut stream = std::net::TcpStream::connect(server.address).expect("the server listens");
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        server.address,
        body.len()
    );
    stream.write_all(head.as_bytes()).expect("the server reads");
    stream
}

#[test]
fn many_at_once_get_the_answer_of_one() {
    let server = Server::start(&[]);
    let reply = safe_reply();
    let body = json!({"model": "demo", "temperature": 0,
        "messages": [{"role": "user", "content": reply.prompt}]});
    std::thread::scope(|scope| {
        for client in 0..8 {
            let (server, reply, body) = (&server, &reply, &body);
            scope.spawn(move || {
                if client % 2 == 0 {
                    let answer = server.chat(body).ok();
                    assert_eq!(answer["choices"][0]["message"]["content"], reply.text);
                } else {
                    let mut body = body.clone();
                    body["stream"] = json!(true);
                    let call = server.call("POST", "/v1/chat/completions").json(&body);
                    let events = call.open().events();
                    let pieces = events.iter().filter_map(|event| match event {
                        Event::Data(chunk) => chunk["choices"][0]["delta"]["content"].as_str(),
                        _ => None,
                    });
                    assert_eq!(pieces.collect::<String>(), reply.text);
                }
            });
        }
    });
    let made = reply.ids_out.len() as f64;
    for (sample, value) in [
        ("trefoil_requests_total{model=\"demo\",outcome=\"stop\"}", 8.0),
        (
            "trefoil_prompt_tokens_total{model=\"demo\",source=\"computed\"}",
            8.0 * reply.ids_in.len() as f64,
        ),
        ("trefoil_generated_tokens_total{model=\"demo\"}", 8.0 * made),
        ("trefoil_request_generated_tokens_count{model=\"demo\"}", 8.0),
        ("trefoil_request_generated_tokens_sum{model=\"demo\"}", 8.0 * made),
        ("trefoil_request_queue_seconds_count{model=\"demo\"}", 8.0),
        ("trefoil_request_duration_seconds_count{model=\"demo\"}", 8.0),
        ("trefoil_time_to_first_token_seconds_count{model=\"demo\"}", 8.0),
        // The end token has no event: between n texts lie n - 1 times.
        ("trefoil_inter_token_seconds_count{model=\"demo\"}", 8.0 * (made - 2.0)),
        (
            "trefoil_http_requests_total{method=\"POST\",route=\"/v1/chat/completions\",status=\"200\"}",
            8.0,
        ),
        ("trefoil_requests_running{model=\"demo\"}", 0.0),
        ("trefoil_model_loaded{model=\"demo\"}", 1.0),
    ] {
        assert_eq!(server.metric(sample), value, "{sample}");
    }
}

#[test]
fn labels_of_metrics_are_bounded() {
    let server = Server::start(&[]);
    for n in 0..20 {
        server.call(&format!("METHOD{n}"), &format!("/path{n}")).send();
        server.get(&format!("/v1/models/none{n}")).error(404, "model_not_found");
    }
    let text = server.get("/metrics").text();
    let lines = text.lines().filter(|line| line.starts_with("trefoil_http_requests_total"));
    let lines: Vec<&str> = lines.collect();
    assert!(lines.len() <= 3, "{lines:#?}");
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    for sample in samples {
        let (name, value) = sample.rsplit_once(' ').expect("a name and a value");
        assert!(name.starts_with("trefoil_") && value.parse::<f64>().is_ok(), "{sample}");
    }
}
