//! `trefoil bench`: what it measures, made-up models, turns with another program.

use serde_json::Value;

use crate::support::program::{trefoil, trefoil_with};

#[test]
fn the_demo_model_is_measured() {
    let args = ["bench", "demo", "-p", "24,0", "-n", "3", "-d", "0,40", "-b", "1,3", "--runs", "2"];
    let document = trefoil(&[&args[..], &["--json", "--threads", "1"]].concat()).json();
    let results = document["results"].as_array().expect("a list");
    let names: Vec<&str> = results.iter().filter_map(|row| row["case"].as_str()).collect();
    let want = ["pp24", "tg3", "pp24 @ d40", "tg3 @ d40", "tg3 b3", "tg3 b3 @ d40"];
    assert_eq!(names, want);
    for row in results {
        let number = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("a number: {row}"));
        let seconds = row["seconds"].as_array().expect("a list");
        assert_eq!(seconds.len(), 2, "{row}");
        let batch = row["batch"].as_f64().unwrap_or(1.0);
        let tokens = number(&row["tokens"]) * batch;
        let rate = number(&row["tokens_per_second"]["median"]);
        let rates: Vec<f64> = seconds.iter().map(|seconds| tokens / number(seconds)).collect();
        assert!(rates.iter().any(|r| (r / rate - 1.0).abs() < 1e-9), "{row}");
        // All 14.8 MB of weights pass once for each step.
        let steps = tokens / batch / if row["work"] == "prompt" { 24.0 } else { 1.0 };
        let weights = number(&row["traffic"]["weight_bytes"]) / steps;
        let all = number(&document["model"]["bytes"]);
        assert!((1.0..1.02).contains(&(weights / all)), "{weights} of {all}: {row}");
        assert!(number(&row["bytes_per_second"]) > weights * steps / tokens * rate * 0.99);
        assert!(
            number(&row["share_of_read_peak"]) > 0.0 && row["share_of_arithmetic_peak"].is_null()
        );
    }
    assert_eq!(document["decode"]["devices"], serde_json::json!(["cpu0"]));
    assert!(
        document["decode"]["peaks"]["read"]["measured"].as_f64().is_some_and(|peak| peak > 1e8)
    );
    assert!(document["decode"]["peaks"]["arithmetic"]["unknown"].is_string(), "{document}");
    assert_eq!(document["threads"], 1);
}

#[test]
fn the_table_has_a_row_for_each_case() {
    let pins = ["--pin", "decode:blk.0.ffn=ref0"];
    let args = ["bench", "demo", "-p", "0", "-n", "2", "--runs", "1", "--markdown"];
    let text = trefoil(&[&args[..], &pins].concat()).ok();
    let rows: Vec<&str> = text.lines().filter(|line| line.starts_with('|')).collect();
    assert_eq!(rows.len(), 3, "{text}");
    assert!(rows[2].starts_with("| tg2 "), "{text}");
    assert_eq!(rows[2].matches(" - |").count(), 2, "no peak of two devices: {text}");
    assert!(text.contains("several devices"), "{text}");
}

#[test]
fn turns_are_taken_line_by_line() {
    let args = ["bench", "demo", "-p", "8", "-n", "2", "-b", "1,2", "--wait"];
    let text = trefoil_with(&args, "tg2 b2\npp8\ntg2 b2\n").ok();
    let lines: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("JSON lines")).collect();
    assert_eq!(lines[0]["cases"].as_array().map(Vec::len), Some(3));
    assert_eq!(lines[0]["cases"][2]["batch"], 2);
    let names: Vec<&Value> = lines[1..].iter().map(|line| &line["case"]).collect();
    assert_eq!(names, ["tg2 b2", "pp8", "tg2 b2"]);
    for line in &lines[1..] {
        let tokens = if line["case"] == "pp8" { 8.0 } else { 4.0 };
        let seconds = line["seconds"].as_f64().expect("a number");
        assert!(
            (line["tokens_per_second"].as_f64().expect("a number") * seconds - tokens).abs() < 1e-6
        );
    }
    let message = trefoil_with(&args, "tg3\n").fails(2);
    assert!(message.contains("tg2 b2") && message.contains("tg3"), "{message}");
}

#[test]
fn what_cannot_be_measured_is_said() {
    let fails = |args: &[&str], code, part: &str| {
        let message = trefoil(&[&["bench"], args].concat()).fails(code);
        assert!(message.contains(part), "{args:?}: {message}");
    };
    fails(&[], 2, "required");
    fails(&["demo", "-p", "0", "-n", "0"], 2, "nothing to measure");
    fails(&["demo", "-d", "1000000"], 2, "pp512 @ d1000000: needs 1000512 tokens of context");
    fails(&["demo", "-p", "512", "--ctx-size", "100"], 2, "at most 100");
    fails(&["demo", "-b", "0"], 2, "at least 1");
    fails(&["demo", "-p", "many"], 2, "many");
    fails(&["demo", "--runs", "0"], 2, "at least 1");
    fails(&["demo", "--json", "--markdown"], 2, "cannot be used with");
    fails(&["demo", "--device", "cpu7", "-n", "1"], 2, "cpu7");
    fails(&["demo", "--shape", "qwen3-8b", "--quant", "Q4_K_M"], 2, "cannot be used with");
    fails(&["--shape", "qwen3-8b"], 2, "--quant");
    fails(&["--shape", "qwen9", "--quant", "Q4_0"], 2, "qwen3-30b-a3b");
    fails(&["--shape", "qwen3-8", "--quant", "Q4_0"], 2, "did you mean qwen3-8b?");
    fails(&["--shape", "qwen3-8b", "--quant", "Q9"], 2, "IQ4_XS");
    fails(&["no-such.gguf"], 3, "no-such.gguf");
    let shape = ["--shape", "qwen3-0.6b", "--quant", "Q4_0", "--make"];
    fails(&[&shape[..], &["--tokenizer", "no-such.gguf"]].concat(), 3, "no-such.gguf");
    fails(&[&shape[..], &["--cache", "/dev/null/cache"]].concat(), 1, "/dev/null/cache");
    // The shapes are those that can be planned, whatever the case of their names.
    for name in ["LLAMA-2-7B", "qwen2.5-14b"] {
        let shape = ["--shape", name, "--quant", "Q4_0", "--make", "--cache", "/dev/null/cache"];
        fails(&shape, 1, "/dev/null/cache");
    }
}
