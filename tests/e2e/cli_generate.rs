//! `trefoil run` and `trefoil chat`.

use serde_json::{Value, json};

use crate::support::demo::{SAFE_MARGIN, ids, replies, safe_reply};
use crate::support::program::{trefoil, trefoil_with};

/// A run that prints JSON, greedy unless the flags say otherwise.
fn run(prompt: &str, flags: &[&str]) -> Value {
    let args = ["run", "demo", prompt, "--json", "--temp", "0"];
    trefoil(&[&args[..], flags].concat()).json()
}

#[test]
fn exact_arithmetic_gives_the_reference_replies() {
    for reply in replies() {
        let answer = run(&reply.prompt, &["--exact", "--kv-type", "f32"]);
        assert_eq!(ids(&answer["prompt_tokens"]), reply.ids_in, "{}", reply.prompt);
        let (end, body) = reply.ids_out.split_last().expect("replies have tokens");
        assert_eq!(ids(&answer["tokens"]), body, "{}", reply.prompt);
        assert_eq!(answer["text"], reply.text);
        assert_eq!(answer["finish_reason"], "stop", "token {end} ends the reply");
        assert_eq!(answer["timings"]["predicted_n"], reply.ids_out.len());
    }
}

#[test]
fn default_arithmetic_gives_the_replies_that_rounding_cannot_change() {
    let safe: Vec<_> = replies().into_iter().filter(|reply| reply.margin > SAFE_MARGIN).collect();
    assert!(safe.len() >= 2, "there is something to compare");
    for reply in safe {
        let plain = trefoil(&["run", "demo", &reply.prompt, "--temp", "0"]);
        let statistics = plain.stderr.clone();
        assert_eq!(plain.ok(), format!("{}\n", reply.text));
        let counts = format!("generated {} tokens", reply.ids_out.len());
        assert!(statistics.contains(&counts), "{statistics}");
        assert!(statistics.contains("decode cpu0"), "{statistics}");
    }
}

#[test]
fn every_placement_gives_the_same_tokens() {
    let reply = safe_reply();
    let body = &reply.ids_out[..reply.ids_out.len() - 1];
    let alternating: Vec<String> = (0..8)
        .map(|layer| format!("blk.{layer}.*={}", if layer % 2 == 0 { "cpu0" } else { "ref0" }))
        .collect();
    let alternating: Vec<&str> = alternating.iter().flat_map(|pin| ["--pin", pin]).collect();
    for pins in [vec!["--pin", "blk.*.ffn=ref0"], alternating, vec!["--device", "ref0"]] {
        let answer = run(&reply.prompt, &pins);
        assert_eq!(ids(&answer["tokens"]), body, "{pins:?}");
        let devices = answer["decode_devices"].to_string();
        assert!(devices.contains("ref0"), "the pins were heard: {devices}");
    }
    // Placements of one phase only: keys and values written by one device are read by the other.
    let answer = run(&reply.prompt, &["--pin", "prefill:blk.*=ref0"]);
    assert_eq!(ids(&answer["tokens"]), body);
    assert!(answer["prefill_devices"].to_string().contains("ref0"));
    assert!(!answer["decode_devices"].to_string().contains("ref0"));
}

#[test]
fn chunks_threads_and_caches_change_nothing() {
    let reply = safe_reply();
    let body = &reply.ids_out[..reply.ids_out.len() - 1];
    for flags in [
        &["--prefill-chunk", "1"][..],
        &["--prefill-chunk", "5", "--threads", "1"],
        &["--threads", "3", "--kv-type", "f32"],
        &["--ctx-size", "64"],
    ] {
        assert_eq!(ids(&run(&reply.prompt, flags)["tokens"]), body, "{flags:?}");
    }
}

#[test]
fn a_plan_is_made_once_and_run_later() {
    let reply = safe_reply();
    let pins = ["--pin", "blk.*.ffn=ref0"];
    let plan = trefoil(&[&["plan", "demo", "--json"], &pins[..]].concat()).ok();
    let document: Value = serde_json::from_str(&plan).expect("plans are JSON");
    assert!(document.to_string().contains("ref0"));
    let args = ["run", "demo", &reply.prompt, "--temp", "0", "--json", "--plan", "-"];
    let answer = trefoil_with(&args, &plan).json();
    assert_eq!(answer["text"], reply.text);
    assert!(answer["decode_devices"].to_string().contains("ref0"));

    let text = trefoil(&[&["plan", "demo"], &pins[..]].concat()).ok();
    for word in ["prefill", "decode", "cpu0", "ref0", "memory", "why:", "blk.*.ffn = ref0"] {
        assert!(text.contains(word), "{word}: {text}");
    }
}

#[test]
fn prompts_come_from_arguments_and_standard_input() {
    let reply = safe_reply();
    let args = ["run", "demo", "--temp", "0", "--json"];
    assert_eq!(trefoil_with(&args, &reply.prompt).json()["text"], reply.text);
    // The template written out by hand is the same prompt.
    let rendered = format!("<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n", reply.prompt);
    let raw = run(&rendered, &["--raw"]);
    assert_eq!(ids(&raw["prompt_tokens"]), reply.ids_in);
    assert_eq!(raw["text"], reply.text);
    // A system message comes before the user's.
    let system = run(&reply.prompt, &["--system", "Be brief.", "--max-tokens", "1"]);
    let prompt = ids(&system["prompt_tokens"]);
    assert!(prompt.len() > reply.ids_in.len() && prompt.ends_with(&reply.ids_in[1..]));
    // A template of one's own.
    let folder = tempfile::tempdir().expect("a folder");
    let template = folder.path().join("template.jinja");
    std::fs::write(&template, "{{ messages[0].content | upper }}").expect("writes");
    let template = template.to_str().expect("a plain path");
    let answer = run("abc", &["--chat-template", template, "--max-tokens", "1"]);
    let raw = run("ABC", &["--raw", "--max-tokens", "1"]);
    assert_eq!(answer["prompt_tokens"], raw["prompt_tokens"]);
}

#[test]
fn replies_end_where_they_are_told() {
    let reply = safe_reply();
    let words: Vec<&str> = reply.text.split(' ').collect();
    // In the middle of a token, over the border of two, and what never comes.
    let middle = &words[2][1..];
    let cut = reply.text.find(middle).expect("it is a part");
    for stop in [middle.to_owned(), format!("{} {}", &words[1][1..], &words[2][..1])] {
        let answer = run(&reply.prompt, &["--stop", &stop, "--stop", "never to come"]);
        let at = reply.text.find(&stop).expect("it is a part");
        assert_eq!(answer["text"], reply.text[..at], "{stop:?}");
        assert_eq!(answer["finish_reason"], "stop");
        assert!(at <= cut);
    }
    let short = run(&reply.prompt, &["--max-tokens", "3"]);
    assert_eq!(ids(&short["tokens"]), reply.ids_out[..3]);
    assert_eq!(short["finish_reason"], "length");
    let longer = run(&reply.prompt, &["--ignore-eos", "--max-tokens", "12"]);
    assert_eq!(ids(&longer["tokens"]).len(), 12, "the end token is never chosen");
    assert_eq!(run(&reply.prompt, &["--stop", "never to come"])["text"], reply.text);
}

#[test]
fn seeds_decide_what_chance_would() {
    let prompt = "Tell me a story about a lemon tree.";
    let with = |seed: &str| {
        let args = ["run", "demo", prompt, "--json", "--temp", "1.5", "-n", "12", "--seed", seed];
        let answer = trefoil(&args).json();
        assert_eq!(answer["seed"].to_string(), seed);
        answer["text"].clone()
    };
    let first = with("7");
    assert_eq!(with("7"), first);
    assert!([with("8"), with("-9")].iter().any(|other| *other != first));
    // A seed that was drawn is told, and gives the same reply again.
    let args = ["run", "demo", prompt, "--json", "--temp", "1.5", "-n", "12"];
    let drawn = trefoil(&args).json();
    assert_eq!(with(&drawn["seed"].to_string()), drawn["text"]);
}

#[test]
fn json_is_one_document_and_quiet_means_quiet() {
    let reply = safe_reply();
    let ran = trefoil(&["run", "demo", &reply.prompt, "--temp", "0", "--json"]);
    assert_eq!(ran.stderr, "");
    let answer = ran.json();
    for field in ["text", "tokens", "prompt_tokens", "finish_reason", "seed", "timings"] {
        assert!(!answer[field].is_null(), "{field}");
    }
    assert_eq!(answer["timings"]["prompt_n"], reply.ids_in.len());
    let ran = trefoil(&["run", "demo", &reply.prompt, "--temp", "0", "--quiet", "-n", "2"]);
    assert_eq!(ran.stderr, "");
}

#[test]
fn a_chat_remembers_until_it_is_told_to_forget() {
    let reply = safe_reply();
    let folder = tempfile::tempdir().expect("a folder");
    let saved = folder.path().join("chat.json");
    let saved = saved.to_str().expect("a plain path");
    let input = format!(
        "/set temp 0\n{q}\n/stats\n/show\n/save {saved}\n/clear\n{q}\n/load {saved}\n/show\n\
         /system Be brief.\n/show\n/plan\n/help\n\"\"\"\n{q}\n\"\"\"\n/bye\nnot read any more\n",
        q = reply.prompt
    );
    let ran = trefoil_with(&["chat", "demo"], &input);
    let said = ran.stderr.clone();
    let out = ran.ok();
    // The second time the conversation was forgotten: the same question, the same reply.
    assert!(out.starts_with(&format!("{0}\n{0}\n", reply.text)), "{out}");
    assert!(said.matches("generated 9 tokens").count() >= 3, "{said}");
    for word in ["2 messages", "temp 0", "system: Be brief.", "prefill, up to", "/system TEXT"] {
        assert!(said.contains(word), "{word}: {said}");
    }
    let document: Value =
        serde_json::from_str(&std::fs::read_to_string(saved).expect("saved")).expect("JSON");
    let messages = json!([
        {"role": "user", "content": reply.prompt},
        {"role": "assistant", "content": reply.text},
    ]);
    assert_eq!(document["messages"], messages);
}

#[test]
fn a_chat_script_stops_at_its_first_mistake() {
    let message = trefoil_with(&["chat", "demo"], "/sett temp 1\nhello\n").fails(2);
    assert!(message.contains("/sett is not a command"), "{message}");
    let message = trefoil_with(&["chat", "demo"], "/set temp warm\n").fails(2);
    assert!(message.contains("expected a name and a number"), "{message}");
    let message = trefoil_with(&["chat", "demo"], "/set temp -1\n").fails(2);
    assert!(message.contains("temperature"), "{message}");
}

#[test]
fn replies_follow_a_schema_or_a_grammar() {
    let schema = r#"{"type":"object","required":["a"],"additionalProperties":false,
        "properties":{"a":{"type":"integer","minimum":3,"maximum":5}}}"#;
    let answer = run("Who are you?", &["--json-schema", schema]);
    let document: Value =
        serde_json::from_str(answer["text"].as_str().expect("a text")).expect("JSON");
    assert!((3..=5).contains(&document["a"].as_i64().expect("a number")), "{document}");
    let folder = tempfile::tempdir().expect("a folder");
    let grammar = folder.path().join("answer.gbnf");
    std::fs::write(&grammar, "root ::= (\"yes\" | \"no\") [.!]").expect("writes");
    let path = grammar.to_str().expect("a plain path");
    let answer = run("Who are you?", &["--grammar", path]);
    let text = answer["text"].as_str().expect("a text");
    assert!(["yes.", "yes!", "no.", "no!"].contains(&text), "{text}");
    std::fs::write(&grammar, "root = x").expect("writes");
    for (flags, part) in [
        (["--grammar", path], "line 1"),
        (["--grammar", "/nowhere"], "/nowhere"),
        (["--json-schema", "{"], "not JSON"),
        (["--json-schema", "{\"type\":\"text\"}"], "/type"),
    ] {
        let refused = trefoil(&[&["run", "demo", "x"][..], &flags].concat());
        assert_eq!(refused.code, Some(2), "{}", refused.stderr);
        assert!(refused.stderr.contains(part), "{}", refused.stderr);
    }
}
