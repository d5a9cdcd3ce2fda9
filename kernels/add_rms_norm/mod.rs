//! A residual addition and the normalisation after it. Contract: `contract.md`.

mod gpu;
mod native;

use mlx_rs::{Array, Dtype};

use crate::{
    check::Arguments, element::FloatType, error::Result, ffi::Output, gpu::is_chosen,
    node::HostKernel,
};

const CHECK: Arguments = Arguments {
    kernel: "add_rms_norm",
};

/// `rms_norm(x + residual)`, and the sum.
///
/// # Shapes
/// - `x`, `residual`: `[.., dim]` float32, bfloat16 or float16, both alike
/// - `weight`: `[dim]` float32, bfloat16 or float16
/// - results: the normalised sum and the sum, shape and dtype of `x`
///
/// # Errors
/// [`KernelError::Shape`](crate::KernelError::Shape) and
/// [`KernelError::Dtype`](crate::KernelError::Dtype) if the arguments do not fit together.
///
/// # Source
/// Same contract as vLLM `fused_add_rms_norm` (csrc/layernorm_kernels.cu), not in place.
pub fn add_rms_norm(
    x: &Array,
    residual: &Array,
    weight: &Array,
    eps: f32,
) -> Result<(Array, Array)> {
    CHECK.ndim("weight", weight, 1, "[dim]")?;
    let dim = weight.shape()[0];
    if x.shape().last() != Some(&dim) {
        return Err(CHECK.shape("x", x, "[.., dim] with the weight's `dim`"));
    }
    CHECK.dims("residual", residual, x.shape(), "like `x`")?;
    CHECK.dtype("residual", residual, x.dtype(), "that of `x`")?;
    let node = native::AddRmsNorm {
        dim: CHECK.size(dim),
        eps,
        weight: FloatType::of(CHECK.kernel, "weight", weight)?,
    };
    if is_chosen()? {
        let x_type = FloatType::of(CHECK.kernel, "x", x)?;
        return gpu::add_rms_norm([x, residual], x_type, weight, node);
    }
    let (x32, residual32) = (CHECK.as_f32("x", x)?, CHECK.as_f32("residual", residual)?);
    let output = Output::Fresh {
        shape: x.shape(),
        dtype: Dtype::Float32,
    };
    let [y, sum] = node.add(&[&x32, &residual32, weight], [output, output])?;
    match x.dtype() {
        Dtype::Float32 => Ok((y, sum)),
        dtype => Ok((y.as_dtype(dtype)?, sum.as_dtype(dtype)?)),
    }
}
