//! Conformance cases: one op each, in number formats and shapes, with pseudo-random inputs.
//!
//! A case is a graph of two units: `embed` gives the op its inputs' shapes, the unit under test holds
//! the op. A device compiles the second unit alone and is judged by the reference interpreter. The
//! same cases are the self-test that a device must pass before it is offered.

use std::sync::Arc;

use trefoil_graph::ops::{
    Activation, Add, Attention, Embed, Experts, Gate, KvWrite, Linear, Nonlinearity, Norm,
    NormKind, Normalise, Op, Pool, Pooling, Rope, RopeStyle, RopeTable, Route, Scale, SelectRows,
    SoftCap,
};
use trefoil_graph::{
    BLOCK_TABLE, BlockType, GraphBuilder, KvShape, LayerGraph, NodeIndex, Segment, StepInputs,
    Storage, UnitId, UnitKind, Weight,
};

use crate::blocks::{can_encode, decode_row, encode_row};

/// One op in one format and shape.
#[derive(Debug)]
pub struct Case {
    /// Kind of the op under test.
    pub op: &'static str,
    /// Number format of its weights, where it has any.
    pub format: Option<BlockType>,
    /// Shape in words: `7x256->96`.
    pub shape: String,
    /// The graph; unit 1 is under test.
    pub graph: Arc<LayerGraph>,
    /// Rows.
    pub step: StepInputs,
    /// Values of the op's inputs, in the order of unit 0's nodes.
    inputs: Vec<Vec<f32>>,
}

impl Case {
    /// The segment under test.
    pub fn segment(&self) -> Segment {
        self.graph.segment(&[UnitId(1)])
    }

    /// Values of one of the segment's inputs.
    pub fn input(&self, node: NodeIndex) -> &[f32] {
        let sources = &self.graph.unit(UnitId(0)).nodes;
        let index = sources.iter().position(|&source| source == node);
        &self.inputs[index.expect("inputs are made in unit 0")]
    }
}

/// Pseudo-random numbers that are the same on every machine (splitmix64, Steele et al. 2014).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Numbers of this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Evenly spread in -1..1.
    pub fn signed(&mut self) -> f32 {
        ((self.bits() >> 40) as f64 / f64::from(1 << 23) - 1.0) as f32
    }

    /// `count` values, each the sum of four even ones: near a normal distribution.
    pub fn values(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| (0..4).map(|_| self.signed()).sum::<f32>() * 0.8).collect()
    }
}

/// A weight of pseudo-random values: encoded where the format has an encoder, else random blocks
/// whose values are of a usual size.
pub fn weight(
    random: &mut Random,
    name: &str,
    block: BlockType,
    rows: usize,
    cols: usize,
) -> Weight {
    let info = block.info();
    let row_bytes = cols / info.elements * info.bytes;
    let mut bytes = vec![0; rows * row_bytes];
    if block == BlockType::F32 || can_encode(block) {
        let scale = 1.0 / (cols as f32).sqrt();
        for row in bytes.chunks_exact_mut(row_bytes) {
            let values: Vec<f32> = random.values(cols).iter().map(|v| v * scale).collect();
            if block == BlockType::F32 {
                row.copy_from_slice(bytemuck::cast_slice(&values));
            } else {
                encode_row(block, &values, row);
            }
        }
    } else {
        let mut values = vec![0.0; info.elements];
        for part in bytes.chunks_exact_mut(info.bytes) {
            loop {
                part.fill_with(|| random.bits() as u8);
                decode_row(block, part, &mut values);
                let most = values.iter().fold(0.0f32, |most, v| most.max(v.abs()));
                if values.iter().all(|v| v.is_finite()) && (1e-3..4.0).contains(&most) {
                    break;
                }
            }
        }
    }
    Weight::new(name, block, rows, cols, Arc::new(Storage::Owned(bytes)), 0)
        .expect("the bytes were made for this shape")
}

/// Formats that weights of a linear come in.
pub fn weight_formats() -> impl Iterator<Item = BlockType> {
    BLOCK_TABLE.iter().map(|row| row.block).filter(|block| {
        !block.is_integer() && !matches!(block, BlockType::Q8_1 | BlockType::Q8_K | BlockType::F64)
    })
}

/// Rows of several sequences: some new, some with a past, pages in no order.
fn step(rows: &[(usize, u32)], page_tokens: u32) -> StepInputs {
    let mut step = StepInputs { page_tokens, ..StepInputs::default() };
    let mut next_page = 0;
    for (index, &(count, past)) in rows.iter().enumerate() {
        let tokens: Vec<u32> = (0..count as u32).map(|i| (i * 7 + index as u32) % 32).collect();
        let pages = (past + count as u32).div_ceil(page_tokens);
        let mut table: Vec<u32> = (next_page..next_page + pages).collect();
        table.reverse();
        next_page += pages;
        step.push_sequence(&tokens, past, &table, index % 2 == 1, [count as u32 - 1]);
    }
    step
}

/// Pages that a step's table names.
pub fn pages_of(step: &StepInputs) -> usize {
    step.page_table.iter().max().map_or(0, |page| *page as usize + 1)
}

struct CaseBuilder {
    cases: Vec<Case>,
    random: Random,
    formats: Vec<BlockType>,
}

impl CaseBuilder {
    /// Adds a case: `build` pushes the op on inputs of the given widths.
    fn add(
        &mut self,
        format: Option<BlockType>,
        shape: String,
        step: StepInputs,
        widths: &[usize],
        build: impl FnOnce(&mut GraphBuilder, &mut Random, &[NodeIndex]) -> NodeIndex,
    ) {
        let mut graph = GraphBuilder::default();
        graph.begin_unit(UnitKind::Embed, None);
        let sources: Vec<NodeIndex> = widths
            .iter()
            .enumerate()
            .map(|(i, &width)| {
                let name = format!("input_{i}");
                let table = Weight::from_f32(name.as_str(), 1, width, &vec![0.0; width]);
                let op = Embed { table, scale: 1.0, positions: None, types: None };
                graph.push(name, op, &[]).expect("tables have any width")
            })
            .collect();
        graph.begin_unit(UnitKind::Ffn, Some(0));
        let output = build(&mut graph, &mut self.random, &sources);
        let graph = Arc::new(graph.finish(output));
        let op = graph.node(output).op.kind();
        let inputs = widths.iter().map(|w| self.random.values(w * step.tokens.len())).collect();
        self.cases.push(Case { op, format, shape, graph, step, inputs });
    }

    fn linears(&mut self) {
        for format in self.formats.clone() {
            let block = format.info().elements.max(32);
            for (rows, cols, out) in [(1, block * 2, 48), (7, block, 33), (70, block * 3, 64)] {
                let shape = format!("{rows}x{cols}->{out}");
                let step = step(&[(rows, 0)], 16);
                self.add(Some(format), shape, step, &[cols], |graph, random, inputs| {
                    let weight = weight(random, "w", format, out, cols);
                    let bias =
                        (rows == 7).then(|| Weight::from_f32("b", 1, out, &random.values(out)));
                    graph.push("w", Linear { weight, bias }, inputs).expect("fits")
                });
            }
        }
    }

    fn embeds(&mut self) {
        for format in self.formats.clone() {
            let cols = format.info().elements.max(64);
            let step = step(&[(5, 0), (1, 3)], 16);
            self.add(Some(format), format!("6->{cols}"), step, &[], |graph, random, _| {
                let table = weight(random, "t", format, 32, cols);
                let positions = (format == BlockType::F32)
                    .then(|| weight(random, "p", BlockType::F32, 16, cols));
                let types = (format == BlockType::F32)
                    .then(|| weight(random, "s", BlockType::F32, 2, cols));
                graph.push("t", Embed { table, scale: 1.5, positions, types }, &[]).expect("fits")
            });
        }
    }

    fn norms(&mut self) {
        for (kind, group, width) in [
            (NormKind::Rms, 96, 96),
            (NormKind::Rms, 24, 96),
            (NormKind::Layer, 40, 40),
            (NormKind::Rms, 1, 3),
        ] {
            let shape = format!("{kind:?} 9x{width}/{group}");
            self.add(None, shape, step(&[(9, 0)], 16), &[width], |graph, random, inputs| {
                let vector =
                    |random: &mut Random| Weight::from_f32("n", 1, group, &random.values(group));
                let weight = vector(random);
                let bias = (kind == NormKind::Layer).then(|| vector(random));
                let op = Norm { kind, weight, bias, eps: 1e-6, weight_offset: 1.0 };
                graph.push("n", op, inputs).expect("fits")
            });
        }
    }

    fn ropes(&mut self) {
        for style in [RopeStyle::Interleaved, RopeStyle::Halves] {
            for (head_dim, pairs) in [(16, 8), (24, 12), (16, 5), (2, 1)] {
                let width = 3 * head_dim;
                let shape = format!("{style:?} 8x3x{head_dim}/{}", 2 * pairs);
                let rows = step(&[(6, 0), (2, 40)], 16);
                self.add(None, shape, rows, &[width], |graph, random, inputs| {
                    let list = |random: &mut Random| -> Vec<f32> {
                        (0..pairs).map(|_| random.signed().abs()).collect()
                    };
                    let frequencies = list(random);
                    let long_frequencies = Some(list(random));
                    let table =
                        Arc::new(RopeTable { frequencies, long_frequencies, magnitude: 1.25 });
                    graph.push("r", Rope { head_dim, style, table }, inputs).expect("fits")
                });
            }
        }
    }

    fn attentions(&mut self) {
        let rows: [&[(usize, u32)]; 4] =
            [&[(1, 0)], &[(1, 700)], &[(37, 0), (1, 63), (5, 300)], &[(70, 530)]];
        let heads = [(4, 2, 16), (6, 1, 24), (3, 3, 8), (8, 2, 128), (10, 1, 96)];
        for (index, (rows, (heads, kv_heads, head_dim))) in
            rows.iter().flat_map(|rows| heads.map(|heads| (rows, heads))).enumerate()
        {
            let window = (index % 3 == 1).then_some(20);
            let softcap = (index % 4 == 3).then_some(5.0);
            let causal = index % 5 != 4;
            let shape = format!(
                "{heads}/{kv_heads}x{head_dim} rows {rows:?}{}{}{}",
                window.map_or(String::new(), |w| format!(" window {w}")),
                softcap.map_or(String::new(), |c| format!(" cap {c}")),
                if causal { "" } else { " both ways" },
            );
            let (q, kv) = (heads * head_dim, kv_heads * head_dim);
            self.add(None, shape, step(rows, 16), &[q, kv, kv], |graph, _, inputs| {
                let layer = graph.kv_layer(KvShape { kv_heads, head_dim, window });
                let write = KvWrite { layer, kv_heads, head_dim };
                let written = graph.push("kv", write, &inputs[1..]).expect("fits");
                let op = Attention {
                    layer,
                    heads,
                    kv_heads,
                    head_dim,
                    scale: 1.0 / (head_dim as f32).sqrt(),
                    window,
                    causal,
                    softcap,
                };
                graph.push("a", op, &[inputs[0], written]).expect("fits")
            });
        }
        // The second asks with the first one's result; both read what one op wrote.
        let (heads, kv_heads, head_dim) = (4, 2, 16);
        let shape = "twice 4/2x16 rows [(3, 530)]".to_owned();
        let (q, kv) = (heads * head_dim, kv_heads * head_dim);
        self.add(None, shape, step(&[(3, 530)], 16), &[q, kv, kv], |graph, _, inputs| {
            let window = None;
            let layer = graph.kv_layer(KvShape { kv_heads, head_dim, window });
            let write = KvWrite { layer, kv_heads, head_dim };
            let written = graph.push("kv", write, &inputs[1..]).expect("fits");
            let (scale, softcap, causal) = (0.25, None, true);
            let op = Attention { layer, heads, kv_heads, head_dim, scale, window, causal, softcap };
            let first = graph.push("a", op, &[inputs[0], written]).expect("fits");
            graph.push("b", op, &[first, written]).expect("fits")
        });
    }

    fn elementwise(&mut self) {
        use Nonlinearity::{GeluErf, GeluTanh, Silu};
        for (rows, width) in [(1, 5), (33, 72)] {
            let rows_of = || step(&[(rows, 0)], 16);
            let shape = |name: &str| format!("{name}{rows}x{width}");
            for function in [Silu, GeluTanh, GeluErf] {
                let name = format!("{function:?} ");
                self.add(None, shape(&name), rows_of(), &[width; 2], |graph, _, inputs| {
                    graph.push("g", Gate { function }, inputs).expect("fits")
                });
                self.add(None, shape(&name), rows_of(), &[width], |graph, _, inputs| {
                    graph.push("f", Activation { function }, inputs).expect("fits")
                });
            }
            self.add(None, shape(""), rows_of(), &[width; 2], |graph, _, inputs| {
                graph.push("s", Add, inputs).expect("fits")
            });
            let singles: [Op; 3] =
                [Scale { factor: -0.7 }.into(), SoftCap { cap: 1.5 }.into(), Normalise.into()];
            for op in singles {
                self.add(None, shape(""), rows_of(), &[width], |graph, _, inputs| {
                    graph.push("o", op, inputs).expect("fits")
                });
            }
        }
    }

    fn rows(&mut self) {
        let rows = || step(&[(4, 0), (3, 20), (1, 0)], 16);
        self.add(None, "8->3x24".to_owned(), rows(), &[24], |graph, _, inputs| {
            graph.push("s", SelectRows, inputs).expect("fits")
        });
        for pooling in [Pooling::Mean, Pooling::Cls, Pooling::Last] {
            self.add(None, format!("{pooling:?} 8->3x24"), rows(), &[24], |graph, _, inputs| {
                graph.push("p", Pool { pooling }, inputs).expect("fits")
            });
        }
    }

    fn mixtures(&mut self) {
        for (top_k, renormalise) in [(1, true), (3, true), (2, false)] {
            let shape = format!("9x64 {top_k} of 6{}", if renormalise { "" } else { " raw" });
            self.add(
                Some(BlockType::F32),
                shape,
                step(&[(9, 0)], 16),
                &[64],
                |graph, random, inputs| {
                    let weight = weight(random, "r", BlockType::F32, 6, 64);
                    graph.push("r", Route { weight, top_k, renormalise }, inputs).expect("fits")
                },
            );
        }
        for format in self.formats.clone() {
            let cols = format.info().elements.max(64);
            let shape = format!("11x{cols} 2 of 5");
            let (rows, widths) = (step(&[(11, 0)], 16), [cols, 4]);
            self.add(Some(format), shape, rows, &widths, |graph, random, inputs| {
                let mut list = |name: &str| -> Vec<Weight> {
                    (0..5).map(|_| weight(random, name, format, cols, cols)).collect()
                };
                let (gate, up, down) = (list("g"), list("u"), list("d"));
                let op = Experts { gate, up, down, function: Nonlinearity::Silu, top_k: 2 };
                graph.push("e", op, inputs).expect("fits")
            });
            let route = &mut self.cases.last_mut().expect("just added").inputs[1];
            for (row, route) in route.chunks_exact_mut(4).enumerate() {
                let first = row % 5;
                route.copy_from_slice(&[first as f32, ((first + 2) % 5) as f32, 0.625, 0.375]);
            }
        }
    }
}

/// All cases.
pub fn all() -> Vec<Case> {
    with_formats(weight_formats().collect())
}

/// The cases of all ops, with weights in these formats only.
pub fn with_formats(formats: Vec<BlockType>) -> Vec<Case> {
    let mut builder = CaseBuilder { cases: Vec::new(), random: Random::new(20_261_121), formats };
    builder.linears();
    builder.embeds();
    builder.norms();
    builder.ropes();
    builder.attentions();
    builder.elementwise();
    builder.rows();
    builder.mixtures();
    builder.cases
}
