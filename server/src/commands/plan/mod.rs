//! `trefoil plan`.

mod compare;
mod dot;
mod predicted;
mod simulated;
mod what_if;

use std::io::{Write, stdout};
use std::path::Path;

use trefoil_engine::model::{Lowered, ModelOptions, open_file};
use trefoil_engine::quantize::{Target, config_without_weights, without_weights};
use trefoil_graph::ModelFile;
use trefoil_scheduler::Plan;
use trefoil_scheduler::profile::Profile;
use trefoil_telemetry::Bytes;

use super::common;
use crate::cli::PlanArgs;
use crate::config::Config;
use crate::exit::{Failure, Outcome, Status};

pub(crate) fn run(args: &PlanArgs, config: &Config) -> Outcome {
    if args.profile.is_none() && args.compare.is_empty() {
        only_with_a_profile(args)?;
    }
    let options = common::options(&args.placement)?;
    let lowered = Lowered::new(model_file(args)?, options.lower)?;
    if !args.compare.is_empty() {
        return compare::run(&lowered, args, &options, config);
    }
    let Some(profile) = &args.profile else {
        let backends = common::backends(&args.placement, &options);
        let plan = lowered.plan(&backends, &options)?;
        let domains: Vec<_> =
            backends.facts().into_iter().map(|facts| (facts.name, facts.domain)).collect();
        return show(&lowered, &plan, args, &domains);
    };
    planned(&lowered, &predicted::profile(profile)?, args, &options, config)
}

/// Plans by a profile, and shows what was asked for.
fn planned(
    lowered: &Lowered,
    profile: &Profile,
    args: &PlanArgs,
    options: &ModelOptions,
    config: &Config,
) -> Outcome {
    let policy = config.policy(args.placement.policy.as_deref())?;
    let planned = predicted::plan(lowered, profile, args, options, &policy)?;
    if args.problem {
        let (problem, solution) = (&planned.instance, &planned.solution.assignment);
        let both = serde_json::json!({ "problem": problem, "solution": solution });
        writeln!(stdout(), "{both}")?;
        return Ok(());
    }
    if args.simulate {
        return simulated::run(lowered, profile, &planned.plan, args, options);
    }
    if !args.what_if.is_empty() {
        let changed = profile.with_changes(&args.what_if);
        let changed = changed.map_err(|error| Failure::new(Status::Usage, error))?;
        let after = predicted::plan(lowered, &changed, args, options, &policy)?.plan;
        return what_if::show(&planned.plan, &after, args);
    }
    let domains: Vec<_> = profile.device_domains().collect();
    show(lowered, &planned.plan, args, &domains)
}

fn show(
    lowered: &Lowered,
    plan: &Plan,
    args: &PlanArgs,
    domains: &[(String, trefoil_devices_api::DomainId)],
) -> Outcome {
    if args.dot {
        write!(stdout(), "{}", dot::dot(&lowered.graph, plan, domains))?;
    } else if args.json {
        writeln!(stdout(), "{}", plan.to_json())?;
    } else {
        write!(stdout(), "{}", render(plan))?;
    }
    Ok(())
}

/// Refuses flags that mean something for a machine's profile only.
fn only_with_a_profile(args: &PlanArgs) -> Outcome {
    let given = [
        ("--shape", args.shape.is_some()),
        ("--objective", args.objective.is_some()),
        ("--what-if", !args.what_if.is_empty()),
        ("--simulate", args.simulate),
        ("--problem", args.problem),
    ];
    let Some((flag, _)) = given.iter().find(|(_, given)| *given) else { return Ok(()) };
    let known: Vec<&str> = trefoil_scheduler::profile::shipped_names().collect();
    let error = format!(
        "{flag}: expected --profile with it, a .toml file or one of {}; got none",
        known.join(", ")
    );
    Err(Failure::new(Status::Usage, error))
}

/// The model to plan: a file with its weights, or what stands for one.
fn model_file(args: &PlanArgs) -> Result<ModelFile, Failure> {
    let target = args.quant.unwrap_or(Target::Q4_K_M);
    let name = match (&args.shape, &args.model) {
        (Some(shape), _) => return Ok(without_weights(shape, target)?),
        (None, Some(name)) => args.placement.settings.path(name),
        (None, None) => return Err(Failure::new(Status::Usage, "expected a model, or --shape")),
    };
    if let Some(config) = lone_config(Path::new(name)) {
        if args.profile.is_none() && args.compare.is_empty() {
            let error = format!("{name}: there are no weights; --profile plans without them");
            return Err(Failure::new(Status::Usage, error));
        }
        let file = config_without_weights(&config, target);
        return file.map_err(|error| Failure::new(Status::Model, error));
    }
    if args.quant.is_some() {
        let error = "--quant: expected --shape or a config.json without weights with it; a model \
                     with weights has its own types";
        return Err(Failure::new(Status::Usage, error));
    }
    Ok(open_file(name)?)
}

/// The `config.json` of a model whose weights are not there.
pub(crate) fn lone_config(path: &Path) -> Option<std::path::PathBuf> {
    if path.is_file() {
        return (path.extension()? == "json").then(|| path.to_path_buf());
    }
    let config = path.join("config.json");
    let weights = |name: &str| name.ends_with(".safetensors") || name.ends_with(".gguf");
    let mut names = std::fs::read_dir(path).ok()?.filter_map(Result::ok);
    let any = names.any(|entry| weights(&entry.file_name().to_string_lossy()));
    (config.is_file() && !any).then_some(config)
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

/// `blk.3.ffn_down: gpu0 2048 rows, cpu0 2048 rows`.
fn split(split: &trefoil_scheduler::LinearSplit) -> String {
    let shares = split.shares.iter().map(|share| format!("{} {} rows", share.device, share.rows));
    format!("{}: {}", split.op, shares.collect::<Vec<_>>().join(", "))
}

/// Names of units, those of blocks as `blk.4-31.ffn`.
fn short(names: &[String]) -> String {
    let mut kinds: Vec<(&str, Vec<usize>)> = Vec::new();
    let mut alone = Vec::new();
    for name in names {
        let layer = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
        let Some((layer, kind)) = layer.and_then(|(l, kind)| Some((l.parse().ok()?, kind))) else {
            alone.push(name.clone());
            continue;
        };
        match kinds.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, layers)) => layers.push(layer),
            None => kinds.push((kind, vec![layer])),
        }
    }
    let ranges = kinds.into_iter().flat_map(|(kind, layers)| {
        let runs = layers.chunk_by(|a, b| a + 1 == *b).map(<[usize]>::to_vec).collect::<Vec<_>>();
        runs.into_iter().map(move |run| match run[..] {
            [one] => format!("blk.{one}.{kind}"),
            _ => format!("blk.{}-{}.{kind}", run[0], run[run.len() - 1]),
        })
    });
    alone.into_iter().chain(ranges).collect::<Vec<_>>().join(", ")
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
        if bucket.splits.len() > MOST_RUNS {
            let count = bucket.splits.len();
            line(format!(
                "  {count} products split over devices, such as {}",
                split(&bucket.splits[0])
            ));
        } else {
            for one in &bucket.splits {
                line(format!("  split  {}", split(one)));
            }
        }
        if !bucket.streamed.is_empty() {
            line(format!("  weights streamed for each step: {}", short(&bucket.streamed)));
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
            // Where no device tells its power, nothing is known of energy.
            let joules = if joules > 0.0 { format!(" and {joules:.2} J") } else { String::new() };
            line(format!("  {:.2} ms{joules} a step", seconds * 1e3));
        }
    }
    line("\nmemory".to_owned());
    for memory in &plan.memory {
        let kinds = [memory.weights, memory.kv, memory.activations, memory.streaming];
        let total: Bytes = kinds.into_iter().sum();
        let streaming = match memory.streaming {
            Bytes(0) => String::new(),
            bytes => format!(", buffers for streamed weights {bytes}"),
        };
        line(format!(
            "  {:<6} {total}: weights {}, KV {}, activations {}{streaming}",
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
