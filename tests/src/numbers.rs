//! Comparing numbers with golden ones.

use safetensors::SafeTensors;

/// `sum((want - got)^2) / sum(want^2)` in f64; infinite if the lengths differ or a value is not
/// finite.
pub fn nmse(want: &[f32], got: &[f32]) -> f64 {
    if want.len() != got.len() || got.iter().any(|x| !x.is_finite()) {
        return f64::INFINITY;
    }
    let error: f64 =
        want.iter().zip(got).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum();
    let norm: f64 = want.iter().map(|a| f64::from(*a).powi(2)).sum();
    error / norm
}

/// Index of the largest value, the lowest on ties.
pub fn argmax(row: &[f32]) -> u32 {
    let mut best = 0;
    for (i, value) in row.iter().enumerate() {
        if *value > row[best] {
            best = i;
        }
    }
    best as u32
}

/// All values of an F32 tensor.
pub fn f32s(tensors: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    let view = tensors.tensor(name).expect("tensor is in the file");
    let words = view.data().chunks_exact(4);
    words.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// All values of an I64 tensor.
pub fn i64s(tensors: &SafeTensors<'_>, name: &str) -> Vec<i64> {
    let view = tensors.tensor(name).expect("tensor is in the file");
    let words = view.data().chunks_exact(8);
    words.map(|b| i64::from_le_bytes(b.try_into().expect("8 bytes"))).collect()
}
