//! Segments on the NPU's stand-in, in every numeric form, judged by the reference interpreter.

use std::sync::Arc;

use trefoil_devices_api::Device;
use trefoil_engine::backends::npu::NumericForm;
use trefoil_engine::self_test::{CaseError, nmse, run_case};
use trefoil_graph::BlockType;
use trefoil_kernels::cases::{self, Case};
use trefoil_tests::npu::{NPU, detect};

fn device(found: &trefoil_engine::backends::Backends, name: &str) -> Arc<dyn Device> {
    found.devices.iter().find(|device| device.info().name == name).expect("is here").clone()
}

/// Largest NMSE of a case in a form, on ONNX Runtime's own kernels.
fn allowed(case: &Case, form: NumericForm) -> f64 {
    let block = case.format.unwrap_or(BlockType::F32);
    match (form, case.op, block) {
        (NumericForm::F16, "linear", _) => 1e-6,
        (NumericForm::Int4, "linear", BlockType::Q4_0) => 1e-9,
        (NumericForm::Codes, "linear", _) => 1e-9,
        // Quantised anew with four bits.
        (NumericForm::Int4, "linear", _) => 2e-2,
        _ => 1e-9,
    }
}

fn check(form: NumericForm) {
    let Some(found) = detect(form, false) else { return };
    let (npu, judge) = (device(&found, NPU), device(&found, "ref0"));
    let formats = vec![
        BlockType::F32,
        BlockType::F16,
        BlockType::BF16,
        BlockType::Q4_0,
        BlockType::Q4_1,
        BlockType::Q5_0,
        BlockType::Q5_1,
        BlockType::Q8_0,
        BlockType::Q4_K,
        BlockType::Q5_K,
        BlockType::Q6_K,
        BlockType::IQ4_NL,
    ];
    let (mut ran, mut wrong) = (0, Vec::new());
    for case in cases::with_formats(formats) {
        let about = format!("{} {:?} {}", case.op, case.format, case.shape);
        match run_case(npu.as_ref(), &case, false) {
            Ok(got) => {
                let want = run_case(judge.as_ref(), &case, false).expect("the judge runs all");
                let (error, most) = (nmse(&want, &got), allowed(&case, form));
                println!("{form} {about}: NMSE {error:.1e}");
                ran += 1;
                if error.is_nan() || error >= most {
                    wrong.push(format!("{about}: {error:.1e}, allowed {most:.0e}"));
                }
            }
            Err(CaseError::Unsupported(_)) => {
                let refused = ["embed", "attention", "route", "experts", "pool"];
                assert!(refused.contains(&case.op), "{about} is refused");
            }
            Err(error) => wrong.push(format!("{about}: {error}")),
        }
    }
    assert!(wrong.is_empty(), "{form}: {} cases are wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert!(ran >= 50, "{ran} cases");
}

#[test]
fn ops_agree_with_the_reference_in_f32() {
    check(NumericForm::F32);
}

#[test]
fn ops_agree_with_the_reference_in_f16() {
    check(NumericForm::F16);
}

#[test]
fn ops_agree_with_the_reference_in_the_files_own_codes() {
    check(NumericForm::Codes);
}

#[test]
fn ops_agree_with_the_reference_in_four_bits() {
    check(NumericForm::Int4);
}
