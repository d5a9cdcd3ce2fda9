//! The C face of `primitive/` (see `primitive/abi.h`), and the only place that names `mlx_sys`.
//!
//! Everything here takes and gives safe types. Errors of C++ come back as [`KernelError::Mlx`].
//!
//! # Layout
//! - here: nodes of the graph
//! - `arrays`: arrays of other memory, and parts of arrays
//! - `recording`: launches that are run again
//! - `evaluation`: what became of it all

mod arrays;
mod evaluation;
mod recording;

pub(crate) use arrays::{
    address, data, host_array, part, pinned_array, reserve, to_device, upload, wait,
};
pub(crate) use evaluation::RawEvaluation;
pub(crate) use recording::{RawRecording, rehearse};

use std::ffi::{CStr, c_char, c_int, c_void};

use mlx_rs::{Array, Dtype, Stream, error::Exception};
use mlx_sys::{mlx_array, mlx_dtype, mlx_stream};

use crate::error::{KernelError, Result};

/// `metal_rpc_view`: the memory of one array while a kernel runs.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct RawView {
    pub(crate) data: *mut c_void,
    pub(crate) size_bytes: usize,
}

/// `metal_rpc_run`: how the stream's thread calls a kernel.
pub(crate) type Run = unsafe extern "C" fn(
    params: *const c_void,
    inputs: *const RawView,
    num_inputs: usize,
    outputs: *mut RawView,
    num_outputs: usize,
    error: *mut c_char,
    error_size_bytes: usize,
) -> bool;

#[repr(C)]
struct RawKernel {
    name: *const c_char,
    run: Run,
    params: *const c_void,
    params_size_bytes: usize,
    is_repeatable: bool,
}

#[repr(C)]
struct RawOutput {
    alias_of: c_int,
    shape: *const c_int,
    ndim: usize,
    dtype: mlx_dtype,
}

/// `metal_rpc_scalar`: a constant of a kernel of the dialect.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct RawScalar {
    is_float: bool,
    /// The bits of either.
    bits: u32,
}

impl From<i32> for RawScalar {
    fn from(value: i32) -> Self {
        let (is_float, bits) = (false, value.cast_unsigned());
        Self { is_float, bits }
    }
}

impl From<f32> for RawScalar {
    fn from(value: f32) -> Self {
        let (is_float, bits) = (true, value.to_bits());
        Self { is_float, bits }
    }
}

#[repr(C)]
struct RawLaunch {
    name: *const c_char,
    defines: *const c_char,
    pieces: *const *const c_char,
    num_pieces: usize,
    scalars: *const RawScalar,
    num_scalars: usize,
    groups: [c_int; 3],
    threads: c_int,
}

/// A kernel of the dialect and how to run it, all but its arrays.
pub(crate) struct Program<'a> {
    pub(crate) name: &'a CStr,
    pub(crate) defines: &'a CStr,
    pub(crate) pieces: &'a [&'static CStr],
    pub(crate) scalars: &'a [RawScalar],
    pub(crate) groups: [i32; 3],
    pub(crate) threads: i32,
}

unsafe extern "C" {
    fn metal_rpc_add_launch(
        launch: *const RawLaunch,
        inputs: *const mlx_array,
        num_inputs: usize,
        outputs: *const RawOutput,
        results: *mut mlx_array,
        num_outputs: usize,
        stream: mlx_stream,
    ) -> *const c_char;
    fn metal_rpc_is_gpu(result: *mut bool, stream: mlx_stream) -> *const c_char;
    fn metal_rpc_gpu_memory(size_bytes: *mut usize) -> *const c_char;
    fn metal_rpc_add_node(
        kernel: *const RawKernel,
        inputs: *const mlx_array,
        num_inputs: usize,
        outputs: *const RawOutput,
        results: *mut mlx_array,
        num_outputs: usize,
        stream: mlx_stream,
    ) -> *const c_char;
}

/// One output of a node.
#[derive(Clone, Copy)]
pub(crate) enum Output<'a> {
    /// New memory.
    Fresh { shape: &'a [i32], dtype: Dtype },
    /// The memory of the input with this index, written in place.
    InPlace { input: usize },
}

#[track_caller]
fn check(reason: *const c_char) -> Result<()> {
    if reason.is_null() {
        return Ok(());
    }
    // SAFETY: a non-null reason is a zero-terminated string of this thread, valid until this
    // thread's next call into the primitives.
    let reason = unsafe { CStr::from_ptr(reason) };
    Err(KernelError::Mlx(Exception::custom(
        reason.to_string_lossy(),
    )))
}

/// Lets `make` fill an empty handle, and owns what it filled in.
#[track_caller]
fn new_array(make: impl FnOnce(*mut mlx_array) -> *const c_char) -> Result<Array> {
    // SAFETY: makes an empty handle, no preconditions.
    let mut handle = unsafe { mlx_sys::mlx_array_new() };
    let reason = make(&raw mut handle);
    // SAFETY: the handle is ours, empty or filled by `make`; `Array` frees either on drop.
    let array = unsafe { Array::from_ptr(handle) };
    check(reason)?;
    Ok(array)
}

/// What a host kernel's node calls.
pub(crate) struct Function {
    pub(crate) name: &'static CStr,
    pub(crate) run: Run,
    /// The same inputs always give the same outputs.
    pub(crate) is_repeatable: bool,
}

/// Adds one host kernel to MLX's graph, on the calling thread's default stream.
///
/// # Safety
/// `function.run` must accept `params` as its constants, and views of `inputs` and `outputs`.
#[track_caller]
pub(crate) unsafe fn add_node<P: Copy, const N: usize>(
    function: Function,
    params: &P,
    inputs: &[&Array],
    outputs: [Output<'_>; N],
) -> Result<[Array; N]> {
    const { assert!(align_of::<P>() <= 16, "operator new[] aligns to 16 bytes") };
    let stream = Stream::thread_local_or_default();
    let kernel = RawKernel {
        name: function.name.as_ptr(),
        run: function.run,
        params: std::ptr::from_ref(params).cast(),
        params_size_bytes: size_of::<P>(),
        is_repeatable: function.is_repeatable,
    };
    // SAFETY: every pointer is to a live value of the stated length; MLX takes its own references
    // to the inputs and copies `params`. That `run` fits them is the caller's promise.
    new_node(inputs, outputs, |handles, outputs, results| unsafe {
        metal_rpc_add_node(
            &raw const kernel,
            handles.as_ptr(),
            handles.len(),
            outputs.as_ptr(),
            results.as_mut_ptr(),
            N,
            stream.as_ptr(),
        )
    })
}

/// Adds one kernel of the dialect to MLX's graph, on the calling thread's default stream.
///
/// # Safety
/// The kernel must read and write within arrays of these shapes, given these scalars.
#[track_caller]
pub(crate) unsafe fn add_launch<const N: usize>(
    program: &Program<'_>,
    inputs: &[&Array],
    outputs: [Output<'_>; N],
) -> Result<[Array; N]> {
    let stream = Stream::thread_local_or_default();
    let mut pieces = [std::ptr::null(); MAX_PIECES];
    assert!(program.pieces.len() <= MAX_PIECES);
    for (raw, piece) in pieces.iter_mut().zip(program.pieces) {
        *raw = piece.as_ptr();
    }
    let launch = RawLaunch {
        name: program.name.as_ptr(),
        defines: program.defines.as_ptr(),
        pieces: pieces.as_ptr(),
        num_pieces: program.pieces.len(),
        scalars: program.scalars.as_ptr(),
        num_scalars: program.scalars.len(),
        groups: program.groups,
        threads: program.threads,
    };
    // SAFETY: every pointer is to a live value of the stated length, and everything is copied but
    // the pieces, which are static.
    new_node(inputs, outputs, |handles, outputs, results| unsafe {
        metal_rpc_add_launch(
            &raw const launch,
            handles.as_ptr(),
            handles.len(),
            outputs.as_ptr(),
            results.as_mut_ptr(),
            N,
            stream.as_ptr(),
        )
    })
}

/// Whether the calling thread's default stream is a GPU's.
pub(crate) fn is_gpu() -> Result<bool> {
    let stream = Stream::thread_local_or_default();
    let mut result = false;
    // SAFETY: the handle is live.
    check(unsafe { metal_rpc_is_gpu(&raw mut result, stream.as_ptr()) })?;
    Ok(result)
}

/// See [`crate::gpu_memory_bytes`].
pub(crate) fn gpu_memory() -> Result<usize> {
    let mut size_bytes = 0;
    // SAFETY: the pointer is to a live value.
    check(unsafe { metal_rpc_gpu_memory(&raw mut size_bytes) })?;
    Ok(size_bytes)
}

/// Hands inputs, outputs and empty results to `add`, and owns what it filled in.
#[track_caller]
fn new_node<const N: usize>(
    inputs: &[&Array],
    outputs: [Output<'_>; N],
    add: impl FnOnce(&[mlx_array], &[RawOutput; N], &mut [mlx_array; N]) -> *const c_char,
) -> Result<[Array; N]> {
    const EMPTY: mlx_array = mlx_array {
        ctx: std::ptr::null_mut(),
    };
    let mut handles = [EMPTY; MAX_INPUTS];
    assert!(inputs.len() <= MAX_INPUTS);
    for (handle, input) in handles.iter_mut().zip(inputs) {
        *handle = input.as_ptr();
    }
    let outputs = outputs.map(|output| match output {
        Output::Fresh { shape, dtype } => RawOutput {
            alias_of: -1,
            shape: shape.as_ptr(),
            ndim: shape.len(),
            dtype: dtype.into(),
        },
        Output::InPlace { input } => RawOutput {
            alias_of: c_int::try_from(input).expect("a node has few inputs"),
            shape: std::ptr::null(),
            ndim: 0,
            dtype: Dtype::Bool.into(),
        },
    });
    let mut results = [EMPTY; N];
    let reason = add(&handles[..inputs.len()], &outputs, &mut results);
    // SAFETY: each handle is ours, empty or filled; `Array` frees either on drop.
    let results = results.map(|handle| unsafe { Array::from_ptr(handle) });
    check(reason)?;
    Ok(results)
}

/// Bound of a program's pieces.
const MAX_PIECES: usize = 6;

/// Bound of a node's inputs, so that building one does not allocate here.
const MAX_INPUTS: usize = 8;
