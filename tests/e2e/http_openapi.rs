//! GET /openapi.json: the document is the golden one, and what the server answers is what it says.

use jsonschema::Validator;
use serde_json::{Value, json};

use crate::support::encoder;
use crate::support::http::{Event, Response};
use crate::support::server::Server;

/// A validator of the document's schema at a JSON pointer.
fn validator(document: &Value, pointer: &str) -> Validator {
    let schema = document.pointer(pointer).unwrap_or_else(|| panic!("{pointer} is not there"));
    let mut schema = schema.clone();
    schema["components"] = document["components"].clone();
    jsonschema::validator_for(&schema).expect("schemas are valid")
}

/// Of answers of this operation with this status.
fn of_answers(document: &Value, path: &str, method: &str, status: u16) -> Validator {
    let path = path.replace('/', "~1");
    validator(
        document,
        &format!("/paths/{path}/{method}/responses/{status}/content/application~1json/schema"),
    )
}

#[track_caller]
fn check(validator: &Validator, answer: &Value) {
    let errors = validator.iter_errors(answer);
    let errors: Vec<String> =
        errors.map(|error| format!("{}: {error}", error.instance_path())).collect();
    assert!(errors.is_empty(), "{errors:?} in {answer}");
}

#[test]
fn answers_are_what_the_document_says() {
    let server = Server::start(&[]);
    let folder = encoder::folder();
    let encoder = Server::of(&[folder.to_str().expect("a plain path")], &[]);
    let served = server.get("/openapi.json");
    assert_eq!(served.header("content-type"), Some("application/json"));
    let document = served.ok();
    let golden = std::fs::read(trefoil_tests::golden::data().join("openapi.json"));
    let golden: Value = serde_json::from_slice(&golden.expect("it is there")).expect("JSON");
    assert!(document == golden, "tests/data/openapi.json is of another version");

    let mut asked = 0;
    for (path, item) in document["paths"].as_object().expect("paths") {
        if path == "/metrics" || path == "/v1/stream" {
            // Text, and a socket.
            continue;
        }
        if item.get("get").is_some() {
            let answers = of_answers(&document, path, "get", 200);
            check(&answers, &server.get(&path.replace("{id}", "demo")).ok());
            asked += 1;
        }
        if let Some(operation) = item.get("post") {
            let body = &operation["requestBody"]["content"]["application/json"]["example"];
            let server = if path == "/v1/embeddings" { &encoder } else { &server };
            let answer = server.call("POST", path).json(body).send();
            check(&of_answers(&document, path, "post", 200), &answer.ok());
            assert_eq!(answer.header("x-trefoil-ignored"), None, "{path}");
            let wrong = server.call("POST", path).json(&json!({"model": 1, "messages": 1})).send();
            errors(&document, path, &wrong, 400);
            let text = server.call("POST", path).body("x").header("content-type", "text/plain");
            errors(&document, path, &text.send(), 415);
            asked += 1;
        }
    }
    assert!(asked >= 12, "{asked}");
    errors_of_reading(&document, &server);
    streams(&document, &server);
}

#[track_caller]
fn errors(document: &Value, path: &str, answer: &Response, status: u16) {
    assert_eq!(answer.status, status, "{path}: {}", answer.text());
    check(&of_answers(document, path, "post", status), &answer.json());
}

fn errors_of_reading(document: &Value, server: &Server) {
    for (path, asked, status) in [
        ("/v1/models/{id}", "/v1/models/nobody", 404),
        ("/v1/models/{id}", "/v1/models/%ff", 404),
        ("/props", "/props?model=nobody", 404),
        ("/slots", "/slots?model=a&model=b", 400),
    ] {
        let answer = server.get(asked);
        assert_eq!(answer.status, status, "{asked}");
        check(&of_answers(document, path, "get", status), &answer.json());
    }
    let error = server.get("/v1/completion").error(404, "not_found");
    let message = error["message"].as_str().expect("a text");
    assert!(message.contains("POST /v1/completions"), "{message}");
}

fn streams(document: &Value, server: &Server) {
    let chat = validator(document, "/components/schemas/ChatCompletionChunk");
    let text = validator(document, "/components/schemas/Completion");
    let common = json!({"model": "default", "stream": true, "max_tokens": 4, "return_tokens": true,
        "stream_options": {"include_usage": true}});
    for (path, validator, more) in [
        (
            "/v1/chat/completions",
            &chat,
            json!({"messages": [{"role": "user", "content": "x"}], "logprobs": true, "top_logprobs": 1}),
        ),
        ("/v1/completions", &text, json!({"prompt": ["x", "y"], "logprobs": 1})),
    ] {
        let mut body = common.clone();
        for (name, value) in more.as_object().expect("an object") {
            body[name] = value.clone();
        }
        let events = server.call("POST", path).json(&body).open().events();
        let chunks = events.iter().filter_map(|event| match event {
            Event::Data(chunk) => Some(chunk),
            _ => None,
        });
        assert!(chunks.clone().count() > 4, "{events:?}");
        chunks.for_each(|chunk| check(validator, chunk));
    }
}
