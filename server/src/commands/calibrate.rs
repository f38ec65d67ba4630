//! `trefoil calibrate`.

use std::io::{Write, stdout};
use std::path::Path;
use std::sync::Arc;

use indicatif::ProgressBar;
use serde_json::json;
use trefoil_devices_api::Device;
use trefoil_engine::backends::Backends;
use trefoil_engine::cache;
use trefoil_engine::calibrate::{
    Calibration, CheckReport, Costs, Effort, Progress, Store, calibrate, check, keep,
};
use trefoil_engine::model::{Lowered, ModelOptions, open_file};
use trefoil_graph::ModelFile;
use trefoil_scheduler::profile::{DeviceProfile, Profile};

use super::{common, plan};
use crate::cli::CalibrateArgs;
use crate::exit::{Failure, Outcome, Status};

/// A bar that says what is measured.
struct Bar(ProgressBar);

/// Steps of the bar.
const PARTS: u64 = 1000;
/// Characters of what is measured that fit beside it.
const LABEL: usize = 40;

impl Progress for Bar {
    fn at(&mut self, share: f64, what: &str) {
        self.0.set_position((share * PARTS as f64) as u64);
        self.0.set_message(what.chars().take(LABEL).collect::<String>());
    }
}

pub(crate) fn run(args: &CalibrateArgs) -> Outcome {
    let mut options = common::options(&args.placement)?;
    let lowered = Lowered::new(model_file(args)?, options.lower)?;
    if !args.devices.is_empty() {
        options.device = None;
        options.devices.clone_from(&args.devices);
    }
    let backends = common::backends(&args.placement, &options);
    let devices = chosen(&backends, &options)?;
    let effort = if args.quick { Effort::Quick } else { Effort::Full };
    let form = (options.kv_type.bytes() == 2, options.chunk);
    let mut bar = Bar(common::bar(PARTS, "{bar:40} {percent} %  {msg}"));
    let measured = calibrate(&lowered, &devices, effort, form, &mut bar);
    bar.0.finish_and_clear();
    let measured = measured?;
    let store = cache::user_folder().as_deref().map(Store::new);
    match &store {
        Some(store) => keep(store, &devices, &measured)?,
        None => tracing::warn!("there is no cache folder: measurements are not kept"),
    }
    let costs = Costs::of(&devices, &measured)?;
    if let Some(path) = &args.output {
        write_profile(path, &costs.profile)?;
    }
    let report = match args.check {
        false => None,
        true => {
            let mut bar = Bar(common::bar(PARTS, "{bar:40} {percent} %  {msg}"));
            let report = check(&lowered, &backends, &devices, &costs, &options, &mut bar);
            bar.0.finish_and_clear();
            Some(report?)
        }
    };
    if args.json {
        let document = json!({
            "profile": costs.profile,
            "devices": measured.entries,
            "pairs": measured.pairs,
            "skipped": measured.skipped,
            "seconds": measured.took.as_secs_f64(),
            "kept": store.is_some(),
            "check": report,
        });
        writeln!(stdout(), "{}", serde_json::to_string_pretty(&document)?)?;
        return Ok(());
    }
    write!(stdout(), "{}", render(&costs.profile, &measured))?;
    if let Some(report) = &report {
        write!(stdout(), "{}", render_check(report))?;
    }
    if let Some(path) = &args.output {
        eprintln!("profile written to {}; `trefoil plan --profile` takes it", path.display());
    }
    Ok(())
}

/// The model, which must have weights.
fn model_file(args: &CalibrateArgs) -> Result<ModelFile, Failure> {
    let name = args.placement.settings.path(&args.model);
    if plan::lone_config(Path::new(name)).is_some() {
        let error = format!(
            "{name}: there are no weights: expected a model with weights, whose own ops are measured"
        );
        return Err(Failure::new(Status::Model, error));
    }
    Ok(open_file(name)?)
}

/// Devices to measure: those that were named, else all that need not be named.
fn chosen(backends: &Backends, options: &ModelOptions) -> Result<Vec<Arc<dyn Device>>, Failure> {
    let mut names = options.devices.clone();
    names.extend(options.device.clone());
    if names.is_empty() {
        let all = backends.devices.iter().filter(|device| !device.info().only_when_named);
        return Ok(all.cloned().collect());
    }
    let mut chosen: Vec<Arc<dyn Device>> = Vec::new();
    for name in names {
        let Some(device) = backends.devices.iter().find(|device| device.info().name == name) else {
            let known: Vec<&str> =
                backends.devices.iter().map(|device| device.info().name.as_str()).collect();
            let error = match backends.refusal(&name) {
                Some(reason) => format!("device {name:?} cannot be used: {reason}"),
                None => format!("device {name:?} is not here; here are: {}", known.join(", ")),
            };
            return Err(Failure::new(Status::Device, error));
        };
        if chosen.iter().all(|other| other.info().name != name) {
            chosen.push(device.clone());
        }
    }
    Ok(chosen)
}

fn write_profile(path: &Path, profile: &Profile) -> Outcome {
    let fail = |error: String| {
        Failure::new(
            Status::Failed,
            format!("{}: cannot write the profile: {error}", path.display()),
        )
    };
    let text = toml::to_string(profile).map_err(|error| fail(error.to_string()))?;
    let temporary = path.with_extension("toml.part");
    std::fs::write(&temporary, text)
        .and_then(|()| std::fs::rename(&temporary, path))
        .map_err(|error| fail(error.to_string()))
}

fn render(profile: &Profile, measured: &Calibration) -> String {
    let mut lines = Vec::new();
    for (device, entry) in profile.devices.iter().zip(&measured.entries) {
        let count = entry.samples.count();
        lines.push(format!("{}  {} ({count} samples)", device.name, device.product));
        lines.extend(of_device(device).into_iter().map(|line| format!("  {line}")));
    }
    for link in &profile.links {
        lines.push(format!(
            "{} -> {}  {:.2} GB/s after {:.1} us ({})",
            link.from,
            link.to,
            link.bandwidth.get() / 1e9,
            link.latency.get() * 1e6,
            link.source
        ));
    }
    for pair in &profile.co_run {
        let (a, b) = &pair.devices;
        let [keep_a, keep_b] = [pair.keep.0, pair.keep.1].map(|share| share.get() * 100.0);
        lines.push(format!(
            "at once  {a} keeps {keep_a:.0} %, {b} keeps {keep_b:.0} % of its speed"
        ));
    }
    if measured.skipped > 0 {
        lines.push(format!("{} steps were passed over for want of time", measured.skipped));
    }
    lines.push(format!("took {:.1} s", measured.took.as_secs_f64()));
    lines.join("\n") + "\n"
}

fn of_device(device: &DeviceProfile) -> Vec<String> {
    let (compute, memory) = (&device.compute, &device.memory);
    let rates = compute.weights.iter().filter(|(name, _)| *name != "other");
    let rates = rates.map(|(name, rate)| format!("{name} {:.1}", rate.get() / 1e9));
    let read = |rate: f64| format!("{:.2} GB/s", rate / 1e9);
    let kv = memory.kv_bandwidth.map(|rate| format!(", KV pages {}", read(rate.get())));
    vec![
        format!(
            "launch {:.2} us, hand-off {:.1} us",
            device.launch.get() * 1e6,
            device.handoff.get() * 1e6
        ),
        format!("weights {}{}", read(memory.bandwidth.get()), kv.unwrap_or_default()),
        format!(
            "GFLOP/s at the best number of rows: {}, attention {:.1}",
            rates.collect::<Vec<_>>().join(", "),
            compute.attention.get() / 1e9
        ),
    ]
}

fn render_check(report: &CheckReport) -> String {
    let mut lines = vec![
        "\npredictions against times that they were not made from".to_owned(),
        format!(
            "{:<8}{:<12}{:>7}{:>14}{:>9}{:>9}",
            "device", "class", "steps", "within 10 %", "median", "worst"
        ),
    ];
    let percent = |share: f64| format!("{:.1} %", share * 100.0);
    for class in &report.classes {
        lines.push(format!(
            "{:<8}{:<12}{:>7}{:>14}{:>9}{:>9}",
            class.device,
            class.class,
            class.count,
            percent(class.within_tenth),
            percent(class.median),
            percent(class.worst)
        ));
    }
    for timing in &report.requests {
        let part = |[measured, predicted]: [f64; 2]| {
            let error = (predicted / measured - 1.0) * 100.0;
            format!("{:.2} ms, predicted {:.2} ({error:+.0} %)", measured * 1e3, predicted * 1e3)
        };
        lines.push(format!(
            "{}: first token of {} {}; token {}",
            timing.placement,
            timing.prompt,
            part(timing.first_token),
            part(timing.token)
        ));
    }
    lines.join("\n") + "\n"
}
