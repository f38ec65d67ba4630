//! What a model consists of and what it takes to run it, without running it.

mod dot;
mod parts;
#[cfg(test)]
mod tests;
mod text;

use std::collections::BTreeMap;

use serde::Serialize;
use trefoil_telemetry::Bytes;

pub use dot::dot;
pub use parts::{OpReport, Part, UnitReport, WeightReport};

use crate::ops::OpCost;
use crate::{BlockType, Hyper, LayerGraph, ModelFile, Origin, StepShape};

/// Budgets that every report answers for, in GiB: the sizes of memory that machines have.
pub const COMMON_BUDGETS_GIB: [u64; 6] = [8, 16, 24, 32, 64, 96];
/// Tokens of the prompt whose reading is costed.
pub const PREFILL_TOKENS: u64 = 512;

/// What the user may choose about a report.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct InspectOptions {
    /// Tokens of context to count memory for.
    pub context: usize,
    /// Bytes of one stored key or value element: 2 for f16; block formats have fractions.
    pub kv_element_bytes: f64,
    /// A budget to answer for, before the common ones.
    pub budget: Option<Bytes>,
}

/// What a model consists of and what it takes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Path or name of the model.
    pub label: String,
    /// Kind of its files.
    pub origin: String,
    /// Hyper-parameters.
    pub hyper: Hyper,
    /// Elements of all tensors; those that two ops share count once.
    pub parameters: u64,
    /// Bytes of all tensors over their elements.
    pub bits_per_weight: f64,
    /// Tensors by type, the type with most bytes first.
    pub types: Vec<TypeReport>,
    /// Bytes of weights that are copies, because the file has them in another layout (ONNX models).
    pub copied: Bytes,
    /// Number of ops.
    pub ops: usize,
    /// Number of units.
    pub units: usize,
    /// The graph, in the order in which it runs; layers that are alike stand together.
    pub parts: Vec<Part>,
    /// Costs of steps: a prompt, and for decoders a token at both ends of the context.
    pub steps: Vec<StepReport>,
    /// Memory at the context asked for.
    pub memory: MemoryReport,
    /// What fits in which budget.
    pub fits: Vec<Fit>,
}

/// Tensors of one type.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct TypeReport {
    /// The type.
    pub block: BlockType,
    /// Number of tensors.
    pub tensors: usize,
    /// Their elements.
    pub elements: u64,
    /// Their bytes.
    pub bytes: Bytes,
    /// Bits per element that the type takes.
    pub bits_per_weight: f64,
}

/// What a step does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StepKind {
    /// A prompt, or all of an encoder's text, in one step.
    Prefill,
    /// One token.
    Decode,
}

/// Cost of a step of one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct StepReport {
    /// What it does.
    pub kind: StepKind,
    /// Tokens of the step.
    pub tokens: u64,
    /// Tokens that are in the KV cache before it.
    pub past: u64,
    /// Cost of the whole step.
    pub cost: OpCost,
    /// Arithmetic per token.
    pub flops_per_token: f64,
    /// Bytes moved per token, activations included.
    pub bytes_per_token: f64,
    /// Arithmetic per byte moved.
    pub flops_per_byte: f64,
}

/// Memory that a model takes: weights and KV cache. Activations come on top (some MiB).
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct MemoryReport {
    /// All tensors of the file.
    pub weights: Bytes,
    /// Tokens that `kv` is for.
    pub context: u64,
    /// Bytes of one stored key or value element.
    pub kv_element_bytes: f64,
    /// KV cache of one token in all layers; layers with a window keep all tokens too.
    pub kv_per_token: f64,
    /// KV cache of `context` tokens.
    pub kv: Bytes,
    /// Both.
    pub total: Bytes,
}

/// What fits in a budget of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Fit {
    /// The budget.
    pub budget: Bytes,
    /// Is there room for the weights and at least one token?
    pub fits: bool,
    /// Tokens of KV cache that fit beside the weights, at most what the model was trained for.
    pub context: u64,
    /// Would a larger budget give no more?
    pub whole_context: bool,
}

impl Report {
    /// Inspects a lowered model.
    pub fn new(
        file: &ModelFile,
        hyper: &Hyper,
        graph: &LayerGraph,
        options: InspectOptions,
    ) -> Self {
        let types = types(file);
        let parameters = types.iter().map(|row| row.elements).sum::<u64>();
        let weights: Bytes = types.iter().map(|row| row.bytes).sum();
        let memory = MemoryReport::new(weights, graph, options);
        let common = COMMON_BUDGETS_GIB.map(|gib| Bytes(gib << 30));
        let budgets = options.budget.into_iter().chain(common);
        Self {
            label: file.label.clone(),
            origin: file.origin.to_string(),
            hyper: hyper.clone(),
            parameters,
            bits_per_weight: 8.0 * weights.0 as f64 / parameters.max(1) as f64,
            types,
            copied: copied(file),
            ops: graph.nodes().count(),
            units: graph.units().len(),
            parts: parts::parts(graph),
            steps: steps(hyper, graph, options),
            memory,
            fits: budgets.map(|budget| memory.fit(budget, hyper.context as u64)).collect(),
        }
    }
}

fn types(file: &ModelFile) -> Vec<TypeReport> {
    let mut by_type: BTreeMap<BlockType, TypeReport> = BTreeMap::new();
    for tensor in file.tensors.values() {
        let block = tensor.block;
        let row = by_type.entry(block).or_insert_with(|| TypeReport {
            block,
            tensors: 0,
            elements: 0,
            bytes: Bytes(0),
            bits_per_weight: block.bits_per_weight(),
        });
        let (rows, columns) = tensor.rows_and_columns();
        row.tensors += 1;
        row.elements += rows * columns;
        row.bytes = row.bytes + Bytes(tensor.len_bytes());
    }
    let mut types: Vec<_> = by_type.into_values().collect();
    types.sort_by_key(|row| std::cmp::Reverse(row.bytes));
    types
}

fn steps(hyper: &Hyper, graph: &LayerGraph, options: InspectOptions) -> Vec<StepReport> {
    let prompt = PREFILL_TOKENS.min(hyper.context as u64);
    let mut shapes = vec![(StepKind::Prefill, StepShape::prefill(prompt, 0))];
    if hyper.causal {
        let ends = [0, options.context as u64];
        shapes.extend(ends.map(|past| (StepKind::Decode, StepShape::decode(past))));
    } else {
        // Of an encoder every row is wanted, or all are pooled.
        shapes[0].1.rows_out = prompt;
    }
    let step = |(kind, shape): (StepKind, StepShape)| {
        let shape = StepShape { kv_element_bytes: options.kv_element_bytes, ..shape };
        let cost = graph.cost(&shape);
        StepReport {
            kind,
            tokens: shape.tokens,
            past: shape.past,
            cost,
            flops_per_token: cost.flops() / shape.tokens as f64,
            bytes_per_token: cost.bytes() / shape.tokens as f64,
            flops_per_byte: cost.flops() / cost.bytes(),
        }
    };
    shapes.into_iter().map(step).collect()
}

/// What an ONNX model says of its copies.
fn copied(file: &ModelFile) -> Bytes {
    let said = match file.origin {
        Origin::Onnx => file.metadata.u64("onnx.copied_bytes").ok().flatten(),
        _ => None,
    };
    Bytes(said.unwrap_or(0))
}

impl MemoryReport {
    fn new(weights: Bytes, graph: &LayerGraph, options: InspectOptions) -> Self {
        let elements: usize = graph.kv().iter().map(|shape| shape.elements_per_token()).sum();
        let kv_per_token = elements as f64 * options.kv_element_bytes;
        // Conversion from float saturates.
        let kv = Bytes((kv_per_token * options.context as f64).ceil() as u64);
        Self {
            weights,
            context: options.context as u64,
            kv_element_bytes: options.kv_element_bytes,
            kv_per_token,
            kv,
            total: Bytes(weights.0.saturating_add(kv.0)),
        }
    }

    /// What fits in `budget` of a model trained for `trained` tokens.
    pub fn fit(&self, budget: Bytes, trained: u64) -> Fit {
        let room = budget.0.checked_sub(self.weights.0);
        let tokens = |room: u64| match self.kv_per_token {
            per_token if per_token > 0.0 => (room as f64 / per_token).floor() as u64,
            _ => trained,
        };
        let context = room.map_or(0, tokens).min(trained);
        Fit { budget, fits: context > 0, context, whole_context: context == trained }
    }
}
