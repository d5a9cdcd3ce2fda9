//! The linear layer, `x @ weight.T + bias`, and rows of its weight. Contract: `contract.md`.

mod gpu;
mod native;

use std::borrow::Cow;

use mlx_rs::{Array, Dtype};

use crate::{
    check::Arguments,
    element::FloatType,
    error::Result,
    ffi::{self, Output},
    gpu::is_chosen,
    node::HostKernel,
};

const CHECK: Arguments = Arguments { kernel: "linear" };
const ROWS: Arguments = Arguments { kernel: "rows" };

/// Multiplies every row of `x` with every row of `weight`, and adds `bias`.
///
/// Sums are in f32 whatever the dtypes. On the CPU a row's result is the same bits whatever other
/// rows are in `x` and however many threads share the work; on a GPU it depends on the shape.
///
/// # Shapes
/// - `x`: `[.., in]` float32, bfloat16 or float16
/// - `weight`: `[out, in]` float32, bfloat16 or float16
/// - `bias`: `[out]` float32, bfloat16 or float16
/// - result: `[.., out]`, dtype of `x`
///
/// # Errors
/// [`KernelError::Shape`](crate::KernelError::Shape) and
/// [`KernelError::Dtype`](crate::KernelError::Dtype) if the arguments do not fit together.
pub fn linear(x: &Array, weight: &Array, bias: Option<&Array>) -> Result<Array> {
    let weight_type = FloatType::of(CHECK.kernel, "weight", weight)?;
    CHECK.ndim("weight", weight, 2, "[out, in]")?;
    let (outputs, inputs) = (weight.shape()[0], weight.shape()[1]);
    let Some((&last, rows)) = x.shape().split_last() else {
        return Err(CHECK.shape("x", x, "[.., in] with the weight's `in`"));
    };
    if last != inputs {
        return Err(CHECK.shape("x", x, "[.., in] with the weight's `in`"));
    }
    let bias_type = match bias {
        Some(bias) => {
            CHECK.dims("bias", bias, &[outputs], "[out] with the weight's `out`")?;
            Some(FloatType::of(CHECK.kernel, "bias", bias)?)
        }
        None => None,
    };
    let mut shape = x.shape().to_vec();
    shape[rows.len()] = outputs;
    if gpu::is_row(x, weight, bias) && is_chosen()? {
        let x_type = FloatType::of(CHECK.kernel, "x", x)?;
        return gpu::row((x, x_type), (weight, weight_type), &shape);
    }
    if ffi::is_gpu()? {
        FloatType::of(CHECK.kernel, "x", x)?;
        return gpu::linear(x, weight, bias);
    }
    let node = native::Linear {
        rows: CHECK.product(rows),
        inputs: CHECK.size(inputs),
        outputs: CHECK.size(outputs),
        weight: weight_type,
        bias: bias_type,
    };
    let x32 = CHECK.as_f32("x", x)?;
    let output = Output::Fresh {
        shape: &shape,
        dtype: Dtype::Float32,
    };
    let [y] = match bias {
        Some(bias) => node.add(&[&x32, weight, bias], [output])?,
        None => node.add(&[&x32, weight], [output])?,
    };
    match x32 {
        Cow::Borrowed(_) => Ok(y),
        Cow::Owned(_) => Ok(y.as_dtype(x.dtype())?),
    }
}

/// Rows of `weight`: the embedding of tokens.
///
/// # Shapes
/// - `weight`: `[vocab, dim]` float32, bfloat16 or float16
/// - `ids`: `[n]` int32; [`NO_TOKEN`](crate::NO_TOKEN) gives a row that nobody should read
/// - result: `[n, dim]` float32, on a GPU dtype of `weight`
///
/// # Errors
/// [`KernelError::Shape`](crate::KernelError::Shape) and
/// [`KernelError::Dtype`](crate::KernelError::Dtype) if the arguments do not fit together. On the CPU
/// any other id out of range fails the evaluation.
pub fn rows(weight: &Array, ids: &Array) -> Result<Array> {
    let weight_type = FloatType::of(ROWS.kernel, "weight", weight)?;
    ROWS.ndim("weight", weight, 2, "[vocab, dim]")?;
    ROWS.dtype("ids", ids, Dtype::Int32, "int32")?;
    ROWS.ndim("ids", ids, 1, "[n]")?;
    if ffi::is_gpu()? {
        return Ok(weight.take_axis(ids, 0)?);
    }
    let node = native::Rows {
        dim: ROWS.size(weight.dim(1)),
        weight: weight_type,
    };
    let output = Output::Fresh {
        shape: &[ids.dim(0), weight.dim(1)],
        dtype: Dtype::Float32,
    };
    let [rows] = node.add(&[ids, weight], [output])?;
    Ok(rows)
}
