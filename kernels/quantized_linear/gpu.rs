//! Quantised weights on a GPU: MLX's own products of its affine formats.

use mlx_rs::{
    Array,
    ops::{dequantize, quantized_matmul},
};

use super::{QuantizedFormat, QuantizedMatrix};
use crate::error::Result;

/// Whether MLX has the functions below for a format.
pub(super) fn has(format: QuantizedFormat) -> bool {
    matches!(format, QuantizedFormat::Affine { .. })
}

/// `x` `[.., in]`, `bias` `[out]` -> `[.., out]`, dtype of `x`.
pub(super) fn quantized_linear(
    x: &Array,
    weight: &QuantizedMatrix,
    bias: Option<&Array>,
) -> Result<Array> {
    let format = weight.format();
    let scales = weight.scales().as_dtype(x.dtype())?;
    let biases = match weight.biases() {
        Some(biases) => Some(biases.as_dtype(x.dtype())?),
        None => None,
    };
    let y = quantized_matmul(
        x,
        weight.packed(),
        scales,
        biases.as_ref(),
        true,
        format.group_size(),
        format.bits(),
    )?;
    match bias {
        Some(bias) => Ok(y.add(bias.as_dtype(y.dtype())?)?),
        None => Ok(y),
    }
}

/// Rows of `weight`, `ids` `[n]` -> `[n, in]`, dtype of the scales.
pub(super) fn quantized_rows(weight: &QuantizedMatrix, ids: &Array) -> Result<Array> {
    let format = weight.format();
    let biases = match weight.biases() {
        Some(biases) => Some(biases.take_axis(ids, 0)?),
        None => None,
    };
    Ok(dequantize(
        weight.packed().take_axis(ids, 0)?,
        weight.scales().take_axis(ids, 0)?,
        biases.as_ref(),
        format.group_size(),
        format.bits(),
    )?)
}
