//! Root-mean-square normalisation. Contract: `contract.md`.

mod gpu;
mod native;

use std::borrow::Cow;

use mlx_rs::{Array, Dtype};

use crate::{
    check::Arguments, element::FloatType, error::Result, ffi::Output, gpu::is_chosen,
    node::HostKernel,
};

pub(crate) use native::normalise;

const CHECK: Arguments = Arguments { kernel: "rms_norm" };

/// `x / sqrt(mean(x^2) + eps) * weight`, over the last axis.
///
/// # Shapes
/// - `x`: `[.., dim]` float32, bfloat16 or float16
/// - `weight`: `[dim]` float32, bfloat16 or float16
/// - result: shape and dtype of `x`
///
/// # Errors
/// [`KernelError::Shape`](crate::KernelError::Shape) and
/// [`KernelError::Dtype`](crate::KernelError::Dtype) if the arguments do not fit together.
pub fn rms_norm(x: &Array, weight: &Array, eps: f32) -> Result<Array> {
    CHECK.ndim("weight", weight, 1, "[dim]")?;
    let dim = weight.shape()[0];
    if x.shape().last() != Some(&dim) {
        return Err(CHECK.shape("x", x, "[.., dim] with the weight's `dim`"));
    }
    let node = native::RmsNorm {
        dim: CHECK.size(dim),
        eps,
        weight: FloatType::of(CHECK.kernel, "weight", weight)?,
    };
    if is_chosen()? {
        return gpu::rms_norm(x, FloatType::of(CHECK.kernel, "x", x)?, weight, node);
    }
    let x32 = CHECK.as_f32("x", x)?;
    let output = Output::Fresh {
        shape: x.shape(),
        dtype: Dtype::Float32,
    };
    let [y] = node.add(&[&x32, weight], [output])?;
    match x32 {
        Cow::Borrowed(_) => Ok(y),
        Cow::Owned(_) => Ok(y.as_dtype(x.dtype())?),
    }
}
