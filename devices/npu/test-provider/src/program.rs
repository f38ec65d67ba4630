//! Compiled nodes: steps over numbered tensors of fixed shapes, in plain loops.

use serde::{Deserialize, Serialize};

/// Ops that are taken, by type.
pub const OPS: [&str; 18] = [
    "MatMul",
    "MatMulNBits",
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Sigmoid",
    "Relu",
    "Tanh",
    "Erf",
    "Sqrt",
    "SimplifiedLayerNormalization",
    "SkipSimplifiedLayerNormalization",
    "Gelu",
    "Max",
    "ReduceMean",
    "Reshape",
    "Identity",
];

/// Ops whose further inputs only say what the shapes of their tensors say too.
pub(crate) fn reads_one(op: &str) -> bool {
    matches!(op, "ReduceMean" | "Reshape")
}

/// A tensor's shape.
pub(crate) type Shape = Vec<usize>;

/// What an op needs beside its tensors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Attributes {
    pub(crate) epsilon: f32,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) bits: usize,
    pub(crate) block: usize,
}

/// One op: tensors are numbers in [`Program::tensors`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Step {
    pub(crate) op: String,
    pub(crate) inputs: Vec<Option<usize>>,
    pub(crate) outputs: Vec<Option<usize>>,
    pub(crate) attributes: Attributes,
}

/// A tensor: its shape, and its values if they are known ahead. Codes of weights are values too.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Tensor {
    pub(crate) shape: Shape,
    pub(crate) constant: Option<Vec<f32>>,
}

/// Compiled nodes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Program {
    pub(crate) tensors: Vec<Tensor>,
    pub(crate) inputs: Vec<usize>,
    pub(crate) outputs: Vec<usize>,
    pub(crate) steps: Vec<Step>,
}

/// What stands before a written program.
const MAGIC: &str = "trefoiltest-1";

/// FNV-1a (Fowler, Noll, Vo) over 64 bits: finds damage, not intent.
fn checksum(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

impl Program {
    /// The program as a text.
    pub(crate) fn write(&self) -> Result<String, String> {
        let text = serde_json::to_string(self).map_err(|error| error.to_string())?;
        Ok(format!("{MAGIC} {:016x} {text}", checksum(&text)))
    }

    /// A program that was written.
    pub(crate) fn read(text: &str) -> Result<Self, String> {
        let damaged = |what: &str| format!("the compiled model is damaged: {what}");
        let mut parts = text.splitn(3, ' ');
        if parts.next() != Some(MAGIC) {
            return Err(damaged("not one of this provider's version"));
        }
        let sum = parts.next().and_then(|sum| u64::from_str_radix(sum, 16).ok());
        let text = parts.next().unwrap_or_default();
        if sum != Some(checksum(text)) {
            return Err(damaged("its checksum is another"));
        }
        let program: Self = serde_json::from_str(text).map_err(|e| damaged(&e.to_string()))?;
        let numbers = program.steps.iter().flat_map(|step| step.inputs.iter().chain(&step.outputs));
        let all = numbers.flatten().chain(&program.inputs).chain(&program.outputs);
        match all.max() {
            Some(&last) if last >= program.tensors.len() => Err(damaged("a tensor is missing")),
            _ => Ok(program),
        }
    }

    /// Results for inputs whose lengths were checked.
    pub(crate) fn run(&self, inputs: Vec<Vec<f32>>) -> Result<Vec<Vec<f32>>, String> {
        let mut values: Vec<Option<Vec<f32>>> = vec![None; self.tensors.len()];
        for (&place, value) in self.inputs.iter().zip(inputs) {
            values[place] = Some(value);
        }
        for step in &self.steps {
            let results = self.step(step, &values)?;
            for (place, value) in step.outputs.iter().zip(results) {
                if let Some(place) = *place {
                    values[place] = Some(value);
                }
            }
        }
        let missing = || "a result was not computed".to_owned();
        self.outputs.iter().map(|&place| values[place].clone().ok_or_else(missing)).collect()
    }

    fn step(&self, step: &Step, values: &[Option<Vec<f32>>]) -> Result<Vec<Vec<f32>>, String> {
        let there = |index: usize| step.inputs.get(index).copied().flatten();
        let input = |index: usize| -> Result<(&[usize], &[f32]), String> {
            let place = there(index).ok_or_else(|| format!("{}: no input {index}", step.op))?;
            let tensor = &self.tensors[place];
            let value = tensor.constant.as_deref().or(values[place].as_deref());
            let value = value.ok_or_else(|| format!("{}: input {index} unknown", step.op))?;
            if value.len() != tensor.shape.iter().product::<usize>() {
                return Err(format!("{}: input {index} has another size", step.op));
            }
            Ok((&tensor.shape, value))
        };
        let each = |function: fn(f32) -> f32| -> Result<Vec<f32>, String> {
            Ok(input(0)?.1.iter().map(|&x| function(x)).collect())
        };
        let both = |function: fn(f32, f32) -> f32| -> Result<Vec<f32>, String> {
            broadcast(input(0)?, input(1)?, function)
        };
        Ok(vec![match step.op.as_str() {
            // The elements stay where they are: their places are said by the result's shape.
            "Identity" | "Reshape" => each(|x| x)?,
            "Relu" => each(|x| x.max(0.0))?,
            "Sigmoid" => each(|x| 1.0 / (1.0 + (-x).exp()))?,
            "Tanh" => each(f32::tanh)?,
            "Sqrt" => each(f32::sqrt)?,
            "Erf" => each(|x| erf(f64::from(x)) as f32)?,
            "Gelu" => each(|x| {
                let x = f64::from(x);
                (0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2))) as f32
            })?,
            "Add" => both(|a, b| a + b)?,
            "Sub" => both(|a, b| a - b)?,
            "Mul" => both(|a, b| a * b)?,
            "Div" => both(|a, b| a / b)?,
            "Max" => both(f32::max)?,
            "ReduceMean" => {
                let (shape, values) = input(0)?;
                let width = shape.last().copied().unwrap_or(1).max(1);
                let mean =
                    |row: &[f32]| row.iter().map(|x| f64::from(*x)).sum::<f64>() / width as f64;
                values.chunks_exact(width).map(|row| mean(row) as f32).collect()
            }
            "MatMul" => matmul(input(0)?, input(1)?)?,
            "MatMulNBits" => {
                let zeros = match there(3) {
                    Some(_) => Some(input(3)?.1),
                    None => None,
                };
                let weights = dequantised(input(1)?.1, input(2)?.1, zeros, &step.attributes)?;
                let shape = [step.attributes.cols, step.attributes.rows];
                let mut out = matmul(input(0)?, (&shape, &weights))?;
                if there(5).is_some() {
                    let bias = input(5)?.1;
                    out.iter_mut().zip(bias.iter().cycle()).for_each(|(x, b)| *x += b);
                }
                out
            }
            "SimplifiedLayerNormalization" => {
                rms_norm(input(0)?.1, input(1)?.1, step.attributes.epsilon)?
            }
            "SkipSimplifiedLayerNormalization" => {
                let sum = broadcast(input(0)?, input(1)?, |a, b| a + b)?;
                let norm = rms_norm(&sum, input(2)?.1, step.attributes.epsilon)?;
                return Ok(vec![norm, Vec::new(), Vec::new(), sum]);
            }
            other => return Err(format!("op {other} is not one of this provider's")),
        }])
    }
}

/// The error function (Abramowitz and Stegun 1964, series 7.1.5 near 0 and continued fraction 7.1.14).
fn erf(x: f64) -> f64 {
    let size = x.abs();
    let value = if size < 3.0 {
        let (mut term, mut sum) = (size, size);
        for n in 1..80 {
            term *= -size * size / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * 2.0 / std::f64::consts::PI.sqrt()
    } else {
        let fraction = (1..=60).rev().fold(size, |rest, n| size + f64::from(n) / 2.0 / rest);
        1.0 - (-size * size).exp() / (fraction * std::f64::consts::PI.sqrt())
    };
    value.copysign(x)
}

/// An op on two tensors, of which dimensions of 1 are repeated.
fn broadcast(
    (a_shape, a): (&[usize], &[f32]),
    (b_shape, b): (&[usize], &[f32]),
    function: fn(f32, f32) -> f32,
) -> Result<Vec<f32>, String> {
    let shape = broadcast_shape(a_shape, b_shape)?;
    let place = |own: &[usize], mut at: usize| {
        let (mut index, mut stride) = (0, 1);
        let skipped = shape.len() - own.len();
        for axis in (0..shape.len()).rev() {
            let coordinate = at % shape[axis];
            at /= shape[axis];
            if axis >= skipped {
                let size = own[axis - skipped];
                index += if size == 1 { 0 } else { coordinate * stride };
                stride *= size;
            }
        }
        index
    };
    let count = shape.iter().product();
    Ok((0..count).map(|at| function(a[place(a_shape, at)], b[place(b_shape, at)])).collect())
}

/// The shape of an op on two tensors.
fn broadcast_shape(a: &[usize], b: &[usize]) -> Result<Shape, String> {
    let length = a.len().max(b.len());
    let dim = |own: &[usize], axis: usize| {
        (axis + own.len()).checked_sub(length).map_or(1, |axis| own[axis])
    };
    let join = |axis: usize| match (dim(a, axis), dim(b, axis)) {
        (x, y) if x == y || y == 1 => Ok(x),
        (1, y) => Ok(y),
        _ => Err(format!("expected shapes that fit, got {a:?} and {b:?}")),
    };
    (0..length).map(join).collect()
}

/// Rows times a matrix.
fn matmul(
    (a_shape, a): (&[usize], &[f32]),
    (b_shape, b): (&[usize], &[f32]),
) -> Result<Vec<f32>, String> {
    let (Some(&inner), &[from, to]) = (a_shape.last(), b_shape) else {
        return Err(format!("expected rows and a matrix, got {a_shape:?} and {b_shape:?}"));
    };
    if inner != from || inner == 0 {
        return Err(format!("expected a matrix for rows of {inner}, got {b_shape:?}"));
    }
    let mut out = Vec::with_capacity(a.len() / inner * to);
    for row in a.chunks_exact(inner) {
        for column in 0..to {
            let products =
                row.iter().enumerate().map(|(i, x)| f64::from(*x) * f64::from(b[i * to + column]));
            out.push(products.sum::<f64>() as f32);
        }
    }
    Ok(out)
}

/// Quantised weights as a matrix `[cols, rows]`.
fn dequantised(
    codes: &[f32],
    scales: &[f32],
    zeros: Option<&[f32]>,
    attributes: &Attributes,
) -> Result<Vec<f32>, String> {
    let &Attributes { rows, cols, bits, block, .. } = attributes;
    if bits != 4 || block == 0 || rows == 0 || cols == 0 {
        return Err(format!("expected 4 bits in blocks, got {bits} in blocks of {block}"));
    }
    let blocks = cols.div_ceil(block);
    let zero_bytes = blocks.div_ceil(2);
    let sizes = [
        (codes.len(), rows * blocks * block / 2),
        (scales.len(), rows * blocks),
        (zeros.map_or(0, <[f32]>::len), if zeros.is_some() { rows * zero_bytes } else { 0 }),
    ];
    if let Some((got, want)) = sizes.iter().find(|(got, want)| got != want) {
        return Err(format!("MatMulNBits: expected {want} values, got {got}"));
    }
    let nibble =
        |bytes: &[f32], byte: usize, at: usize| (bytes[byte] as u8 >> (4 * (at % 2)) & 15) as f32;
    let mut out = vec![0.0; rows * cols];
    for row in 0..rows {
        for col in 0..cols {
            let (part, at) = (row * blocks + col / block, col % block);
            let zero = match zeros {
                Some(zeros) => nibble(zeros, row * zero_bytes + col / block / 2, col / block),
                None => 8.0,
            };
            let code = nibble(codes, part * block / 2 + at / 2, at);
            out[col * rows + row] = (code - zero) * scales[part];
        }
    }
    Ok(out)
}

fn rms_norm(x: &[f32], weight: &[f32], epsilon: f32) -> Result<Vec<f32>, String> {
    let width = weight.len();
    if width == 0 || !x.len().is_multiple_of(width) {
        return Err(format!("expected rows of {width}, got {} values", x.len()));
    }
    let row = |row: &[f32]| {
        let squares: f64 = row.iter().map(|x| f64::from(*x).powi(2)).sum();
        let scale = 1.0 / (squares / width as f64 + f64::from(epsilon)).sqrt();
        let scaled = row.iter().zip(weight).map(|(x, w)| (f64::from(*x) * scale) as f32 * w);
        scaled.collect::<Vec<f32>>()
    };
    Ok(x.chunks_exact(width).flat_map(row).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(shape: &[usize], constant: Option<Vec<f32>>) -> Tensor {
        Tensor { shape: shape.to_vec(), constant }
    }

    fn product() -> Program {
        let step = |op: &str, inputs: &[usize], output| Step {
            op: op.to_owned(),
            inputs: inputs.iter().map(|&place| Some(place)).collect(),
            outputs: vec![Some(output)],
            attributes: Attributes::default(),
        };
        Program {
            tensors: vec![
                tensor(&[2, 2], None),
                tensor(&[2, 3], Some(vec![1.0, 2.0, 3.0, -4.0, 5.0, 6.0])),
                tensor(&[2, 3], None),
                tensor(&[3], Some(vec![0.0, 0.0, 1.0])),
                tensor(&[2, 3], None),
                tensor(&[2, 3], None),
            ],
            inputs: vec![0],
            outputs: vec![5],
            steps: vec![step("MatMul", &[0, 1], 2), step("Add", &[2, 3], 4), step("Relu", &[4], 5)],
        }
    }

    #[test]
    fn programs_compute_and_survive_being_written() {
        let program = product();
        let out = program.run(vec![vec![1.0, 0.0, 1.0, 1.0]]).expect("runs");
        assert_eq!(out, [[1.0, 2.0, 4.0, 0.0, 7.0, 10.0]]);
        let text = program.write().expect("writes");
        assert_eq!(Program::read(&text), Ok(program));
        let damaged = text.replace("5.0", "6.0");
        assert!(Program::read(&damaged).expect_err("damaged").contains("checksum"));
        assert!(Program::read("else").expect_err("no program").contains("version"));
    }

    #[test]
    fn codes_are_decoded_and_functions_are_those_of_tables() {
        let attributes = Attributes { rows: 1, cols: 16, bits: 4, block: 16, epsilon: 0.0 };
        let codes: Vec<f32> =
            (0..8).map(|i| f32::from((2 * i) as u8 | ((2 * i + 1) as u8) << 4)).collect();
        let want: Vec<f32> = (0..16).map(|code| (code - 8) as f32 * 0.5).collect();
        assert_eq!(dequantised(&codes, &[0.5], None, &attributes), Ok(want));
        let want: Vec<f32> = (0..16).map(|code| (code - 3) as f32).collect();
        assert_eq!(dequantised(&codes, &[1.0], Some(&[3.0]), &attributes), Ok(want));
        assert!(dequantised(&codes[1..], &[1.0], None, &attributes).is_err());
        for (x, want) in
            [(0.0, 0.0), (0.5, 0.520_499_878), (1.0, 0.842_700_793), (4.0, 0.999_999_985)]
        {
            assert!((erf(x) - want).abs() < 1e-9, "{x}: {}", erf(x));
            assert_eq!(erf(-x), -erf(x));
        }
        let norm = rms_norm(&[3.0, 4.0], &[1.0, 2.0], 0.0).expect("fits");
        assert!((norm[0] - 0.848_528_1).abs() < 1e-6 && (norm[1] - 2.262_741_7).abs() < 1e-6);
        assert_eq!(broadcast_shape(&[2, 1, 4], &[3, 1]), Ok(vec![2, 3, 4]));
        assert!(broadcast_shape(&[2], &[3]).is_err());
    }
}
