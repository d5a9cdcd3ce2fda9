//! Root-mean-square normalisation in plain loops.

/// `x / sqrt(mean(x^2) + eps) * weight` in f64, row by row.
pub(crate) fn rms_norm(x: &[f32], weight: &[f32], eps: f64) -> Vec<f64> {
    let mut results = Vec::new();
    for row in x.chunks_exact(weight.len()) {
        let squares: f64 = row.iter().map(|&x| f64::from(x).powi(2)).sum();
        #[expect(clippy::cast_precision_loss, reason = "a dimension is far below 2^53")]
        let root = (squares / row.len() as f64 + eps).sqrt();
        for (x, w) in row.iter().zip(weight) {
            results.push(f64::from(*x) / root * f64::from(*w));
        }
    }
    results
}
