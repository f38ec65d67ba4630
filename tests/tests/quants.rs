//! Every block type in a whole model: stored logits, on each device and numeric form.

use std::path::PathBuf;

use safetensors::SafeTensors;
use trefoil_tests::devices::{GPU, backends, with_gpu};
use trefoil_tests::golden;
use trefoil_tests::numbers::{f32s, i64s, nmse};
use trefoil_tests::running::{exact_options, logits, lowered, runner};

fn files() -> Vec<PathBuf> {
    let folder = golden::part("quants");
    let entries = std::fs::read_dir(&folder).expect("the folder of quantised models");
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.expect("readable").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "gguf"))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "no models in {}", folder.display());
    files
}

fn check(device: &str, exact: bool, tolerance: f64) {
    let backends = backends(device, exact);
    let mut wrong = Vec::new();
    for path in files() {
        let bytes = std::fs::read(path.with_extension("golden.safetensors")).expect("golden");
        let tensors = SafeTensors::deserialize(&bytes).expect("golden tensors");
        let ids: Vec<u32> = i64s(&tensors, "ids").iter().map(|&id| id as u32).collect();
        let want = f32s(&tensors, "logits");
        let mut runner = runner(&lowered(&path), backends, &exact_options(device));
        let logits = logits(&mut runner, &ids);
        let error = nmse(&want, &logits);
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        println!("{device} exact={exact} {name}: NMSE {error:.1e}");
        if error.is_nan() || error >= tolerance {
            wrong.push(format!("{name}: {error:.1e}"));
        }
    }
    assert!(wrong.is_empty(), "{device}: NMSE over {tolerance:e}: {}", wrong.join(", "));
}

#[test]
fn reference_meets_the_golden_logits_of_every_block_type() {
    check("ref0", false, 1e-9);
}

#[test]
fn cpu_meets_the_golden_logits_of_every_block_type_in_f32() {
    check("cpu0", true, 1e-9);
}

#[test]
fn cpu_meets_the_golden_logits_of_every_block_type_with_rounded_activations() {
    check("cpu0", false, 5e-3);
}

#[test]
fn gpu_meets_the_golden_logits_of_every_block_type_in_f32() {
    if with_gpu(true).is_some() {
        check(GPU, true, 1e-6);
    }
}

#[test]
fn gpu_meets_the_golden_logits_of_every_block_type_in_its_fastest_form() {
    if with_gpu(false).is_some() {
        check(GPU, false, 1e-4);
    }
}
