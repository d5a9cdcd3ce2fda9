//! Rotary position embedding in plain loops.

/// Which elements turn together: `i` with `i + pairs`, or `2 i` with `2 i + 1`.
pub(crate) fn pair(i: usize, pairs: usize, interleaved: bool) -> (usize, usize) {
    if interleaved {
        (2 * i, 2 * i + 1)
    } else {
        (i, i + pairs)
    }
}

/// Turns each head of each token; the angle is a product in f32, all else in f64.
pub(crate) fn rope(
    x: &[f32],
    positions: &[i32],
    inv_freq: &[f32],
    scale: f32,
    head_dim: usize,
    interleaved: bool,
) -> Vec<f64> {
    let mut results: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
    let row = x.len() / positions.len().max(1);
    for (token, &position) in positions.iter().enumerate() {
        for head in 0..row / head_dim {
            let base = token * row + head * head_dim;
            for (i, &frequency) in inv_freq.iter().enumerate() {
                #[expect(clippy::cast_precision_loss, reason = "as transformers does")]
                let angle = f64::from(position as f32 * frequency);
                let (sine, cosine) = angle.sin_cos();
                let (a, b) = pair(i, inv_freq.len(), interleaved);
                let (x0, x1) = (f64::from(x[base + a]), f64::from(x[base + b]));
                results[base + a] = (x0 * cosine - x1 * sine) * f64::from(scale);
                results[base + b] = (x1 * cosine + x0 * sine) * f64::from(scale);
            }
        }
    }
    results
}
