//! The program with the NPU's stand-in, and where there is none.

use std::process::Command;

use trefoil_tests::npu::runtime;

use crate::support::program::{Ran, command, run};

/// The program with the stand-in configured, if ONNX Runtime is here.
fn with_stand_in() -> Option<Command> {
    let runtime = runtime()?;
    let mut command = command();
    command.env("TREFOIL__NPU__PROVIDER", "cpu").env("TREFOIL__NPU__RUNTIME_PATH", runtime);
    command.env("TREFOIL__NPU__SHAPES", "[32, 128]");
    Some(command)
}

fn stand_in(args: &[&str]) -> Option<Ran> {
    Some(run(with_stand_in()?.args(args), ""))
}

#[test]
fn a_reply_is_the_same_with_the_npu_and_the_statistics_say_what_ran_where() {
    let arguments = ["run", "demo", "Who are you?", "--temp", "0", "-n", "12", "--exact", "--json"];
    let Some(with) = stand_in(&[&arguments[..], &["--device", "npu0"]].concat()) else { return };
    let (with, without) = (with.json(), run(command().args(arguments), "").json());
    assert_eq!(with["text"], without["text"]);
    assert!(with["prefill_devices"].to_string().contains("npu0"), "{with}");
    let pins = ["--pin", "prefill:blk.*.ffn=npu0"];
    let pinned = stand_in(&[&arguments[..], &pins].concat()).expect("is here").json();
    assert_eq!(pinned["text"], without["text"]);
    assert!(pinned["prefill_devices"].to_string().contains("npu0"), "{pinned}");
    assert!(!pinned["decode_devices"].to_string().contains("npu0"), "{pinned}");
}

#[test]
fn the_plan_says_where_the_rest_goes() {
    let Some(ran) = stand_in(&["plan", "demo", "--device", "npu0"]) else { return };
    let text = ran.ok();
    assert!(text.contains("npu0 does not take embed, blk.*.attn"), "{text}");
}

#[test]
fn devices_are_listed_with_what_is_known_of_the_npu() {
    let Some(ran) = stand_in(&["devices", "-v"]) else { return };
    let text = ran.ok();
    let line = text.lines().find(|line| line.starts_with("npu0")).expect("it is listed");
    assert!(line.contains("ONNX Runtime 1.") && line.contains("playing an NPU"), "{line}");
    assert!(line.contains("only when named"), "{line}");
    assert!(text.contains("refused no segment so far"), "{text}");
    let document = stand_in(&["devices", "--json"]).expect("is here").json();
    assert_eq!(document["npu"]["form"], "f32");
}

#[test]
fn a_model_is_prepared_segment_by_segment() {
    let Some(ran) = stand_in(&["prepare", "demo", "--json"]) else { return };
    let document = ran.json();
    let segments = document["segments"].as_array().expect("a list");
    let named = |name: &str| segments.iter().any(|segment| segment["name"] == name);
    assert!(named("prefill blk.0.attn_out..blk.1.attn_in"), "{document}");
    assert!(segments.iter().all(|segment| segment["problem"].is_null()), "{document}");
    assert!(segments.iter().all(|segment| segment["seconds"].as_f64() > Some(0.0)), "{document}");
}

#[test]
fn without_an_npu_it_is_said_what_is_missing() {
    let mut command = command();
    command.env("TREFOIL__NPU__RUNTIME_PATH", "/nonexistent").env("TREFOIL__NPU__PROVIDER", "cpu");
    let text = run(command.args(["run", "demo", "hi", "--device", "npu0"]), "").fails(4);
    assert!(text.contains("npu.runtime_path names /nonexistent"), "{text}");
}

#[test]
fn a_file_of_the_current_folder_loads_no_library() {
    let folder = tempfile::tempdir().expect("a folder");
    let text = "[npu]\nprovider = 'cpu'\nruntime_path = '/nonexistent'\n";
    std::fs::write(folder.path().join("trefoil.toml"), text).expect("a file");
    let ran = run(command().current_dir(folder.path()).args(["run", "demo", "hi", "-n", "1"]), "");
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(ran.stderr.contains("npu.runtime_path is passed over"), "{}", ran.stderr);
}
