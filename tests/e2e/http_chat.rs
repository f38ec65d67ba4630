//! POST /v1/chat/completions, answered whole.

use serde_json::{Value, json};

use crate::support::demo::{Reply, safe_reply};
use crate::support::server::Server;

/// A greedy request for the reference reply, with more fields.
fn request(reply: &Reply, extra: &Value) -> Value {
    let mut body = json!({
        "model": "demo", "temperature": 0,
        "messages": [{"role": "user", "content": reply.prompt}],
    });
    for (name, value) in extra.as_object().expect("an object") {
        body[name] = value.clone();
    }
    body
}

#[test]
fn answers_follow_the_contract() {
    let server = Server::start(&[]);
    let reply = safe_reply();
    plain(&server, &reply);
    limits(&server, &reply);
    stops(&server, &reply);
    logprobs(&server, &reply);
    choices_and_seeds(&server);
    messages(&server, &reply);
    refusals(&server, &reply);
    assert!(!server.log().contains("panicked"), "{}", server.log());
}

fn plain(server: &Server, reply: &Reply) {
    let extra = json!({"metadata": {"a": "b"}, "user": "u", "store": true, "return_tokens": true});
    let answer = server.chat(&request(reply, &extra));
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let answer = answer.ok();
    assert!(answer["id"].as_str().is_some_and(|id| id.starts_with("chatcmpl-")));
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["model"], "demo");
    assert_eq!(answer["service_tier"], "default");
    assert!(answer["created"].is_u64());
    assert!(answer["system_fingerprint"].as_str().is_some_and(|print| print.starts_with("fp_")));
    assert_eq!(answer["metadata"], json!({"a": "b"}));
    let choice = &answer["choices"][0];
    let message = json!({"role": "assistant", "content": reply.text, "refusal": null});
    assert_eq!(choice["message"], message);
    assert_eq!((&choice["index"], &choice["finish_reason"]), (&json!(0), &json!("stop")));
    assert_eq!(choice["logprobs"], Value::Null);
    assert_eq!(choice["tokens"], json!(reply.ids_out[..reply.ids_out.len() - 1]));
    let (prompt, made) = (reply.ids_in.len(), reply.ids_out.len());
    let usage = &answer["usage"];
    assert_eq!(usage["prompt_tokens"], prompt);
    assert_eq!(usage["completion_tokens"], made);
    assert_eq!(usage["total_tokens"], prompt + made);
    let own = &answer["trefoil"];
    assert_eq!(own["decode_devices"], json!(["cpu0"]));
    assert!(own["seed"].is_i64() || own["seed"].is_u64());
    assert_eq!(own["stop_reason"], json!(reply.ids_out[made - 1]), "the end token");
    assert_eq!(answer["timings"]["predicted_n"], made);
}

fn limits(server: &Server, reply: &Reply) {
    for limit in ["max_tokens", "max_completion_tokens"] {
        let answer = server.chat(&request(reply, &json!({ limit: 2, "return_tokens": true }))).ok();
        assert_eq!(answer["choices"][0]["finish_reason"], "length");
        assert_eq!(answer["choices"][0]["tokens"], json!(reply.ids_out[..2]));
        assert_eq!(answer["usage"]["completion_tokens"], 2);
        assert_eq!(answer["trefoil"]["stop_reason"], Value::Null);
    }
    let error = server.chat(&request(reply, &json!({"max_tokens": 2040})));
    let error = error.error(400, "context_length_exceeded");
    let prompt = reply.ids_in.len();
    let expected = format!(
        "This model's maximum context length is 2048 tokens. However, you requested {} tokens \
         ({prompt} in the messages, 2040 in the completion).",
        prompt + 2040
    );
    assert_eq!(error["message"], expected);
    let long = request(&Reply { prompt: "word ".repeat(3000), ..reply.clone() }, &json!({}));
    server.chat(&long).error(400, "context_length_exceeded");
    // Bias and minimum change what is chosen.
    let end = reply.ids_out[reply.ids_out.len() - 1].to_string();
    let answer = server.chat(&request(reply, &json!({"logit_bias": {end: 100}})));
    assert_eq!(answer.ok()["choices"][0]["message"]["content"], "");
    let many = json!({"min_tokens": 12, "max_tokens": 12});
    assert_eq!(server.chat(&request(reply, &many)).ok()["usage"]["completion_tokens"], 12);
    let many = json!({"ignore_eos": true, "max_tokens": 14});
    let answer = server.chat(&request(reply, &many)).ok();
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
}

fn stops(server: &Server, reply: &Reply) {
    let middle = &reply.text[reply.text.len() / 2 - 2..reply.text.len() / 2 + 3];
    for stop in [json!(middle), json!(["never", middle])] {
        let answer = server.chat(&request(reply, &json!({ "stop": stop }))).ok();
        let at = reply.text.find(middle).expect("it is a part");
        assert_eq!(answer["choices"][0]["message"]["content"], reply.text[..at]);
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
        assert_eq!(answer["trefoil"]["stop_reason"], middle);
    }
}

fn logprobs(server: &Server, reply: &Reply) {
    let extra = json!({"logprobs": true, "top_logprobs": 3, "max_tokens": 5});
    let answer = server.chat(&request(reply, &extra)).ok();
    let list = answer["choices"][0]["logprobs"]["content"].as_array().expect("a list").clone();
    assert_eq!(answer["choices"][0]["logprobs"]["refusal"], Value::Null);
    assert_eq!(list.len(), 5, "one entry a token");
    let mut joined = Vec::new();
    for entry in &list {
        let bytes = crate::support::demo::ids(&entry["bytes"]);
        joined.extend(bytes.iter().map(|byte| *byte as u8));
        assert!(entry["token"].is_string());
        let top = entry["top_logprobs"].as_array().expect("a list");
        assert_eq!(top.len(), 3);
        let values: Vec<f64> = top.iter().filter_map(|t| t["logprob"].as_f64()).collect();
        assert!(values.is_sorted_by(|a, b| a >= b) && values[0] <= 0.0, "{values:?}");
        // Greedy: the chosen token is the best one.
        assert_eq!((&top[0]["token"], &top[0]["logprob"]), (&entry["token"], &entry["logprob"]));
        assert!(values.iter().map(|value| value.exp()).sum::<f64>() <= 1.0 + 1e-6);
    }
    assert!(reply.text.as_bytes().starts_with(&joined));
    let answer = server.chat(&request(reply, &json!({"logprobs": true, "max_tokens": 1}))).ok();
    let entry = &answer["choices"][0]["logprobs"]["content"][0];
    assert_eq!((&entry["logprob"], &entry["top_logprobs"]), (&list[0]["logprob"], &json!([])));
    // They are those of the model: temperature and bias change the choice, not them.
    let extra = json!({"logprobs": true, "max_tokens": 1, "temperature": 2, "top_k": 1,
        "presence_penalty": 1.5});
    let other = server.chat(&request(reply, &extra)).ok();
    assert_eq!(other["choices"][0]["logprobs"]["content"][0]["logprob"], list[0]["logprob"]);
}

fn choices_and_seeds(server: &Server) {
    let body = |extra: Value| {
        let mut body = json!({
            "model": "demo", "temperature": 1.5, "max_tokens": 10,
            "messages": [{"role": "user", "content": "Tell me a story about a lemon tree."}],
        });
        for (name, value) in extra.as_object().expect("an object") {
            body[name] = value.clone();
        }
        server.chat(&body).ok()
    };
    let texts = |answer: &Value| -> Vec<String> {
        let choices = answer["choices"].as_array().expect("a list");
        for (index, choice) in choices.iter().enumerate() {
            assert_eq!(choice["index"], index);
        }
        let texts = choices.iter().filter_map(|choice| choice["message"]["content"].as_str());
        texts.map(str::to_owned).collect()
    };
    let three = body(json!({"n": 3, "seed": 11}));
    let first = texts(&three);
    assert_eq!(first.len(), 3);
    assert!(first[0] != first[1] || first[0] != first[2], "choices differ: {first:?}");
    let alone = body(json!({"seed": 11}));
    assert_eq!(texts(&alone)[0], first[0], "the first choice is the one of n = 1");
    assert_eq!(texts(&body(json!({"n": 2, "seed": 11}))), first[..2]);
    // The prompt counts once, whatever n.
    assert_eq!(three["usage"]["prompt_tokens"], alone["usage"]["prompt_tokens"]);
    assert_ne!(texts(&body(json!({"seed": 12})))[0], first[0]);
    let drawn = body(json!({}));
    let again = body(json!({"seed": drawn["trefoil"]["seed"]}));
    assert_eq!(texts(&again), texts(&drawn), "a drawn seed is told");
    assert_eq!(three["system_fingerprint"], drawn["system_fingerprint"]);
}

fn messages(server: &Server, reply: &Reply) {
    let prompt = |messages: Value| {
        let body = json!({"model": "demo", "temperature": 0, "max_tokens": 1,
            "messages": messages});
        server.chat(&body).ok()["usage"]["prompt_tokens"].clone()
    };
    let parts = json!([{"role": "user", "content": [
        {"type": "text", "text": &reply.prompt[..4]}, {"type": "text", "text": &reply.prompt[4..]},
    ]}]);
    assert_eq!(prompt(parts), reply.ids_in.len(), "parts are joined");
    let system = json!([{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]);
    let developer =
        json!([{"role": "developer", "content": "a"}, {"role": "user", "content": "b"}]);
    assert_eq!(prompt(system), prompt(developer));
    let tools = json!([
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": null, "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "c"},
    ]);
    let body = json!({"model": "demo", "max_tokens": 1, "messages": tools});
    let answer = server.chat(&body);
    // Templates without tools may refuse them, and say so; they never break the server.
    assert!(answer.status == 200 || answer.status == 400, "{}", answer.text());
}

fn refusals(server: &Server, reply: &Reply) {
    let user = json!([{"role": "user", "content": "x"}]);
    for (extra, code, param) in [
        (json!({"model": null}), "missing_required_parameter", "model"),
        (json!({"model": ""}), "invalid_value", "model"),
        (json!({"model": "x".repeat(257)}), "invalid_value", "model"),
        (json!({"model": 7}), "invalid_type", "model"),
        (json!({"messages": null}), "missing_required_parameter", "messages"),
        (json!({"messages": []}), "invalid_value", "messages"),
        (json!({"messages": "hi"}), "invalid_type", "messages"),
        (json!({"messages": ["hi"]}), "invalid_type", "messages[0]"),
        (json!({"messages": [{"content": "x"}]}), "missing_required_parameter", "messages[0].role"),
        (
            json!({"messages": [{"role": "user"}]}),
            "missing_required_parameter",
            "messages[0].content",
        ),
        (
            json!({"messages": [{"role": "function", "content": "x"}]}),
            "invalid_value",
            "messages[0].role",
        ),
        (
            json!({"messages": [{"role": "tool", "content": "x"}]}),
            "missing_required_parameter",
            "messages[0].tool_call_id",
        ),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}),
            "unsupported_value",
            "messages[0].content[0]",
        ),
        (
            json!({"messages": [{"role": "user", "content": 5}]}),
            "invalid_type",
            "messages[0].content",
        ),
        (json!({"temperature": 2.01}), "invalid_value", "temperature"),
        (json!({"temperature": -0.1}), "invalid_value", "temperature"),
        (json!({"top_p": 1.1}), "invalid_value", "top_p"),
        (json!({"presence_penalty": 3}), "invalid_value", "presence_penalty"),
        (json!({"frequency_penalty": "1"}), "invalid_type", "frequency_penalty"),
        (json!({"max_tokens": 0}), "invalid_value", "max_tokens"),
        (json!({"max_tokens": 1.5}), "invalid_type", "max_tokens"),
        (json!({"max_tokens": 1, "max_completion_tokens": 2}), "invalid_value", "max_tokens"),
        (json!({"n": 0}), "invalid_value", "n"),
        (json!({"n": 9}), "invalid_value", "n"),
        (json!({"stop": ""}), "invalid_value", "stop"),
        (json!({"stop": ["x".repeat(257)]}), "invalid_value", "stop"),
        (json!({"stop": vec!["x"; 17]}), "invalid_value", "stop"),
        (json!({"logit_bias": {"8192": 1}}), "invalid_value", "logit_bias"),
        (json!({"logit_bias": {"1": 101}}), "invalid_value", "logit_bias"),
        (json!({"logit_bias": {"one": 1}}), "invalid_value", "logit_bias"),
        (json!({"top_logprobs": 2}), "invalid_value", "top_logprobs"),
        (json!({"logprobs": true, "top_logprobs": 21}), "invalid_value", "top_logprobs"),
        (json!({"stream_options": {"include_usage": true}}), "invalid_value", "stream_options"),
        (json!({"response_format": {"type": "xml"}}), "unsupported_value", "response_format"),
        (json!({"response_format": {}}), "missing_required_parameter", "response_format.type"),
        (json!({"functions": []}), "unsupported_parameter", "functions"),
        (json!({"audio": {}}), "unsupported_parameter", "audio"),
        (json!({"modalities": ["text", "audio"]}), "unsupported_parameter", "modalities"),
        (
            json!({"tools": [{"type": "function"}]}),
            "missing_required_parameter",
            "tools[0].function",
        ),
        (json!({"tool_choice": "required"}), "invalid_value", "tool_choice"),
        (json!({"grammar": "root ::= x"}), "invalid_value", "grammar"),
        (json!({"seed": 1.5}), "invalid_type", "seed"),
        (json!({"repeat_penalty": 0}), "invalid_value", "repeat_penalty"),
        (json!({"metadata": "a"}), "invalid_type", "metadata"),
    ] {
        let mut body = json!({"model": "demo", "messages": user, "max_tokens": 1});
        for (name, value) in extra.as_object().expect("an object") {
            body[name] = value.clone();
        }
        let error = server.chat(&body).error(400, code);
        assert_eq!(error["param"], param, "{extra}: {error}");
        let message = error["message"].as_str().expect("a text");
        assert!(message.contains(param.split('[').next().expect("a part")), "{message}");
    }
    // Null is absent, whatever the field.
    let nulls = json!({"temperature": null, "stop": null, "tools": null, "seed": null, "n": null,
        "functions": null, "stream": null, "stream_options": null, "logit_bias": null,
        "response_format": null, "max_completion_tokens": null, "metadata": null});
    server.chat(&request(reply, &json!({"max_tokens": 1}))).ok();
    let mut body = request(reply, &nulls);
    body["max_tokens"] = json!(1);
    let answer = server.chat(&body);
    answer.ok();
    assert_eq!(answer.header("x-trefoil-ignored"), None);
    // What changes nothing is taken.
    let same = json!({"tools": [], "tool_choice": "auto", "modalities": ["text"], "top_k": -1,
        "response_format": {"type": "text"}, "parallel_tool_calls": false, "max_tokens": 1});
    server.chat(&request(reply, &same)).ok();
}
