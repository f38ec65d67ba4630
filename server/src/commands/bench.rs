//! `trefoil bench`.

use std::io::{BufRead, Write, stdin, stdout};
use std::path::PathBuf;

use serde_json::json;
use trefoil_engine::backends::{BackendOptions, Backends};
use trefoil_engine::bench::{Case, Grid, Peak, Peaks, Rig, Spread, Traffic, Work};
use trefoil_engine::model::{Lowered, open_file};
use trefoil_engine::synthetic::{Cache, Synthetic, default_folder};
use trefoil_graph::ModelFile;
use trefoil_telemetry::{Bytes, processor_name};

use super::common;
use crate::cli::{BenchArgs, KvForm};
use crate::exit::{Failure, Outcome, Status};

pub(crate) fn run(args: &BenchArgs) -> Outcome {
    let grid = Grid {
        prompts: args.prompt.clone(),
        generates: args.generate.clone(),
        depths: args.depth.clone(),
        batches: args.batch.clone(),
    };
    let cases = grid.cases();
    let made = made_model(args)?.map(|path| path.to_string_lossy().into_owned());
    let Some(name) = made.or_else(|| args.model.clone()) else {
        return Err(Failure::new(Status::Usage, "expected a model, or --shape and --quant"));
    };
    if args.make {
        writeln!(stdout(), "{name}")?;
        return Ok(());
    }
    let options = common::options(&args.placement)?;
    let lowered = Lowered::new(open_file(args.placement.settings.path(&name))?, options.lower)?;
    let own = common::backend_options(&args.placement, &options);
    let backends = common::detect(&args.placement, own.clone());
    let mut rig = Rig::new(&lowered, &backends, options, &cases)?;
    if args.wait {
        return take_turns(&mut rig, &cases);
    }
    let report = Report::new(args, &name, &lowered, (&backends, &own), &rig, &cases)?;
    if args.json {
        let results: Result<Vec<_>, Failure> =
            cases.iter().map(|&case| Ok(report.row(&mut rig, case)?.to_json())).collect();
        let mut document = report.to_json();
        document["results"] = results?.into();
        writeln!(stdout(), "{}", serde_json::to_string_pretty(&document)?)?;
        return Ok(());
    }
    write!(stdout(), "{}", report.heading())?;
    stdout().flush()?;
    for &case in &cases {
        let row = report.row(&mut rig, case)?;
        writeln!(stdout(), "{}", row.to_markdown())?;
        stdout().flush()?;
    }
    Ok(())
}

/// The made-up model that the flags ask for, made if it is not in the cache.
fn made_model(args: &BenchArgs) -> Result<Option<PathBuf>, Failure> {
    let (Some(shape), Some(mixture)) = (args.shape, args.quant) else { return Ok(None) };
    let tokenizer = match &args.tokenizer {
        Some(path) => Some(
            ModelFile::open(path)
                .map_err(|error| Failure::new(Status::Model, error))?
                .metadata
                .clone(),
        ),
        None => None,
    };
    let folder = match &args.cache {
        Some(folder) => folder.clone(),
        None => default_folder()?,
    };
    let bar = common::bar(0, "{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta} left  {msg}");
    bar.set_message(format!("making {shape} {mixture}"));
    let path =
        Cache { folder }.provide(&Synthetic { shape, mixture, tokenizer }, &mut |done, total| {
            bar.set_length(total);
            bar.set_position(done);
        });
    bar.finish_and_clear();
    Ok(Some(path?))
}

/// Runs a case for each line that comes in, so that another program can take turns with this one.
fn take_turns(rig: &mut Rig<'_>, cases: &[Case]) -> Outcome {
    let names: Vec<String> = cases.iter().map(Case::to_string).collect();
    let list: Vec<_> = cases
        .iter()
        .zip(&names)
        .map(|(case, name)| {
            let mut entry = json!(case);
            entry["case"] = json!(name);
            entry
        })
        .collect();
    let say = |line: serde_json::Value| -> Outcome {
        writeln!(stdout(), "{line}")?;
        Ok(stdout().flush()?)
    };
    say(json!({"cases": list}))?;
    for line in stdin().lock().lines() {
        let line = line?;
        let Some(index) = names.iter().position(|name| name == line.trim()) else {
            let error = format!("expected one of {}, got {line:?}", names.join(", "));
            return Err(Failure::new(Status::Usage, error));
        };
        let seconds = rig.run(cases[index])?;
        let rate = cases[index].tokens() as f64 / seconds;
        say(json!({"case": names[index], "seconds": seconds, "tokens_per_second": rate}))?;
    }
    Ok(())
}

/// What is the same for all rows.
struct Report<'a> {
    args: &'a BenchArgs,
    name: &'a str,
    lowered: &'a Lowered,
    prefill: (Vec<String>, Peaks),
    decode: (Vec<String>, Peaks),
}

/// One case, measured.
struct Row<'a> {
    case: Case,
    seconds: Vec<f64>,
    rate: Spread,
    traffic: Traffic,
    peaks: &'a Peaks,
}

impl<'a> Report<'a> {
    fn new(
        args: &'a BenchArgs,
        name: &'a str,
        lowered: &'a Lowered,
        (backends, own): (&Backends, &BackendOptions),
        rig: &Rig<'_>,
        cases: &[Case],
    ) -> Result<Self, Failure> {
        let mut measured: Option<(Vec<String>, Peaks)> = None;
        let mut peaks_of = |work: Work| -> Result<(Vec<String>, Peaks), Failure> {
            let names = rig.devices(work)?;
            if let Some(before) = measured.as_ref().filter(|before| before.0 == names) {
                return Ok(before.clone());
            }
            let device = backends.devices.iter().find(|device| names == [&*device.info().name]);
            let peaks = match device {
                Some(device) => Peaks::of_device(device.as_ref(), own),
                None => Peaks::unknown("the work is spread over several devices"),
            };
            let result = (names, peaks);
            measured = Some(result.clone());
            Ok(result)
        };
        // The checks of all cases come before anything that takes time.
        debug_assert!(!cases.is_empty());
        let prefill = peaks_of(Work::Prompt { tokens: 1 })?;
        let decode = peaks_of(Work::Generate { tokens: 1, batch: 1 })?;
        Ok(Self { args, name, lowered, prefill, decode })
    }

    /// Runs a case once without counting it, then as often as asked.
    fn row(&self, rig: &mut Rig<'_>, case: Case) -> Result<Row<'_>, Failure> {
        let spinner = common::spinner(&format!("{case}: filling the KV cache, first run"));
        rig.run(case)?;
        let mut seconds = Vec::with_capacity(self.args.runs);
        for run in 1..=self.args.runs {
            spinner.set_message(format!("{case}: run {run} of {}", self.args.runs));
            seconds.push(rig.run(case)?);
        }
        spinner.finish_and_clear();
        let rate = Spread::of(seconds.clone()).rates(case.tokens() as f64);
        let (_, peaks) = match case.work {
            Work::Prompt { .. } => &self.prefill,
            Work::Generate { .. } => &self.decode,
        };
        Ok(Row { case, seconds, rate, traffic: rig.traffic(case), peaks })
    }

    fn weight_bytes(&self) -> u64 {
        self.lowered.file.tensors.values().map(trefoil_graph::Tensor::len_bytes).sum()
    }

    fn threads(&self) -> Option<usize> {
        Some(self.args.placement.threads()).filter(|&threads| threads > 0)
    }

    fn to_json(&self) -> serde_json::Value {
        let placement = &self.args.placement;
        let kv_type = match placement.kv_type() {
            KvForm::F16 => "f16",
            KvForm::F32 => "f32",
        };
        let phase =
            |(devices, peaks): &(Vec<String>, Peaks)| json!({"devices": devices, "peaks": peaks});
        json!({
            "model": {
                "file": self.name,
                "name": self.lowered.hyper.name,
                "architecture": self.lowered.hyper.architecture,
                "bytes": self.weight_bytes(),
                "fingerprint": self.lowered.fingerprint,
            },
            "version": env!("CARGO_PKG_VERSION"),
            "processor": processor_name(),
            "threads": self.threads(),
            "exact": placement.exact,
            "kv_type": kv_type,
            "prefill_chunk": placement.prefill_chunk(),
            "prefill": phase(&self.prefill),
            "decode": phase(&self.decode),
        })
    }

    fn heading(&self) -> String {
        let name = self.lowered.hyper.name.as_deref().unwrap_or(self.name);
        let devices = match self.prefill.0 == self.decode.0 {
            true => self.prefill.0.join(" "),
            false => format!("{}, then {}", self.prefill.0.join(" "), self.decode.0.join(" ")),
        };
        let threads = match self.threads() {
            Some(threads) => format!("{threads} threads"),
            None => "a thread per core".to_owned(),
        };
        let peak = match &self.decode.1.read {
            Peak::Measured(bytes) => format!("memory is read at {:.1} GB/s", bytes / 1e9),
            Peak::Unknown(reason) => format!("peaks: {reason}"),
        };
        let size = Bytes(self.weight_bytes());
        let columns = ["tokens/s", "quartiles", "GB/s", "of peak", "GFLOP/s", "of peak"];
        let mut titles = format!("| {:<18} |", "test");
        let mut rule = format!("|:{:-<18}-|", "");
        for (title, width) in columns.iter().zip(Row::WIDTHS) {
            titles.push_str(&format!(" {title:>width$} |"));
            rule.push_str(&format!("-{:-<width$}:|", ""));
        }
        format!("{name}: {size}, {devices}, {threads}; {peak}\n\n{titles}\n{rule}\n")
    }
}

impl Row<'_> {
    /// Widths of the columns after the first.
    const WIDTHS: [usize; 6] = [9, 20, 8, 8, 8, 8];

    fn per_second(&self, amount: f64) -> f64 {
        amount * self.rate.median / self.case.tokens() as f64
    }

    fn to_json(&self) -> serde_json::Value {
        let bytes = self.per_second(self.traffic.bytes());
        let flops = self.per_second(self.traffic.flops);
        let mut row = json!({
            "case": self.case.to_string(),
            "tokens_per_second": self.rate,
            "seconds": self.seconds,
            "traffic": self.traffic,
            "bytes_per_second": bytes,
            "flops_per_second": flops,
            "share_of_read_peak": self.peaks.read.share(bytes),
            "share_of_arithmetic_peak": self.peaks.arithmetic.share(flops),
        });
        if let (Some(row), serde_json::Value::Object(case)) =
            (row.as_object_mut(), json!(self.case))
        {
            row.extend(case);
        }
        row
    }

    fn to_markdown(&self) -> String {
        let (bytes, flops) =
            (self.per_second(self.traffic.bytes()), self.per_second(self.traffic.flops));
        let share = |peak: &Peak, rate: f64| match peak.share(rate) {
            Some(share) => format!("{:.0} %", share * 100.0),
            None => "-".to_owned(),
        };
        let Spread { low, median, high, .. } = self.rate;
        let cells = [
            format!("{median:.2}"),
            format!("{low:.2} to {high:.2}"),
            format!("{:.2}", bytes / 1e9),
            share(&self.peaks.read, bytes),
            format!("{:.1}", flops / 1e9),
            share(&self.peaks.arithmetic, flops),
        ];
        let mut line = format!("| {:<18} |", self.case.to_string());
        for (cell, width) in cells.iter().zip(Self::WIDTHS) {
            line.push_str(&format!(" {cell:>width$} |"));
        }
        line
    }
}
