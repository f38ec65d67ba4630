//! Plans by predicted cost against splits made by hand, where a GPU's memory does not hold the model.
//!
//! `splits MODEL [--caps 2GiB,3GiB,4GiB] [--devices cpu0,gpu0] [--prompt 512] [--generate 32]
//!  [--every 1] [--runs 3] [--cache DIR] [--keep-awake yes|no]`
//!
//! Calibrates the two devices, then measures by hand, with no limit: the first k layers on the second
//! device, and the attention of all layers with the feed-forward parts of the first k. Then, for each
//! limit, the plan by predicted cost (objective: latency of 512 + 128 tokens) in turns with the best of
//! the splits by hand that fit, each judged by its memory as the manager counts it. Figures are medians.

use std::path::PathBuf;
use std::sync::Arc;

use trefoil_devices_api::DomainId;
use trefoil_engine::backends::{BackendOptions, Backends};
use trefoil_engine::bench::{Case, Rig, Spread, Work};
use trefoil_engine::calibrate::{
    CalibrationOptions, Costs, Effort, Silent, Store, When, calibrate, keep,
};
use trefoil_engine::model::{Lowered, ModelOptions, open_file};
use trefoil_graph::LowerOptions;
use trefoil_scheduler::policy::{PolicyFile, Resolved};
use trefoil_scheduler::{BucketPlan, Pin, Plan, Size};
use trefoil_telemetry::Bytes;

type Error = Box<dyn std::error::Error>;

/// Tokens that follow a prompt in the request that plans are made for.
const FOLLOWING: f64 = 128.0;

struct Settings {
    model: String,
    caps: Vec<Bytes>,
    devices: [String; 2],
    prompt: usize,
    generate: usize,
    every: usize,
    runs: usize,
    cache: PathBuf,
    /// Are cards kept awake while they wait? `None`: as they usually are.
    keep_awake: Option<bool>,
}

impl Settings {
    fn read() -> Result<Self, Error> {
        let mut settings = Self {
            model: String::new(),
            caps: Vec::new(),
            devices: ["cpu0".to_owned(), "gpu0".to_owned()],
            prompt: 512,
            generate: 32,
            every: 1,
            runs: 3,
            cache: std::env::temp_dir().join("trefoil-splits"),
            keep_awake: None,
        };
        let mut caps = "2GiB,3GiB,4GiB".to_owned();
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{argument}: expected a value"));
            match argument.as_str() {
                "--caps" => caps = value()?,
                "--devices" => {
                    let text = value()?;
                    let (first, second) = text.split_once(',').ok_or("expected two devices")?;
                    settings.devices = [first.to_owned(), second.to_owned()];
                }
                "--prompt" => settings.prompt = value()?.parse()?,
                "--generate" => settings.generate = value()?.parse()?,
                "--every" => settings.every = value()?.parse()?,
                "--runs" => settings.runs = value()?.parse()?,
                "--cache" => settings.cache = value()?.into(),
                "--keep-awake" => settings.keep_awake = Some(value()? == "yes"),
                _ => settings.model = argument,
            }
        }
        let sizes =
            caps.split(',').filter(|text| !text.is_empty()).map(|text| Ok(text.parse::<Size>()?.0));
        settings.caps = sizes.collect::<Result<_, Error>>()?;
        if settings.model.is_empty() {
            return Err("expected a model".into());
        }
        Ok(settings)
    }

    fn backends(&self, gpu_memory: Option<Bytes>) -> Backends {
        let named = self.devices.to_vec();
        let keep_awake = self.keep_awake;
        let options = BackendOptions { named, gpu_memory, keep_awake, ..BackendOptions::default() };
        Backends::detect(options)
    }

    fn options(&self) -> Result<ModelOptions, Error> {
        let policy = "[policy]\nobjective = \"latency\"\nreserve_memory = \"0MiB\"\n\
                      max_device_memory = {}\n";
        let policy = PolicyFile::parse("splits", policy)?;
        Ok(ModelOptions {
            devices: self.devices.to_vec(),
            calibration: CalibrationOptions {
                when: When::FirstRun,
                cache: Some(self.cache.clone()),
                cost_tables: Vec::new(),
            },
            policy: Some(Arc::new(Resolved::new(&[policy], None, None)?)),
            context: Some(self.prompt + self.generate),
            ..ModelOptions::default()
        })
    }

    fn cases(&self) -> [Case; 2] {
        let prompt = Work::Prompt { tokens: self.prompt };
        let generate = Work::Generate { tokens: self.generate, batch: 1 };
        [Case { work: prompt, depth: 0 }, Case { work: generate, depth: self.prompt }]
    }
}

/// Seconds of a prompt, and of a token after it.
#[derive(Clone, Copy, Debug)]
struct Times {
    prompt: f64,
    token: f64,
}

impl Times {
    fn request(self) -> f64 {
        self.prompt + FOLLOWING * self.token
    }
}

/// A placement that was measured.
struct Measured {
    name: String,
    plan: Plan,
    /// Bytes in the second device's memory.
    bytes: Bytes,
    times: Times,
}

/// A model on devices.
struct Bench<'a> {
    settings: &'a Settings,
    lowered: &'a Lowered,
    backends: &'a Backends,
    costs: &'a Costs,
    /// The second device's memory.
    domain: DomainId,
}

impl<'a> Bench<'a> {
    fn new(
        settings: &'a Settings,
        lowered: &'a Lowered,
        backends: &'a Backends,
        costs: &'a Costs,
    ) -> Self {
        let second = backends.devices.iter().find(|d| d.info().name == settings.devices[1]);
        let domain = second.map_or(DomainId::HOST, |device| device.domains()[0].id);
        Self { settings, lowered, backends, costs, domain }
    }

    /// Times of a plan, medians of `runs`, and what it takes of the second device's memory.
    fn measure(&self, plan: &Plan, runs: usize) -> Result<(Times, Bytes), Error> {
        let options = ModelOptions { plan: Some(plan.clone()), ..self.settings.options()? };
        let cases = self.settings.cases();
        let mut rig = Rig::new(self.lowered, self.backends, options, &cases)?;
        let mut median = |case: Case| -> Result<f64, Error> {
            rig.run(case)?;
            let times = (0..runs).map(|_| Ok(rig.run(case)?)).collect::<Result<_, Error>>()?;
            Ok(Spread::of(times).median / case.tokens_each() as f64)
        };
        let times = Times {
            prompt: median(cases[0])? * cases[0].tokens_each() as f64,
            token: median(cases[1])?,
        };
        Ok((times, self.backends.memory.used(self.domain)))
    }

    /// A plan with some units on the second device and the rest on the first.
    fn by_hand(&self, on_second: impl Fn(&str, Option<usize>) -> bool) -> Result<Plan, Error> {
        let [first, second] = &self.settings.devices;
        let units = self.lowered.graph.units().iter();
        let chosen = units.filter(|unit| {
            let name = unit.name();
            let part = name.rsplit('.').next().unwrap_or(&name).to_owned();
            on_second(&part, unit.layer)
        });
        let pins =
            chosen.map(|unit| Pin { pattern: unit.name(), device: second.clone(), phase: None });
        let options = ModelOptions {
            device: Some(first.clone()),
            devices: Vec::new(),
            pins: pins.collect(),
            calibration: CalibrationOptions::default(),
            ..self.settings.options()?
        };
        Ok(self.lowered.plan(self.backends, &options)?)
    }

    fn measure_named(&self, name: String, plan: Plan) -> Option<Measured> {
        match self.measure(&plan, self.settings.runs) {
            Ok((times, bytes)) => {
                println!(
                    "{name:<28} {}{}",
                    row(self.settings, times, bytes),
                    self.off(&plan, times).unwrap_or_default()
                );
                Some(Measured { name, plan, bytes, times })
            }
            Err(error) => {
                println!("{name:<28} {error}");
                None
            }
        }
    }

    /// Predicted by measured times; none where weights are streamed, which these predictions lack.
    fn off(&self, plan: &Plan, times: Times) -> Option<String> {
        if plan.buckets.iter().any(|bucket| !bucket.streamed.is_empty()) {
            return None;
        }
        let options = ModelOptions::default();
        let Settings { prompt, generate, .. } = *self.settings;
        let (past, kv) = (prompt + generate / 2, options.kv_type.bytes() as f64);
        let chunks = (prompt, options.chunk);
        let predicted = self.costs.request(&self.lowered.graph, plan, chunks, past, kv)?;
        let (prompt, token) = (predicted[0] / times.prompt, predicted[1] / times.token);
        Some(format!("  predicted: prompt x {prompt:.3}, token x {token:.3}"))
    }

    /// All splits by hand.
    fn sweep(&self) -> Result<Vec<Measured>, Error> {
        let layers = self.lowered.hyper.layers;
        let ends = [0, layers, layers + 1];
        let counts = (0..=layers + 1).filter(|k| k % self.settings.every == 0 || ends.contains(k));
        let mut all = Vec::new();
        for count in counts {
            let plan = self.by_hand(|part, layer| {
                let end = layer.is_none() && part != "embed" && count > layers;
                layer.is_some_and(|layer| layer < count) || end
            })?;
            all.extend(self.measure_named(format!("first {count} layers"), plan));
        }
        for count in (0..layers).step_by(4 * self.settings.every) {
            let plan = self.by_hand(|part, layer| {
                layer.is_some_and(|layer| {
                    !(part.starts_with("ffn") || part.starts_with("moe")) || layer < count
                })
            })?;
            all.extend(self.measure_named(format!("attention, {count} feed-forwards"), plan));
        }
        Ok(all)
    }
}

fn row(settings: &Settings, times: Times, bytes: Bytes) -> String {
    format!(
        "pp{} {:8.1} tokens/s  tg {:7.2} tokens/s  request {:7.3} s  {bytes}",
        settings.prompt,
        settings.prompt as f64 / times.prompt,
        1.0 / times.token,
        times.request()
    )
}

/// The pieces of a bucket, in order.
fn outline(lowered: &Lowered, bucket: &BucketPlan) -> String {
    let pieces = bucket.pieces(&lowered.graph);
    let pieces = pieces.iter().map(|piece| {
        format!("{} {}{}", piece.name, piece.device, if piece.streamed { " streamed" } else { "" })
    });
    pieces.collect::<Vec<_>>().join(", ")
}

/// How often each device has a unit, by phase.
fn describe(plan: &Plan) -> String {
    let of = |bucket: &BucketPlan| {
        let units = bucket.units_per_device();
        let units: Vec<String> =
            units.into_iter().map(|(name, count)| format!("{name} {count}")).collect();
        let mut text = format!("{}: {} units", bucket.bucket.phase.name(), units.join(", "));
        if !bucket.streamed.is_empty() {
            text.push_str(&format!(", {} streamed", bucket.streamed.len()));
        }
        if !bucket.splits.is_empty() {
            text.push_str(&format!(", {} products split", bucket.splits.len()));
        }
        text
    };
    plan.buckets.iter().map(of).collect::<Vec<_>>().join("; ")
}

fn main() -> Result<(), Error> {
    let settings = Settings::read()?;
    let lowered = Lowered::new(open_file(&settings.model)?, LowerOptions::default())?;
    let free = settings.backends(None);
    let devices: Vec<_> = settings
        .devices
        .iter()
        .map(|name| {
            let found = free.devices.iter().find(|device| device.info().name == *name);
            found.cloned().ok_or_else(|| match free.refusal(name) {
                Some(reason) => format!("{name}: {reason}"),
                None => format!("{name}: not here"),
            })
        })
        .collect::<Result<_, _>>()?;
    let options = settings.options()?;
    let form = (options.kv_type.bytes() == 2, options.chunk);
    let measured = calibrate(&lowered, &devices, Effort::Full, form, &mut Silent)?;
    keep(&Store::new(&settings.cache), &devices, &measured)?;
    println!(
        "calibrated in {:.1} s, {} steps passed over",
        measured.took.as_secs_f64(),
        measured.skipped
    );
    let costs = Costs::of(&devices, &measured)?;
    drop(devices);
    let sweep = Bench::new(&settings, &lowered, &free, &costs).sweep()?;
    drop(free);
    for &cap in &settings.caps {
        let backends = settings.backends(Some(cap));
        let bench = Bench::new(&settings, &lowered, &backends, &costs);
        println!("\nmemory of {}: at most {cap}", settings.devices[1]);
        let plan = lowered.plan(&backends, &settings.options()?)?;
        println!("planned: {}", describe(&plan));
        for bucket in &plan.buckets {
            println!("  {}: {}", bucket.bucket.phase.name(), outline(&lowered, bucket));
        }
        for memory in &plan.memory {
            println!("  {memory:?}");
        }
        let fitting = || sweep.iter().filter(|measured| measured.bytes <= cap);
        let best = |by: fn(&Measured) -> f64| fitting().min_by(|a, b| by(a).total_cmp(&by(b)));
        let by_request = best(|m| m.times.request());
        for (what, best) in [
            ("prompts", best(|m| m.times.prompt)),
            ("tokens", best(|m| m.times.token)),
            ("requests", by_request),
        ] {
            if let Some(best) = best {
                println!("by hand, best for {what}: {}", best.name);
            }
        }
        let mut turns: [Vec<Times>; 2] = [Vec::new(), Vec::new()];
        for _ in 0..3 {
            let (times, bytes) = bench.measure(&plan, settings.runs)?;
            let off = bench.off(&plan, times).unwrap_or_default();
            println!("{:<28} {}{off}", "planned", row(&settings, times, bytes));
            turns[0].push(times);
            if let Some(best) = by_request {
                match bench.measure(&best.plan, settings.runs) {
                    Ok((times, bytes)) => {
                        println!("{:<28} {}", best.name, row(&settings, times, bytes));
                        turns[1].push(times);
                    }
                    Err(error) => println!("{:<28} {error}", best.name),
                }
            }
        }
        let median = |turns: &[Times], of: fn(Times) -> f64| {
            Spread::of(turns.iter().map(|&times| of(times)).collect()).median
        };
        let middle = |turns: &[Times]| Times {
            prompt: median(turns, |times| times.prompt),
            token: median(turns, |times| times.token),
        };
        let planned = middle(&turns[0]);
        if !turns[1].is_empty() {
            let hand = middle(&turns[1]);
            println!(
                "planned : best by hand: prompt {:.2}, tokens {:.2}, request {:.2} times as fast",
                hand.prompt / planned.prompt,
                hand.token / planned.token,
                hand.request() / planned.request()
            );
        }
        let Some(prediction) = &plan.prediction else { continue };
        let totals = prediction
            .overlapped
            .map_or(prediction.totals.first_token_seconds, |o| o.first_token_seconds);
        println!(
            "predicted : measured: prompt {:.3}, token {:.3}",
            totals / planned.prompt,
            prediction.totals.token_seconds / planned.token
        );
        for reason in &plan.reasons {
            println!("  {reason}");
        }
        for other in prediction.alternatives.iter().take(6) {
            println!("  rejected: {} {:?} {}", other.name, other.totals, other.why);
        }
    }
    Ok(())
}
