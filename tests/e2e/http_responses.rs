//! POST /v1/responses, at once and as events.

use serde_json::{Value, json};

use crate::support::demo::safe_reply;
use crate::support::http::Response;
use crate::support::server::Server;

fn post(server: &Server, body: &Value) -> Response {
    server.call("POST", "/v1/responses").json(body).send()
}

fn body(extra: &Value) -> Value {
    let mut body = json!({"model": "demo", "temperature": 0, "input": safe_reply().prompt});
    for (name, value) in extra.as_object().expect("an object") {
        body[name] = value.clone();
    }
    body
}

/// The events of a stream, checked: named as their type says, numbered from 0.
fn events(response: &Response) -> Vec<Value> {
    let text = response.text();
    let mut events = Vec::new();
    for event in text.split("\n\n").filter(|event| !event.is_empty() && !event.starts_with(':')) {
        let (name, data) = event.split_once('\n').expect("two lines");
        let name = name.strip_prefix("event: ").expect("a name");
        let data: Value =
            serde_json::from_str(data.strip_prefix("data: ").expect("data")).expect("JSON");
        assert_eq!(data["type"], name);
        assert_eq!(data["sequence_number"], events.len());
        events.push(data);
    }
    events
}

#[test]
fn responses_follow_the_contract() {
    let server = Server::start(&[]);
    let reply = safe_reply();
    let extra = json!({"metadata": {"a": "b"}, "store": true, "max_output_tokens": 100});
    let answer = post(&server, &body(&extra)).ok();
    assert!(answer["id"].as_str().is_some_and(|id| id.starts_with("resp_")));
    assert_eq!((&answer["object"], &answer["status"]), (&json!("response"), &json!("completed")));
    assert_eq!(answer["metadata"], json!({"a": "b"}));
    assert_eq!((&answer["store"], &answer["error"]), (&json!(false), &Value::Null));
    assert_eq!(answer["text"], json!({"format": {"type": "text"}}));
    assert_eq!((&answer["temperature"], &answer["top_p"]), (&json!(0.0), &json!(1.0)));
    assert_eq!((&answer["tool_choice"], &answer["tools"]), (&json!("auto"), &json!([])));
    let message = &answer["output"][0];
    assert_eq!((&message["type"], &message["role"]), (&json!("message"), &json!("assistant")));
    let part = json!({
        "type": "output_text", "text": reply.text, "annotations": [], "logprobs": [],
    });
    assert_eq!(message["content"], json!([part]));
    let usage = &answer["usage"];
    assert_eq!(usage["input_tokens"], reply.ids_in.len());
    assert_eq!(usage["output_tokens"], reply.ids_out.len());
    assert_eq!(usage["input_tokens_details"]["cached_tokens"], 0);

    let cut = post(&server, &body(&json!({"max_output_tokens": 2, "instructions": null}))).ok();
    assert_eq!(cut["status"], "incomplete");
    assert_eq!(cut["incomplete_details"], json!({"reason": "max_output_tokens"}));

    let include = json!(["message.output_text.logprobs"]);
    let shown = json!({"include": include, "top_logprobs": 2, "max_output_tokens": 4});
    let shown = post(&server, &body(&shown)).ok();
    let list = shown["output"][0]["content"][0]["logprobs"].as_array().expect("a list").clone();
    assert_eq!(list.len(), 4);
    assert_eq!(list[0]["top_logprobs"].as_array().map(Vec::len), Some(2));
    // The same conversation as items.
    let items =
        json!([{"role": "user", "content": [{"type": "input_text", "text": reply.prompt}]}]);
    let again = post(&server, &body(&json!({ "input": items }))).ok();
    assert_eq!(again["output"][0]["content"][0]["text"], reply.text);
}

#[test]
fn events_build_the_response() {
    let server = Server::start(&[]);
    let reply = safe_reply();
    let response = post(&server, &body(&json!({"stream": true})));
    assert_eq!(response.header("content-type"), Some("text/event-stream; charset=utf-8"));
    let told = events(&response);
    let kinds: Vec<&str> = told.iter().filter_map(|event| event["type"].as_str()).collect();
    let frame = ["response.created", "response.in_progress", "response.output_item.added"];
    assert_eq!(kinds[..3], frame);
    assert_eq!(kinds[3], "response.content_part.added");
    assert_eq!(kinds[kinds.len() - 2..], ["response.output_item.done", "response.completed"]);
    let joined: String = told
        .iter()
        .filter(|event| event["type"] == "response.output_text.delta")
        .filter_map(|event| event["delta"].as_str())
        .collect();
    assert_eq!(joined, reply.text);
    let end = &told[told.len() - 1]["response"];
    assert_eq!(end["output"][0]["content"][0]["text"], reply.text);
    assert_eq!(end["output"][0], told[told.len() - 2]["item"]);
    assert_eq!(told[0]["response"]["id"], end["id"]);
    assert!(!response.text().contains("[DONE]"));
}

#[test]
fn forms_and_tools_work_here_too() {
    let server = Server::start(&[]);
    let schema = json!({
        "type": "object", "required": ["ok"], "additionalProperties": false,
        "properties": {"ok": {"type": "boolean"}},
    });
    let format = json!({"type": "json_schema", "name": "x", "strict": true, "schema": schema});
    let answer = post(&server, &body(&json!({"text": {"format": format.clone()}}))).ok();
    let text = answer["output"][0]["content"][0]["text"].as_str().expect("a text");
    let document: Value = serde_json::from_str(text).expect("JSON");
    assert!(document["ok"].is_boolean());
    assert_eq!(answer["text"]["format"], format);

    let tool = json!({"type": "function", "name": "set", "strict": true, "parameters": schema});
    let extra = json!({
        "tools": [tool], "tool_choice": {"type": "function", "name": "set"},
        "parallel_tool_calls": false, "temperature": 1, "seed": 2,
    });
    let answer = post(&server, &body(&extra)).ok();
    let output = answer["output"].as_array().expect("items");
    assert_eq!(output.len(), 1, "{answer}");
    let call = &output[0];
    assert_eq!((&call["type"], &call["name"]), (&json!("function_call"), &json!("set")));
    let arguments = call["arguments"].as_str().expect("a text");
    assert!(serde_json::from_str::<Value>(arguments).expect("JSON")["ok"].is_boolean());
    let mut streamed = body(&extra);
    streamed["stream"] = json!(true);
    let told = events(&post(&server, &streamed));
    let done = told.iter().find(|e| e["type"] == "response.function_call_arguments.done");
    assert_eq!(done.expect("an end")["arguments"], arguments);
    // What came of the call.
    let items = json!([
        {"role": "user", "content": "set it"}, call,
        {"type": "function_call_output", "call_id": call["call_id"], "output": "done"},
    ]);
    post(&server, &body(&json!({"input": items, "tools": [tool], "max_output_tokens": 3}))).ok();

    let error = post(&server, &body(&json!({"previous_response_id": "resp_1"})));
    assert_eq!(error.error(400, "unsupported_parameter")["param"], "previous_response_id");
    let long = "word ".repeat(3000);
    let error = post(&server, &body(&json!({ "input": long })));
    assert_eq!(error.error(400, "context_length_exceeded")["param"], "input");
    post(&server, &json!({"model": "demo"})).error(400, "missing_required_parameter");
    post(&server, &json!({"model": "none", "input": "x"})).error(404, "model_not_found");
    assert!(!server.log().contains("panicked"), "{}", server.log());
}

#[test]
fn thought_is_told_apart_from_the_reply() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("thinks.jinja");
    // Every reply begins inside of thought, which this model never closes.
    let source = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' \
                  + message['content'].split('</think>')[-1] + '<|im_end|>' + '\\n' }}{% endfor %}\
                  {{ '<|im_start|>assistant\\n<think>\\n' }}";
    std::fs::write(&file, source).expect("writes");
    let flags = ["--chat-template", file.to_str().expect("a plain path")];
    let server = Server::start(&flags);
    let answer = post(&server, &body(&json!({"max_output_tokens": 12}))).ok();
    let item = &answer["output"][0];
    assert_eq!(item["type"], "reasoning", "{answer}");
    let thought = item["content"][0]["text"].as_str().expect("a text");
    assert!(!thought.is_empty());
    let usage = &answer["usage"];
    let [thoughts, all] =
        [&usage["output_tokens_details"]["reasoning_tokens"], &usage["output_tokens"]]
            .map(|count| count.as_u64().expect("a number"));
    // The end token, if there was one, is no thought.
    assert!(thoughts > 0 && thoughts + 1 >= all && thoughts <= all, "{usage}");
    let told = events(&post(&server, &body(&json!({"max_output_tokens": 12, "stream": true}))));
    let joined: String = told
        .iter()
        .filter(|event| event["type"] == "response.reasoning_text.delta")
        .filter_map(|event| event["delta"].as_str())
        .collect();
    assert_eq!(joined, thought);

    let chat = json!({
        "model": "demo", "temperature": 0, "max_tokens": 12,
        "messages": [{"role": "user", "content": safe_reply().prompt}],
    });
    let answer = server.chat(&chat).ok();
    let message = &answer["choices"][0]["message"];
    assert_eq!((&message["content"], &message["reasoning_content"]), (&json!(""), &json!(thought)));
    // A reply that is held to a form is no thought.
    let mut bound = chat;
    bound["grammar"] = json!("root ::= \"yes\"");
    let message = &server.chat(&bound).ok()["choices"][0]["message"];
    assert_eq!(message["content"], "yes");
    assert!(message["reasoning_content"].is_null(), "{message}");
}
