//! Decoders as the model builder of onnxruntime-genai writes them.

use std::path::Path;

use half::f16;
use trefoil_graph::ops::Op;
use trefoil_graph::{LowerOptions, ModelFile, Origin, Tensor, lower};

use super::Attribute::{Float, Int};
use super::{F32, OnnxWriter, U8, float, size, turned, values};

/// Number format of matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Numbers {
    /// F32, `[in, out]`.
    F32,
    /// F16, `[in, out]`.
    F16,
    /// The codes of Q4_0 or Q4_1 or Q8_0 tensors as they are, in `MatMulNBits`; other tensors in F32.
    Blocks,
    /// 4-bit codes in blocks of this size, made here, with zero points or around 8; scales in F32.
    Codes {
        /// Weights per block.
        block: usize,
        /// Has each block a zero point of its own?
        zeros: bool,
    },
}

/// How queries, keys and values are projected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Projections {
    /// By three matrices.
    Three,
    /// By one, where they have no norms.
    Packed,
}

/// Where queries and keys are turned by their positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotation {
    /// Within attention.
    Within,
    /// By ops of its own.
    Apart,
}

/// How a decoder is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecoderForm {
    /// Number format.
    pub numbers: Numbers,
    /// Projections.
    pub projections: Projections,
    /// Rotary positions.
    pub rotation: Rotation,
    /// Is the data in a file of its own?
    pub external: bool,
}

impl DecoderForm {
    /// Everything in one file, three projections, positions within attention.
    pub fn plain(numbers: Numbers) -> Self {
        let (projections, rotation) = (Projections::Three, Rotation::Within);
        Self { numbers, projections, rotation, external: false }
    }
}

struct Decoder<'m> {
    model: &'m ModelFile,
    form: DecoderForm,
    out: OnnxWriter,
    heads: usize,
    kv_heads: usize,
    head: usize,
    eps: f32,
}

/// Writes a decoder (any with the blocks of llama or qwen) to `folder`, `genai_config.json` beside it.
pub fn write_decoder(model: &ModelFile, form: DecoderForm, folder: &Path) {
    let (hyper, graph) = lower(model, LowerOptions::default()).expect("lowers");
    let out = match form.external {
        true => OnnxWriter::with_external("model.onnx.data"),
        false => OnnxWriter::new(),
    };
    let eps = float(model, "attention.layer_norm_rms_epsilon");
    let (heads, kv_heads, head) = (hyper.heads, hyper.kv_heads, hyper.head_dim);
    let mut decoder = Decoder { model, form, out, heads, kv_heads, head, eps };
    let frequencies = graph.nodes().find_map(|node| match &graph.node(node).op {
        Op::Rope(rope) => Some(rope.table.frequencies.clone()),
        _ => None,
    });
    decoder.rotary_tables(&frequencies.expect("it has positions"), hyper.context.min(512));
    let layers = hyper.layers;
    decoder.write(layers);
    decoder.out.write(folder);
    let vocabulary = model.tensors["token_embd.weight"].rows_and_columns().0;
    let config = serde_json::json!({"model": {
        "type": "llama",
        "context_length": hyper.context,
        "vocab_size": vocabulary,
        "bos_token_id": 1,
        "eos_token_id": [2, 3],
        "pad_token_id": -1,
        "decoder": {
            "filename": "model.onnx",
            "head_size": head,
            "hidden_size": size(model, "embedding_length"),
            "num_attention_heads": heads,
            "num_hidden_layers": layers,
            "num_key_value_heads": kv_heads,
        },
    }});
    std::fs::write(folder.join("genai_config.json"), config.to_string()).expect("writes");
}

impl Decoder<'_> {
    fn rotary_tables(&mut self, frequencies: &[f32], positions: usize) {
        let pairs = frequencies.len();
        for (name, function) in [("cos_cache", f64::cos as fn(f64) -> f64), ("sin_cache", f64::sin)]
        {
            let table: Vec<f32> = (0..positions * pairs)
                .map(|at| {
                    let angle = (at / pairs) as f64 * f64::from(frequencies[at % pairs]);
                    function(angle) as f32
                })
                .collect();
            self.out.f32s(name, &[positions, pairs], &table);
        }
    }

    fn has(&self, name: &str) -> bool {
        self.model.tensors.contains_key(name)
    }

    fn vector(&mut self, name: &str) -> String {
        let values = values(&self.model.tensors[name]);
        self.out.f32s(name, &[values.len()], &values);
        name.to_owned()
    }

    /// Rows of a tensor: those of queries and keys in the order of Hugging Face files.
    fn rows(&self, name: &str, tensor: &Tensor) -> Vec<Vec<u8>> {
        let weight = tensor.weight();
        let rows: Vec<Vec<u8>> = (0..weight.rows).map(|row| weight.row(row).to_vec()).collect();
        let llama = self.model.metadata.str("general.architecture") == Ok(Some("llama"));
        let turned = name.contains("attn_q.") || name.contains("attn_k.");
        if self.model.origin != Origin::Gguf || !llama || !turned {
            return rows;
        }
        let (head, half) = (self.head, self.head / 2);
        let from = |row: usize| {
            let (start, at) = (row / head * head, row % head);
            start + if at < half { 2 * at } else { 2 * (at - half) + 1 }
        };
        (0..rows.len()).map(|row| rows[from(row)].clone()).collect()
    }

    /// A product with the rows of one tensor, or of several one after another, and its bias.
    fn linear(&mut self, names: &[&str], x: &str, output: &str) {
        let tensors: Vec<&Tensor> = names
            .iter()
            .map(|name| &self.model.tensors[format!("{name}.weight").as_str()])
            .collect();
        let rows: Vec<Vec<u8>> =
            tensors.iter().flat_map(|tensor| self.rows(&tensor.name, tensor)).collect();
        let (block, cols) = (tensors[0].block, tensors[0].rows_and_columns().1 as usize);
        let bias = self.has(&format!("{}.bias", names[0]));
        let product = if bias { format!("{output}_product") } else { output.to_owned() };
        let name = format!("{output}_weight");
        let decoded = || -> Vec<f32> {
            let row = |bytes: &Vec<u8>| {
                let mut out = vec![0.0; cols];
                trefoil_kernels::blocks::decode_row(block, bytes, &mut out);
                out
            };
            rows.iter().flat_map(row).collect()
        };
        match self.form.numbers {
            Numbers::Blocks if block.name().starts_with('Q') => {
                let quantised = Quantised::of_blocks(block.name(), &rows);
                self.product(&name, x, &product, &quantised, rows.len(), cols);
            }
            Numbers::Codes { block, zeros } => {
                let quantised = Quantised::make(&decoded(), cols, block, zeros);
                self.product(&name, x, &product, &quantised, rows.len(), cols);
            }
            Numbers::F16 => {
                let values = turned(&decoded(), rows.len(), cols);
                let raw: Vec<u8> =
                    values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect();
                self.out.tensor(&name, &[cols, rows.len()], super::F16, &raw);
                self.out.op("MatMul", &[x, &name], &product);
            }
            _ => {
                self.out.f32s(&name, &[cols, rows.len()], &turned(&decoded(), rows.len(), cols));
                self.out.op("MatMul", &[x, &name], &product);
            }
        }
        if bias {
            let all: Vec<f32> = names
                .iter()
                .flat_map(|name| values(&self.model.tensors[format!("{name}.bias").as_str()]))
                .collect();
            let name = format!("{output}_bias");
            self.out.f32s(&name, &[all.len()], &all);
            self.out.op("Add", &[&product, &name], output);
        }
    }

    fn product(
        &mut self,
        name: &str,
        x: &str,
        output: &str,
        quantised: &Quantised,
        rows: usize,
        cols: usize,
    ) {
        let blocks = cols.div_ceil(quantised.block);
        let bytes = quantised.block * quantised.bits / 8;
        let [codes, scales, zeros] =
            ["codes", "scales", "zeros"].map(|part| format!("{name}_{part}"));
        self.out.tensor(&codes, &[rows, blocks, bytes], U8, &quantised.codes);
        let scale_bytes: Vec<u8> =
            quantised.scales.iter().flat_map(|scale| scale.to_le_bytes()).collect();
        self.out.tensor(&scales, &[rows * blocks], F32, &scale_bytes);
        let mut inputs = vec![x, &codes, &scales];
        if !quantised.zeros.is_empty() {
            self.out.tensor(&zeros, &[quantised.zeros.len()], U8, &quantised.zeros);
            inputs.push(&zeros);
        }
        let attributes = [
            ("K", Int(cols as i64)),
            ("N", Int(rows as i64)),
            ("bits", Int(quantised.bits as i64)),
            ("block_size", Int(quantised.block as i64)),
            ("accuracy_level", Int(0)),
        ];
        self.out.node("ms.MatMulNBits", &inputs, &[output], &attributes);
    }

    fn write(&mut self, layers: usize) {
        for name in ["input_ids", "attention_mask", "position_ids"] {
            self.out.input(name);
        }
        for layer in 0..layers {
            for part in ["key", "value"] {
                self.out.input(&format!("past_key_values.{layer}.{part}"));
            }
        }
        let embedding = &self.model.tensors["token_embd.weight"];
        let (rows, cols) = embedding.rows_and_columns();
        let table = values(embedding);
        self.out.f32s("embed_tokens", &[rows as usize, cols as usize], &table);
        self.out.op("Gather", &["embed_tokens", "input_ids"], "embedded");
        self.lengths();
        let weight = self.vector("blk.0.attn_norm.weight");
        let attributes = [("axis", Int(-1)), ("epsilon", Float(self.eps)), ("stash_type", Int(1))];
        let inputs = ["embedded", weight.as_str()];
        self.out.node("SimplifiedLayerNormalization", &inputs, &["normed_0"], &attributes);
        let mut residual = "embedded".to_owned();
        for layer in 0..layers {
            residual = self.block(layer, layers, &residual);
        }
        let head = match self.has("output.weight") {
            true => "output",
            false => "token_embd",
        };
        self.linear(&[head], &format!("normed_{layers}"), "logits");
        self.out.output("logits");
    }

    /// How long each sequence is, out of the mask.
    fn lengths(&mut self) {
        let out = &mut self.out;
        out.i64s("axis_1", &[1]);
        out.i64s("one", &[1]);
        out.op("ReduceSum", &["attention_mask", "axis_1"], "sums");
        out.op("Sub", &["sums", "one"], "last");
        out.node("Cast", &["last"], &["seqlens_k"], &[("to", Int(6))]);
        out.op("Shape", &["attention_mask"], "mask_shape");
        out.op("Gather", &["mask_shape", "one"], "total");
        out.node("Cast", &["total"], &["total_sequence_length"], &[("to", Int(6))]);
    }

    /// Queries or keys with their heads' norm, if there is one.
    fn head_norm(&mut self, role: &str, x: String, heads: usize) -> String {
        let weight = format!("{role}_norm.weight");
        if !self.has(&weight) {
            return x;
        }
        let weight = self.vector(&weight);
        let [heads_shape, rows_shape] = ["heads", "rows"].map(|part| format!("{x}_{part}"));
        self.out.i64s(&heads_shape, &[0, -1, self.head as i64]);
        self.out.i64s(&rows_shape, &[0, -1, (heads * self.head) as i64]);
        let [split, normed, joined] =
            ["split", "normed", "joined"].map(|part| format!("{x}_{part}"));
        self.out.op("Reshape", &[&x, &heads_shape], &split);
        let attributes = [("axis", Int(-1)), ("epsilon", Float(self.eps))];
        let inputs = [split.as_str(), &weight];
        self.out.node("SimplifiedLayerNormalization", &inputs, &[&normed], &attributes);
        self.out.op("Reshape", &[&normed, &rows_shape], &joined);
        joined
    }

    fn rotated(&mut self, x: String) -> String {
        if self.form.rotation == Rotation::Within {
            return x;
        }
        let name = format!("{x}_rotated");
        let inputs = [x.as_str(), "position_ids", "cos_cache", "sin_cache"];
        self.out.node("ms.RotaryEmbedding", &inputs, &[&name], &[("interleaved", Int(0))]);
        name
    }

    fn block(&mut self, layer: usize, layers: usize, residual: &str) -> String {
        let role = |name: &str| format!("blk.{layer}.{name}");
        let name = |what: &str| format!("{what}_{layer}");
        let normed = name("normed");
        let [q_role, k_role, v_role] = ["attn_q", "attn_k", "attn_v"].map(role);
        let packed = self.form.projections == Projections::Packed;
        let (query, key, value) = if packed {
            self.linear(&[&q_role, &k_role, &v_role], &normed, &name("qkv"));
            (name("qkv"), String::new(), String::new())
        } else {
            for (role, part) in [(&q_role, "q"), (&k_role, "k"), (&v_role, "v")] {
                self.linear(&[role], &normed, &name(part));
            }
            let query = self.head_norm(&q_role, name("q"), self.heads);
            let key = self.head_norm(&k_role, name("k"), self.kv_heads);
            (self.rotated(query), self.rotated(key), name("v"))
        };
        let past = ["key", "value"].map(|part| format!("past_key_values.{layer}.{part}"));
        let present = ["key", "value"].map(|part| format!("present.{layer}.{part}"));
        let mut inputs = vec![query.as_str(), &key, &value, &past[0], &past[1]];
        inputs.extend(["seqlens_k", "total_sequence_length"]);
        let within = self.form.rotation == Rotation::Within;
        if within {
            inputs.extend(["cos_cache", "sin_cache"]);
        }
        let attended = name("attended");
        let attributes = [
            ("num_heads", Int(self.heads as i64)),
            ("kv_num_heads", Int(self.kv_heads as i64)),
            ("scale", Float((1.0 / (self.head as f64).sqrt()) as f32)),
            ("local_window_size", Int(-1)),
            ("do_rotary", Int(i64::from(within))),
            ("rotary_interleaved", Int(0)),
            ("softcap", Float(0.0)),
        ];
        let outputs = [attended.as_str(), &present[0], &present[1]];
        self.out.node("ms.GroupQueryAttention", &inputs, &outputs, &attributes);
        self.linear(&[&role("attn_output")], &attended, &name("o"));
        let middle =
            self.skip_norm(&role("ffn_norm.weight"), residual, &name("o"), &name("ffn_normed"));
        self.linear(&[&role("ffn_gate")], &name("ffn_normed"), &name("gate"));
        self.linear(&[&role("ffn_up")], &name("ffn_normed"), &name("up"));
        self.out.op("Sigmoid", &[&name("gate")], &name("sigmoid"));
        self.out.op("Mul", &[&name("gate"), &name("sigmoid")], &name("silu"));
        self.out.op("Mul", &[&name("silu"), &name("up")], &name("gated"));
        self.linear(&[&role("ffn_down")], &name("gated"), &name("down"));
        let next = match layer + 1 {
            last if last == layers => "output_norm.weight".to_owned(),
            next => format!("blk.{next}.attn_norm.weight"),
        };
        self.skip_norm(&next, &middle, &name("down"), &format!("normed_{}", layer + 1))
    }

    /// A sum and its norm; returns the sum's name.
    fn skip_norm(&mut self, weight: &str, x: &str, skip: &str, output: &str) -> String {
        let weight = self.vector(weight);
        let sum = format!("{output}_sum");
        let attributes = [("epsilon", Float(self.eps))];
        let op = "ms.SkipSimplifiedLayerNormalization";
        self.out.node(op, &[x, skip, &weight], &[output, "", "", &sum], &attributes);
        sum
    }
}

/// A matrix as `MatMulNBits` has it.
struct Quantised {
    codes: Vec<u8>,
    scales: Vec<f32>,
    zeros: Vec<u8>,
    block: usize,
    bits: usize,
}

impl Quantised {
    /// The codes of a format's blocks.
    fn of_blocks(format: &str, rows: &[Vec<u8>]) -> Self {
        let (size, start, bits) = match format {
            "Q4_0" => (18, 2, 4),
            "Q8_0" => (34, 2, 8),
            other => panic!("{other} is not one of the formats"),
        };
        let (mut codes, mut scales) = (Vec::new(), Vec::new());
        for block in rows.iter().flat_map(|row| row.chunks_exact(size)) {
            scales.push(f16::from_le_bytes([block[0], block[1]]).to_f32());
            let code = |at: usize| match bits {
                4 => block[start + at % 16] >> (at / 16 * 4) & 15,
                _ => block[start + at].wrapping_add(128),
            };
            match bits {
                4 => codes.extend((0..16).map(|at| code(2 * at) | code(2 * at + 1) << 4)),
                _ => codes.extend((0..32).map(code)),
            }
        }
        Self { codes, scales, zeros: Vec::new(), block: 32, bits }
    }

    /// 4-bit codes for values.
    fn make(values: &[f32], cols: usize, block: usize, own_zeros: bool) -> Self {
        let (mut codes, mut scales, mut zeros) = (Vec::new(), Vec::new(), Vec::new());
        for row in values.chunks_exact(cols) {
            let mut row_zeros = Vec::new();
            for part in row.chunks(block) {
                let most = part.iter().copied().fold(0.0, f32::max);
                let least = part.iter().copied().fold(0.0, f32::min);
                let (scale, zero) = match own_zeros {
                    true => {
                        let scale = ((most - least) / 15.0).max(1e-8);
                        (scale, (-least / scale).round().clamp(0.0, 15.0))
                    }
                    false => ((most.max(-least) / 7.0).max(1e-8), 8.0),
                };
                let code = |at: usize| match part.get(at) {
                    Some(value) => (value / scale + zero).round().clamp(0.0, 15.0) as u8,
                    None => zero as u8,
                };
                codes.extend((0..block / 2).map(|at| code(2 * at) | code(2 * at + 1) << 4));
                scales.push(scale);
                row_zeros.push(zero as u8);
            }
            let packed = row_zeros.chunks(2).map(|pair| pair[0] | pair.get(1).unwrap_or(&0) << 4);
            zeros.extend(packed);
        }
        if !own_zeros {
            zeros.clear();
        }
        Self { codes, scales, zeros, block, bits: 4 }
    }
}
