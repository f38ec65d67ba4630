//! Writes a part as an ONNX model.

use std::collections::HashMap;

use prost::Message;
use trefoil_graph::ops::RopeTable;
use trefoil_graph::{LayerGraph, NodeIndex};

use crate::codes::Layout;
use crate::emit::emit;
use crate::pack::{BLOCK, Packed, Place};
use crate::proto::{
    AttributeKind, AttributeProto, DataLocation, DimensionProto, ElementType, GraphProto,
    ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto, TensorProto,
    TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto,
};
use crate::{NumericForm, Part, PartWeights};

/// Name under which a model refers to the bytes of [`PartWeights::data`].
pub const WEIGHTS_FILE: &str = "weights.bin";

/// IR version and version of the standard's ops: the newest that all providers take.
const IR_VERSION: i64 = 8;
const OPSET: i64 = 17;
/// Where ONNX Runtime's own ops are.
pub(crate) const MICROSOFT: &str = "com.microsoft";

/// An input or output of a model: f32 of `[rows, width]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorIo {
    /// Its name.
    pub name: String,
    /// Elements of a row.
    pub width: usize,
}

/// A part for one number of rows.
#[derive(Clone, Debug)]
pub struct Model {
    /// The model, whose weights are in [`WEIGHTS_FILE`] beside it.
    pub bytes: Vec<u8>,
    /// The part's inputs in their order, then cosines and sines of each of its tables.
    pub inputs: Vec<TensorIo>,
    /// The part's outputs in their order.
    pub outputs: Vec<TensorIo>,
    /// Rows of every input and output.
    pub rows: usize,
}

/// The model of a part for steps of `rows` rows, with the weights that were packed for it.
pub fn model(graph: &LayerGraph, part: &Part, weights: &PartWeights, rows: usize) -> Model {
    let mut builder = Builder::new(rows, weights);
    let mut inputs = Vec::new();
    for &node in &part.inputs {
        let width = graph.node(node).shape.width;
        let name = format!("in{}", node.index());
        builder.values.insert(node, name.clone());
        inputs.push(TensorIo { name, width });
    }
    for (index, table) in part.tables.iter().enumerate() {
        let width = table.frequencies.len();
        let names = [format!("cos{index}"), format!("sin{index}")];
        inputs.extend(names.iter().map(|name| TensorIo { name: name.clone(), width }));
        builder.turns.push((std::ptr::from_ref(&**table), names));
    }
    for &node in &part.nodes {
        let name = emit(&mut builder, graph, node);
        builder.values.insert(node, name);
    }
    let outputs = part.outputs.iter().map(|node| {
        let width = graph.node(*node).shape.width;
        TensorIo { name: builder.values[node].clone(), width }
    });
    let outputs: Vec<TensorIo> = outputs.collect();
    let bytes = builder.finish(&inputs, &outputs).encode_to_vec();
    Model { bytes, inputs, outputs, rows }
}

/// A model under construction.
pub(crate) struct Builder<'a> {
    pub(crate) rows: usize,
    weights: &'a PartWeights,
    nodes: Vec<NodeProto>,
    initializers: Vec<TensorProto>,
    /// Name of each tensor of the layer graph.
    values: HashMap<NodeIndex, String>,
    /// Names of the cosines and sines of each table.
    turns: Vec<(*const RopeTable, [String; 2])>,
}

impl<'a> Builder<'a> {
    fn new(rows: usize, weights: &'a PartWeights) -> Self {
        Self {
            rows,
            weights,
            nodes: Vec::new(),
            initializers: Vec::new(),
            values: HashMap::new(),
            turns: Vec::new(),
        }
    }

    /// Name of a tensor that was made before.
    pub(crate) fn value(&self, node: NodeIndex) -> String {
        self.values[&node].clone()
    }

    /// Names of the cosines and sines of a table.
    pub(crate) fn turns(&self, table: &RopeTable) -> [String; 2] {
        let known = self.turns.iter().find(|(key, _)| std::ptr::eq(*key, table));
        known.map(|(_, names)| names.clone()).expect("the part lists the tables of its ropes")
    }

    /// Adds an op of the standard with one result and returns that one's name.
    pub(crate) fn op(&mut self, role: &str, kind: &str, inputs: &[&str]) -> String {
        self.op_with(role, kind, inputs, Vec::new())
    }

    /// As [`Self::op`], with attributes.
    pub(crate) fn op_with(
        &mut self,
        role: &str,
        kind: &str,
        inputs: &[&str],
        attributes: Vec<AttributeProto>,
    ) -> String {
        self.push(role, kind, "", inputs, attributes, 1).remove(0)
    }

    /// Adds an op with `results` results.
    pub(crate) fn push(
        &mut self,
        role: &str,
        kind: &str,
        domain: &str,
        inputs: &[&str],
        attribute: Vec<AttributeProto>,
        results: usize,
    ) -> Vec<String> {
        let number = self.nodes.len();
        let output: Vec<String> = (0..results).map(|i| format!("v{number}_{i}")).collect();
        self.nodes.push(NodeProto {
            input: inputs.iter().map(|&name| name.to_owned()).collect(),
            output: output.clone(),
            name: format!("{role}/{kind}_{number}"),
            op_type: kind.to_owned(),
            attribute,
            domain: domain.to_owned(),
        });
        output
    }

    fn initializer(&mut self, kind: ElementType, dims: &[usize]) -> &mut TensorProto {
        let name = format!("c{}", self.initializers.len());
        self.initializers.push(TensorProto {
            dims: dims.iter().map(|&dim| dim as i64).collect(),
            data_type: kind as i32,
            name,
            ..TensorProto::default()
        });
        self.initializers.last_mut().expect("just added")
    }

    /// A constant of f32 values; a number where `dims` is empty.
    pub(crate) fn floats(&mut self, values: &[f32], dims: &[usize]) -> String {
        let tensor = self.initializer(ElementType::Float, dims);
        tensor.raw_data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        tensor.name.clone()
    }

    /// A constant number.
    pub(crate) fn number(&mut self, value: f32) -> String {
        self.floats(&[value], &[])
    }

    /// A constant list of whole numbers.
    pub(crate) fn integers(&mut self, values: &[usize]) -> String {
        let tensor = self.initializer(ElementType::Int64, &[values.len()]);
        tensor.raw_data = values.iter().flat_map(|&value| (value as i64).to_le_bytes()).collect();
        tensor.name.clone()
    }

    /// A constant whose bytes are among the packed weights.
    fn external(&mut self, kind: ElementType, dims: &[usize], place: Place) -> String {
        let tensor = self.initializer(kind, dims);
        tensor.data_location = DataLocation::External as i32;
        let entries = [
            ("location", WEIGHTS_FILE.to_owned()),
            ("offset", place.offset.to_string()),
            ("length", place.len.to_string()),
        ];
        tensor.external_data = entries
            .into_iter()
            .map(|(key, value)| StringStringEntryProto { key: key.to_owned(), value })
            .collect();
        tensor.name.clone()
    }

    /// The product of `x` with the packed matrix of `node`, `[out, in]`.
    pub(crate) fn product(
        &mut self,
        role: &str,
        node: NodeIndex,
        x: &str,
        out: usize,
        width: usize,
    ) -> String {
        match self.weights.places[&node] {
            Packed::F32(place) => {
                let matrix = self.external(ElementType::Float, &[width, out], place);
                self.op(role, "MatMul", &[x, &matrix])
            }
            Packed::F16(place) => {
                let matrix = self.external(ElementType::Float16, &[width, out], place);
                let half = self.cast(role, x, ElementType::Float16);
                let y = self.op(role, "MatMul", &[&half, &matrix]);
                self.cast(role, &y, ElementType::Float)
            }
            Packed::Int4 { codes, scales } => {
                let layout = Layout { bits: 4, block: BLOCK, zeros: false };
                self.product_of_codes(role, [out, width], layout, x, [codes, scales], None)
            }
            Packed::Codes { layout, codes, scales, zeros } => {
                self.product_of_codes(role, [out, width], layout, x, [codes, scales], zeros)
            }
        }
    }

    fn product_of_codes(
        &mut self,
        role: &str,
        [out, width]: [usize; 2],
        layout: Layout,
        x: &str,
        [codes, scales]: [Place; 2],
        zeros: Option<Place>,
    ) -> String {
        let Layout { bits, block, .. } = layout;
        let blocks = width / block;
        let codes = self.external(ElementType::Uint8, &[out, blocks, block * bits / 8], codes);
        let scales = self.external(ElementType::Float, &[out * blocks], scales);
        let zeros = zeros.map(|place| self.external(ElementType::Float, &[out * blocks], place));
        let attributes =
            vec![int("K", width), int("N", out), int("bits", bits), int("block_size", block)];
        let inputs = [x, &codes, &scales].into_iter().chain(zeros.as_deref());
        let inputs: Vec<&str> = inputs.collect();
        self.push(role, "MatMulNBits", MICROSOFT, &inputs, attributes, 1).remove(0)
    }

    fn cast(&mut self, role: &str, x: &str, to: ElementType) -> String {
        self.op_with(role, "Cast", &[x], vec![int("to", to as usize)])
    }

    /// Gives a tensor another shape of as many elements.
    pub(crate) fn reshape(&mut self, role: &str, x: &str, dims: &[usize]) -> String {
        let dims = self.integers(dims);
        self.op(role, "Reshape", &[x, &dims])
    }

    fn finish(self, inputs: &[TensorIo], outputs: &[TensorIo]) -> ModelProto {
        let mut opset_import = vec![OperatorSetIdProto { domain: String::new(), version: OPSET }];
        if matches!(self.weights.form, NumericForm::Codes | NumericForm::Int4) {
            opset_import.push(OperatorSetIdProto { domain: MICROSOFT.to_owned(), version: 1 });
        }
        let info = |io: &TensorIo| value_info(io, self.rows);
        ModelProto {
            ir_version: IR_VERSION,
            producer_name: "trefoil".to_owned(),
            graph: Some(GraphProto {
                name: "segment".to_owned(),
                input: inputs.iter().map(info).collect(),
                output: outputs.iter().map(info).collect(),
                node: self.nodes,
                initializer: self.initializers,
            }),
            opset_import,
        }
    }
}

/// A whole number as an attribute.
pub(crate) fn int(name: &str, value: usize) -> AttributeProto {
    AttributeProto {
        name: name.to_owned(),
        i: value as i64,
        ints: Vec::new(),
        kind: AttributeKind::Int as i32,
    }
}

/// A list of whole numbers as an attribute.
pub(crate) fn ints(name: &str, values: &[i64]) -> AttributeProto {
    AttributeProto {
        name: name.to_owned(),
        i: 0,
        ints: values.to_vec(),
        kind: AttributeKind::Ints as i32,
    }
}

fn value_info(io: &TensorIo, rows: usize) -> ValueInfoProto {
    let dim = [rows, io.width].map(|dim| DimensionProto { dim_value: dim as i64 });
    let shape = Some(TensorShapeProto { dim: dim.to_vec() });
    let tensor_type = Some(TensorTypeProto { elem_type: ElementType::Float as i32, shape });
    ValueInfoProto { name: io.name.clone(), kind: Some(TypeProto { tensor_type }) }
}
