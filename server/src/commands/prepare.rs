//! `trefoil prepare`.

use std::io::{Write, stdout};
use std::time::Instant;

use serde_json::json;
use trefoil_devices_api::{Device, DeviceKind, Job};
use trefoil_engine::model::{Lowered, ModelOptions, open_file};
use trefoil_telemetry::Nanos;

use super::common;
use crate::cli::PrepareArgs;
use crate::exit::{Failure, Outcome, Status};

/// Device that is prepared for where none is named.
const NPU: &str = "npu0";

/// A segment that was compiled, or why not.
struct Prepared {
    name: String,
    seconds: f64,
    problem: Option<String>,
}

pub(crate) fn run(args: &PrepareArgs) -> Outcome {
    let mut options = common::options(&args.placement)?;
    let nothing_named = options.device.is_none()
        && options.devices.is_empty()
        && options.pins.is_empty()
        && options.plan.is_none();
    if nothing_named {
        options.device = Some(NPU.to_owned());
    }
    let backends = common::backends(&args.placement, &options);
    let file = open_file(args.placement.settings.path(&args.model))?;
    let lowered = Lowered::new(file, options.lower)?;
    let plan = lowered.plan(&backends, &options)?;
    let mut npus = backends.devices.iter().filter(|device| is_npu(device.as_ref()));
    let Some(npu) = npus.next() else {
        let reason = backends.refusal(NPU).unwrap_or("the plan names none").to_owned();
        return Err(Failure::new(Status::Device, format!("no NPU to prepare for: {reason}")));
    };
    let mut job = Job::default();
    job.limit = args.limit.map(|seconds| Nanos((seconds * 1e9) as u64));
    let name = &npu.info().name;
    let pieces = plan.buckets.iter().flat_map(|bucket| {
        let pieces = bucket.pieces(&lowered.graph).into_iter().filter(|p| p.device == *name);
        pieces.map(|piece| (bucket.bucket, piece))
    });
    let pieces: Vec<_> = pieces.collect();
    let bar = common::bar(pieces.len() as u64, "{bar:40} {pos}/{len} {elapsed}  {msg}");
    let mut done = Vec::new();
    // Compiled segments are held: buckets share models of the same rows.
    let mut programs = Vec::new();
    for (bucket, piece) in &pieces {
        let name = format!("{} {}", bucket.phase.name(), piece.name);
        bar.set_message(name.clone());
        let begun = Instant::now();
        let made = npu.compile(&lowered.graph, &piece.segment, *bucket, &job);
        let seconds = begun.elapsed().as_secs_f64();
        bar.inc(1);
        let problem = made.map(|program| programs.push(program)).err();
        let problem = problem.map(|error| error.to_string());
        done.push(Prepared { name, seconds, problem });
    }
    bar.finish_and_clear();
    report(args, &options, &done)?;
    let keeps = backends.npu.as_ref().is_some_and(|npu| npu.keeps_compiled());
    if !keeps && !args.json {
        eprintln!("note: this provider compiles anew in every process; nothing was kept");
    }
    match done.iter().filter(|prepared| prepared.problem.is_some()).count() {
        0 => Ok(()),
        count => {
            let text = format!("{count} of {} segments have no program on {NPU}", done.len());
            Err(Failure::new(Status::Device, text))
        }
    }
}

fn is_npu(device: &dyn Device) -> bool {
    device.info().kind == DeviceKind::Npu
}

fn report(args: &PrepareArgs, options: &ModelOptions, done: &[Prepared]) -> std::io::Result<()> {
    let mut out = stdout().lock();
    if args.json {
        let segments = done.iter().map(|prepared| {
            json!({
                "name": prepared.name, "seconds": prepared.seconds, "problem": prepared.problem,
            })
        });
        let segments: Vec<_> = segments.collect();
        let document = json!({"model": args.model, "chunk": options.chunk, "segments": segments});
        return writeln!(out, "{}", serde_json::to_string_pretty(&document)?);
    }
    for Prepared { name, seconds, problem } in done {
        match problem {
            None => writeln!(out, "{seconds:>8.2} s  {name}")?,
            Some(problem) => writeln!(out, "{seconds:>8.2} s  {name}: no: {problem}")?,
        }
    }
    Ok(())
}
