//! The linear layer on a GPU: MLX's own product.

use mlx_rs::{
    Array,
    ops::{addmm, zeros_dtype},
};

use crate::error::Result;

/// `x` `[.., in]`, `weight` `[out, in]`, `bias` `[out]` -> `[.., out]`, dtype of `x`.
pub(super) fn linear(x: &Array, weight: &Array, bias: Option<&Array>) -> Result<Array> {
    if x.size() == 0 || weight.size() == 0 {
        return nothing(x, weight, bias);
    }
    let y = match bias {
        Some(bias) => addmm(bias, x, weight.t(), 1.0, 1.0)?,
        None => x.matmul(weight.t())?,
    };
    match y.dtype() == x.dtype() {
        true => Ok(y),
        false => Ok(y.as_dtype(x.dtype())?),
    }
}

/// The sum of no products, which MLX's CUDA backend has no kernel for.
fn nothing(x: &Array, weight: &Array, bias: Option<&Array>) -> Result<Array> {
    let mut shape = x.shape().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = weight.dim(0);
    }
    let zeros = zeros_dtype(&shape, x.dtype())?;
    match bias {
        Some(bias) => Ok(zeros.add(bias.as_dtype(x.dtype())?)?),
        None => Ok(zeros),
    }
}
