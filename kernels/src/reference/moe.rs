/// The `top_k` most probable experts of a row: their numbers by falling probability (lower number
/// first on ties), then their shares. `out` is `[2 * top_k]`.
pub(crate) fn choose(logits: &[f32], renormalise: bool, out: &mut [f32]) {
    let top_k = out.len() / 2;
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f64> = logits.iter().map(|l| f64::from(l - most).exp()).collect();
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| weights[b].total_cmp(&weights[a]).then(a.cmp(&b)));
    order.truncate(top_k);
    let total: f64 =
        if renormalise { order.iter().map(|&e| weights[e]).sum() } else { weights.iter().sum() };
    let (numbers, shares) = out.split_at_mut(top_k);
    for ((number, share), &expert) in numbers.iter_mut().zip(shares).zip(&order) {
        *number = expert as f32;
        *share = (weights[expert] / total) as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_go_to_the_lower_number_and_shares_sum_to_one() {
        let mut out = [0.0; 4];
        choose(&[1.0, 3.0, 3.0, -2.0], true, &mut out);
        assert_eq!(out[..2], [1.0, 2.0]);
        assert!((out[2] - 0.5).abs() < 1e-7 && (out[3] - 0.5).abs() < 1e-7);
    }
}
