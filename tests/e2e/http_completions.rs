//! POST /v1/completions: forms of prompts, echo, log probabilities, several replies, streams.

use serde_json::{Value, json};

use crate::support::demo::{Reply, safe_reply};
use crate::support::http::{Event, Response};
use crate::support::server::Server;

const PATH: &str = "/v1/completions";

fn ask(server: &Server, body: &Value) -> Response {
    server.call("POST", PATH).json(body).send()
}

/// A greedy request with more fields.
fn request(prompt: &Value, extra: &Value) -> Value {
    let mut body = json!({"model": "demo", "temperature": 0, "prompt": prompt});
    for (name, value) in extra.as_object().expect("an object") {
        body[name] = value.clone();
    }
    body
}

fn text(answer: &Value, index: usize) -> &str {
    let choice = &answer["choices"][index];
    assert_eq!(choice["index"], index);
    choice["text"].as_str().expect("a text")
}

#[test]
fn completions_follow_the_contract() {
    let server = Server::start(&[]);
    let reply = safe_reply();
    whole(&server, &reply);
    several(&server, &reply);
    echo(&server, &reply);
    logprobs(&server, &reply);
    stop_and_logprobs(&server, &reply);
    streams(&server, &reply);
    refusals(&server);
    assert!(!server.log().contains("panicked"), "{}", server.log());
}

fn whole(server: &Server, reply: &Reply) {
    // What a chat is read as, sent as tokens, is answered as the chat is.
    let extra = json!({"max_tokens": 100, "return_tokens": true, "user": "u"});
    let answer = ask(server, &request(&json!(reply.ids_in), &extra)).ok();
    assert!(answer["id"].as_str().is_some_and(|id| id.starts_with("cmpl-")));
    assert_eq!((&answer["object"], &answer["model"]), (&json!("text_completion"), &json!("demo")));
    assert!(answer["created"].is_u64());
    assert_eq!(text(&answer, 0), reply.text);
    let choice = &answer["choices"][0];
    let (prompt, made) = (reply.ids_in.len(), reply.ids_out.len());
    assert_eq!(choice["tokens"], json!(reply.ids_out[..made - 1]));
    assert_eq!((&choice["logprobs"], &choice["finish_reason"]), (&Value::Null, &json!("stop")));
    let usage = &answer["usage"];
    assert_eq!(
        (&usage["prompt_tokens"], &usage["completion_tokens"]),
        (&json!(prompt), &json!(made))
    );
    assert_eq!(answer["trefoil"]["decode_devices"], json!(["cpu0"]));
    assert_eq!(answer["timings"]["predicted_n"], made);

    // Where nobody says how many tokens, there are sixteen; without a prompt the model begins.
    let answer = ask(server, &request(&json!("Once"), &json!({"ignore_eos": true}))).ok();
    assert_eq!(answer["usage"]["completion_tokens"], 16);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    for nothing in [json!({"model": "demo"}), json!({"model": "default", "prompt": null})] {
        let answer = ask(server, &nothing).ok();
        assert_eq!(answer["usage"]["prompt_tokens"], 1);
    }
    // The demo model's limit of what it may read and make.
    let long = json!({"max_tokens": 2048});
    let error = ask(server, &request(&json!("Once"), &long)).error(400, "context_length_exceeded");
    assert_eq!(error["param"], "prompt");
}

fn several(server: &Server, reply: &Reply) {
    let one = |prompt: &Value| {
        let answer = ask(server, &request(prompt, &json!({"max_tokens": 6}))).ok();
        (text(&answer, 0).to_owned(), answer["usage"].clone())
    };
    let (first, second) = (json!("The lemon"), json!("A tree in the garden"));
    let alone = [one(&first), one(&second)];
    let both = json!([first, second]);
    let answer = ask(server, &request(&both, &json!({"max_tokens": 6}))).ok();
    assert_eq!([text(&answer, 0), text(&answer, 1)], [alone[0].0.as_str(), alone[1].0.as_str()]);
    for count in ["prompt_tokens", "completion_tokens", "total_tokens"] {
        let sum: u64 = alone.iter().filter_map(|(_, usage)| usage[count].as_u64()).sum();
        assert_eq!(answer["usage"][count], sum, "{count}");
    }
    // By prompt, then by choice; the seed makes the same of each choice as it does alone.
    let extra = json!({"max_tokens": 6, "n": 2, "best_of": 2, "seed": 5, "temperature": 1.2});
    let pairs = ask(server, &request(&both, &extra)).ok();
    assert_eq!(pairs["choices"].as_array().map(Vec::len), Some(4));
    for (at, prompt) in [(0, &first), (2, &second)] {
        let alone = ask(server, &request(prompt, &extra)).ok();
        assert_eq!([text(&pairs, at), text(&pairs, at + 1)], [text(&alone, 0), text(&alone, 1)]);
    }
    // Each prompt counts once.
    assert_eq!(pairs["usage"]["prompt_tokens"], answer["usage"]["prompt_tokens"]);
    let lists = json!([reply.ids_in, reply.ids_in[..3]]);
    let answer = ask(server, &request(&lists, &json!({"max_tokens": 100}))).ok();
    assert_eq!(text(&answer, 0), reply.text);
    assert_eq!(answer["usage"]["prompt_tokens"], reply.ids_in.len() + 3);
}

fn echo(server: &Server, reply: &Reply) {
    let extra = json!({"max_tokens": 5});
    let plain = ask(server, &request(&json!("The lemon é"), &extra)).ok();
    let extra = json!({"max_tokens": 5, "echo": true});
    let echoed = ask(server, &request(&json!("The lemon é"), &extra)).ok();
    assert_eq!(text(&echoed, 0), format!("The lemon é{}", text(&plain, 0)));
    assert_eq!(echoed["usage"], plain["usage"], "an echo is not made");
    // Of token ids their text comes back, that of special ones included.
    let echoed = ask(server, &request(&json!(reply.ids_in), &extra)).ok();
    let detokenized = server.call("POST", "/detokenize").json(&json!({"tokens": reply.ids_in}));
    let prompt = detokenized.send().ok()["content"].as_str().expect("a text").to_owned();
    assert!(prompt.contains(&reply.prompt));
    assert!(text(&echoed, 0).starts_with(&prompt), "{}", text(&echoed, 0));
}

/// Checks the lists of a choice against its text; returns the tokens.
fn check_lists(lists: &Value, shown: &str, most: usize) -> Vec<String> {
    let list = |name: &str| lists[name].as_array().unwrap_or_else(|| panic!("{name}: {lists}"));
    let tokens: Vec<String> =
        list("tokens").iter().map(|t| t.as_str().expect("a text").to_owned()).collect();
    for name in ["token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(list(name).len(), tokens.len(), "{name}");
    }
    let chars: Vec<char> = shown.chars().collect();
    for (index, token) in tokens.iter().enumerate() {
        let offset = list("text_offset")[index].as_u64().expect("a number") as usize;
        let from: String = chars[offset..].iter().collect();
        if !token.contains(char::REPLACEMENT_CHARACTER) {
            let common = token.len().min(from.len());
            assert_eq!(token[..common], from[..common], "{token:?} at {offset} of {shown:?}");
        }
        let top = list("top_logprobs")[index].as_object().expect("an object");
        assert!((1..=most + 1).contains(&top.len()), "{top:?}");
        assert_eq!(top[token], list("token_logprobs")[index], "the chosen one is among them");
        assert!(top.values().all(|value| value.as_f64().is_some_and(|value| value <= 0.0)));
    }
    tokens
}

fn logprobs(server: &Server, reply: &Reply) {
    let extra = json!({"max_tokens": 100, "logprobs": 3});
    let answer = ask(server, &request(&json!(reply.ids_in), &extra)).ok();
    let tokens = check_lists(&answer["choices"][0]["logprobs"], &reply.text, 3);
    assert_eq!(tokens.concat(), reply.text, "a token of each piece of the text");
    // A chat says the same of them.
    let chat = json!({"model": "demo", "temperature": 0, "logprobs": true, "max_tokens": 100,
        "messages": [{"role": "user", "content": reply.prompt}]});
    let chat = server.chat(&chat).ok();
    let content = chat["choices"][0]["logprobs"]["content"].as_array().expect("a list");
    let values: Vec<&Value> = content.iter().map(|entry| &entry["logprob"]).collect();
    let own = answer["choices"][0]["logprobs"]["token_logprobs"].as_array().expect("a list");
    assert_eq!(own.iter().collect::<Vec<_>>(), values);
    let extra = json!({"max_tokens": 2, "logprobs": 0});
    let answer = ask(server, &request(&json!(reply.ids_in), &extra)).ok();
    check_lists(&answer["choices"][0]["logprobs"], text(&answer, 0), 0);
    // Characters of several tokens: each token is at the character that holds its first byte.
    let extra = json!({"max_tokens": 40, "logprobs": 1, "temperature": 2, "seed": 3, "top_k": 0});
    let answer = ask(server, &request(&json!("世界 é"), &extra)).ok();
    check_lists(&answer["choices"][0]["logprobs"], text(&answer, 0), 1);
}

/// Text from the middle of the reply, within a token, so that the token before it is cut.
fn stop_and_logprobs(server: &Server, reply: &Reply) {
    let middle = &reply.text[reply.text.len() / 2 - 2..reply.text.len() / 2 + 3];
    let extra = json!({"max_tokens": 100, "logprobs": 1, "stop": middle});
    let answer = ask(server, &request(&json!(reply.ids_in), &extra)).ok();
    let shown = text(&answer, 0);
    assert_eq!(shown, &reply.text[..reply.text.find(middle).expect("it is a part")]);
    let tokens = check_lists(&answer["choices"][0]["logprobs"], shown, 1);
    let joined = tokens.concat();
    assert!(joined.starts_with(shown) && reply.text.starts_with(&joined), "{joined:?}");
    let before = tokens[..tokens.len() - 1].concat();
    assert!(before.len() < shown.len(), "nothing behind the stop text is listed");
}

fn streams(server: &Server, reply: &Reply) {
    let extra = json!({"max_tokens": 100, "logprobs": 2, "stop": "zzz"});
    let whole = ask(server, &request(&json!(reply.ids_in), &extra)).ok();
    let mut body = request(&json!([reply.ids_in, reply.ids_in[..3]]), &extra);
    body["stream"] = json!(true);
    body["stream_options"] = json!({"include_usage": true});
    let mut events = server.call("POST", PATH).json(&body).open().events();
    assert_eq!(events.pop(), Some(Event::Done));
    let chunks: Vec<Value> = events
        .into_iter()
        .filter_map(|event| match event {
            Event::Data(chunk) => Some(chunk),
            _ => None,
        })
        .collect();
    let (last, chunks) = chunks.split_last().expect("chunks");
    assert_eq!(last["choices"], json!([]));
    assert!(last["usage"]["completion_tokens"].as_u64().is_some_and(|n| n > 0), "{last}");
    assert!(last["timings"].is_object() && last["trefoil"]["seed"].is_number());
    let mut joined = [String::new(), String::new()];
    let mut tokens: Vec<Value> = Vec::new();
    let mut finished = [false, false];
    for chunk in chunks {
        assert_eq!((&chunk["object"], &chunk["usage"]), (&json!("text_completion"), &Value::Null));
        assert_eq!(chunk["id"], last["id"]);
        let choice = &chunk["choices"][0];
        let index = choice["index"].as_u64().expect("a number") as usize;
        assert!(!finished[index], "nothing follows the finish reason");
        finished[index] = choice["finish_reason"].is_string();
        joined[index].push_str(choice["text"].as_str().expect("a text"));
        if index == 0 {
            tokens.extend(choice["logprobs"]["tokens"].as_array().expect("a list").clone());
        }
    }
    assert_eq!((finished, joined[0].as_str()), ([true, true], reply.text.as_str()));
    assert_eq!(Value::Array(tokens), whole["choices"][0]["logprobs"]["tokens"]);
    // An echo comes first, whole.
    let mut body = request(&json!("The lemon"), &json!({"max_tokens": 2, "echo": true}));
    body["stream"] = json!(true);
    let events = server.call("POST", PATH).json(&body).open().events();
    let Event::Data(first) = &events[0] else { panic!("{:?}", events[0]) };
    assert_eq!(first["choices"][0]["text"], "The lemon");
}

fn refusals(server: &Server) {
    for (extra, code, param) in [
        (json!({"model": null}), "missing_required_parameter", "model"),
        (json!({"prompt": []}), "invalid_value", "prompt"),
        (json!({"prompt": [[]]}), "invalid_value", "prompt"),
        (json!({"prompt": vec!["x"; 129]}), "invalid_value", "prompt"),
        (json!({"prompt": [1, "x"]}), "invalid_type", "prompt"),
        (json!({"prompt": [8192]}), "invalid_value", "prompt"),
        (json!({"logprobs": 6}), "invalid_value", "logprobs"),
        (json!({"logprobs": 1, "echo": true}), "unsupported_value", "logprobs"),
        (json!({"suffix": "x"}), "unsupported_value", "suffix"),
        (json!({"n": 2, "best_of": 3}), "unsupported_value", "best_of"),
        (json!({"temperature": 3}), "invalid_value", "temperature"),
        (json!({"logit_bias": {"8192": 1}}), "invalid_value", "logit_bias"),
    ] {
        let error = ask(server, &request(&json!("x"), &extra)).error(400, code);
        assert_eq!(error["param"], param, "{extra}: {error}");
    }
    let answer = ask(server, &request(&json!("x"), &json!({"max_tokens": 1, "foo": 1})));
    assert_eq!(answer.header("x-trefoil-ignored"), Some("foo"));
    let body = request(&json!("x"), &json!({"model": "none"}));
    ask(server, &body).error(404, "model_not_found");
    let long = request(&json!("word ".repeat(3000)), &json!({}));
    ask(server, &long).error(400, "context_length_exceeded");
}

#[test]
fn more_prompts_than_the_queue_has_places_are_refused() {
    let server = Server::start(&["--max-queue", "2"]);
    let body = request(&json!(["a", "b", "c"]), &json!({"max_tokens": 1}));
    let error = ask(&server, &body).error(400, "invalid_value");
    assert_eq!(error["param"], "prompt");
    ask(&server, &request(&json!(["a", "b"]), &json!({"max_tokens": 1}))).ok();
}
