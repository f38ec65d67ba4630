//! The offline tools: devices, inspect, tokenize, logits, perplexity, quantize, completions.

use serde_json::Value;

use crate::support::demo::{ids, safe_reply};
use crate::support::program::{trefoil, trefoil_with};

#[test]
fn devices_are_listed() {
    let text = trefoil(&["devices"]).ok();
    assert!(text.contains("cpu0") && text.contains("ref0"), "{text}");
    let document = trefoil(&["devices", "--json"]).json();
    let names: Vec<&str> = document["devices"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|device| device["info"]["name"].as_str())
        .collect();
    assert!(names.contains(&"cpu0") && names.contains(&"ref0"), "{document}");
    assert!(document["ram"]["total"].as_u64().is_some_and(|bytes| bytes > 0));
}

#[test]
fn inspection_tells_what_the_file_says() {
    let report = trefoil(&["inspect", "demo", "--json"]).json();
    let all = report.to_string();
    assert!(all.contains("23077376"), "the number of parameters: {all}");
    let text = trefoil(&["show", "demo", "--fit", "1GiB", "--ctx-size", "512"]).ok();
    assert!(text.contains("llama"), "{text}");
    let dot = trefoil(&["inspect", "demo", "--dot"]).ok();
    assert!(dot.starts_with("digraph") && dot.trim_end().ends_with('}'), "{dot}");
    assert_eq!(dot.matches('{').count(), dot.matches('}').count());
}

#[test]
fn tokens_and_texts_go_both_ways() {
    let text = "Grüße, 世界! It's 12345 🦀\n\ttab";
    let document = trefoil(&["tokenize", "demo", text, "--json"]).json();
    let tokens = document["tokens"].as_array().expect("a list");
    assert_eq!(document["count"], tokens.len());
    let list: Vec<String> = tokens.iter().map(|token| token["id"].to_string()).collect();
    let back = trefoil(&["tokenize", "demo", &list.join(","), "--decode"]).ok();
    assert_eq!(back, format!("{text}\n"));
    // The pieces are the text, byte for byte.
    let bytes: Vec<u8> = tokens
        .iter()
        .flat_map(|token| match &token["piece"] {
            Value::String(piece) => piece.as_bytes().to_vec(),
            other => ids(other).into_iter().map(|byte| byte as u8).collect(),
        })
        .collect();
    assert_eq!(bytes, text.as_bytes());
    // Names of special tokens are tokens, or text.
    let count = |flags: &[&str]| {
        let args = ["tokenize", "demo", "<|im_end|>", "--json"];
        trefoil(&[&args[..], flags].concat()).json()["count"].as_u64().expect("a count")
    };
    assert_eq!(count(&[]), 1);
    assert!(count(&["--no-parse-special"]) > 1);
    assert_eq!(trefoil_with(&["tokenize", "demo", "--json"], text).json(), document);
}

#[test]
fn logits_are_written_and_compared() {
    let reply = safe_reply();
    let list: Vec<String> = reply.ids_in.iter().map(u32::to_string).collect();
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("a plain path").to_owned();
    let (exact, rounded) = (path("exact.npy"), path("rounded.npy"));
    let tokens = list.join(",");
    let args = ["logits", "demo", "--tokens", &tokens, "-o"];
    trefoil(&[&args[..], &[&exact, "--exact", "--kv-type", "f32"]].concat()).ok();
    trefoil(&[&args[..], &[&rounded]].concat()).ok();
    let bytes = std::fs::read(&exact).expect("it was written");
    let header = format!("'shape': ({}, 8192)", reply.ids_in.len());
    assert!(String::from_utf8_lossy(&bytes[..128]).contains(&header));

    let same = trefoil(&["logits", "--compare", &exact, &exact, "--json"]).json();
    assert_eq!((&same["max_abs"], &same["top1"]), (&0.0.into(), &1.0.into()));
    let other = trefoil(&["logits", "--compare", &exact, &rounded, "--json"]).json();
    let number = |key: &str| other[key].as_f64().expect("a number");
    assert!(number("max_abs") > 0.0, "rounding shows: {other}");
    assert!(number("mean_kl") < 0.01 && number("top1") > 0.9, "and is small: {other}");
    assert!(trefoil(&["logits", "--compare", &exact, &rounded]).ok().contains("mean KL"));

    let best = trefoil(&[&args[..4], &["--top", "3", "--json"]].concat()).json();
    let positions = best["positions"].as_array().expect("a list");
    assert_eq!(positions.len(), reply.ids_in.len());
    let last = &positions[positions.len() - 1];
    assert_eq!(last["top"][0][0], reply.ids_out[0], "the reply begins with the best token");
    assert!(last["logsumexp"].as_f64() > last["top"][0][1].as_f64());

    let message = trefoil(&["logits", "--compare", &exact, "/no/such.npy"]).fails(2);
    assert!(message.contains("/no/such.npy"), "{message}");
    let message = trefoil(&["logits", "demo", "--tokens", "1,8192", "--top", "1"]).fails(2);
    assert!(message.contains("8192"), "{message}");
}

#[test]
fn perplexity_is_a_check() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("text.txt");
    let story = safe_reply().text + "\n";
    std::fs::write(&file, story.repeat(140)).expect("writes");
    let file = file.to_str().expect("a plain path");
    let result = trefoil(&["perplexity", "demo", file, "--json", "--max", "1000"]).json();
    assert_eq!(result["windows"], 2, "{result}");
    let ppl = result["ppl"].as_f64().expect("a number");
    assert!(ppl > 1.0 && ppl < 1000.0, "{result}");
    assert!((result["nll"].as_f64().expect("a number").exp() - ppl).abs() < 1e-6);
    let ran = trefoil(&["perplexity", "demo", file, "--max", "1"]);
    assert!(ran.stdout.contains("perplexity"), "the result is told all the same");
    let message = ran.fails(6);
    assert!(message.contains("expected at most 1"), "{message}");
    std::fs::write(file, "too short").expect("writes");
    let message = trefoil(&["perplexity", "demo", file]).fails(2);
    assert!(message.contains("1024"), "{message}");
}

#[test]
fn the_perplexity_is_that_of_other_programs() {
    // The held-out text lies beside the full reference data only.
    let Some(shared) = trefoil_tests::golden::shared() else { return };
    let (text, facts) =
        (shared.join("models/evaluation.txt"), shared.join("models/trefoil-demo.json"));
    let facts: Value = serde_json::from_str(&std::fs::read_to_string(facts).expect("it is there"))
        .expect("it is JSON");
    let result =
        trefoil(&["perplexity", "demo", text.to_str().expect("a plain path"), "--json"]).json();
    assert_eq!(result["tokens"], facts["perplexity_tokens"]);
    let want = facts["perplexity"]["Q4_K_M"].as_f64().expect("a number").ln();
    let got = result["nll"].as_f64().expect("a number");
    assert!((got - want).abs() < 0.02, "{got} for {want}");
}

#[test]
fn a_quantised_model_runs() {
    let reply = safe_reply();
    let folder = tempfile::tempdir().expect("a folder");
    let target = folder.path().join("demo-q8.gguf");
    let target = target.to_str().expect("a plain path");
    let summary = trefoil(&["quantize", "demo", target, "--type", "Q8_0", "--json"]).json();
    assert!(summary.to_string().contains("Q8_0"), "{summary}");
    let answer = trefoil(&["run", target, &reply.prompt, "--temp", "0", "--json"]).json();
    assert_eq!(answer["text"], reply.text);
    let message = trefoil(&["quantize", "demo", target, "--type", "Q8_0"]).fails(1);
    assert!(message.contains("force"), "{message}");
    trefoil(&["quantize", target, target, "--type", "F16", "--force"]).fails(1);
    assert!(trefoil(&["run", target, "hi", "-n", "1"]).code == Some(0), "it is still whole");
}

#[test]
fn completions_are_made_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = trefoil(&["completions", shell]).ok();
        assert!(script.contains("trefoil") && script.contains("perplexity"), "{shell}");
    }
    assert!(trefoil(&["--version"]).ok().starts_with("trefoil "));
    assert!(trefoil(&["--help"]).ok().contains("serve"));
}
