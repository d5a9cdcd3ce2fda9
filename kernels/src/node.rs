//! A host kernel: plain data that says what to compute, and the function that computes it.
//!
//! A kernel's struct is its constants (dimensions, dtypes, scalars). It is copied into MLX's graph
//! when the node is built and handed back to [`HostKernel::run`] on the stream's thread.

use std::{
    any::Any,
    ffi::{CStr, c_char, c_void},
    marker::PhantomData,
    panic::{AssertUnwindSafe, catch_unwind},
    slice,
};

use mlx_rs::Array;

use crate::{
    element::Scalar,
    error::Result,
    ffi::{self, Function, Output, RawView},
};

/// The memory of one array while a kernel runs.
#[repr(transparent)]
pub(crate) struct View<'a>(RawView, PhantomData<&'a mut [u8]>);

impl View<'_> {
    /// The elements, in row order.
    pub(crate) fn as_slice<T: Scalar>(&self) -> &[T] {
        let len = self.len::<T>();
        if len == 0 {
            return &[];
        }
        // SAFETY: MLX keeps `size_bytes` of row-ordered, aligned memory alive while the kernel
        // runs, any bits are a `Scalar`, and its stream runs nothing else meanwhile.
        unsafe { slice::from_raw_parts(self.0.data.cast(), len) }
    }

    /// The elements, in row order, to be written.
    pub(crate) fn as_mut_slice<T: Scalar>(&mut self) -> &mut [T] {
        let len = self.len::<T>();
        if len == 0 {
            return &mut [];
        }
        // SAFETY: as in `as_slice`; a kernel reads an array that it writes through its output
        // alone, so no other reference to the memory exists.
        unsafe { slice::from_raw_parts_mut(self.0.data.cast(), len) }
    }

    fn len<T>(&self) -> usize {
        assert!(self.0.size_bytes.is_multiple_of(size_of::<T>()));
        assert!(self.0.data.cast::<T>().is_aligned());
        self.0.size_bytes / size_of::<T>()
    }
}

/// A kernel that MLX's graph can hold.
pub(crate) trait HostKernel: Copy + Send + 'static {
    /// Name in MLX's graph and in error messages.
    const NAME: &'static CStr;

    /// The same inputs always give the same outputs: a recording may hold it.
    const IS_REPEATABLE: bool = true;

    /// Computes `outputs` from `inputs`, on the stream's thread. A panic becomes the error of the
    /// [`Evaluation`](crate::Evaluation).
    fn run(&self, inputs: &[View<'_>], outputs: &mut [View<'_>]);

    /// Adds this kernel to the graph on the calling thread's default stream.
    #[track_caller]
    fn add<const N: usize>(
        self,
        inputs: &[&Array],
        outputs: [Output<'_>; N],
    ) -> Result<[Array; N]> {
        let function = Function {
            name: Self::NAME,
            run: trampoline::<Self>,
            is_repeatable: Self::IS_REPEATABLE,
        };
        // SAFETY: `trampoline::<Self>` reads its constants as `Self`, which they are.
        unsafe { ffi::add_node(function, &self, inputs, outputs) }
    }
}

/// Calls `K::run` for C++, and turns a panic into a message.
///
/// # Safety
/// `params` points at a `K`; the views describe live arrays; `error` is writable.
unsafe extern "C" fn trampoline<K: HostKernel>(
    params: *const c_void,
    inputs: *const RawView,
    num_inputs: usize,
    outputs: *mut RawView,
    num_outputs: usize,
    error: *mut c_char,
    error_size_bytes: usize,
) -> bool {
    // SAFETY: the caller's promise; `View` is a transparent `RawView`.
    let (kernel, inputs, outputs, error) = unsafe {
        (
            &*params.cast::<K>(),
            slice::from_raw_parts(inputs.cast::<View<'_>>(), num_inputs),
            slice::from_raw_parts_mut(outputs.cast::<View<'_>>(), num_outputs),
            slice::from_raw_parts_mut(error.cast::<u8>(), error_size_bytes),
        )
    };
    match catch_unwind(AssertUnwindSafe(|| kernel.run(inputs, outputs))) {
        Ok(()) => true,
        Err(panic) => {
            write_message(error, &*panic);
            // A payload whose own drop panics must not unwind into C++.
            std::mem::forget(panic);
            false
        }
    }
}

fn write_message(buffer: &mut [u8], panic: &(dyn Any + Send)) {
    let message = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("panicked");
    let len = message.len().min(buffer.len() - 1);
    buffer[..len].copy_from_slice(&message.as_bytes()[..len]);
    buffer[len] = 0;
}
