//! Evaluations whose failures are known for certain.
//!
//! MLX has one error for a stream. A thread that builds the next step upon a result is told of it as
//! well as one that waits for the result, and whoever comes second hears nothing. So MLX's `eval` and
//! `async_eval` do not do for kernels of this crate: `primitive/evaluation.h` says what does.

use mlx_rs::Array;

use crate::{error::Result, ffi::RawEvaluation};

/// What a thread has begun to compute.
#[derive(Debug)]
pub struct Evaluation(pub(crate) RawEvaluation);

impl Evaluation {
    /// Blocks until it is done, on any thread and without touching a stream.
    ///
    /// # Errors
    /// [`KernelError::Mlx`](crate::KernelError::Mlx) if a kernel or the device failed: none of its
    /// results means anything.
    #[track_caller]
    pub fn wait(self) -> Result<()> {
        self.0.wait()
    }
}

/// Starts to compute `outputs`.
///
/// # Errors
/// [`KernelError::Mlx`](crate::KernelError::Mlx) if MLX cannot, or if it has failed before in what
/// this thread has started.
#[track_caller]
pub fn start<'a>(outputs: impl IntoIterator<Item = &'a Array>) -> Result<Evaluation> {
    let outputs: Vec<&Array> = outputs.into_iter().collect();
    RawEvaluation::start(&outputs).map(Evaluation)
}

/// Computes `outputs`.
///
/// # Errors
/// As [`start`] and [`Evaluation::wait`].
#[track_caller]
pub fn eval<'a>(outputs: impl IntoIterator<Item = &'a Array>) -> Result<()> {
    start(outputs)?.wait()
}
