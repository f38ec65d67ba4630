//! The program with a GPU, and where there is none.

use serde_json::Value;

use trefoil_tests::devices::gpu_expected;

use crate::support::demo::safe_reply;
use crate::support::program::{Ran, command, run, trefoil};

/// Entries of a list in `trefoil devices --json` that are called `gpu0`.
fn named_gpu0(list: &Value, name: impl Fn(&Value) -> &Value) -> Option<&Value> {
    list.as_array().expect("a list").iter().find(|entry| *name(entry) == "gpu0")
}

/// Is there a GPU, if only a program that plays one?
fn has_gpu() -> bool {
    let document = trefoil(&["devices", "--json"]).json();
    let found = named_gpu0(&document["devices"], |entry| &entry["info"]["name"]).is_some()
        || named_gpu0(&document["refused"], |entry| &entry["name"]).is_some();
    assert!(found || !gpu_expected(), "a GPU is expected here: {document}");
    if !found {
        println!("skipped: gpu0 is not here");
    }
    found
}

/// Runs the program where no Vulkan driver is found.
fn without_drivers(args: &[&str]) -> Ran {
    let nowhere = ["VK_DRIVER_FILES", "VK_ICD_FILENAMES"].map(|name| (name, "/nonexistent"));
    let mut command = command();
    // Nor one that the loader looks for in other ways.
    run(command.env_remove("VK_ADD_DRIVER_FILES").envs(nowhere).args(args), "")
}

#[test]
fn gpus_are_listed_and_programs_that_play_them_are_marked() {
    if !has_gpu() {
        return;
    }
    let document = trefoil(&["devices", "--json"]).json();
    let text = trefoil(&["devices"]).ok();
    let line = text.lines().find(|line| line.starts_with("gpu0")).expect("it is listed");
    match named_gpu0(&document["refused"], |entry| &entry["name"]) {
        Some(entry) => {
            let reason = entry["reason"].as_str().expect("a reason");
            assert!(reason.contains("only when named"), "{reason}");
            assert!(line.contains("only when named"), "{line}");
            // Without a name, nothing runs on it.
            let ran = trefoil(&["run", "demo", "hi", "-n", "1", "--json"]).json();
            assert_eq!(ran["decode_devices"][0][0], "cpu0", "{ran}");
        }
        None => {
            let listed = named_gpu0(&document["devices"], |entry| &entry["info"]["name"]);
            let info = &listed.expect("listed or refused")["info"];
            assert_eq!(info["only_when_named"], false, "{info}");
            assert!(info["uuid"].as_str().is_some_and(|uuid| uuid.len() == 32), "{info}");
        }
    }
}

#[test]
fn the_demo_model_answers_on_the_gpu() {
    if !has_gpu() {
        return;
    }
    let reply = safe_reply();
    let ask = |flags: &[&str]| {
        let args = ["run", "demo", &reply.prompt, "--temp", "0", "--json"];
        trefoil(&[&args[..], flags].concat()).json()
    };
    let whole = ask(&["--device", "gpu0"]);
    assert_eq!(whole["text"], reply.text);
    for phase in ["prefill_devices", "decode_devices"] {
        let devices = whole[phase].as_array().expect("a list");
        assert_eq!((devices.len(), &devices[0][0]), (1, &Value::from("gpu0")), "{whole}");
    }
    let split = ask(&["--pin", "blk.*.ffn=gpu0"]);
    assert_eq!(split["text"], reply.text);
    let devices = split["decode_devices"].as_array().expect("a list");
    let units = |name| devices.iter().find(|entry| entry[0] == name).map(|entry| &entry[1]);
    assert_eq!(units("gpu0"), Some(&Value::from(8)), "one of each block: {split}");
    assert!(units("cpu0").is_some(), "{split}");
}

#[test]
fn plans_with_a_gpu_are_made_and_followed() {
    if !has_gpu() {
        return;
    }
    let plan = trefoil(&["plan", "demo", "--pin", "decode:blk.*=gpu0", "--json"]).ok();
    let args = ["run", "demo", "hi", "--plan", "-", "-n", "2", "--json"];
    let ran = run(command().args(args), &plan).json();
    assert_eq!(ran["prefill_devices"].as_array().map(Vec::len), Some(1), "{ran}");
    assert_eq!(ran["decode_devices"].as_array().map(Vec::len), Some(2), "{ran}");
}

#[test]
fn without_a_driver_the_program_works_and_says_what_a_gpu_needs() {
    let text = without_drivers(&["devices"]).ok();
    assert!(text.contains("cpu0"), "{text}");
    let line = text.lines().find(|line| line.starts_with("vulkan")).expect("a line about it");
    assert!(line.contains("Vulkan") && line.contains("install"), "{line}");
    without_drivers(&["run", "demo", "hi", "-n", "1"]).ok();
    for flags in [&["--device", "gpu0"][..], &["--pin", "blk.*.ffn=gpu0"]] {
        let message =
            without_drivers(&[&["run", "demo", "hi", "-n", "1"], flags].concat()).fails(4);
        for part in ["gpu0", "install", "mesa-vulkan-drivers", "trefoil devices"] {
            assert!(message.contains(part), "{part}: {message}");
        }
    }
    let ran = without_drivers(&["run", "demo", "hi", "--device", "gpu0", "--json"]);
    assert_eq!(ran.code, Some(4));
    let document: Value = serde_json::from_str(&ran.stderr).expect(&ran.stderr);
    assert_eq!(document["error"]["code"], "device");
}
