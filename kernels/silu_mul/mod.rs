//! The gate of a gated MLP. Contract: `contract.md`.

mod gpu;
mod native;

use std::borrow::Cow;

use mlx_rs::{Array, Dtype};

use crate::{
    check::Arguments, element::FloatType, error::Result, ffi::Output, gpu::is_chosen,
    node::HostKernel,
};

const CHECK: Arguments = Arguments { kernel: "silu_mul" };

/// `silu(gate) * up`, where silu(x) = x / (1 + exp(-x)).
///
/// # Shapes
/// - `gate_up`: `[.., 2 * intermediate]` float32, bfloat16 or float16; the gate comes first
/// - result: `[.., intermediate]`, dtype of `gate_up`
///
/// # Errors
/// [`KernelError::Shape`](crate::KernelError::Shape) if the last axis is odd,
/// [`KernelError::Dtype`](crate::KernelError::Dtype) if the dtype is none of the above.
///
/// # Source
/// Same contract as vLLM `silu_and_mul` (csrc/activation_kernels.cu).
pub fn silu_mul(gate_up: &Array) -> Result<Array> {
    let rule = "[.., 2 * intermediate]";
    let intermediate = match gate_up.shape().last() {
        Some(&last) if last % 2 == 0 => last / 2,
        _ => return Err(CHECK.shape("gate_up", gate_up, rule)),
    };
    let mut shape = gate_up.shape().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = intermediate;
    }
    let node = native::SiluMul {
        intermediate: CHECK.size(intermediate),
    };
    if is_chosen()? {
        let x_type = FloatType::of(CHECK.kernel, "gate_up", gate_up)?;
        return gpu::silu_mul(gate_up, x_type, &shape);
    }
    let gate_up32 = CHECK.as_f32("gate_up", gate_up)?;
    let output = Output::Fresh {
        shape: &shape,
        dtype: Dtype::Float32,
    };
    let [y] = node.add(&[&gate_up32], [output])?;
    match gate_up32 {
        Cow::Borrowed(_) => Ok(y),
        Cow::Owned(_) => Ok(y.as_dtype(gate_up.dtype())?),
    }
}
