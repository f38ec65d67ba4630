//! `trefoil quantize`.

use std::io::{Write, stdout};

use trefoil_engine::model::open_file;
use trefoil_engine::quantize::{QuantizeOptions, Target, UnknownTarget, quantize_file};

use super::common;
use crate::cli::QuantizeArgs;
use crate::exit::{Failure, Outcome, Status};

pub(crate) fn run(args: &QuantizeArgs) -> Outcome {
    let to: Target =
        args.to.parse().map_err(|error: UnknownTarget| Failure::new(Status::Usage, error))?;
    let source = open_file(&args.source)?;
    let bar = common::bar(0, "{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta} left  {msg}");
    let options = QuantizeOptions { to, threads: args.threads, force: args.force };
    let summary = quantize_file(&source, &args.target, options, &mut |progress| {
        bar.set_length(progress.total);
        bar.set_position(progress.done);
        bar.set_message(progress.tensor.to_owned());
    });
    bar.finish_and_clear();
    let summary = summary.map_err(|error| Failure::new(Status::Failed, error))?;
    if args.json {
        writeln!(stdout(), "{}", serde_json::to_string(&summary)?)?;
        return Ok(());
    }
    for warning in summary.warnings() {
        eprintln!("note: {warning}");
    }
    writeln!(stdout(), "{}: {} -> {}", args.target.display(), summary.source, summary.target)?;
    for (block, (count, bytes)) in &summary.types {
        writeln!(stdout(), "  {:<8} {count:>5} tensors  {bytes}", block.name())?;
    }
    Ok(())
}
