//! Arrays of memory that MLX's own functions cannot give.

use std::ffi::{c_char, c_int};

use mlx_rs::{Array, Dtype, Stream};
use mlx_sys::{mlx_array, mlx_dtype, mlx_stream};

use super::{RawView, check, new_array};
use crate::error::Result;

unsafe extern "C" {
    fn metal_rpc_upload(
        result: *mut mlx_array,
        is_uploaded: *mut bool,
        values: *const c_int,
        shape: *const c_int,
        ndim: usize,
        stream: mlx_stream,
    ) -> *const c_char;
    fn metal_rpc_pinned_array(
        result: *mut mlx_array,
        is_pinned: *mut bool,
        shape: *const c_int,
        ndim: usize,
    ) -> *const c_char;
    fn metal_rpc_part(
        result: *mut mlx_array,
        array: mlx_array,
        first: usize,
        shape: *const c_int,
        ndim: usize,
    ) -> *const c_char;
    fn metal_rpc_reserve(
        result: *mut mlx_array,
        shape: *const c_int,
        ndim: usize,
        dtype: mlx_dtype,
    ) -> *const c_char;
    fn metal_rpc_host_array(
        result: *mut mlx_array,
        shape: *const c_int,
        ndim: usize,
        dtype: mlx_dtype,
    ) -> *const c_char;
    fn metal_rpc_to_device(result: *mut mlx_array, array: mlx_array) -> *const c_char;
    fn metal_rpc_address(result: *mut usize, array: mlx_array) -> *const c_char;
    fn metal_rpc_wait(array: mlx_array) -> *const c_char;
    fn metal_rpc_data(result: *mut RawView, array: mlx_array) -> *const c_char;
}

/// These values in the GPU's memory, for what is put on the calling thread's default stream from now
/// on; `None` where that gains nothing.
#[track_caller]
pub(crate) fn upload(values: &[i32], shape: &[i32]) -> Result<Option<Array>> {
    let stream = Stream::thread_local_or_default();
    let mut is_uploaded = false;
    // SAFETY: all are live, and the caller has checked that the slices fit each other.
    let array = new_array(|result| unsafe {
        metal_rpc_upload(
            result,
            &raw mut is_uploaded,
            values.as_ptr(),
            shape.as_ptr(),
            shape.len(),
            stream.as_ptr(),
        )
    })?;
    Ok(is_uploaded.then_some(array))
}

/// An array of i32 over pinned memory; `None` where that gains nothing.
#[track_caller]
pub(crate) fn pinned_array(shape: &[i32]) -> Result<Option<Array>> {
    let mut is_pinned = false;
    // SAFETY: `shape` is live and of the stated length.
    let array = new_array(|result| unsafe {
        metal_rpc_pinned_array(result, &raw mut is_pinned, shape.as_ptr(), shape.len())
    })?;
    Ok(is_pinned.then_some(array))
}

/// See [`crate::part`].
#[track_caller]
pub(crate) fn part(array: &Array, first: usize, shape: &[i32]) -> Result<Array> {
    // SAFETY: all are live, and `shape` is of the stated length.
    new_array(|result| unsafe {
        metal_rpc_part(result, array.as_ptr(), first, shape.as_ptr(), shape.len())
    })
}

/// See [`crate::reserve`].
#[track_caller]
pub(crate) fn reserve(shape: &[i32], dtype: Dtype) -> Result<Array> {
    // SAFETY: `shape` is live and of the stated length.
    new_array(|result| unsafe {
        metal_rpc_reserve(result, shape.as_ptr(), shape.len(), dtype.into())
    })
}

/// An array of zeros that the host can write, whatever the default device.
#[track_caller]
pub(crate) fn host_array(shape: &[i32], dtype: Dtype) -> Result<Array> {
    // SAFETY: `shape` is live and of the stated length.
    new_array(|result| unsafe {
        metal_rpc_host_array(result, shape.as_ptr(), shape.len(), dtype.into())
    })
}

/// `array` in the memory of the default device.
#[track_caller]
pub(crate) fn to_device(array: &Array) -> Result<Array> {
    // SAFETY: both handles are live.
    new_array(|result| unsafe { metal_rpc_to_device(result, array.as_ptr()) })
}

/// See [`crate::data_ptr`].
#[track_caller]
pub(crate) fn address(array: &Array) -> Result<usize> {
    let mut address = 0;
    // SAFETY: the handle is live.
    check(unsafe { metal_rpc_address(&raw mut address, array.as_ptr()) })?;
    Ok(address)
}

/// Blocks until a scheduled `array` is computed, without touching any stream.
#[track_caller]
pub(crate) fn wait(array: &Array) -> Result<()> {
    // SAFETY: the handle is live.
    check(unsafe { metal_rpc_wait(array.as_ptr()) })
}

/// Memory of a scheduled array in row order. It may not have been computed yet.
#[track_caller]
pub(crate) fn data(array: &Array) -> Result<RawView> {
    let mut view = RawView {
        data: std::ptr::null_mut(),
        size_bytes: 0,
    };
    // SAFETY: the handle is live.
    check(unsafe { metal_rpc_data(&raw mut view, array.as_ptr()) })?;
    Ok(view)
}
