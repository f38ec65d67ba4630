//! Wrong usage, broken models, wrong plans: exit codes and messages that say what to do.

use std::path::PathBuf;

use serde_json::Value;

use crate::support::program::{command, run, trefoil, trefoil_with};

/// A file in a folder that lives as long as the test.
struct File {
    path: PathBuf,
    _folder: tempfile::TempDir,
}

impl File {
    fn new(name: &str, bytes: &[u8]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).expect("writes");
        Self { path, _folder: folder }
    }

    fn name(&self) -> &str {
        self.path.to_str().expect("a plain path")
    }
}

fn small_model() -> Vec<u8> {
    let path = trefoil_tests::golden::part("models").join("smollm/model-f32.gguf");
    std::fs::read(path).expect("the repository carries it")
}

#[test]
fn usage_errors_leave_with_2() {
    for args in [
        &["run"][..],
        &["walk"],
        &["run", "demo", "hi", "--temp", "warm"],
        &["run", "demo", "hi", "-n", "0"],
        &["run", "demo", "hi", "--ctx-size", "0"],
        &["run", "demo", "hi", "--prefill-chunk", "0"],
        &["run", "demo", "hi", "--raw", "--system", "x"],
        &["run", "demo", "hi", "--pin", "blk"],
        &["run", "demo", "hi", "--quiet", "--verbose"],
        &["logits"],
        &["inspect", "demo", "--json", "--dot"],
        &["inspect", "demo", "--fit", "much"],
        &["tokenize", "demo", "--decode", "99999"],
        &["logits", "demo", "-p", "hi"],
        &["quantize", "demo", "x.gguf", "--type", "Q9_9"],
    ] {
        trefoil(args).fails(2);
    }
    let message = trefoil(&["run", "demo", "hi", "--temp", "-0.5"]).fails(2);
    assert!(message.contains("temp"), "{message}");
    let message = trefoil(&["run", "demo", "hi", "--top-p", "1.5"]).fails(2);
    assert!(message.contains("top_p"), "{message}");
    let message = trefoil(&["runn", "demo"]).fails(2);
    assert!(message.contains("'run'"), "the nearest command is named: {message}");
}

#[test]
fn what_does_not_exist_is_answered_with_what_does() {
    let message = trefoil(&["run", "demo", "hi", "--device", "cpu1"]).fails(2);
    assert!(message.contains("cpu1") && message.contains("cpu0"), "{message}");
    let message = trefoil(&["run", "demo", "hi", "--pin", "blk.*=cpu7"]).fails(2);
    assert!(message.contains("cpu7") && message.contains("cpu0"), "{message}");
    let message = trefoil(&["run", "demo", "hi", "--pin", "blk.*.fnn=ref0"]).fails(2);
    assert!(message.contains("blk.*.fnn") && message.contains("ffn"), "{message}");
    let message = trefoil(&["run", "dmo", "hi"]).fails(3);
    assert!(message.contains("dmo") && message.contains("demo"), "{message}");
    let message = trefoil(&["perplexity", "demo", "/no/such/file"]).fails(2);
    assert!(message.contains("/no/such/file"), "{message}");
    let message = trefoil(&["quantize", "demo", "x.gguf", "--type", "Q4_KM"]).fails(2);
    assert!(message.contains("Q4_K_M"), "{message}");
}

#[test]
fn prompts_that_do_not_fit_are_refused_with_both_numbers() {
    let prompt = "one two three four five ".repeat(20);
    let args = ["run", "demo", &prompt, "--ctx-size", "32"];
    let message = trefoil(&args).fails(2);
    let count = trefoil(&["tokenize", "demo", &prompt, "--json"]).json()["count"].clone();
    let count = count.as_u64().expect("a count");
    // The template adds five: user turn and the beginning of the assistant's.
    let numbers: Vec<u64> = message
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|number| number.parse().ok())
        .collect();
    assert!(numbers.contains(&32), "{message}");
    assert!(numbers.iter().any(|&n| n > count && n < count + 16), "{count}: {message}");
    assert!(message.contains("--ctx-size"), "{message}");
}

#[test]
fn the_context_is_as_long_as_the_user_says() {
    // 12 tokens of prompt and room for 8: the last token needs no room.
    let ran =
        trefoil(&["run", "demo", "Who are you?", "--temp", "0", "--json", "--ctx-size", "20"]);
    let answer = ran.json();
    assert_eq!(answer["timings"]["prompt_n"], 12);
    assert_eq!(answer["timings"]["predicted_n"], 9, "{answer}");
    assert_eq!(answer["finish_reason"], "length");
}

#[test]
fn broken_models_leave_with_3() {
    let whole = small_model();
    for cut in [0, 3, 24, 1000, whole.len() / 2, whole.len() - 1] {
        let file = File::new("cut.gguf", &whole[..cut]);
        let message = trefoil(&["run", file.name(), "hi"]).fails(3);
        assert!(message.contains("cut.gguf"), "{cut}: {message}");
        trefoil(&["inspect", file.name()]).fails(3);
    }
    let text = File::new("notes.gguf", b"this is a text and no model at all");
    trefoil(&["run", text.name(), "hi"]).fails(3);
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path().to_str().expect("a plain path");
    let message = trefoil(&["run", folder, "hi"]).fails(3);
    assert!(message.contains("config.json"), "{message}");
}

#[test]
fn unknown_architectures_are_named() {
    // "llama" stands in keys and in the value of general.architecture; all become another word of
    // the same length.
    let mut bytes = small_model();
    let places: Vec<usize> =
        bytes.windows(5).enumerate().filter(|(_, w)| w == b"llama").map(|(i, _)| i).collect();
    assert!(!places.is_empty());
    for place in places {
        bytes[place..place + 5].copy_from_slice(b"lhama");
    }
    let file = File::new("other.gguf", &bytes);
    let message = trefoil(&["run", file.name(), "hi"]).fails(3);
    assert!(message.contains("lhama") && message.contains("llama"), "{message}");
}

#[test]
fn plans_that_do_not_fit_leave_with_2() {
    let plan = trefoil(&["plan", "demo", "--json"]).ok();
    let with = |plan: &str| trefoil_with(&["run", "demo", "hi", "--plan", "-", "-n", "1"], plan);
    with(&plan).ok();
    for broken in ["", "{}", "[1,2]", &plan[..plan.len() / 2]] {
        with(broken).fails(2);
    }
    // A plan of another model, and one for a device that is not here.
    let small = trefoil_tests::golden::part("models").join("smollm/model-f32.gguf");
    let other = trefoil(&["plan", small.to_str().expect("a plain path"), "--json"]).ok();
    with(&other).fails(2);
    let message = with(&plan.replace("cpu0", "npu7")).fails(2);
    assert!(message.contains("npu7"), "{message}");
    trefoil(&["run", "demo", "hi", "--plan", "/no/such/plan.json"]).fails(2);
}

#[test]
fn models_that_make_embeddings_do_not_chat() {
    let bert = trefoil_tests::golden::part("models").join("bert/model-f32.gguf");
    let bert = bert.to_str().expect("a plain path");
    let message = trefoil(&["run", bert, "hi"]).fails(2);
    assert!(message.contains("embeddings"), "{message}");
    trefoil_with(&["chat", bert], "hi\n").fails(2);
}

#[test]
fn with_json_errors_are_objects() {
    for (args, code, name) in [
        (&["run", "nothing-here", "hi", "--json"][..], 3, "model"),
        (&["run", "demo", "hi", "--json", "--device", "cpu9"], 2, "usage"),
        (&["inspect", "nothing-here", "--json"], 3, "model"),
        (&["perplexity", "demo", "/no/such/file", "--json"], 2, "usage"),
    ] {
        let ran = trefoil(args);
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(code), ""), "{args:?}");
        let document: Value = serde_json::from_str(&ran.stderr).expect(&ran.stderr);
        assert_eq!(document["error"]["code"], name, "{args:?}");
        assert!(document["error"]["message"].as_str().is_some_and(|m| !m.is_empty()));
    }
}

#[test]
fn colours_come_only_when_asked_for() {
    let ran = trefoil(&["run", "nothing-here", "hi"]);
    assert!(!ran.stderr.contains('\u{1b}'), "{:?}", ran.stderr);
    let ran = run(command().args(["run", "nothing-here", "hi", "--color", "always"]), "");
    assert!(ran.stderr.contains('\u{1b}'), "{:?}", ran.stderr);
}

#[test]
fn servers_that_others_reach_need_a_key() {
    for host in ["0.0.0.0", "::", "192.0.2.1", "example.com"] {
        let message = trefoil(&["serve", "demo", "--port", "0", "--host", host]).fails(2);
        assert!(message.contains("key") && message.contains(host), "{message}");
    }
    let empty = File::new("key", b"\n");
    let args =
        ["serve", "demo", "--port", "0", "--host", "0.0.0.0", "--api-key-file", empty.name()];
    trefoil(&args).fails(2);
}

#[test]
fn servers_that_cannot_listen_leave_with_5() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("it is bound").port().to_string();
    let message = trefoil(&["serve", "demo", "--port", &port]).fails(5);
    assert!(message.contains(&port), "{message}");
}
