//! The walk over a graph that gives every value its meaning, op by op.

use std::collections::HashMap;
use std::rc::Rc;

use super::OnnxError;
use super::constants::{Constants, Loader};
use super::proto::{self, Graph, Node, is_known_domain};
use super::value::{Arena, Dense, Dim, Ints, Unknown, Value};
use super::{fused, plain, shapes};

/// Most integers that are followed one by one: shapes have a handful.
const MOST_INTS: usize = 64;

/// Why an op's result has no meaning.
pub(super) enum Stop {
    /// An input has none.
    Unknown(Rc<Unknown>),
    /// The op is not understood, for this reason.
    Why(String),
    /// The file is damaged.
    Damaged(OnnxError),
}

impl From<OnnxError> for Stop {
    fn from(error: OnnxError) -> Self {
        Self::Damaged(error)
    }
}

impl From<String> for Stop {
    fn from(why: String) -> Self {
        Self::Why(why)
    }
}

impl From<&str> for Stop {
    fn from(why: &str) -> Self {
        Self::Why(why.to_owned())
    }
}

/// A graph's values so far.
pub(super) struct Walk<'a> {
    pub(super) constants: Constants,
    pub(super) arena: Arena,
    values: HashMap<&'a str, Value>,
}

/// One node, with its inputs' values at hand.
pub(super) struct At<'w, 'a> {
    pub(super) node: &'w Node<'a>,
    pub(super) walk: &'w mut Walk<'a>,
}

impl<'a> Walk<'a> {
    /// Walks over all nodes.
    pub(super) fn run(graph: &Graph<'a>, loader: &mut Loader<'a>) -> Result<Self, OnnxError> {
        let mut walk = Self {
            constants: Constants::default(),
            arena: Arena::default(),
            values: HashMap::new(),
        };
        for bytes in &graph.stored {
            let tensor = &proto::tensor(bytes)?;
            let value = match tensor.element {
                Some(_) => {
                    let constant = loader.load(tensor)?;
                    let index = walk.constants.add(tensor.name, constant)?;
                    walk.constant_value(index)
                }
                None => unknown("tensor", tensor.name, "elements of a type that no op here reads"),
            };
            walk.values.insert(tensor.name, value);
        }
        for &name in &graph.inputs {
            walk.values.entry(name).or_insert_with(|| input_value(name));
        }
        for bytes in &graph.nodes {
            let node = &proto::node(bytes)?;
            let (values, others) = walk.apply(node, loader)?;
            for (index, &name) in node.outputs.iter().enumerate() {
                if name.is_empty() {
                    continue;
                }
                let value = values.get(index).unwrap_or(&others).clone();
                if walk.values.insert(name, value).is_some() {
                    return Err(OnnxError::Structure {
                        place: format!("node `{}`", node.name),
                        expected: "results with names of their own".to_owned(),
                        got: format!("`{name}`, which is there"),
                    });
                }
            }
        }
        loader.check_overlaps()?;
        Ok(walk)
    }

    /// The meaning of a name.
    pub(super) fn value(&self, name: &str) -> Option<&Value> {
        self.values.get(name)
    }

    /// The values of a node's outputs; any beyond them have the last value.
    fn apply(
        &mut self,
        node: &Node<'a>,
        loader: &mut Loader<'a>,
    ) -> Result<(Vec<Value>, Value), OnnxError> {
        for name in node.inputs.iter().filter(|name| !name.is_empty()) {
            if !self.values.contains_key(name) {
                return Err(OnnxError::Op {
                    op: node.op.to_owned(),
                    node: node.name.to_owned(),
                    why: format!("expected inputs that come before it, got `{name}`"),
                });
            }
        }
        let result = match node.op {
            "Constant" if is_known_domain(node.domain) => self.constant(node, loader),
            _ => At { node, walk: self }.outputs(),
        };
        let no_more = unknown(node.op, node.name, "this output is not one that is followed");
        match result {
            Ok(values) => Ok((values, no_more)),
            Err(Stop::Damaged(error)) => Err(error),
            Err(Stop::Unknown(first)) => Ok((Vec::new(), Value::Unknown(first))),
            Err(Stop::Why(why)) => {
                // What an op of the model's reads may be the reason: then that is where it began.
                let first = node.inputs.iter().find_map(|name| match self.values.get(name) {
                    Some(value @ Value::Unknown(_)) => Some(value.clone()),
                    _ => None,
                });
                Ok((Vec::new(), first.unwrap_or_else(|| unknown(node.op, node.name, &why))))
            }
        }
    }

    fn constant(&mut self, node: &Node<'a>, loader: &mut Loader<'a>) -> Result<Vec<Value>, Stop> {
        if let Some(tensor) = node.tensor("value")? {
            let Some(&name) = node.outputs.first() else { return Ok(Vec::new()) };
            if tensor.element.is_none() {
                return Err("elements of a type that no op here reads".into());
            }
            let constant = loader.load(&tensor)?;
            let index = self.constants.add(name, constant)?;
            return Ok(vec![self.constant_value(index)]);
        }
        if let Some(number) = node.float("value_float")? {
            return Ok(vec![Value::Number(f64::from(number))]);
        }
        if let Some(number) = node.int("value_int")? {
            return Ok(vec![known(vec![number], true)]);
        }
        match node.ints("value_ints")? {
            Some(numbers) if numbers.len() <= MOST_INTS => Ok(vec![known(numbers, false)]),
            _ => Err("expected a tensor, a number or a short list of integers".into()),
        }
    }

    /// What a constant means by itself.
    fn constant_value(&self, index: usize) -> Value {
        let constant = &self.constants.all[index];
        let (rank, len) = (constant.dims.len(), constant.len());
        if constant.is_integer() {
            let number = |at| constant.number(at);
            if rank <= 1 && len <= MOST_INTS {
                return known((0..len).map(|at| number(at) as i64).collect(), rank == 0);
            }
            if (0..len).all(|at| number(at) == 0.0) {
                return Value::ZeroIds;
            }
            // One row that counts.
            if constant.dims.last() == Some(&len) && (0..len).all(|at| number(at) == at as f64) {
                return Value::Positions;
            }
        } else if len == 1 && rank <= 1 && constant.block().is_some() {
            return Value::Number(constant.number(0));
        }
        Value::Constant(Dense { constant: index, turned: false })
    }
}

/// Integers that are all known.
pub(super) fn known(numbers: Vec<i64>, scalar: bool) -> Value {
    Value::Ints(Ints { dims: numbers.into_iter().map(Dim::Known).collect(), scalar })
}

fn unknown(op: &str, node: &str, why: &str) -> Value {
    let (op, node, why) = (op.to_owned(), node.to_owned(), why.to_owned());
    Value::Unknown(Rc::new(Unknown { op, node, why }))
}

/// The meaning of an input of the graph, by its name.
fn input_value(name: &str) -> Value {
    match name {
        "input_ids" => Value::Tokens,
        "attention_mask" | "input_mask" => Value::Mask,
        "token_type_ids" | "segment_ids" => Value::ZeroIds,
        "position_ids" => Value::Positions,
        _ if name.starts_with("past_") || name.starts_with("past.") => Value::Cache,
        _ => unknown("input", name, "expected input_ids, attention_mask, position_ids or the like"),
    }
}

impl<'a> At<'_, 'a> {
    fn outputs(&mut self) -> Result<Vec<Value>, Stop> {
        if !is_known_domain(self.node.domain) {
            return Err(format!("its domain {:?} is not known", self.node.domain).into());
        }
        if let Some(values) = fused::outputs(self)? {
            return Ok(values);
        }
        let value = match shapes::value(self)? {
            Some(value) => value,
            None => plain::value(self)?.ok_or("this op is not known")?,
        };
        Ok(vec![value])
    }

    /// Is an input there?
    pub(super) fn has(&self, index: usize) -> bool {
        !self.node.input(index).is_empty()
    }

    /// An input's meaning.
    pub(super) fn arg(&self, index: usize) -> Result<Value, Stop> {
        match self.walk.values.get(self.node.input(index)) {
            Some(Value::Unknown(first)) => Err(Stop::Unknown(first.clone())),
            Some(value) => Ok(value.clone()),
            None => Err(format!("expected input {index}, got none").into()),
        }
    }

    /// All inputs that are there.
    pub(super) fn args(&self) -> Result<Vec<Value>, Stop> {
        let there = (0..self.node.inputs.len()).filter(|&index| self.has(index));
        there.map(|index| self.arg(index)).collect()
    }

    /// An input that is data in rows.
    pub(super) fn rows(&self, index: usize) -> Result<super::value::Id, Stop> {
        match self.arg(index)? {
            Value::Data(id, super::value::Layout::Rows) => Ok(id),
            _ => Err(format!("expected input {index} to be rows of data").into()),
        }
    }

    /// An input that is a vector of weights, of a length.
    pub(super) fn vector(&self, index: usize, length: usize) -> Result<Dense, Stop> {
        match self.arg(index)? {
            Value::Constant(dense) if self.is_vector(dense, length) => Ok(dense),
            _ => Err(format!("expected input {index} to be {length} weights").into()),
        }
    }

    /// A vector that may be left out.
    pub(super) fn vector_if(&self, index: usize, length: usize) -> Result<Option<Dense>, Stop> {
        if self.has(index) { self.vector(index, length).map(Some) } else { Ok(None) }
    }

    /// Is this a vector of weights of this length?
    pub(super) fn is_vector(&self, dense: Dense, length: usize) -> bool {
        let constant = &self.walk.constants.all[dense.constant];
        constant.block().is_some()
            && constant.len() == length
            && constant.dims.last().is_none_or(|&last| last == length)
    }

    /// An integer attribute.
    pub(super) fn int(&self, name: &str, default: i64) -> Result<i64, Stop> {
        Ok(self.node.int(name)?.unwrap_or(default))
    }

    /// An attribute that counts something, of which there is at least one.
    pub(super) fn count(&self, name: &str) -> Result<usize, Stop> {
        let value = self.int(name, 0)?;
        match usize::try_from(value) {
            Ok(count @ 1..=0xff_ffff) => Ok(count),
            _ => Err(format!("attribute {name}: expected a number above 0, got {value}").into()),
        }
    }
}

/// The one number that a value is.
pub(super) fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Number(number) => Some(*number),
        Value::Ints(Ints { dims, .. }) => match dims[..] {
            [Dim::Known(number)] => Some(number as f64),
            _ => None,
        },
        _ => None,
    }
}

/// The integers that a value is, all known.
pub(super) fn integers(value: &Value) -> Option<Vec<i64>> {
    let Value::Ints(Ints { dims, .. }) = value else { return None };
    let known = |dim: &Dim| match dim {
        Dim::Known(number) => Some(*number),
        Dim::Dynamic => None,
    };
    dims.iter().map(known).collect()
}
