//! Rotary position embedding. Contract: `contract.md`.

mod native;

use mlx_rs::{Array, Dtype};

use crate::{
    check::Arguments, element::FloatType, error::Result, ffi::Output, gpu::is_chosen,
    node::HostKernel, rope_and_cache::gpu_rope,
};

pub(crate) use native::{Angles, turn};

const CHECK: Arguments = Arguments { kernel: "rope" };

/// Which two elements of a head turn together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopePairing {
    /// Element `i` with element `i + rotary_dim / 2`: GPT-NeoX's way, of Llama and most others.
    Halves,
    /// Element `2 i` with element `2 i + 1`: GPT-J's way; MLX says `traditional`.
    Interleaved,
}

/// Turns the first `rotary_dim` elements of every head by the token's position.
///
/// Pair `i` turns by the angle `position * inv_freq[i]`, taken in f32 as transformers does, and
/// its sine and cosine are multiplied by `scale`. The other elements are copied.
///
/// # Shapes
/// - `x`: `[num_tokens, num_heads, head_dim]` float32, bfloat16 or float16
/// - `positions`: `[num_tokens]` int32
/// - `inv_freq`: `[rotary_dim / 2]` float32, with `rotary_dim` at most `head_dim`
/// - result: shape and dtype of `x`
///
/// # Units
/// `inv_freq` is in radians a token. `scale` is the attention factor of the rope's scaling, 1 for
/// none.
///
/// # Errors
/// [`KernelError::Shape`](crate::KernelError::Shape) and
/// [`KernelError::Dtype`](crate::KernelError::Dtype) if the arguments do not fit together.
///
/// # Source
/// transformers `modeling_llama.apply_rotary_pos_emb` and `modeling_rope_utils`.
pub fn rope(
    x: &Array,
    positions: &Array,
    inv_freq: &Array,
    scale: f32,
    pairing: RopePairing,
) -> Result<Array> {
    CHECK.ndim("x", x, 3, "[num_tokens, num_heads, head_dim]")?;
    let x_type = FloatType::of(CHECK.kernel, "x", x)?;
    CHECK.dims("positions", positions, &x.shape()[..1], "[num_tokens]")?;
    CHECK.dtype("positions", positions, Dtype::Int32, "int32")?;
    CHECK.ndim("inv_freq", inv_freq, 1, "[rotary_dim / 2]")?;
    CHECK.dtype("inv_freq", inv_freq, Dtype::Float32, "float32")?;
    let head_dim = CHECK.size(x.shape()[2]);
    let num_pairs = CHECK.size(inv_freq.shape()[0]);
    if 2 * num_pairs > head_dim {
        let rule = "[rotary_dim / 2] with `rotary_dim` at most `head_dim`";
        return Err(CHECK.shape("inv_freq", inv_freq, rule));
    }
    if is_chosen()? {
        return gpu_rope([x, positions, inv_freq], x_type, scale, pairing);
    }
    let node = native::Rope {
        num_heads: CHECK.size(x.shape()[1]),
        head_dim,
        scale,
        pairing,
    };
    let output = Output::Fresh {
        shape: x.shape(),
        dtype: Dtype::Float32,
    };
    let x32 = CHECK.as_f32("x", x)?;
    let [turned] = node.add(&[&x32, positions, inv_freq], [output])?;
    match x_type {
        FloatType::F32 => Ok(turned),
        FloatType::Bf16 | FloatType::F16 => Ok(turned.as_dtype(x.dtype())?),
    }
}
