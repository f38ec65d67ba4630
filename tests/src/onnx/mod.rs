//! ONNX models for tests: a writer of the format, and models that other programs' exporters would write.

mod decoder;
mod encoder;

use std::path::Path;

use trefoil_graph::{ModelFile, Tensor};
use trefoil_kernels::blocks::decode_row;

pub use decoder::{DecoderForm, Numbers, Projections, Rotation, write_decoder};
pub use encoder::{EncoderForm, write_encoder};

/// A protobuf message being written.
#[derive(Clone, Debug, Default)]
pub struct Message(Vec<u8>);

impl Message {
    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    /// A field with an integer.
    #[must_use]
    pub fn int(mut self, field: u64, value: i64) -> Self {
        self.varint(field << 3);
        self.varint(value as u64);
        self
    }

    /// A field with a number in single precision.
    #[must_use]
    pub fn float(mut self, field: u64, value: f32) -> Self {
        self.varint(field << 3 | 5);
        self.0.extend(value.to_le_bytes());
        self
    }

    /// A field with bytes, a text or a message.
    #[must_use]
    pub fn field(mut self, field: u64, value: impl AsRef<[u8]>) -> Self {
        let value = value.as_ref();
        self.varint(field << 3 | 2);
        self.varint(value.len() as u64);
        self.0.extend(value);
        self
    }
}

impl AsRef<[u8]> for Message {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// An attribute of a node.
#[derive(Clone, Debug)]
pub enum Attribute {
    /// An integer.
    Int(i64),
    /// A number.
    Float(f32),
    /// A list of integers.
    Ints(Vec<i64>),
    /// A text.
    Text(&'static str),
    /// A tensor.
    Tensor(Message),
}

/// A tensor message: name, dimensions, type number, raw data.
pub fn tensor(name: &str, dims: &[usize], kind: i64, raw: &[u8]) -> Message {
    header(name, dims, kind).field(9, raw)
}

fn header(name: &str, dims: &[usize], kind: i64) -> Message {
    let start = dims.iter().fold(Message::default(), |m, &dim| m.int(1, dim as i64));
    start.int(2, kind).field(8, name)
}

/// Number of F32 among ONNX's element types.
pub const F32: i64 = 1;
/// Number of U8.
pub const U8: i64 = 2;
/// Number of I32.
pub const I32: i64 = 6;
/// Number of I64.
pub const I64: i64 = 7;
/// Number of F16.
pub const F16: i64 = 10;

/// Name, element type and dimensions of an input or output.
fn value(name: &str, kind: i64, dims: &[&str]) -> Message {
    let dim = |shape: Message, dim: &&str| shape.field(1, Message::default().field(2, dim));
    let shape = dims.iter().fold(Message::default(), dim);
    let tensor = Message::default().int(1, kind).field(2, shape);
    Message::default().field(1, name).field(2, Message::default().field(1, tensor))
}

fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// A model being written.
#[derive(Debug, Default)]
pub struct OnnxWriter {
    graph: Message,
    /// Nodes so far, for their names.
    nodes: usize,
    /// Data of tensors in a file of its own, with its name.
    external: Option<(String, Vec<u8>)>,
}

impl OnnxWriter {
    /// A model with its tensors' data in the file.
    pub fn new() -> Self {
        Self::default()
    }

    /// A model with its tensors' data in a file of this name.
    pub fn with_external(name: &str) -> Self {
        Self { external: Some((name.to_owned(), Vec::new())), ..Self::default() }
    }

    fn push(&mut self, field: u64, message: &Message) {
        self.graph = std::mem::take(&mut self.graph).field(field, message);
    }

    /// An input of the graph: ids or a mask, or keys and values of earlier steps.
    pub fn input(&mut self, name: &str) {
        let value = match name.starts_with("past_") {
            true => value(name, F32, &["batch", "heads", "past", "head_dim"]),
            false => value(name, I64, &["batch", "tokens"]),
        };
        self.push(11, &value);
    }

    /// An output of the graph.
    pub fn output(&mut self, name: &str) {
        self.push(12, &value(name, F32, &["batch", "tokens", "width"]));
    }

    /// An input or output of F32 whose shape is known.
    pub fn fixed(&mut self, is_input: bool, name: &str, shape: &[usize]) {
        let dim =
            |shape: Message, &dim: &usize| shape.field(1, Message::default().int(1, dim as i64));
        let shape = shape.iter().fold(Message::default(), dim);
        let tensor = Message::default().int(1, F32).field(2, shape);
        let kind = Message::default().field(1, tensor);
        self.push(
            if is_input { 11 } else { 12 },
            &Message::default().field(1, name).field(2, kind),
        );
    }

    /// An input of F32 with any number of rows.
    pub fn open_rows(&mut self, name: &str, width: usize) {
        let rows = Message::default().field(2, "rows");
        let width = Message::default().int(1, width as i64);
        let shape = Message::default().field(1, rows).field(1, width);
        let tensor = Message::default().int(1, F32).field(2, shape);
        let kind = Message::default().field(1, tensor);
        self.push(11, &Message::default().field(1, name).field(2, kind));
    }

    /// A stored tensor.
    pub fn tensor(&mut self, name: &str, dims: &[usize], kind: i64, raw: &[u8]) {
        let message = match &mut self.external {
            Some((file, data)) if raw.len() >= 64 => {
                data.resize(data.len().next_multiple_of(64), 0);
                let offset = data.len();
                data.extend(raw);
                let entry =
                    |key: &str, value: String| Message::default().field(1, key).field(2, value);
                header(name, dims, kind)
                    .field(13, entry("location", file.clone()))
                    .field(13, entry("offset", offset.to_string()))
                    .field(13, entry("length", raw.len().to_string()))
                    .int(14, 1)
            }
            _ => tensor(name, dims, kind, raw),
        };
        self.push(5, &message);
    }

    /// A stored tensor as a message.
    pub fn stored(&mut self, tensor: &Message) {
        self.push(5, tensor);
    }

    /// A stored tensor of F32.
    pub fn f32s(&mut self, name: &str, dims: &[usize], values: &[f32]) {
        self.tensor(name, dims, F32, &f32_bytes(values));
    }

    /// A stored list of integers.
    pub fn i64s(&mut self, name: &str, values: &[i64]) {
        let raw: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.tensor(name, &[values.len()], I64, &raw);
    }

    /// A stored number.
    pub fn number(&mut self, name: &str, value: f32) {
        self.tensor(name, &[], F32, &value.to_le_bytes());
    }

    /// A node; `op` may begin with `ms.` for ONNX Runtime's own.
    pub fn node(
        &mut self,
        op: &str,
        inputs: &[&str],
        outputs: &[&str],
        attributes: &[(&str, Attribute)],
    ) {
        let (domain, op) = match op.strip_prefix("ms.") {
            Some(op) => ("com.microsoft", op),
            None => ("", op),
        };
        self.nodes += 1;
        let mut node = Message::default();
        for input in inputs {
            node = node.field(1, input);
        }
        for output in outputs {
            node = node.field(2, output);
        }
        node = node.field(3, format!("node_{}", self.nodes)).field(4, op);
        for (name, value) in attributes {
            let start = Message::default().field(1, name);
            let (attribute, kind) = match value {
                Attribute::Float(value) => (start.float(2, *value), 1),
                Attribute::Int(value) => (start.int(3, *value), 2),
                Attribute::Text(value) => (start.field(4, value), 3),
                Attribute::Tensor(value) => (start.field(5, value), 4),
                Attribute::Ints(values) => {
                    (values.iter().fold(start, |message, &value| message.int(8, value)), 7)
                }
            };
            node = node.field(5, attribute.int(20, kind));
        }
        if !domain.is_empty() {
            node = node.field(7, domain);
        }
        self.push(1, &node);
    }

    /// A node with one output of a name.
    pub fn op(&mut self, op: &str, inputs: &[&str], output: &str) {
        self.node(op, inputs, &[output], &[]);
    }

    /// The model file.
    pub fn model(&self) -> Vec<u8> {
        let opset = |domain: &str, version| Message::default().field(1, domain).int(2, version);
        let model = Message::default()
            .int(1, 8)
            .field(2, "tests")
            .field(7, self.graph.clone().field(2, "graph"))
            .field(8, opset("", 17))
            .field(8, opset("com.microsoft", 1));
        model.0
    }

    /// Writes the model, and its data if that is apart.
    pub fn write(&self, folder: &Path) {
        std::fs::create_dir_all(folder).expect("a folder");
        std::fs::write(folder.join("model.onnx"), self.model()).expect("writes");
        if let Some((name, data)) = &self.external {
            std::fs::write(folder.join(name), data).expect("writes");
        }
    }
}

/// All values of a tensor.
pub fn values(tensor: &Tensor) -> Vec<f32> {
    let weight = tensor.weight();
    let mut out = vec![0.0; weight.elements()];
    for (row, out) in out.chunks_exact_mut(weight.cols).enumerate() {
        decode_row(weight.block, weight.row(row), out);
    }
    out
}

/// The transpose of `rows` x `cols` values.
pub fn turned<T: Copy>(values: &[T], rows: usize, cols: usize) -> Vec<T> {
    (0..rows * cols).map(|at| values[at % rows * cols + at / rows]).collect()
}

/// A size of a model.
fn size(model: &ModelFile, name: &str) -> usize {
    let architecture = model.metadata.str("general.architecture").expect("a text").expect("there");
    let key = format!("{architecture}.{name}");
    model.metadata.u64(&key).expect("a number").unwrap_or_else(|| panic!("{key}")) as usize
}

/// A number of a model.
fn float(model: &ModelFile, name: &str) -> f32 {
    let architecture = model.metadata.str("general.architecture").expect("a text").expect("there");
    let key = format!("{architecture}.{name}");
    model.metadata.f32(&key).expect("a number").unwrap_or_else(|| panic!("{key}"))
}
