//! The messages of an ONNX model that matter here: model, graph, node, attribute, tensor.
//!
//! Everything is a view of the file's bytes. Field numbers are those of `onnx.proto`.

use super::OnnxError;
use super::wire::{Fields, Wire, varints};

/// Most nodes, and most stored tensors, of a graph: far beyond what any model has.
const MOST: usize = 1 << 19;

/// A graph: nodes in an order in which each comes after those it reads. Nodes and tensors are bytes
/// until they are read one by one ([`node`], [`tensor`]): a file may be nothing but empty ones.
#[derive(Debug, Default)]
pub(super) struct Graph<'a> {
    pub(super) nodes: Vec<&'a [u8]>,
    pub(super) stored: Vec<&'a [u8]>,
    pub(super) inputs: Vec<&'a str>,
    pub(super) outputs: Vec<&'a str>,
}

/// An op with the names of what it reads and writes.
#[derive(Clone, Debug, Default)]
pub(super) struct Node<'a> {
    pub(super) name: &'a str,
    pub(super) op: &'a str,
    pub(super) domain: &'a str,
    pub(super) inputs: Vec<&'a str>,
    pub(super) outputs: Vec<&'a str>,
    attributes: Vec<&'a [u8]>,
}

/// Element types, as far as weights and constants have them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Element {
    F32,
    F16,
    BF16,
    F64,
    U8,
    I8,
    I32,
    I64,
    Bool,
}

impl Element {
    fn of(number: u64) -> Option<Self> {
        Some(match number {
            1 => Self::F32,
            2 => Self::U8,
            3 => Self::I8,
            6 => Self::I32,
            7 => Self::I64,
            9 => Self::Bool,
            10 => Self::F16,
            11 => Self::F64,
            16 => Self::BF16,
            _ => return None,
        })
    }

    pub(super) fn bytes(self) -> usize {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::F16 | Self::BF16 => 2,
            Self::F32 | Self::I32 => 4,
            Self::F64 | Self::I64 => 8,
        }
    }
}

/// Where a tensor's data is.
#[derive(Clone, Debug)]
pub(super) enum Source<'a> {
    /// Little-endian elements in the model file.
    Raw(&'a [u8]),
    /// Elements that were written as integers of any length.
    Integers(Vec<u64>),
    /// In another file.
    External { path: &'a str, offset: u64, length: Option<u64> },
}

/// A tensor as the file describes it; nothing of it is checked against its data yet.
#[derive(Clone, Debug)]
pub(super) struct StoredTensor<'a> {
    pub(super) name: &'a str,
    pub(super) dims: Vec<u64>,
    /// `None` for a type that no weight has, with its number beside it.
    pub(super) element: Option<Element>,
    pub(super) type_number: u64,
    pub(super) source: Source<'a>,
}

fn text<'a>(message: &'static str, value: Wire<'a>) -> Result<&'a str, OnnxError> {
    let bytes = bytes(message, value)?;
    std::str::from_utf8(bytes).map_err(|_| OnnxError::Message {
        message,
        expected: "a name in UTF-8",
        got: format!("{} other bytes", bytes.len()),
    })
}

fn bytes<'a>(message: &'static str, value: Wire<'a>) -> Result<&'a [u8], OnnxError> {
    match value {
        Wire::Bytes(bytes) => Ok(bytes),
        other => Err(OnnxError::Message {
            message,
            expected: "a field with a length",
            got: format!("{other:?}"),
        }),
    }
}

fn push<T>(list: &mut Vec<T>, what: &'static str, item: T) -> Result<(), OnnxError> {
    if list.len() >= MOST {
        return Err(OnnxError::TooMany { what, most: MOST });
    }
    list.push(item);
    Ok(())
}

/// The graph of a model file.
pub(super) fn model(file: &[u8]) -> Result<Graph<'_>, OnnxError> {
    const MODEL: &str = "model";
    let mut graph = None;
    for field in Fields::new(MODEL, file) {
        match field? {
            (7, value) => graph = Some(bytes(MODEL, value)?),
            (25, value) => function(bytes(MODEL, value)?)?,
            _ => {}
        }
    }
    let graph = graph.ok_or(OnnxError::Message {
        message: MODEL,
        expected: "a graph",
        got: "none".to_owned(),
    })?;
    self::graph(graph)
}

/// A function of the model's own may not stand in for an op that is known by its name.
fn function(function: &[u8]) -> Result<(), OnnxError> {
    const FUNCTION: &str = "function";
    let (mut name, mut domain) = ("", "");
    for field in Fields::new(FUNCTION, function) {
        match field? {
            (1, value) => name = text(FUNCTION, value)?,
            (10, value) => domain = text(FUNCTION, value)?,
            _ => {}
        }
    }
    if is_known_domain(domain) {
        let got = format!("{name} in domain {domain:?}");
        let expected = "functions in domains of their own";
        return Err(OnnxError::Message { message: FUNCTION, expected, got });
    }
    Ok(())
}

/// Domains whose ops are known by their names.
pub(super) fn is_known_domain(domain: &str) -> bool {
    matches!(domain, "" | "ai.onnx" | "com.microsoft")
}

fn graph(graph: &[u8]) -> Result<Graph<'_>, OnnxError> {
    const GRAPH: &str = "graph";
    let mut out = Graph::default();
    for field in Fields::new(GRAPH, graph) {
        match field? {
            (1, value) => push(&mut out.nodes, "nodes", bytes(GRAPH, value)?)?,
            (5, value) => push(&mut out.stored, "tensors", bytes(GRAPH, value)?)?,
            (11, value) => push(&mut out.inputs, "inputs", value_name(bytes(GRAPH, value)?)?)?,
            (12, value) => push(&mut out.outputs, "outputs", value_name(bytes(GRAPH, value)?)?)?,
            (15, _) => {
                let got = "a sparse tensor".to_owned();
                return Err(OnnxError::Message { message: GRAPH, expected: "dense tensors", got });
            }
            _ => {}
        }
    }
    Ok(out)
}

fn value_name(value: &[u8]) -> Result<&str, OnnxError> {
    const VALUE: &str = "value";
    for field in Fields::new(VALUE, value) {
        if let (1, name) = field? {
            return text(VALUE, name);
        }
    }
    Ok("")
}

/// Reads a node.
pub(super) fn node(node: &[u8]) -> Result<Node<'_>, OnnxError> {
    const NODE: &str = "node";
    let mut out = Node::default();
    for field in Fields::new(NODE, node) {
        match field? {
            (1, value) => out.inputs.push(text(NODE, value)?),
            (2, value) => out.outputs.push(text(NODE, value)?),
            (3, value) => out.name = text(NODE, value)?,
            (4, value) => out.op = text(NODE, value)?,
            (5, value) => out.attributes.push(bytes(NODE, value)?),
            (7, value) => out.domain = text(NODE, value)?,
            _ => {}
        }
    }
    Ok(out)
}

impl<'a> Node<'a> {
    /// An input's name; empty where it is left out.
    pub(super) fn input(&self, index: usize) -> &'a str {
        self.inputs.get(index).copied().unwrap_or("")
    }

    /// The fields of an attribute.
    fn attribute(&self, name: &str) -> Result<Option<Fields<'a>>, OnnxError> {
        const ATTRIBUTE: &str = "attribute";
        for bytes in &self.attributes {
            for field in Fields::new(ATTRIBUTE, bytes) {
                if let (1, value) = field? {
                    if text(ATTRIBUTE, value)? == name {
                        return Ok(Some(Fields::new(ATTRIBUTE, bytes)));
                    }
                    break;
                }
            }
        }
        Ok(None)
    }

    /// An integer attribute.
    pub(super) fn int(&self, name: &str) -> Result<Option<i64>, OnnxError> {
        for field in self.attribute(name)?.into_iter().flatten() {
            if let (3, Wire::Varint(value)) = field? {
                return Ok(Some(value as i64));
            }
        }
        Ok(None)
    }

    /// An attribute with a number.
    pub(super) fn float(&self, name: &str) -> Result<Option<f32>, OnnxError> {
        for field in self.attribute(name)?.into_iter().flatten() {
            if let (2, Wire::Fixed32(value)) = field? {
                return Ok(Some(f32::from_le_bytes(value)));
            }
        }
        Ok(None)
    }

    /// An attribute with a text.
    pub(super) fn text(&self, name: &str) -> Result<Option<&'a str>, OnnxError> {
        for field in self.attribute(name)?.into_iter().flatten() {
            if let (4, value) = field? {
                return self::text("attribute", value).map(Some);
            }
        }
        Ok(None)
    }

    /// An attribute with a list of integers.
    pub(super) fn ints(&self, name: &str) -> Result<Option<Vec<i64>>, OnnxError> {
        let Some(fields) = self.attribute(name)? else { return Ok(None) };
        let mut values = Vec::new();
        for field in fields {
            if let (8, value) = field? {
                values.extend(integers("attribute", value)?.into_iter().map(|value| value as i64));
            }
        }
        Ok(Some(values))
    }

    /// An attribute with a tensor.
    pub(super) fn tensor(&self, name: &str) -> Result<Option<StoredTensor<'a>>, OnnxError> {
        for field in self.attribute(name)?.into_iter().flatten() {
            if let (5, value) = field? {
                return tensor(bytes("attribute", value)?).map(Some);
            }
        }
        Ok(None)
    }
}

/// Integers, packed or one by one.
fn integers(message: &'static str, value: Wire<'_>) -> Result<Vec<u64>, OnnxError> {
    match value {
        Wire::Varint(value) => Ok(vec![value]),
        Wire::Bytes(bytes) => varints(bytes).ok_or(OnnxError::Message {
            message,
            expected: "a list of integers",
            got: "one that ends within an integer".to_owned(),
        }),
        other => Err(OnnxError::Message {
            message,
            expected: "a list of integers",
            got: format!("{other:?}"),
        }),
    }
}

/// Reads a tensor.
pub(super) fn tensor(tensor: &[u8]) -> Result<StoredTensor<'_>, OnnxError> {
    const TENSOR: &str = "tensor";
    let mut out = StoredTensor {
        name: "",
        dims: Vec::new(),
        element: None,
        type_number: 0,
        source: Source::Raw(&[]),
    };
    let mut external = false;
    let (mut path, mut offset, mut length) = ("", 0, None);
    let (mut packed, mut numbers) = (None, Vec::new());
    for field in Fields::new(TENSOR, tensor) {
        match field? {
            (1, value) => {
                out.dims.extend(integers(TENSOR, value)?);
                if out.dims.len() > 8 {
                    return Err(OnnxError::TooMany { what: "dimensions of a tensor", most: 8 });
                }
            }
            (2, Wire::Varint(number)) => {
                (out.type_number, out.element) = (number, Element::of(number));
            }
            (8, value) => out.name = text(TENSOR, value)?,
            (5 | 7, value) => numbers.extend(integers(TENSOR, value)?),
            // Packed numbers of fixed size lie as raw data does.
            (4 | 9 | 10, value) => {
                let data = bytes(TENSOR, value)?;
                if packed.replace(data).is_some() {
                    return Err(OnnxError::Message {
                        message: TENSOR,
                        expected: "data in one piece",
                        got: "several pieces".to_owned(),
                    });
                }
            }
            (13, value) => match entry(bytes(TENSOR, value)?)? {
                ("location", value) => path = value,
                ("offset", value) => offset = decimal(value)?,
                ("length", value) => length = Some(decimal(value)?),
                _ => {}
            },
            (14, Wire::Varint(place)) => external = place == 1,
            _ => {}
        }
    }
    out.source = match packed {
        _ if external => Source::External { path, offset, length },
        Some(data) => Source::Raw(data),
        None if !numbers.is_empty() => Source::Integers(numbers),
        None => Source::Raw(&[]),
    };
    Ok(out)
}

/// A pair of texts.
fn entry(entry: &[u8]) -> Result<(&str, &str), OnnxError> {
    const ENTRY: &str = "external data";
    let (mut key, mut value) = ("", "");
    for field in Fields::new(ENTRY, entry) {
        match field? {
            (1, field) => key = text(ENTRY, field)?,
            (2, field) => value = text(ENTRY, field)?,
            _ => {}
        }
    }
    Ok((key, value))
}

fn decimal(digits: &str) -> Result<u64, OnnxError> {
    digits.parse().map_err(|_| OnnxError::Message {
        message: "external data",
        expected: "an offset or length in decimal digits",
        got: format!("{:?}", digits.chars().take(40).collect::<String>()),
    })
}
