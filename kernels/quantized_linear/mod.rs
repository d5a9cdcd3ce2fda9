//! Linear layers and embeddings whose weights are quantised. Contract: `contract.md`.

mod code;
mod format;
mod gpu;
mod native;
mod packed;

use std::borrow::Cow;

use mlx_rs::{Array, Dtype};

pub use self::format::{QuantizedFormat, QuantizedMatrix};
pub(crate) use self::native::Matrix;
use crate::{
    check::Arguments,
    element::FloatType,
    error::Result,
    ffi::{self, Output},
    node::HostKernel,
};

const LINEAR: Arguments = Arguments {
    kernel: "quantized_linear",
};
const ROWS: Arguments = Arguments {
    kernel: "quantized_rows",
};

/// Multiplies every row of `x` with every row of `weight`, and adds `bias`.
///
/// As [`linear`](crate::linear) with the weights written out in f32. On a GPU this is MLX's own
/// product, with scales in the dtype of `x`.
///
/// # Shapes
/// - `x`: `[.., in]` float32, bfloat16 or float16
/// - `weight`: `[out, in]`
/// - `bias`: `[out]` float32, bfloat16 or float16
/// - result: `[.., out]`, dtype of `x`
///
/// # Errors
/// [`KernelError::Shape`](crate::KernelError::Shape) and
/// [`KernelError::Dtype`](crate::KernelError::Dtype) if the arguments do not fit together.
pub fn quantized_linear(
    x: &Array,
    weight: &QuantizedMatrix,
    bias: Option<&Array>,
) -> Result<Array> {
    let rows = match x.shape().split_last() {
        Some((&last, rows)) if last == weight.inputs() => rows,
        _ => return Err(LINEAR.shape("x", x, "[.., in] with the weight's `in`")),
    };
    let bias_type = match bias {
        Some(bias) => {
            LINEAR.dims(
                "bias",
                bias,
                &[weight.outputs()],
                "[out] with the weight's `out`",
            )?;
            Some(FloatType::of(LINEAR.kernel, "bias", bias)?)
        }
        None => None,
    };
    if ffi::is_gpu()? && gpu::has(weight.format()) {
        FloatType::of(LINEAR.kernel, "x", x)?;
        return gpu::quantized_linear(x, weight, bias);
    }
    let mut shape = x.shape().to_vec();
    shape[rows.len()] = weight.outputs();
    let node = native::QuantizedLinear {
        rows: LINEAR.product(rows),
        matrix: native::Matrix::of(weight),
        bias: bias_type,
    };
    let x32 = LINEAR.as_f32("x", x)?;
    let mut inputs = vec![&*x32];
    inputs.extend(parts(weight));
    inputs.extend(bias);
    let output = Output::Fresh {
        shape: &shape,
        dtype: Dtype::Float32,
    };
    let [y] = node.add(&inputs, [output])?;
    match x32 {
        Cow::Borrowed(_) => Ok(y),
        Cow::Owned(_) => Ok(y.as_dtype(x.dtype())?),
    }
}

/// Rows of `weight` written out: the embedding of tokens.
///
/// # Shapes
/// - `weight`: `[vocab, dim]`
/// - `ids`: `[n]` int32; [`NO_TOKEN`](crate::NO_TOKEN) gives a row that nobody should read
/// - result: `[n, dim]` float32
///
/// # Errors
/// [`KernelError::Dtype`](crate::KernelError::Dtype) if `ids` is not int32. On the CPU any other id
/// out of range fails the evaluation.
pub fn quantized_rows(weight: &QuantizedMatrix, ids: &Array) -> Result<Array> {
    ROWS.dtype("ids", ids, Dtype::Int32, "int32")?;
    ROWS.ndim("ids", ids, 1, "[n]")?;
    if ffi::is_gpu()? && gpu::has(weight.format()) {
        let rows = gpu::quantized_rows(weight, ids)?;
        return Ok(rows.as_dtype(Dtype::Float32)?);
    }
    let node = native::QuantizedRows {
        matrix: native::Matrix::of(weight),
    };
    let mut inputs = vec![ids];
    inputs.extend(parts(weight));
    let output = Output::Fresh {
        shape: &[ids.dim(0), weight.inputs()],
        dtype: Dtype::Float32,
    };
    let [rows] = node.add(&inputs, [output])?;
    Ok(rows)
}

/// The arrays that a matrix consists of.
pub(crate) fn parts(weight: &QuantizedMatrix) -> impl Iterator<Item = &Array> {
    [weight.packed(), weight.scales()]
        .into_iter()
        .chain(weight.biases())
}
