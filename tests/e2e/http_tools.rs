//! Tools: what the model is told, calls that it is bound to make, and how they come back.

use serde_json::{Value, json};

use crate::support::server::Server;

fn weather() -> Value {
    json!({"type": "function", "function": {
        "name": "get_weather", "description": "The weather of a city.",
        "parameters": {
            "type": "object", "required": ["city", "days"], "additionalProperties": false,
            "properties": {
                "city": {"type": "string", "maxLength": 12},
                "days": {"type": "integer", "minimum": 1, "maximum": 14},
            },
        },
    }})
}

fn clock() -> Value {
    json!({"type": "function", "function": {"name": "clock", "strict": true}})
}

fn body(extra: &Value) -> Value {
    let mut body = json!({
        "model": "demo", "max_tokens": 600, "seed": 4, "tools": [weather(), clock()],
        "messages": [{"role": "user", "content": "Is it raining?"}],
    });
    for (name, value) in extra.as_object().expect("an object") {
        body[name] = value.clone();
    }
    body
}

/// Calls of a message, each checked.
fn calls(message: &Value) -> Vec<(String, Value)> {
    let list = message["tool_calls"].as_array().unwrap_or_else(|| panic!("no calls: {message}"));
    let call = |call: &Value| {
        assert_eq!(call["type"], "function");
        let id = call["id"].as_str().expect("an id");
        assert!(id.starts_with("call_") && id.len() == 29, "{id}");
        let name = call["function"]["name"].as_str().expect("a name").to_owned();
        let arguments = call["function"]["arguments"].as_str().expect("a text");
        let arguments: Value = serde_json::from_str(arguments).expect("JSON");
        match name.as_str() {
            "get_weather" => {
                assert!(arguments["city"].is_string() && arguments.as_object().unwrap().len() == 2);
                assert!((1..=14).contains(&arguments["days"].as_i64().expect("a number")));
            }
            "clock" => assert_eq!(arguments, json!({})),
            other => panic!("not a tool: {other}"),
        }
        (name, arguments)
    };
    list.iter().map(call).collect()
}

#[test]
fn calls_are_made_where_they_must_be() {
    let server = Server::start(&[]);
    let named = json!({"type": "function", "function": {"name": "get_weather"}});
    let answer = server.chat(&body(&json!({"tool_choice": named, "n": 2, "temperature": 1}))).ok();
    for choice in answer["choices"].as_array().expect("choices") {
        assert_eq!(choice["finish_reason"], "tool_calls", "{choice}");
        assert_eq!(choice["message"]["content"], Value::Null);
        assert!(calls(&choice["message"]).iter().all(|(name, _)| name == "get_weather"));
    }
    let single = json!({"tool_choice": "required", "parallel_tool_calls": false});
    for seed in 0..6 {
        let mut request = body(&single);
        request["seed"] = json!(seed);
        let choice = server.chat(&request).ok()["choices"][0].clone();
        assert_eq!(calls(&choice["message"]).len(), 1);
        // The same as events: one that opens the call, then its arguments.
        request["stream"] = json!(true);
        let events = server.chat(&request).text();
        let deltas: Vec<Value> = events
            .lines()
            .filter_map(|line| serde_json::from_str(line.strip_prefix("data: ")?).ok())
            .map(|chunk: Value| chunk["choices"][0].clone())
            .collect();
        let last = deltas.last().expect("chunks");
        assert_eq!(last["finish_reason"], "tool_calls", "{events}");
        let parts: Vec<&Value> = deltas
            .iter()
            .filter_map(|delta| delta["delta"]["tool_calls"].as_array())
            .map(|calls| &calls[0])
            .collect();
        assert!(parts[0]["id"].is_string() && parts[0]["function"]["arguments"] == "");
        let joined: String =
            parts.iter().filter_map(|part| part["function"]["arguments"].as_str()).collect();
        let function = &choice["message"]["tool_calls"][0]["function"];
        assert_eq!(function["arguments"], joined);
        assert_eq!(function["name"], parts[0]["function"]["name"]);
        let said = |delta: &&Value| delta["delta"]["content"].as_str() > Some("");
        assert!(!deltas.iter().any(|delta| said(&delta)), "{events}");
    }
    // Free to call or not: a strict tool binds the reply, another does not; none is not told.
    for extra in [json!({}), json!({"tools": [weather()]}), json!({"tool_choice": "none"})] {
        let mut request = body(&extra);
        request["max_tokens"] = json!(30);
        let choice = server.chat(&request).ok()["choices"][0].clone();
        let called = choice["finish_reason"] == "tool_calls";
        assert_eq!(called, choice["message"]["tool_calls"].is_array());
        assert!(called || choice["message"]["content"].as_str() > Some(""), "{choice}");
    }
    let told = server.chat(&body(&json!({"max_tokens": 1}))).ok()["usage"]["prompt_tokens"].clone();
    let none = body(&json!({"max_tokens": 1, "tool_choice": "none"}));
    let untold = server.chat(&none).ok()["usage"]["prompt_tokens"].clone();
    assert!(told.as_u64() > untold.as_u64(), "{told} {untold}");
    assert!(!server.log().contains("panicked"), "{}", server.log());
}

#[test]
fn results_of_calls_go_back_to_the_model() {
    let server = Server::start(&[]);
    let function = json!({"name": "get_weather", "arguments": "{\"city\":\"Oslo\",\"days\":1}"});
    let call = json!({"id": "call_1", "type": "function", "function": function});
    let messages = json!([
        {"role": "user", "content": "Is it raining?"},
        {"role": "assistant", "content": null, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "It rains."},
    ]);
    let answer = server.chat(&body(&json!({"messages": messages, "max_tokens": 3}))).ok();
    assert_eq!(answer["usage"]["completion_tokens"], 3);
    let broken = json!([{"role": "assistant", "content": null, "tool_calls": [{"id": "x"}]}]);
    let error = server.chat(&body(&json!({ "messages": broken })));
    let error = error.error(400, "missing_required_parameter");
    assert_eq!(error["param"], "messages[0].tool_calls[0].function");
    let odd = json!({"tools": [{"type": "function", "function": {
        "name": "f", "parameters": {"type": "object", "minProperties": 1},
    }}], "max_tokens": 1});
    let answer = server.chat(&body(&odd));
    let named = answer.header("x-trefoil-ignored").expect("named").to_owned();
    assert_eq!(named, "tools[0].parameters/minProperties");
    answer.ok();
}
