//! OpenVINO as the NPU's provider, on its CPU device: one that truly compiles, and nothing may fall back.

use std::collections::BTreeMap;
use std::sync::Arc;

use trefoil_devices_api::{CompileError, Device};
use trefoil_engine::backends::npu::{NpuOptions, NumericForm, Provider};
use trefoil_engine::backends::{BackendOptions, Backends};
use trefoil_engine::self_test::{CaseError, nmse, run_case};
use trefoil_graph::BlockType;
use trefoil_kernels::cases;
use trefoil_tests::npu::{NPU, openvino_runtime};
use trefoil_tests::running::{demo, exact_options, greedy, logits, random_tokens, runner};

fn options(form: NumericForm) -> Option<NpuOptions> {
    Some(NpuOptions {
        provider: Provider::Openvino,
        provider_options: BTreeMap::from([("device_type".to_owned(), "CPU".to_owned())]),
        runtime: Some(openvino_runtime()?),
        form,
        shapes: vec![64],
        ..NpuOptions::default()
    })
}

fn detect(form: NumericForm) -> Option<Backends> {
    let options = BackendOptions {
        npu: options(form)?,
        named: vec![NPU.to_owned()],
        exact: true,
        ..BackendOptions::default()
    };
    let found = Backends::detect(options);
    assert!(found.npu.is_some(), "{NPU} is not here: {:?}", found.refused);
    Some(found)
}

fn device(found: &Backends, name: &str) -> Arc<dyn Device> {
    found.devices.iter().find(|device| device.info().name == name).expect("is here").clone()
}

/// Largest NMSE of an op: `products` with weights, and of all else.
fn check(form: NumericForm, format: BlockType, products: f64, rest: f64) {
    let Some(found) = detect(form) else { return };
    let (npu, judge) = (device(&found, NPU), device(&found, "ref0"));
    assert!(npu.info().only_when_named, "OpenVINO's CPU device only plays an NPU");
    let (mut ran, mut wrong) = (0, Vec::new());
    for case in cases::with_formats(vec![format]) {
        let about = format!("{} {}", case.op, case.shape);
        match run_case(npu.as_ref(), &case, false) {
            Ok(got) => {
                let want = run_case(judge.as_ref(), &case, false).expect("the judge runs all");
                let most = if case.op == "linear" { products } else { rest };
                let error = nmse(&want, &got);
                println!("{form} {about}: NMSE {error:.1e}");
                ran += 1;
                if error.is_nan() || error >= most {
                    wrong.push(format!("{about}: {error:.1e}, allowed {most:.0e}"));
                }
            }
            Err(CaseError::Unsupported(_)) => {}
            Err(CaseError::Compile(CompileError::Refused { what, reason })) => {
                // Said, remembered, and not computed by anything else.
                println!("{form} {about} is refused: {reason}");
                let known = found.npu.as_ref().expect("is here").refused();
                assert!(known.iter().any(|refused| refused.segment == what), "{what}");
            }
            Err(error) => wrong.push(format!("{about}: {error}")),
        }
    }
    assert!(wrong.is_empty(), "{form}: {} cases are wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert!(ran >= 25, "{ran} cases ran");
}

#[test]
fn ops_agree_with_the_reference_in_f32() {
    check(NumericForm::F32, BlockType::Q8_0, 1e-9, 1e-9);
}

#[test]
fn what_it_refuses_is_said_and_runs_nowhere_else() {
    let Some(npu) = options(NumericForm::F16) else { return };
    let named = vec![NPU.to_owned()];
    let found = Backends::detect(BackendOptions { npu, named, ..BackendOptions::default() });
    assert!(found.npu.is_none(), "OpenVINO's CPU device takes no products of halves");
    let reason = found.refusal(NPU).expect("a reason");
    assert!(reason.contains("the device's compiler refuses linear"), "{reason}");
    assert!(reason.contains("fallback to CPU EP has been explicitly disabled"), "{reason}");
}

#[test]
fn ops_agree_with_the_reference_in_four_bits() {
    check(NumericForm::Int4, BlockType::Q4_0, 1e-2, 1e-9);
}

#[test]
fn the_demo_model_gives_the_same_greedy_tokens() {
    let Some(backends) = detect(NumericForm::F32) else { return };
    let lowered = demo();
    let prompt = random_tokens(&lowered, 100, 8);
    let on = |device: &str| runner(&lowered, &backends, &exact_options(device));
    let error = nmse(&logits(&mut on("cpu0"), &prompt), &logits(&mut on(NPU), &prompt));
    println!("NMSE {error:.1e}");
    assert!(error < 1e-6, "{error:e}");
    assert_eq!(greedy(&mut on(NPU), &prompt, 16), greedy(&mut on("cpu0"), &prompt, 16));
}
