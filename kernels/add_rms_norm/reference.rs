//! A residual addition and the normalisation after it, in plain loops.

/// The sum, rounded to f32, and `sum / sqrt(mean(sum^2) + eps) * weight` in f64, row by row.
pub(crate) fn add_rms_norm(
    x: &[f32],
    residual: &[f32],
    weight: &[f32],
    eps: f64,
) -> (Vec<f64>, Vec<f32>) {
    let sum: Vec<f32> = x.iter().zip(residual).map(|(x, r)| x + r).collect();
    let mut normed = Vec::new();
    for row in sum.chunks_exact(weight.len()) {
        let squares: f64 = row.iter().map(|&x| f64::from(x).powi(2)).sum();
        #[expect(clippy::cast_precision_loss, reason = "a dimension is far below 2^53")]
        let root = (squares / row.len() as f64 + eps).sqrt();
        for (x, w) in row.iter().zip(weight) {
            normed.push(f64::from(*x) / root * f64::from(*w));
        }
    }
    (normed, sum)
}
