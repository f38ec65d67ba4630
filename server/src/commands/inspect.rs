//! `trefoil inspect`.

use std::io::{Write, stdout};

use trefoil_engine::kv::KvType;
use trefoil_engine::model::{Lowered, open_file};
use trefoil_graph::LowerOptions;
use trefoil_graph::inspect::{InspectOptions, Report, dot};
use trefoil_telemetry::Bytes;

use crate::cli::InspectArgs;
use crate::exit::Outcome;

pub(crate) fn run(args: &InspectArgs) -> Outcome {
    let Lowered { file, hyper, graph, .. } =
        Lowered::new(open_file(&args.model)?, LowerOptions::default())?;
    if args.dot {
        write!(stdout(), "{}", dot(&graph))?;
        return Ok(());
    }
    let options = InspectOptions {
        context: args.ctx_size.unwrap_or(hyper.context),
        kv_element_bytes: KvType::F16.bytes() as f64,
        budget: args.fit.map(Bytes),
    };
    let report = Report::new(&file, &hyper, &graph, options);
    if args.json {
        writeln!(stdout(), "{}", serde_json::to_string_pretty(&report)?)?;
    } else {
        write!(stdout(), "{}", report.to_text())?;
    }
    Ok(())
}
