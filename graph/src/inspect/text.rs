//! The report as a person reads it.

use std::fmt::Write;

use trefoil_telemetry::Bytes;

use super::{Part, Report, StepKind, UnitReport};

/// Longest list of ops in a line, in characters.
const MOST_NAMES: usize = 72;

impl Report {
    /// The report in aligned columns.
    pub fn to_text(&self) -> String {
        let mut out = String::new();
        self.head(&mut out);
        out.push('\n');
        table(&mut out, "<", &self.type_rows());
        out.push('\n');
        table(&mut out, "<<><<", &self.part_rows());
        out.push('\n');
        table(&mut out, "<", &self.step_rows());
        out.push('\n');
        self.memory_lines(&mut out);
        table(&mut out, "<", &self.fit_rows());
        out
    }

    fn head(&self, out: &mut String) {
        let hyper = &self.hyper;
        let name = hyper.name.as_deref().unwrap_or("unnamed");
        line(out, &format!("{name}: {}, {}, {}", hyper.architecture, self.origin, self.label));
        line(
            out,
            &format!(
                "{} parameters in {}, {:.2} bits per weight; {} ops in {} units",
                decimal(self.parameters as f64),
                self.memory.weights,
                self.bits_per_weight,
                self.ops,
                self.units
            ),
        );
        if self.copied.0 > 0 {
            let text = format!("{} of it copied: the file has it in another layout", self.copied);
            line(out, &text);
        }
        let mut facts = vec![
            format!("{} layers", hyper.layers),
            format!("width {}", hyper.embedding),
            format!("{} heads on {} of {}", hyper.heads, hyper.kv_heads, hyper.head_dim),
            format!("feed-forward {}", hyper.ffn),
            format!("context {}", hyper.context),
        ];
        if let Some(experts) = hyper.experts {
            let (used, count, ffn) = (experts.used, experts.count, experts.ffn);
            facts.push(format!("{used} of {count} experts of {ffn}"));
        }
        facts.extend(hyper.window.map(|window| format!("window {window}")));
        if !hyper.causal {
            facts.push("encoder".to_owned());
        }
        line(out, &facts.join(", "));
    }

    fn type_rows(&self) -> Vec<Vec<String>> {
        let mut rows = vec![heading(&["type", "tensors", "elements", "bytes", "bits/weight"])];
        rows.extend(self.types.iter().map(|row| {
            vec![
                row.block.to_string(),
                row.tensors.to_string(),
                decimal(row.elements as f64),
                row.bytes.to_string(),
                format!("{:.2}", row.bits_per_weight),
            ]
        }));
        rows
    }

    fn part_rows(&self) -> Vec<Vec<String>> {
        let mut rows = vec![heading(&["layers", "unit", "weights", "types", "ops"])];
        for part in &self.parts {
            for (at, unit) in part.units.iter().enumerate() {
                rows.push(vec![
                    if at == 0 { layers(part) } else { String::new() },
                    unit.kind.name().to_owned(),
                    unit.weights.to_string(),
                    types(unit),
                    ops(unit),
                ]);
            }
        }
        rows
    }

    fn step_rows(&self) -> Vec<Vec<String>> {
        let mut rows = vec![heading(&[
            "per token",
            "FLOP",
            "bytes",
            "of weights",
            "KV read",
            "KV written",
            "FLOP/byte",
        ])];
        for step in &self.steps {
            let tokens = step.tokens as f64;
            let bytes = |all: f64| Bytes((all / tokens).round() as u64).to_string();
            rows.push(vec![
                match step.kind {
                    StepKind::Prefill if self.hyper.causal => format!("prompt of {}", step.tokens),
                    StepKind::Prefill => format!("text of {}", step.tokens),
                    StepKind::Decode => format!("decode at {}", step.past),
                },
                decimal(step.flops_per_token),
                bytes(step.cost.bytes()),
                bytes(step.cost.weight_bytes),
                bytes(step.cost.kv_read_bytes),
                bytes(step.cost.kv_write_bytes),
                format!("{:.2}", step.flops_per_byte),
            ]);
        }
        rows
    }

    fn memory_lines(&self, out: &mut String) {
        let memory = &self.memory;
        line(
            out,
            &format!(
                "memory at a context of {}: {} weights + {} KV = {} ({} KV per token)",
                memory.context,
                memory.weights,
                memory.kv,
                memory.total,
                Bytes(memory.kv_per_token.round() as u64),
            ),
        );
    }

    fn fit_rows(&self) -> Vec<Vec<String>> {
        let mut budgets = vec!["in".to_owned()];
        let mut contexts = vec!["largest context".to_owned()];
        for fit in &self.fits {
            budgets.push(fit.budget.to_string());
            contexts.push(match (fit.fits, fit.whole_context) {
                (false, _) => "does not fit".to_owned(),
                (true, false) => fit.context.to_string(),
                (true, true) => format!("{} (all)", fit.context),
            });
        }
        vec![budgets, contexts]
    }
}

fn line(out: &mut String, text: &str) {
    writeln!(out, "{text}").expect("a string takes everything");
}

fn heading(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

/// Appends rows in columns. `sides` says for each column on which side its text stands (`<` or
/// `>`); columns after the last one named stand on the right.
fn table(out: &mut String, sides: &str, rows: &[Vec<String>]) {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
    };
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    for row in rows {
        let mut text = String::new();
        for (column, cell) in row.iter().enumerate() {
            let padding = " ".repeat(widths[column] - cell.chars().count());
            let left = sides.chars().nth(column) == Some('<');
            let (before, after) = if left { ("", &*padding) } else { (&*padding, "") };
            text += &format!("{before}{cell}{after}  ");
        }
        line(out, text.trim_end());
    }
}

/// A number with a decimal multiple: `134.5 M`.
fn decimal(number: f64) -> String {
    const NAMES: [&str; 5] = ["", " k", " M", " G", " T"];
    let mut value = number;
    let mut unit = 0;
    // What would be printed as 1000.0 is 1.0 of the next.
    while value >= 999.95 && unit + 1 < NAMES.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{value:.0}") } else { format!("{value:.1}{}", NAMES[unit]) }
}

/// Layer numbers with runs joined: `0-3,7`; `-` for none.
fn layers(part: &Part) -> String {
    let runs = part.layers.chunk_by(|a, b| a + 1 == *b).map(|run| match run {
        [one] => one.to_string(),
        [first, .., last] => format!("{first}-{last}"),
        [] => String::new(),
    });
    let text = runs.collect::<Vec<_>>().join(",");
    let count = part.layers.len();
    match text.len() {
        0 => "-".to_owned(),
        1..=24 => text,
        _ => format!("{count} layers from {}", part.layers[0]),
    }
}

/// Types of a unit's matrices in the order of its ops; those of its vectors if it has no matrix.
fn types(unit: &UnitReport) -> String {
    let mut names: Vec<&str> = Vec::new();
    for matrices in [true, false] {
        let weights = unit.ops.iter().flat_map(|op| &op.weights);
        for weight in weights.filter(|weight| (weight.rows > 1) == matrices) {
            if !names.contains(&weight.block.name()) {
                names.push(weight.block.name());
            }
        }
        if !names.is_empty() {
            break;
        }
    }
    if names.is_empty() { "-".to_owned() } else { names.join(" ") }
}

fn ops(unit: &UnitReport) -> String {
    let mut text = String::new();
    for (at, op) in unit.ops.iter().enumerate() {
        if text.len() + op.name.len() > MOST_NAMES {
            text += &format!(" and {} more", unit.ops.len() - at);
            break;
        }
        if at > 0 {
            text.push(' ');
        }
        text += &op.name;
    }
    match unit.window {
        Some(window) => format!("{text} (window {window})"),
        None => text,
    }
}
