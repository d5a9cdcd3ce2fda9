//! Memory that MLX's own functions cannot give, and reading results without a stream.

use mlx_rs::{Array, Dtype};

use crate::{
    check::Arguments,
    element::Scalar,
    error::{KernelError, Result},
    ffi,
};

/// An array of zeros whose memory the system hands out on first touch, and takes back on drop.
///
/// A pool of 20 GB costs nothing until it is written. Meant for what kernels write in place. The
/// number of elements may exceed `i32`, each dimension may not. On a GPU the memory is committed
/// at once.
///
/// # Errors
/// [`KernelError::Mlx`] if the shape is negative or too large for the address space.
#[track_caller]
pub fn reserve(shape: &[i32], dtype: Dtype) -> Result<Array> {
    ffi::reserve(shape, dtype)
}

/// An array of which `fill` writes the bytes, zeros before. They are never in memory twice, but
/// with CUDA, where the array then moves to the device.
///
/// # Errors
/// As [`reserve`], or what `fill` says.
#[track_caller]
pub fn filled<E: From<KernelError>>(
    shape: &[i32],
    dtype: Dtype,
    fill: impl FnOnce(&mut [u8]) -> std::result::Result<(), E>,
) -> std::result::Result<Array, E> {
    let array = ffi::host_array(shape, dtype)?;
    let view = ffi::data(&array)?;
    if view.size_bytes > 0 {
        // SAFETY: host memory of the array, initialised, which nothing else refers to yet.
        fill(unsafe { std::slice::from_raw_parts_mut(view.data.cast(), view.size_bytes) })?;
    }
    Ok(ffi::to_device(&array)?)
}

/// Memory of the GPU; `None` if MLX has none.
///
/// # Errors
/// [`KernelError::Mlx`] if MLX cannot ask it.
pub fn gpu_memory_bytes() -> Result<Option<u64>> {
    let size_bytes = ffi::gpu_memory()?;
    Ok((size_bytes > 0).then_some(size_bytes as u64))
}

/// Elements of a scheduled `array` in row order, from the element `first` on, without a node.
///
/// # Errors
/// [`KernelError::Mlx`] if it has no such elements, is not in row order, or was not given to
/// `async_eval` or `eval` before.
#[track_caller]
pub fn part(array: &Array, first: usize, shape: &[i32]) -> Result<Array> {
    ffi::part(array, first, shape)
}

/// What tells the memory of a scheduled array from others': two arrays that share it have the same.
///
/// # Errors
/// [`KernelError::Mlx`] if `array` is not scheduled yet.
#[track_caller]
pub fn data_ptr(array: &Array) -> Result<usize> {
    ffi::address(array)
}

/// Waits for a scheduled int32 `array` and copies it, without touching any stream.
///
/// # Errors
/// [`KernelError::Dtype`] if it is not int32, [`KernelError::NoMemory`] if there is none for the copy,
/// and [`KernelError::Mlx`] if it was not given to `async_eval` or `eval` before, if MLX could not
/// compute it (an [`Evaluation`](crate::Evaluation) knows more), or if it is not in row order.
#[track_caller]
pub fn to_vec_i32(array: &Array) -> Result<Vec<i32>> {
    to_vec("to_vec_i32", array, Dtype::Int32, "int32")
}

/// Waits for a scheduled float32 `array` and copies it, without touching any stream.
///
/// # Errors
/// As [`to_vec_i32`], for float32.
#[track_caller]
pub fn to_vec_f32(array: &Array) -> Result<Vec<f32>> {
    to_vec("to_vec_f32", array, Dtype::Float32, "float32")
}

#[track_caller]
fn to_vec<T: Scalar>(
    kernel: &'static str,
    array: &Array,
    dtype: Dtype,
    rule: &'static str,
) -> Result<Vec<T>> {
    Arguments { kernel }.dtype("array", array, dtype, rule)?;
    ffi::wait(array)?;
    let view = ffi::data(array)?;
    let len = view.size_bytes / size_of::<T>();
    if len == 0 {
        return Ok(Vec::new());
    }
    let size_bytes = view.size_bytes;
    let mut values = Vec::new();
    values
        .try_reserve_exact(len)
        .map_err(|_| KernelError::NoMemory { size_bytes })?;
    // SAFETY: computed memory in row order, of the element type just checked; `array` keeps it.
    values.extend_from_slice(unsafe { std::slice::from_raw_parts(view.data.cast::<T>(), len) });
    Ok(values)
}
