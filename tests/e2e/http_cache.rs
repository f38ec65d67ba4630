//! What a server keeps of prompts, and the limits of time of requests.

use serde_json::{Value, json};

use crate::support::http::Event;
use crate::support::server::Server;

fn story(tail: &str) -> Value {
    let content = format!("{} {tail}", "Once upon a time there was a tree.".repeat(12));
    json!({"model": "demo", "temperature": 0, "max_tokens": 8,
        "messages": [{"role": "user", "content": content}]})
}

/// Prompt tokens, those of them that were kept, and the text.
fn ask(server: &Server, body: &Value) -> (u64, u64, Value) {
    let answer = server.chat(body).ok();
    let number = |value: &Value| value.as_u64().expect("a number");
    let (usage, timings) = (&answer["usage"], &answer["timings"]);
    let (all, kept) = (number(&usage["prompt_tokens"]), number(&timings["cache_n"]));
    assert_eq!(number(&usage["prompt_tokens_details"]["cached_tokens"]), kept);
    assert_eq!(number(&timings["prompt_n"]), all - kept);
    (all, kept, answer["choices"][0]["message"]["content"].clone())
}

#[test]
fn beginnings_that_came_before_are_not_read_again() {
    let server = Server::start(&[]);
    let (all, kept, first) = ask(&server, &story("It grew."));
    assert_eq!(kept, 0);
    let (again, kept, text) = ask(&server, &story("It grew."));
    assert_eq!((again, kept, text), (all, (all - 1) / 16 * 16, first.clone()));
    let (_, kept, _) = ask(&server, &story("A fox came."));
    assert!(kept > 60 && kept % 16 == 0, "{kept}");
    let mut without = story("It grew.");
    without["cache_prompt"] = json!(false);
    assert_eq!(ask(&server, &without), (all, 0, first.clone()));
    // Several replies: the prompt counts once, and was kept.
    let mut several = story("It grew.");
    several["n"] = json!(3);
    several["temperature"] = json!(1);
    let (several, kept, _) = ask(&server, &several);
    assert_eq!((several, kept), (all, (all - 1) / 16 * 16));
    let hit = server.metric("trefoil_prefix_cache_hit_tokens_total{model=\"demo\"}");
    let source = "trefoil_prompt_tokens_total{model=\"demo\",source=\"cached\"}";
    assert!(hit > 0.0 && hit == server.metric(source));
    assert!(server.metric("trefoil_kv_pages{model=\"demo\",state=\"cached\"}") > 0.0);
    let off = Server::with_settings(&[("TREFOIL__ENGINE__PREFIX_CACHE", "false")], &[]);
    for _ in 0..2 {
        assert_eq!(ask(&off, &story("It grew.")), (all, 0, first.clone()));
    }
    assert_eq!(off.metric("trefoil_kv_pages{model=\"demo\",state=\"cached\"}"), 0.0);
}

/// A request that would go on for more than a thousand tokens.
fn endless() -> Value {
    json!({
        "model": "demo", "temperature": 0, "ignore_eos": true, "max_tokens": 1800, "stream": true,
        "messages": [{"role": "user", "content": "Tell me a story about a lemon tree."}],
    })
}

#[test]
fn waiting_has_a_limit() {
    let settings = [("TREFOIL__SERVER__QUEUE_TIMEOUT", "300ms")];
    let server = Server::with_settings(&settings, &["--max-sequences", "1", "--exact"]);
    let mut running = server.call("POST", "/v1/chat/completions").json(&endless()).open();
    assert!(running.event().is_some());
    let answer = server.chat(&story("It grew."));
    answer.error(429, "queue_timeout");
    assert!(answer.header("retry-after").is_some());
    assert_eq!(server.metric("trefoil_requests_rejected_total{reason=\"queue_timeout\"}"), 1.0);
    drop(running);
    server.chat(&story("It grew.")).ok();
}

#[test]
fn requests_have_a_limit() {
    let settings = [("TREFOIL__SERVER__REQUEST_TIMEOUT", "700ms")];
    let server = Server::with_settings(&settings, &["--exact"]);
    let mut whole = endless();
    whole["stream"] = json!(false);
    server.chat(&whole).error(504, "deadline_exceeded");
    let events = server.call("POST", "/v1/chat/completions").json(&endless()).open().events();
    match events.last() {
        Some(Event::Data(last)) => assert_eq!(last["error"]["code"], "deadline_exceeded"),
        other => panic!("expected an error as the last event, got {other:?}"),
    }
    server.wait_for_metric("trefoil_kv_pages{model=\"demo\",state=\"used\"}", 0.0);
}
