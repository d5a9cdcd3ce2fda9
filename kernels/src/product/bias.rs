//! What is added to a product.

use crate::element::Float;

/// Adds `bias` to every row of `y`.
///
/// # Panics
/// If rows do not divide `y`.
pub(crate) fn add_bias<B: Float>(bias: &[B], y: &mut [f32]) {
    assert!(y.is_empty() || y.len().is_multiple_of(bias.len()));
    for row in y.chunks_exact_mut(bias.len().max(1)) {
        for (value, bias) in row.iter_mut().zip(bias) {
            *value += bias.to_f32();
        }
    }
}
