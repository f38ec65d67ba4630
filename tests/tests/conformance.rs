//! The conformance table: op x number format x shape x device, judged by the reference interpreter.
//!
//! A new device joins with one line in `rows()`. A cell passes, or the device says why it cannot;
//! the table is written to `docs/support.md`, which must be up to date.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use trefoil_devices_api::Device;
use trefoil_engine::backends::{BackendOptions, Backends};
use trefoil_engine::self_test::{Arithmetic, CaseError, nmse, run_case, tolerance};
use trefoil_kernels::cases;
use trefoil_tests::golden;

/// A device in the table.
struct Row {
    title: &'static str,
    device: Arc<dyn Device>,
    arithmetic: Arithmetic,
}

fn device(name: &str, exact: bool) -> Arc<dyn Device> {
    let named = vec![name.to_owned()];
    let backends = Backends::detect(BackendOptions { exact, named, ..BackendOptions::default() });
    let found = backends.devices.iter().find(|device| device.info().name == name);
    found.unwrap_or_else(|| panic!("{name} is not here: {:?}", backends.refused)).clone()
}

fn rows() -> Vec<Row> {
    // On a real GPU, where products of many rows go through halves, that form is tested as well.
    let halves = std::env::var_os("TREFOIL_GPU_HALVES").is_some();
    let arithmetic = if halves { Arithmetic::GpuHalves } else { Arithmetic::Gpu };
    let gpu = Row { title: "gpu0, f32", device: device("gpu0", !halves), arithmetic };
    vec![
        Row { title: "cpu0, f32", device: device("cpu0", true), arithmetic: Arithmetic::Exact },
        Row { title: "cpu0, int8", device: device("cpu0", false), arithmetic: Arithmetic::Rounded },
        gpu,
    ]
}

#[derive(Default)]
struct Cell {
    cases: usize,
    worst: f64,
    reason: Option<String>,
}

type Table = BTreeMap<(String, String), BTreeMap<&'static str, Cell>>;

#[test]
fn every_device_agrees_with_the_reference() {
    let judge = device("ref0", false);
    let rows = rows();
    let mut table = Table::new();
    let mut wrong = Vec::new();
    for case in cases::all() {
        for half in [false, true] {
            if half && case.op != "attention" {
                continue;
            }
            let want = run_case(judge.as_ref(), &case, half).expect("the judge runs everything");
            for row in &rows {
                let format = match case.format {
                    Some(format) => format.name().to_owned(),
                    None if case.op == "attention" && half => "f16 KV".to_owned(),
                    None => "f32".to_owned(),
                };
                let cell = table
                    .entry((case.op.to_owned(), format.clone()))
                    .or_default()
                    .entry(row.title)
                    .or_default();
                match run_case(row.device.as_ref(), &case, half) {
                    Ok(got) => {
                        let error = nmse(&want, &got);
                        cell.cases += 1;
                        cell.worst = cell.worst.max(error);
                        let most = tolerance(&case, row.arithmetic);
                        if error.is_nan() || error >= most {
                            wrong.push(format!(
                                "{} {format} {} on {}: {error:.1e}, allowed {most:.0e}",
                                case.op, case.shape, row.title
                            ));
                        }
                    }
                    Err(CaseError::Unsupported(reason)) => cell.reason = Some(reason),
                    Err(error) => wrong.push(format!(
                        "{} {format} {} on {}: {error}",
                        case.op, case.shape, row.title
                    )),
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} cells are wrong:\n{}", wrong.len(), wrong.join("\n"));
    let text = render(&table, &rows);
    let path = golden::data().join("../../docs/support.md");
    if std::env::var_os("TREFOIL_UPDATE_DOCS").is_some() {
        std::fs::write(&path, &text).expect("docs can be written");
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        kept == text,
        "docs/support.md is out of date: run with TREFOIL_UPDATE_DOCS=1 to write it"
    );
}

fn render(table: &Table, rows: &[Row]) -> String {
    let mut text = String::from(
        "# What runs where\n\n\
         Made by the conformance test (`tests/tests/conformance.rs`): every cell was run and held \
         against the reference interpreter. A number is how many shapes passed; a reason says why \
         a device does not take the op.\n\n| op | format |",
    );
    for row in rows {
        write!(text, " {} |", row.title).expect("strings take text");
    }
    text.push_str("\n|---|---|");
    text.push_str(&"---|".repeat(rows.len()));
    text.push('\n');
    for ((op, format), cells) in table {
        write!(text, "| {op} | {format} |").expect("strings take text");
        for row in rows {
            let cell = &cells[row.title];
            match &cell.reason {
                Some(reason) => write!(text, " no: {reason} |"),
                None => write!(text, " {} |", cell.cases),
            }
            .expect("strings take text");
        }
        text.push('\n');
    }
    text
}
