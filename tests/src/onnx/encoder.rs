//! Encoders as exporters write them.

use std::path::Path;

use trefoil_graph::{ModelFile, Tensor};

use super::Attribute::{Float, Int, Ints};
use super::{OnnxWriter, float, size, turned, values};

/// Which exporter's habits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EncoderForm {
    /// Norms as ops, shapes computed, products divided by the root of a head's size.
    Plain,
    /// Norms written out, shapes constant, queries and keys scaled before their product.
    WrittenOut,
    /// ONNX Runtime's fused ops.
    Fused,
}

struct Encoder<'m> {
    model: &'m ModelFile,
    form: EncoderForm,
    out: OnnxWriter,
    width: usize,
    heads: usize,
    eps: f32,
    made: usize,
}

/// Writes an encoder (architecture bert) to `folder`, with hidden states as output.
pub fn write_encoder(model: &ModelFile, form: EncoderForm, folder: &Path) {
    let mut encoder = Encoder {
        model,
        form,
        out: match form {
            EncoderForm::WrittenOut => OnnxWriter::with_external("model.onnx.data"),
            _ => OnnxWriter::new(),
        },
        width: size(model, "embedding_length"),
        heads: size(model, "attention.head_count"),
        eps: float(model, "attention.layer_norm_epsilon"),
        made: 0,
    };
    for name in ["input_ids", "attention_mask", "token_type_ids"] {
        encoder.out.input(name);
    }
    let mut x = encoder.embed();
    for layer in 0..size(model, "block_count") {
        x = match form {
            EncoderForm::Fused => encoder.fused_block(layer, &x),
            _ => encoder.block(layer, &x),
        };
    }
    encoder.out.op("Identity", &[&x], "last_hidden_state");
    encoder.out.output("last_hidden_state");
    encoder.out.write(folder);
}

impl Encoder<'_> {
    fn name(&mut self, what: &str) -> String {
        self.made += 1;
        format!("{what}_{}", self.made)
    }

    fn op(&mut self, op: &str, inputs: &[&str]) -> String {
        let name = self.name(op);
        self.out.op(op, inputs, &name);
        name
    }

    fn tensor(&self, name: &str) -> &Tensor {
        &self.model.tensors[name]
    }

    fn vector(&mut self, name: &str) -> String {
        let values = values(self.tensor(name));
        self.out.f32s(name, &[values.len()], &values);
        name.to_owned()
    }

    fn table(&mut self, name: &str) -> String {
        let tensor = self.tensor(name);
        let (shape, values) = (tensor.rows_and_columns(), values(tensor));
        self.out.f32s(name, &[shape.0 as usize, shape.1 as usize], &values);
        name.to_owned()
    }

    /// A matrix as `[in, out]`.
    fn matrix(&mut self, name: &str) -> String {
        let tensor = self.tensor(name);
        let (rows, cols) = tensor.rows_and_columns();
        let (rows, cols) = (rows as usize, cols as usize);
        let values = turned(&values(tensor), rows, cols);
        self.out.f32s(name, &[cols, rows], &values);
        name.to_owned()
    }

    fn number(&mut self, value: f32) -> String {
        let name = self.name("number");
        self.out.number(&name, value);
        name
    }

    fn ints(&mut self, values: &[i64]) -> String {
        let name = self.name("ints");
        self.out.i64s(&name, values);
        name
    }

    fn linear(&mut self, role: &str, x: &str) -> String {
        let (weight, bias) =
            (self.matrix(&format!("{role}.weight")), self.vector(&format!("{role}.bias")));
        let product = self.op("MatMul", &[x, &weight]);
        self.op("Add", &[&bias, &product])
    }

    fn norm(&mut self, role: &str, x: &str) -> String {
        let (weight, bias) =
            (self.vector(&format!("{role}.weight")), self.vector(&format!("{role}.bias")));
        if self.form == EncoderForm::Plain {
            let name = self.name("norm");
            let attributes = [("axis", Int(-1)), ("epsilon", Float(self.eps))];
            self.out.node("LayerNormalization", &[x, &weight, &bias], &[&name], &attributes);
            return name;
        }
        let last = [("axes", Ints(vec![-1])), ("keepdims", Int(1))];
        let (mean, variance) = (self.name("mean"), self.name("variance"));
        self.out.node("ReduceMean", &[x], &[&mean], &last);
        let centred = self.op("Sub", &[x, &mean]);
        let two = self.number(2.0);
        let square = self.op("Pow", &[&centred, &two]);
        self.out.node("ReduceMean", &[&square], &[&variance], &last);
        let eps = self.number(self.eps);
        let shifted = self.op("Add", &[&variance, &eps]);
        let root = self.op("Sqrt", &[&shifted]);
        let normed = self.op("Div", &[&centred, &root]);
        let weighted = self.op("Mul", &[&normed, &weight]);
        self.op("Add", &[&weighted, &bias])
    }

    fn embed(&mut self) -> String {
        let (words, positions) =
            (self.table("token_embd.weight"), self.table("position_embd.weight"));
        let types = self.table("token_types.weight");
        if self.form == EncoderForm::Fused {
            let (weight, bias) =
                (self.vector("token_embd_norm.weight"), self.vector("token_embd_norm.bias"));
            // These ops want integers of 32 bits.
            for (from, to) in
                [("input_ids", "ids"), ("token_type_ids", "types"), ("attention_mask", "mask")]
            {
                self.out.node("Cast", &[from], &[to], &[("to", Int(super::I32))]);
            }
            let (name, mask) = (self.name("embedded"), self.name("mask"));
            let inputs = ["ids", "types", &words, &positions, &types, &weight, &bias, "mask"];
            let attributes = [("epsilon", Float(self.eps))];
            self.out.node("ms.EmbedLayerNormalization", &inputs, &[&name, &mask], &attributes);
            return name;
        }
        let most = self.tensor("position_embd.weight").rows_and_columns().0;
        let all: Vec<u8> = (0..most as i64).flat_map(i64::to_le_bytes).collect();
        self.out.tensor("all_positions", &[1, most as usize], super::I64, &all);
        let shape = self.op("Shape", &["input_ids"]);
        let (zero, one) = (self.ints(&[0]), self.ints(&[1]));
        let length = self.op("Gather", &[&shape, &one]);
        let ids = self.op("Slice", &["all_positions", &zero, &length, &one, &one]);
        let words = self.op("Gather", &[&words, "input_ids"]);
        let types = self.op("Gather", &[&types, "token_type_ids"]);
        let sum = self.op("Add", &[&words, &types]);
        let positions = self.op("Gather", &[&positions, &ids]);
        let sum = self.op("Add", &[&sum, &positions]);
        self.norm("token_embd_norm", &sum)
    }

    /// Rows as heads, turned as `order` says.
    fn heads(&mut self, x: &str, order: &[i64]) -> String {
        let (heads, head) = (self.heads as i64, (self.width / self.heads) as i64);
        let shape = if self.form == EncoderForm::Plain {
            let dims = self.op("Shape", &[x]);
            let mut parts = Vec::new();
            for place in 0..2 {
                let scalar = self.name("place");
                self.out.tensor(&scalar, &[], super::I64, &i64::to_le_bytes(place));
                let dim = self.op("Gather", &[&dims, &scalar]);
                let zero = self.ints(&[0]);
                parts.push(self.op("Unsqueeze", &[&dim, &zero]));
            }
            parts.extend([self.ints(&[heads]), self.ints(&[head])]);
            let inputs: Vec<&str> = parts.iter().map(String::as_str).collect();
            let name = self.name("shape");
            self.out.node("Concat", &inputs, &[&name], &[("axis", Int(0))]);
            name
        } else {
            self.ints(&[0, 0, heads, -1])
        };
        let split = self.op("Reshape", &[x, &shape]);
        let name = self.name("heads");
        self.out.node("Transpose", &[&split], &[&name], &[("perm", Ints(order.to_vec()))]);
        name
    }

    fn mask(&mut self) -> String {
        let axes = self.ints(&[1, 2]);
        let wide = self.op("Unsqueeze", &["attention_mask", &axes]);
        let name = self.name("mask");
        self.out.node("Cast", &[&wide], &[&name], &[("to", Int(super::F32))]);
        let (one, least) = (self.number(1.0), self.number(f32::MIN));
        let inverse = self.op("Sub", &[&one, &name]);
        self.op("Mul", &[&inverse, &least])
    }

    fn block(&mut self, layer: usize, x: &str) -> String {
        let role = |name: &str| format!("blk.{layer}.{name}");
        let [q, k, v] = ["attn_q", "attn_k", "attn_v"].map(|name| self.linear(&role(name), x));
        let (mut q, mut k) = (self.heads(&q, &[0, 2, 1, 3]), self.heads(&k, &[0, 2, 3, 1]));
        let v = self.heads(&v, &[0, 2, 1, 3]);
        let root = ((self.width / self.heads) as f32).sqrt();
        if self.form == EncoderForm::WrittenOut {
            let half = self.number(1.0 / root.sqrt());
            q = self.op("Mul", &[&q, &half]);
            k = self.op("Mul", &[&k, &half]);
        }
        let mut scores = self.op("MatMul", &[&q, &k]);
        if self.form == EncoderForm::Plain {
            let root = self.number(root);
            scores = self.op("Div", &[&scores, &root]);
        }
        let scores = match self.form {
            EncoderForm::Plain => {
                let mask = self.mask();
                self.op("Add", &[&scores, &mask])
            }
            _ => {
                let (axes, zero) = (self.ints(&[1, 2]), self.ints(&[0]));
                let wide = self.op("Unsqueeze", &["attention_mask", &axes]);
                let hidden = self.op("Equal", &[&wide, &zero]);
                let least = self.number(f32::MIN);
                self.op("Where", &[&hidden, &least, &scores])
            }
        };
        let weights = self.name("weights");
        self.out.node("Softmax", &[&scores], &[&weights], &[("axis", Int(-1))]);
        let mixed = self.op("MatMul", &[&weights, &v]);
        let name = self.name("mixed");
        self.out.node("Transpose", &[&mixed], &[&name], &[("perm", Ints(vec![0, 2, 1, 3]))]);
        let shape = self.ints(&[0, 0, self.width as i64]);
        let rows = self.op("Reshape", &[&name, &shape]);
        let output = self.linear(&role("attn_output"), &rows);
        let sum = self.op("Add", &[&output, x]);
        let middle = self.norm(&role("attn_output_norm"), &sum);
        let up = self.linear(&role("ffn_up"), &middle);
        let (root, one) = (self.number(std::f32::consts::SQRT_2), self.number(1.0));
        let half = self.number(0.5);
        let divided = self.op("Div", &[&up, &root]);
        let erf = self.op("Erf", &[&divided]);
        let plus = self.op("Add", &[&erf, &one]);
        let activated = match self.form {
            EncoderForm::Plain => {
                let twice = self.op("Mul", &[&up, &plus]);
                self.op("Mul", &[&twice, &half])
            }
            _ => {
                let halved = self.op("Mul", &[&up, &half]);
                self.op("Mul", &[&halved, &plus])
            }
        };
        let down = self.linear(&role("ffn_down"), &activated);
        let sum = self.op("Add", &[&down, &middle]);
        self.norm(&role("layer_output_norm"), &sum)
    }

    fn skip_norm(&mut self, role: &str, branch: &str, x: &str, bias: &str) -> String {
        let (weight, shift) =
            (self.vector(&format!("{role}.weight")), self.vector(&format!("{role}.bias")));
        let name = self.name("norm");
        let inputs = [branch, x, &weight, &shift, bias];
        let attributes = [("epsilon", Float(self.eps))];
        self.out.node("ms.SkipLayerNormalization", &inputs, &[&name], &attributes);
        name
    }

    fn fused_block(&mut self, layer: usize, x: &str) -> String {
        let role = |name: &str| format!("blk.{layer}.{name}");
        let parts = ["attn_q", "attn_k", "attn_v"].map(role);
        let rows = |name: &str| values(self.tensor(name));
        let packed: Vec<f32> = parts.iter().flat_map(|p| rows(&format!("{p}.weight"))).collect();
        let biases: Vec<f32> = parts.iter().flat_map(|p| rows(&format!("{p}.bias"))).collect();
        let (width, qkv) = (self.width, role("qkv"));
        let (weight, bias) = (format!("{qkv}.weight"), format!("{qkv}.bias"));
        self.out.f32s(&weight, &[width, 3 * width], &turned(&packed, 3 * width, width));
        self.out.f32s(&bias, &[3 * width], &biases);
        let attended = self.name("attended");
        let attributes = [("num_heads", Int(self.heads as i64))];
        let inputs = [x, weight.as_str(), bias.as_str(), "mask"];
        self.out.node("ms.Attention", &inputs, &[&attended], &attributes);
        let output = self.matrix(&role("attn_output.weight"));
        let output = self.op("MatMul", &[&attended, &output]);
        let bias = self.vector(&role("attn_output.bias"));
        let middle = self.skip_norm(&role("attn_output_norm"), &output, x, &bias);
        let (up, bias) = (self.matrix(&role("ffn_up.weight")), self.vector(&role("ffn_up.bias")));
        let up = self.op("MatMul", &[&middle, &up]);
        let activated = self.op("ms.BiasGelu", &[&up, &bias]);
        let down = self.matrix(&role("ffn_down.weight"));
        let down = self.op("MatMul", &[&activated, &down]);
        let bias = self.vector(&role("ffn_down.bias"));
        self.skip_norm(&role("layer_output_norm"), &down, &middle, &bias)
    }
}
