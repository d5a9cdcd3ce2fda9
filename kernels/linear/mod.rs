//! The linear layer: `x @ weight.T + bias`. Contract: `contract.md`.

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
