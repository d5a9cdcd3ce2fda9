//! A quantised matrix written out, in plain loops and f64.

/// Bits `start .. start + bits` of a row of words, the lowest first.
fn integer(words: &[u32], start: usize, bits: usize) -> u32 {
    (0..bits)
        .map(|bit| (words[(start + bit) / 32] >> ((start + bit) % 32) & 1) << bit)
        .sum()
}

/// `scale * integer + bias` for all weights, and for each the sum of both terms' magnitudes.
pub(crate) fn affine(
    words: &[u32],
    scales: &[f32],
    biases: &[f32],
    (bits, group_size): (usize, usize),
) -> (Vec<f64>, Vec<f64>) {
    let (mut weights, mut magnitudes) = (Vec::new(), Vec::new());
    for (group, (&scale, &bias)) in scales.iter().zip(biases).enumerate() {
        for index in 0..group_size {
            // Groups are whole words, so rows need no attention.
            let integer = integer(words, (group * group_size + index) * bits, bits);
            let product = f64::from(scale) * f64::from(integer);
            weights.push(product + f64::from(bias));
            magnitudes.push(product.abs() + f64::from(bias).abs());
        }
    }
    (weights, magnitudes)
}

/// 4-bit floats times powers of two.
pub(crate) fn mxfp4(words: &[u32], exponents: &[u8]) -> Vec<f64> {
    let value = |index: usize| {
        let code = integer(words, index * 4, 4);
        let (exponent, mantissa) = (code >> 1 & 3, f64::from(code & 1));
        let magnitude = match exponent {
            0 => mantissa / 2.0,
            _ => (1.0 + mantissa / 2.0) * 2f64.powi(i32::try_from(exponent).expect("small") - 1),
        };
        let sign = if code & 8 == 0 { 1.0 } else { -1.0 };
        sign * magnitude * 2f64.powi(i32::from(exponents[index / 32]) - 127)
    };
    (0..words.len() * 8).map(value).collect()
}

/// `x @ weights.T`, and for each result the bound of a kernel's error: that of a sum in eight lanes
/// (as for the linear layer), and two roundings of each weight; or that of integers, see [`rounding`],
/// if groups have a size.
pub(crate) fn product(
    x: &[f32],
    (weights, magnitudes): (&[f64], &[f64]),
    inputs: usize,
    group_size: Option<usize>,
) -> (Vec<f64>, Vec<f64>) {
    let (mut results, mut tolerances) = (Vec::new(), Vec::new());
    for row in x.chunks_exact(inputs) {
        for (weights, magnitudes) in weights.chunks(inputs).zip(magnitudes.chunks(inputs)) {
            let terms = row.iter().map(|&x| f64::from(x));
            results.push(terms.clone().zip(weights).map(|(x, w)| x * w).sum());
            let magnitude: f64 = terms.zip(magnitudes).map(|(x, m)| x.abs() * m).sum();
            let rounding = group_size.map_or(0.0, |size| rounding(row, weights, size));
            #[expect(clippy::cast_precision_loss, reason = "a dimension is far below 2^53")]
            let sum = magnitude * (inputs as f64 / 8.0 + 8.0) * 2f64.powi(-24);
            tolerances.push(sum + rounding);
        }
    }
    (results, tolerances)
}

/// What rounding a row to integers changes at most: half a unit of each group, a 32512th of its largest
/// magnitude, and the roundings of that unit and its inverse.
fn rounding(row: &[f32], weights: &[f64], group_size: usize) -> f64 {
    let groups = row.chunks(group_size).zip(weights.chunks(group_size));
    let bound = |(x, weights): (&[f32], &[f64])| {
        let largest = x.iter().fold(0.0, |largest, x| x.abs().max(largest));
        let weights: f64 = weights.iter().map(|weight| weight.abs()).sum();
        0.51 / 32512.0 * f64::from(largest) * weights
    };
    groups.map(bound).sum()
}
