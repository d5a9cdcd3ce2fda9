//! The linear layer on a GPU: MLX's own product, but for a single row with CUDA.
//!
//! A single row's product is nothing but reading the weights, and most of them are of a size that is
//! read in a few times what it takes to start a kernel. Our kernel reads while the one before it
//! still runs, which MLX's cannot.

use mlx_rs::{
    Array,
    ops::{addmm, zeros_dtype},
};

use crate::{
    element::FloatType,
    error::Result,
    ffi::Output,
    gpu::{Launch, dialect_source, groups_of, int, word},
};

const THREADS: i32 = 128;

/// Whether [`row`] takes these.
pub(super) fn is_row(x: &Array, weight: &Array, bias: Option<&Array>) -> bool {
    let inputs = weight.dim(1);
    !cfg!(target_os = "macos")
        && bias.is_none()
        && inputs > 0
        && inputs % 8 == 0
        && weight.dim(0) > 0
        && int(x.size()) == inputs
}

/// `x` `[.., in]` of one row, `weight` `[out, in]` -> `shape`, which is `[.., out]`, dtype of `x`.
pub(super) fn row(
    (x, x_type): (&Array, FloatType),
    (weight, weight_type): (&Array, FloatType),
    shape: &[i32],
) -> Result<Array> {
    let launch = Launch {
        kernel: "linear_row",
        sources: &[dialect_source!("row.kh")],
        words: &[("X", word(x_type)), ("W", word(weight_type))],
        scalars: &[weight.dim(1).into(), weight.dim(0).into()],
        groups: [groups_of(weight.dim(0), THREADS / 32), 1, 1],
        threads: THREADS,
    };
    let output = Output::Fresh {
        shape,
        dtype: x.dtype(),
    };
    let [y] = launch.add(&[x, weight], [output])?;
    Ok(y)
}

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
