//! Replies held to a form: `response_format`, `json_schema`, `grammar`.

use serde_json::{Value, json};
use trefoil_tests::schemas::check;

use crate::support::server::Server;

fn body(extra: &Value) -> Value {
    let mut body = json!({
        "model": "demo", "max_tokens": 400, "seed": 3,
        "messages": [{"role": "user", "content": "Who are you?"}],
    });
    for (name, value) in extra.as_object().expect("an object") {
        body[name] = value.clone();
    }
    body
}

fn person() -> Value {
    json!({
        "type": "object", "required": ["name", "age"], "additionalProperties": false,
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
        },
    })
}

fn document(choice: &Value) -> Value {
    assert_eq!(choice["finish_reason"], "stop", "{choice}");
    let text = choice["message"]["content"].as_str().expect("a text");
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn replies_have_the_form_that_was_asked_for() {
    let server = Server::start(&[]);
    let schema = json!({"name": "person", "strict": true, "schema": person()});
    let format = json!({"response_format": {"type": "json_schema", "json_schema": schema}});
    // Several replies to a prompt, each with a place of its own in the grammar.
    let mut several = body(&format);
    several["n"] = json!(3);
    let answer = server.chat(&several).ok();
    for choice in answer["choices"].as_array().expect("choices") {
        check(&person(), &document(choice)).expect("valid");
    }
    // The same as events.
    let mut streamed = body(&format);
    streamed["stream"] = json!(true);
    let events = server.chat(&streamed).text();
    let text: String = events
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line.strip_prefix("data: ")?).ok())
        .filter_map(|chunk| Some(chunk["choices"][0]["delta"]["content"].as_str()?.to_owned()))
        .collect();
    assert_eq!(answer["choices"][0]["message"]["content"], text);
    // The log probabilities are those of the model, whatever was allowed.
    let mut shown = body(&format);
    shown["logprobs"] = json!(true);
    shown["top_logprobs"] = json!(1);
    let answer = server.chat(&shown).ok();
    let first = &answer["choices"][0]["logprobs"]["content"][0];
    assert!(first["token"].as_str().is_some_and(|token| token.starts_with('{')), "{first}");
    assert_ne!(first["token"], first["top_logprobs"][0]["token"], "it would have said more");

    let bare = body(&json!({"json_schema": person()}));
    check(&person(), &document(&server.chat(&bare).ok()["choices"][0])).expect("valid");
    let object = body(&json!({"response_format": {"type": "json_object"}, "temperature": 0}));
    let choice = server.chat(&object).ok()["choices"][0].clone();
    assert!(choice["finish_reason"] == "length" || document(&choice).is_object());
    let grammar = body(&json!({"grammar": "root ::= \"yes\" | \"no\""}));
    let choice = server.chat(&grammar).ok()["choices"][0].clone();
    assert!(["yes", "no"].contains(&choice["message"]["content"].as_str().expect("a text")));
    let lark = body(&json!({"grammar": "%llguidance {}\nstart: /[0-9]{3}/"}));
    let choice = server.chat(&lark).ok()["choices"][0].clone();
    assert_eq!(choice["message"]["content"].as_str().map(str::len), Some(3));
    assert!(!server.log().contains("panicked"), "{}", server.log());
}

#[test]
fn forms_that_cannot_be_are_refused() {
    let server = Server::start(&[]);
    let schema = |schema: Value, strict: bool| {
        let named = json!({"name": "x", "strict": strict, "schema": schema});
        body(&json!({"response_format": {"type": "json_schema", "json_schema": named}}))
    };
    let odd = json!({"type": "object", "properties": {"a": {"type": "string", "not": {}}}});
    let error = server.chat(&schema(odd.clone(), true)).error(400, "unsupported_schema");
    assert_eq!(error["param"], "/properties/a/not");
    let mut loose = schema(odd, false);
    loose["max_tokens"] = json!(3);
    let answer = server.chat(&loose);
    let named = answer.header("x-trefoil-ignored").expect("named").to_owned();
    assert!(named.ends_with("/properties/a/not"), "{named}");
    answer.ok();
    let deep = (0..100).fold(json!({}), |inner, _| json!({ "items": inner }));
    server.chat(&schema(deep, true)).error(400, "schema_too_complex");
    let long = json!({"const": "x".repeat(300_000)});
    server.chat(&schema(long, true)).error(400, "schema_too_complex");
    server.chat(&schema(json!({"type": "strin"}), true)).error(400, "invalid_value");
    server.chat(&schema(json!(false), true)).error(400, "invalid_value");
    for pattern in ["(", "(?=a)", r"(a)\1", "((a{1000}){1000}){1000}b"] {
        let answer = server.chat(&schema(json!({"type": "string", "pattern": pattern}), true));
        assert!(answer.status == 400 || pattern.contains("1000"), "{pattern}: {}", answer.text());
    }
    let error = server.chat(&body(&json!({"grammar": "root = x"}))).error(400, "invalid_value");
    assert_eq!(error["param"], "grammar");
    // The server is none the worse for it.
    server.chat(&body(&json!({"max_tokens": 1}))).ok();
    assert!(!server.log().contains("panicked"), "{}", server.log());
}
