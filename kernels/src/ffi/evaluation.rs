//! Evaluations: `primitive/evaluation.h`.

use std::{
    ffi::{c_char, c_void},
    ptr::NonNull,
};

use mlx_rs::Array;
use mlx_sys::mlx_array;

use super::check;
use crate::error::Result;

unsafe extern "C" {
    fn metal_rpc_start(
        evaluation: *mut *mut c_void,
        outputs: *const mlx_array,
        num_outputs: usize,
    ) -> *const c_char;
    fn metal_rpc_wait_for(evaluation: *mut c_void) -> *const c_char;
    fn metal_rpc_free_evaluation(evaluation: *mut c_void);
}

/// An evaluation of C++.
#[derive(Debug)]
pub(crate) struct RawEvaluation(NonNull<c_void>);

// SAFETY: it has futures and events, which are made for a thread that waits for another one.
unsafe impl Send for RawEvaluation {}

impl RawEvaluation {
    /// See [`crate::start`].
    #[track_caller]
    pub(crate) fn start(outputs: &[&Array]) -> Result<Self> {
        let handles: Vec<mlx_array> = outputs.iter().map(|output| output.as_ptr()).collect();
        // SAFETY: all are live, and the length is that of the handles.
        Self::begun(|evaluation| unsafe {
            metal_rpc_start(evaluation, handles.as_ptr(), handles.len())
        })
    }

    /// The evaluation that `begin` fills in.
    pub(super) fn begun(begin: impl FnOnce(*mut *mut c_void) -> *const c_char) -> Result<Self> {
        let mut handle = std::ptr::null_mut();
        check(begin(&raw mut handle))?;
        Ok(Self(NonNull::new(handle).expect("C++ has filled it in")))
    }

    /// See [`crate::Evaluation::wait`].
    #[track_caller]
    pub(crate) fn wait(self) -> Result<()> {
        // SAFETY: it is live, and this is the only time.
        check(unsafe { metal_rpc_wait_for(self.0.as_ptr()) })
    }
}

impl Drop for RawEvaluation {
    fn drop(&mut self) {
        // SAFETY: it is ours, and freed once.
        unsafe { metal_rpc_free_evaluation(self.0.as_ptr()) };
    }
}
