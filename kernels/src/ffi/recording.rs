//! Recordings: `primitive/replay.h`.

use std::{
    ffi::{c_char, c_int, c_void},
    ptr::NonNull,
};

use mlx_rs::{Array, Stream};
use mlx_sys::{mlx_array, mlx_stream};

use super::{RawEvaluation, check, new_array};
use crate::error::Result;

unsafe extern "C" {
    fn metal_rpc_new_recording(
        result: *mut *mut c_void,
        num_numbers: usize,
        stream: mlx_stream,
    ) -> *const c_char;
    fn metal_rpc_free_recording(recording: *mut c_void);
    fn metal_rpc_recording_numbers(result: *mut mlx_array, recording: *mut c_void)
    -> *const c_char;
    fn metal_rpc_record(
        evaluation: *mut *mut c_void,
        is_complete: *mut bool,
        recording: *mut c_void,
        values: *const c_int,
        outputs: *const mlx_array,
        num_outputs: usize,
        results: *mut mlx_array,
        num_results: usize,
    ) -> *const c_char;
    fn metal_rpc_replay(
        evaluation: *mut *mut c_void,
        recording: *mut c_void,
        values: *const c_int,
        results: *mut mlx_array,
        num_results: usize,
    ) -> *const c_char;
    fn metal_rpc_rehearse(stream: mlx_stream) -> *const c_char;
}

/// A recording of C++; it stays on the thread of its stream.
#[derive(Debug)]
pub(crate) struct RawRecording {
    handle: NonNull<c_void>,
    num_results: usize,
}

impl RawRecording {
    /// One that is told `num_numbers` numbers; `None` where nothing can be recorded.
    pub(crate) fn new(num_numbers: usize) -> Result<Option<Self>> {
        let stream = Stream::thread_local_or_default();
        let mut handle = std::ptr::null_mut();
        // SAFETY: the pointer is to a live value, and the stream is.
        check(unsafe { metal_rpc_new_recording(&raw mut handle, num_numbers, stream.as_ptr()) })?;
        let num_results = 0;
        let recording = |handle| Self {
            handle,
            num_results,
        };
        Ok(NonNull::new(handle).map(recording))
    }

    /// What recorded launches read: `[num_numbers]` i32.
    pub(crate) fn numbers(&self) -> Result<Array> {
        // SAFETY: the recording is live.
        new_array(|result| unsafe { metal_rpc_recording_numbers(result, self.handle.as_ptr()) })
    }

    /// Evaluates and records; returns what has begun, and whether it can be run again.
    ///
    /// # Safety
    /// `values` has as many elements as the recording has numbers.
    pub(crate) unsafe fn record(
        &mut self,
        values: &[i32],
        outputs: &[&Array],
        num_results: usize,
    ) -> Result<(Begun, bool)> {
        assert!(num_results <= outputs.len());
        let handles: Vec<mlx_array> = outputs.iter().map(|output| output.as_ptr()).collect();
        let mut is_complete = false;
        self.num_results = num_results;
        // SAFETY: all are live; the lengths are those of the slices, or the caller's promise.
        let begun = begun(num_results, |evaluation, results| unsafe {
            metal_rpc_record(
                evaluation,
                &raw mut is_complete,
                self.handle.as_ptr(),
                values.as_ptr(),
                handles.as_ptr(),
                handles.len(),
                results,
                num_results,
            )
        })?;
        Ok((begun, is_complete))
    }

    /// Runs a complete recording.
    ///
    /// # Safety
    /// As [`record`](Self::record).
    pub(crate) unsafe fn replay(&self, values: &[i32]) -> Result<Begun> {
        // SAFETY: as in `record`.
        begun(self.num_results, |evaluation, results| unsafe {
            metal_rpc_replay(
                evaluation,
                self.handle.as_ptr(),
                values.as_ptr(),
                results,
                self.num_results,
            )
        })
    }
}

impl Drop for RawRecording {
    fn drop(&mut self) {
        // SAFETY: it is ours, and freed once.
        unsafe { metal_rpc_free_recording(self.handle.as_ptr()) };
    }
}

/// See [`crate::rehearse`].
pub(crate) fn rehearse() -> Result<()> {
    let stream = Stream::thread_local_or_default();
    // SAFETY: the stream is live.
    check(unsafe { metal_rpc_rehearse(stream.as_ptr()) })
}

/// The results of a run that has begun, and when it is done.
type Begun = (Vec<Array>, RawEvaluation);

/// Lets `begin` fill empty handles, and owns what it filled in.
fn begun(
    num_results: usize,
    begin: impl FnOnce(*mut *mut c_void, *mut mlx_array) -> *const c_char,
) -> Result<Begun> {
    // SAFETY: makes an empty handle, no preconditions.
    let mut handles = vec![unsafe { mlx_sys::mlx_array_new() }; num_results];
    let evaluation = RawEvaluation::begun(|evaluation| begin(evaluation, handles.as_mut_ptr()));
    // SAFETY: the handles are ours, empty or filled by `begin`; `Array` frees either on drop.
    let results = handles
        .into_iter()
        .map(|handle| unsafe { Array::from_ptr(handle) });
    let results = results.collect();
    Ok((results, evaluation?))
}
