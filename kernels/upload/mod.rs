//! Numbers of the host as an array, and back. Contract: `contract.md`.

use mlx_rs::{Array, Dtype};

use crate::{
    check::Arguments,
    error::{KernelError, Result},
    ffi::{self, Output},
    gpu::{Launch, dialect_source, groups_of, int},
};

/// `values` as an array for kernels of the calling thread's default stream.
///
/// # Shapes
/// - `values`: as many as `shape` has; result: `shape` int32
///
/// # Errors
/// [`KernelError::Value`] if there are more or fewer, [`KernelError::Mlx`] if no memory is left.
pub fn upload(values: &[i32], shape: &[i32]) -> Result<Array> {
    let len: i64 = shape.iter().map(|&dim| i64::from(dim)).product();
    if usize::try_from(len) != Ok(values.len()) {
        return Err(KernelError::Value {
            kernel: "upload",
            argument: "values",
            rule: "as many as `shape` has",
        });
    }
    let pinned = match values {
        [] => None,
        _ => ffi::pinned_array(values, shape)?,
    };
    let Some(pinned) = pinned else {
        return Ok(Array::from_slice(values, shape));
    };
    let output = Output::Fresh {
        shape,
        dtype: Dtype::Int32,
    };
    copy(&[&pinned], output, None)
}

/// `array` in memory from which another thread reads it without moving it.
///
/// # Shapes
/// - `array`: any shape, int32; so is the result
///
/// # Errors
/// [`KernelError::Dtype`] if it is not int32, [`KernelError::Mlx`] if no memory is left.
pub fn download(array: &Array) -> Result<Array> {
    const CHECK: Arguments = Arguments { kernel: "download" };
    CHECK.dtype("array", array, Dtype::Int32, "int32")?;
    let pinned = match array.size() {
        0 => None,
        size => ffi::pinned_array(&vec![0; size], array.shape())?,
    };
    match pinned {
        Some(pinned) => copy(&[array, &pinned], Output::InPlace { input: 1 }, Some(1)),
        None => Ok(array.clone()),
    }
}

/// Copies the first input.
fn copy(inputs: &[&Array], output: Output<'_>, ordered_by: Option<usize>) -> Result<Array> {
    let count = int(inputs[0].size());
    // A copy in place has the launcher's tokens among its parameters.
    let order = if ordered_by.is_some() { "1" } else { "0" };
    let launch = Launch {
        kernel: "upload",
        sources: &[dialect_source!("kernel.kh")],
        words: &[("ORDERED", order)],
        scalars: &[count.into()],
        groups: [groups_of(count, 256), 1, 1],
        threads: 256,
        ordered_by,
    };
    let [array] = launch.add(inputs, [output])?;
    Ok(array)
}
