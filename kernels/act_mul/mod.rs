//! The gate of a gated MLP: SiLU or GELU of one half, times the other. Contract: `contract.md`.

mod gpu;
mod native;

use std::borrow::Cow;

use mlx_rs::{Array, Dtype};

use crate::{
    check::Arguments, element::FloatType, error::Result, ffi::Output, gpu::is_chosen,
    node::HostKernel,
};

#[derive(Clone, Copy)]
enum Activation {
    Silu,
    GeluTanh,
}

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
    act_mul("silu_mul", Activation::Silu, gate_up)
}

/// `gelu(gate) * up`, where gelu(x) = x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3))).
///
/// # Shapes
/// - `gate_up`: `[.., 2 * intermediate]` float32, bfloat16 or float16; the gate comes first
/// - result: `[.., intermediate]`, dtype of `gate_up`
///
/// # Errors
/// As [`silu_mul`].
///
/// # Source
/// Same contract as vLLM `gelu_tanh_and_mul` (csrc/activation_kernels.cu).
pub fn gelu_tanh_mul(gate_up: &Array) -> Result<Array> {
    act_mul("gelu_tanh_mul", Activation::GeluTanh, gate_up)
}

fn act_mul(kernel: &'static str, activation: Activation, gate_up: &Array) -> Result<Array> {
    let check = Arguments { kernel };
    let rule = "[.., 2 * intermediate]";
    let intermediate = match gate_up.shape().last() {
        Some(&last) if last % 2 == 0 => last / 2,
        _ => return Err(check.shape("gate_up", gate_up, rule)),
    };
    let mut shape = gate_up.shape().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = intermediate;
    }
    let node = native::ActMul {
        activation,
        intermediate: check.size(intermediate),
    };
    if is_chosen()? {
        let x_type = FloatType::of(kernel, "gate_up", gate_up)?;
        return gpu::act_mul(gate_up, (x_type, activation), &shape);
    }
    let gate_up32 = check.as_f32("gate_up", gate_up)?;
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
