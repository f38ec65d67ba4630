//! Using all of a model that opened, whatever is in it.

use trefoil_graph::inspect::{InspectOptions, Report, dot};
use trefoil_graph::{LowerOptions, ModelFile, lower};

/// Reads the first and last byte of each tensor through both views; lowers the model and reports on
/// it. Says if it could be lowered.
pub fn touch(model: &ModelFile) -> bool {
    let mut sum = model.fingerprint().len() as u64;
    for tensor in model.tensors.values() {
        let weight = tensor.weight();
        for bytes in [tensor.bytes(), weight.bytes(), weight.row(weight.rows - 1)] {
            sum += u64::from(bytes[0]) + u64::from(bytes[bytes.len() - 1]);
        }
    }
    std::hint::black_box(sum);
    match lower(model, LowerOptions::default()) {
        Ok((hyper, graph)) => {
            let options =
                InspectOptions { context: hyper.context, kv_element_bytes: 2.0, budget: None };
            let report = Report::new(model, &hyper, &graph, options);
            assert!(report.to_text().len() > 100 && dot(&graph).ends_with("}\n"));
            let json = serde_json::to_string(&report).expect("a report is plain data");
            assert!(json.len() > 100);
            true
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            false
        }
    }
}
