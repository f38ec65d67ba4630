//! /tokenize, /detokenize, /apply-template, /props, /slots.

use serde_json::{Value, json};

use crate::support::demo::{Reply, ids, safe_reply};
use crate::support::encoder;
use crate::support::http::Response;
use crate::support::server::Server;

fn post(server: &Server, path: &str, body: &Value) -> Response {
    server.call("POST", path).json(body).send()
}

#[test]
fn text_becomes_tokens_and_text_again() {
    let server = Server::start(&[]);
    let reply = safe_reply();
    tokenize(&server);
    templates(&server, &reply);
    detokenize(&server);
    refusals(&server);
    assert!(!server.log().contains("panicked"), "{}", server.log());
}

fn tokenize(server: &Server) {
    let content = "The lemon é 世";
    let plain = post(server, "/tokenize", &json!({"content": content})).ok();
    let list = ids(&plain["tokens"]);
    assert_eq!((&plain["count"], &plain["max_model_len"]), (&json!(list.len()), &json!(2048)));
    for path in ["/v1/tokenize", "/api/v1/tokenize"] {
        assert_eq!(post(server, path, &json!({"content": content})).ok(), plain, "{path}");
    }
    // What the model puts around texts is there when asked for, and around a prompt.
    let around = json!({"content": content, "add_special": true, "model": "demo"});
    let around = post(server, "/tokenize", &around).ok();
    assert_eq!(post(server, "/tokenize", &json!({"prompt": content})).ok(), around);
    let bare = json!({"prompt": content, "add_special_tokens": false});
    assert_eq!(post(server, "/tokenize", &bare).ok(), plain);
    // Pieces joined are the text, byte for byte.
    let pieces = json!({"content": content, "with_pieces": true});
    let pieces = post(server, "/tokenize", &pieces).ok();
    let mut bytes = Vec::new();
    for (piece, id) in pieces["tokens"].as_array().expect("a list").iter().zip(&list) {
        assert_eq!(piece["id"], *id);
        match &piece["piece"] {
            Value::String(text) => bytes.extend(text.as_bytes()),
            list => bytes.extend(ids(list).iter().map(|&byte| byte as u8)),
        }
    }
    assert_eq!(String::from_utf8(bytes).expect("text").trim_start(), content);
}

fn templates(server: &Server, reply: &Reply) {
    let chat = json!({"messages": [{"role": "user", "content": reply.prompt}]});
    for path in ["/apply-template", "/v1/apply-template"] {
        let answer = post(server, path, &chat).ok();
        assert_eq!(ids(&answer["tokens"]), reply.ids_in);
        assert!(answer["prompt"].as_str().is_some_and(|text| text.contains(&reply.prompt)));
    }
    let answer = post(server, "/tokenize", &chat).ok();
    assert_eq!(ids(&answer["tokens"]), reply.ids_in);
    let error = post(server, "/apply-template", &json!({"messages": []}));
    assert_eq!(error.error(400, "invalid_value")["param"], "messages");
    let mut closed = chat;
    closed["add_generation_prompt"] = json!(false);
    let error = post(server, "/tokenize", &closed).error(400, "unsupported_value");
    assert_eq!(error["param"], "add_generation_prompt");
}

fn detokenize(server: &Server) {
    let content = "The lemon é 世";
    let tokens = post(server, "/tokenize", &json!({"content": content})).ok()["tokens"].clone();
    for path in ["/detokenize", "/v1/detokenize"] {
        let answer = post(server, path, &json!({"tokens": tokens})).ok();
        assert_eq!(answer, json!({"content": content, "prompt": content}));
    }
    let answer = post(server, "/detokenize", &json!({"tokens": []})).ok();
    assert_eq!(answer["content"], "");
}

fn refusals(server: &Server) {
    for (path, body, code, param) in [
        ("/tokenize", json!({}), "missing_required_parameter", "content"),
        ("/tokenize", json!({"content": 1}), "invalid_type", "content"),
        ("/tokenize", json!({"content": "a", "prompt": "b"}), "invalid_value", "prompt"),
        ("/tokenize", json!({"content": "a", "with_pieces": 1}), "invalid_type", "with_pieces"),
        ("/detokenize", json!({}), "missing_required_parameter", "tokens"),
        ("/detokenize", json!({"tokens": "x"}), "invalid_type", "tokens"),
        ("/detokenize", json!({"tokens": [-1]}), "invalid_type", "tokens"),
        ("/detokenize", json!({"tokens": [8192]}), "invalid_value", "tokens"),
        ("/apply-template", json!({}), "missing_required_parameter", "messages"),
    ] {
        let error = post(server, path, &body).error(400, code);
        assert_eq!(error["param"], param, "{path} {body}");
    }
    let nobody = json!({"content": "a", "model": "nobody"});
    post(server, "/tokenize", &nobody).error(404, "model_not_found");
    let answer = post(server, "/detokenize", &json!({"tokens": [], "foo": 1}));
    assert_eq!(answer.header("x-trefoil-ignored"), Some("foo"));
}

#[test]
fn places_of_sequences_are_shown() {
    let folder = encoder::folder();
    let encoder = folder.to_str().expect("a plain path");
    let server = Server::of(&["demo", encoder], &["--max-sequences", "3"]);
    let props = server.get("/props").ok();
    assert_eq!((&props["total_slots"], &props["model_alias"]), (&json!(3), &json!("demo")));
    assert_eq!(props["default_generation_settings"]["n_ctx"], 2048);
    assert!(props["chat_template"].as_str().is_some_and(|source| source.contains("messages")));
    assert_eq!(props["modalities"], json!({"vision": false, "audio": false}));
    assert_eq!(server.get("/props?model=demo").ok(), props);
    server.get("/props?model=nobody").error(404, "model_not_found");
    server.get("/slots?model=demo&model=demo").error(400, "invalid_value");
    server.get("/props?model=bert").error(400, "unsupported_value");

    let busy = |slots: &Value| -> Vec<u64> {
        let slots = slots.as_array().expect("a list");
        assert_eq!(slots.len(), 3);
        for (id, slot) in slots.iter().enumerate() {
            assert_eq!((&slot["id"], &slot["n_ctx"]), (&json!(id), &json!(2048)));
        }
        let busy = slots.iter().filter(|slot| slot["is_processing"] == json!(true));
        busy.filter_map(|slot| slot["n_decoded"].as_u64()).collect()
    };
    assert!(busy(&server.get("/slots").ok()).is_empty());
    let body = json!({"model": "demo", "prompt": "a", "max_tokens": 1500, "ignore_eos": true,
        "stream": true});
    let mut stream = server.call("POST", "/v1/completions").json(&body).open();
    stream.event().expect("it begins");
    // The figures are those of the last turn that is over.
    let shown = loop {
        let shown = busy(&server.get("/slots").ok());
        if !shown.is_empty() {
            break shown;
        }
    };
    assert!(shown.len() == 1 && shown[0] > 0, "{shown:?}");
    assert!(!server.get("/slots").text().contains("prompt"), "prompts are not shown");
    drop(stream);
    server.wait_for_metric("trefoil_requests_running{model=\"demo\"}", 0.0);
    assert!(busy(&server.get("/slots").ok()).is_empty());
}
