//! The linear layer in plain loops.

/// `x @ weight.T + bias` with sums in f64, and for each result the bound of a kernel's error.
///
/// A kernel that sums products in f32, eight lanes side by side, rounds each lane `inputs / 8`
/// times and the rest a few times more; each rounding is at most 2^-24 of the sum of magnitudes.
pub(crate) fn linear(
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    inputs: usize,
) -> (Vec<f64>, Vec<f64>) {
    let outputs = weight.len().checked_div(inputs).unwrap_or(0);
    let mut results = Vec::new();
    let mut tolerances = Vec::new();
    for row in x.chunks_exact(inputs.max(1)) {
        for output in 0..outputs {
            let mut sum = 0.0;
            let mut magnitude = 0.0;
            for (x, w) in row.iter().zip(&weight[output * inputs..]) {
                let product = f64::from(*x) * f64::from(*w);
                sum += product;
                magnitude += product.abs();
            }
            if let Some(bias) = bias {
                sum += f64::from(bias[output]);
                magnitude += f64::from(bias[output]).abs();
            }
            results.push(sum);
            #[expect(clippy::cast_precision_loss, reason = "a dimension is far below 2^53")]
            tolerances.push(magnitude * (inputs as f64 / 8.0 + 6.0) * 2f64.powi(-24));
        }
    }
    (results, tolerances)
}
