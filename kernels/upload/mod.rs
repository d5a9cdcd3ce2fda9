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
    let uploaded = match values {
        [] => None,
        _ => ffi::upload(values, shape)?,
    };
    Ok(uploaded.unwrap_or_else(|| Array::from_slice(values, shape)))
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
        _ => ffi::pinned_array(array.shape())?,
    };
    let Some(pinned) = pinned else {
        return Ok(array.clone());
    };
    let count = int(array.size());
    let launch = Launch {
        kernel: "download",
        sources: &[dialect_source!("kernel.kh")],
        words: &[],
        scalars: &[count.into()],
        groups: [groups_of(count, 256), 1, 1],
        threads: 256,
    };
    let [copy] = launch.add(&[array, &pinned], [Output::InPlace { input: 1 }])?;
    Ok(copy)
}
