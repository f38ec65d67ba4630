//! `trefoil plan`.

use std::io::{Write, stdout};

use trefoil_engine::model::{Lowered, open_file};
use trefoil_engine::quantize::without_weights;
use trefoil_scheduler::Plan;
use trefoil_telemetry::Bytes;

use super::{common, predicted};
use crate::cli::PlanArgs;
use crate::config::Config;
use crate::exit::Outcome;

pub(crate) fn run(args: &PlanArgs, config: &Config) -> Outcome {
    let options = common::options(&args.placement)?;
    let file = match (&args.model, &args.shape) {
        (_, Some(shape)) => without_weights(shape, args.quant)?,
        (model, None) => open_file(model.as_deref().expect("clap asks for one"))?,
    };
    let lowered = Lowered::new(file, options.lower)?;
    let plan = match &args.profile {
        None => lowered.plan(&common::backends(&args.placement, &options), &options)?,
        Some(profile) => {
            let policy = config.policy(args.placement.policy.as_deref())?;
            let profile = predicted::profile(profile)?;
            let planned = predicted::plan(&lowered, &profile, args, &options, &policy)?;
            if args.problem {
                let (problem, solution) = (&planned.instance, &planned.solution.assignment);
                let both = serde_json::json!({ "problem": problem, "solution": solution });
                writeln!(stdout(), "{both}")?;
                return Ok(());
            }
            planned.plan
        }
    };
    if args.json {
        writeln!(stdout(), "{}", plan.to_json())?;
    } else {
        write!(stdout(), "{}", render(&plan))?;
    }
    Ok(())
}

/// More runs of units than this are shown by layers.
const MOST_RUNS: usize = 12;

/// Units next to each other on one device, as `blk.0.attn_in .. head`.
fn runs(plan: &trefoil_scheduler::BucketPlan) -> Vec<(String, String, usize)> {
    let name = |index: usize| plan.units[index].unit.clone();
    let segments = plan.segments().into_iter().map(|segment| {
        let (first, last) = (segment.units[0].0, segment.units[segment.units.len() - 1].0);
        let range =
            if first == last { name(first) } else { format!("{} .. {}", name(first), name(last)) };
        (range, segment.device, segment.units.len())
    });
    segments.collect()
}

pub(crate) fn render(plan: &Plan) -> String {
    use std::fmt::Write;
    let mut text = String::new();
    let name = plan.model.name.as_deref().unwrap_or("unnamed");
    let mut line = |line: String| {
        writeln!(text, "{}", line.trim_end()).expect("strings take text");
    };
    line(format!("{name} ({}), policy: {}", plan.model.architecture, plan.policy));
    line(format!("context {} tokens", plan.context));
    for bucket in &plan.buckets {
        let (phase, most) = (bucket.bucket.phase.name(), bucket.bucket.max_tokens);
        line(format!("\n{phase}, up to {most} tokens a step"));
        let runs = runs(bucket);
        if runs.len() > MOST_RUNS {
            predicted::layers(bucket).into_iter().for_each(&mut line);
        } else {
            for (range, device, count) in runs {
                let units = if count == 1 { "unit" } else { "units" };
                line(format!("  {device:<6} {range}  ({count} {units})"));
            }
        }
        if bucket.transfers.len() > MOST_RUNS {
            let bytes: Bytes = bucket.transfers.iter().map(|transfer| transfer.bytes).sum();
            line(format!("  {} copies between memories, {bytes} in all", bucket.transfers.len()));
        } else {
            for transfer in &bucket.transfers {
                let (from, to) = (transfer.from, transfer.to);
                line(format!("  copy   {} {from} -> {to}, {}", transfer.tensor, transfer.bytes));
            }
        }
        if let (Some(seconds), Some(joules)) = (bucket.predicted_seconds, bucket.predicted_joules) {
            line(format!("  {:.2} ms and {joules:.2} J a step", seconds * 1e3));
        }
    }
    line("\nmemory".to_owned());
    for memory in &plan.memory {
        let total: Bytes = [memory.weights, memory.kv, memory.activations].into_iter().sum();
        line(format!(
            "  {:<6} {total}: weights {}, KV {}, activations {}",
            memory.domain.to_string(),
            memory.weights,
            memory.kv,
            memory.activations
        ));
    }
    for report in &plan.pins {
        let placed = report.placed;
        line(format!("pin {} = {}: {placed} placements", report.pin.pattern, report.pin.device));
    }
    if let Some(prediction) = &plan.prediction {
        predicted::prediction(prediction).into_iter().for_each(&mut line);
    }
    line(format!("why: {}", plan.reasons.join("; ")));
    text
}
