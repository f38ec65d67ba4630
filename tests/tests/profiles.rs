//! How close the shipped profiles come to published speeds: the table in the docs is the code's.

use std::collections::BTreeMap;
use std::fmt::Write;

use trefoil_engine::quantize::{Target, without_weights};
use trefoil_graph::shape::ModelShape;
use trefoil_graph::{LayerGraph, LowerOptions, StepShape, lower};
use trefoil_scheduler::cost::{Corrections, CostModel};
use trefoil_scheduler::profile::{Measured, Profile, Scales, shipped, shipped_names};
use trefoil_tests::golden;

/// A published speed and what the profile says.
struct Row {
    profile: String,
    device: String,
    machine: String,
    model: String,
    what: String,
    published: f64,
    predicted: f64,
}

impl Row {
    fn error(&self) -> f64 {
        self.predicted / self.published - 1.0
    }
}

fn graph(model: &str, quant: &str) -> LayerGraph {
    let shape = ModelShape::find(model).expect("a known shape");
    let target: Target = quant.parse().expect("a known type");
    let file = without_weights(shape, target).expect("address space");
    lower(&file, LowerOptions::default()).expect("lowers").1
}

fn rows() -> Vec<Row> {
    let mut graphs = BTreeMap::new();
    let mut rows = Vec::new();
    let corrections = Corrections::default();
    for name in shipped_names() {
        let profile = shipped(name).expect("ships");
        for published in &profile.published {
            let key = (published.model.clone(), published.quant.clone());
            let graph =
                graphs.entry(key).or_insert_with(|| graph(&published.model, &published.quant));
            let machine = profile.machines.iter().find(|m| m.name == published.machine);
            let machine = machine.expect("checked when read");
            let factor = machine.factor.map_or(1.0, |factor| factor.get());
            let scaled: Profile = profile.scaled(&published.device, factor, machine.scales);
            let device = scaled.device(&published.device).expect("checked when read");
            let model = CostModel { profile: &scaled, graph, corrections: &corrections };
            let mut row = |what: String, published_speed: f64, predicted: f64| {
                rows.push(Row {
                    profile: name.to_owned(),
                    device: published.device.clone(),
                    machine: published.machine.clone(),
                    model: format!("{} {}", published.model, published.quant),
                    what,
                    published: published_speed,
                    predicted,
                });
            };
            for &Measured(tokens, speed) in &published.prompt {
                let cost = model.prompt(device, tokens, published.chunk).expect("takes all ops");
                row(format!("prompt of {tokens}"), speed, tokens as f64 / cost.seconds);
            }
            for &Measured(past, speed) in &published.decode {
                let cost = model.step(device, &StepShape::decode(past)).expect("takes all ops");
                row(format!("decode after {past}"), speed, 1.0 / cost.seconds);
            }
        }
    }
    rows
}

fn document(rows: &[Row]) -> String {
    let mut text = String::from(
        "# How close the profiles come\n\nMade by a test (`tests/tests/profiles.rs`): tokens per \
         second that others published for a machine, and what the cost model predicts from its \
         profile (`scheduler/profiles`). Where a source's machine differs from the profile's in \
         something known, one factor for all of its figures is stated below. The profiles were \
         fitted to these figures by hand, so this shows how well one set of numbers holds for all \
         models, formats and lengths of a source, not how well it foretells others. Published \
         speeds of models whose architecture is not known here yet (gpt-oss, Qwen3.6, LFM2) are \
         left out.\n\n",
    );
    let close = rows.iter().filter(|row| row.error().abs() <= 0.2).count();
    writeln!(text, "{close} of {} within 20 %.\n", rows.len()).expect("strings take text");
    text.push_str("| profile | device | source | model | what | published | predicted | error |\n");
    text.push_str("|---|---|---|---|---|---|---|---|\n");
    for row in rows {
        let Row { profile, device, machine, model, what, published, predicted } = row;
        let error = row.error() * 100.0;
        let miss = if error.abs() > 20.0 { " (miss)" } else { "" };
        writeln!(
            text,
            "| {profile} | {device} | {machine} | {model} | {what} | {published} | {predicted:.1} | \
             {error:+.0} %{miss} |"
        )
        .expect("strings take text");
    }
    text.push_str(
        "\n## Sources\n\n| profile | source | machine and software | factor |\n|---|---|---|---|\n",
    );
    for name in shipped_names() {
        for machine in shipped(name).expect("ships").machines {
            let scales = match machine.scales {
                Scales::All => "speed",
                Scales::Compute => "arithmetic",
                Scales::Memory => "memory",
            };
            let factor = machine.factor.map_or("none".to_owned(), |factor| {
                format!("{} on {scales}: {}", factor.get(), machine.because)
            });
            writeln!(text, "| {name} | {} | {} | {factor} |", machine.name, machine.source)
                .expect("strings take text");
        }
    }
    text
}

#[test]
fn the_table_in_the_docs_is_up_to_date_and_its_misses_are_few() {
    let rows = rows();
    let path = golden::data().join("../../docs/profiles.md");
    let text = document(&rows);
    if std::env::var_os("TREFOIL_UPDATE_DOCS").is_some() {
        std::fs::write(&path, &text).expect("docs can be written");
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(kept == text, "run with TREFOIL_UPDATE_DOCS=1 to write docs/profiles.md");
    let misses = rows.iter().filter(|row| row.error().abs() > 0.2).count();
    assert!(misses <= rows.len() / 20, "{misses} of {} are further than 20 % off", rows.len());
}
