//! `trefoil run --trace` and what `-v` says of a run.

use serde_json::Value;

use crate::support::program::trefoil;

#[test]
fn a_run_leaves_a_trace_and_says_how_busy_devices_were() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("trace.json");
    let file = path.to_str().expect("UTF-8");
    let run = ["run", "demo", "Tell me about the sea.", "--temp", "0", "--max-tokens", "4"];
    let placed = ["--pin", "blk.1.ffn=ref0", "--trace", file, "-v"];
    let ran = trefoil(&[&run[..], &placed].concat());
    let statistics = ran.stderr.clone();
    let with_trace = ran.ok();
    assert!(statistics.contains("busy cpu0 "), "{statistics}");
    assert!(statistics.contains("decode step of 1 row "), "{statistics}");
    let text = std::fs::read_to_string(&path).expect("written");
    let trace: Value = serde_json::from_str(&text).expect("JSON");
    let events = trace["traceEvents"].as_array().expect("a list");
    let spans = |category: &str| {
        events.iter().filter(|event| event["ph"] == "X" && event["cat"] == category).count()
    };
    // Before, on and after the pinned unit; the last token is not fed.
    assert_eq!((spans("prefill"), spans("decode"), spans("host")), (3, 3 * 3, 3));
    // Without it: the same text, and no such line.
    let plain = trefoil(&[&run[..], &placed[..2]].concat());
    assert!(!plain.stderr.contains("busy"), "{}", plain.stderr);
    assert_eq!(plain.ok(), with_trace);
}

#[test]
fn a_trace_that_cannot_be_written_is_an_error_by_name() {
    let ran =
        trefoil(&["run", "demo", "Hi", "--max-tokens", "1", "--trace", "/nowhere/at/all.json"]);
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.contains("/nowhere/at/all.json"), "{}", ran.stderr);
    assert!(ran.stderr.contains("trace"), "{}", ran.stderr);
}
