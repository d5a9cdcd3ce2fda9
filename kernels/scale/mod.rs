//! An array times a number. Contract: `contract.md`.

mod native;

use std::borrow::Cow;

use mlx_rs::{Array, Dtype};

use crate::{
    check::Arguments,
    element::FloatType,
    error::Result,
    ffi::{self, Output},
    node::HostKernel,
};

const CHECK: Arguments = Arguments { kernel: "scale" };

/// `x * factor`.
///
/// # Shapes
/// - `x`: any; float32, bfloat16 or float16
/// - result: shape and dtype of `x`
///
/// # Errors
/// [`KernelError::Dtype`](crate::KernelError::Dtype) if the dtype is none of the above.
pub fn scale(x: &Array, factor: f32) -> Result<Array> {
    if ffi::is_gpu()? {
        FloatType::of(CHECK.kernel, "x", x)?;
        return Ok(x.multiply(Array::from_f32(factor).as_dtype(x.dtype())?)?);
    }
    let x32 = CHECK.as_f32("x", x)?;
    let output = Output::Fresh {
        shape: x.shape(),
        dtype: Dtype::Float32,
    };
    let [y] = native::Scale { factor }.add(&[&x32], [output])?;
    match x32 {
        Cow::Borrowed(_) => Ok(y),
        Cow::Owned(_) => Ok(y.as_dtype(x.dtype())?),
    }
}
