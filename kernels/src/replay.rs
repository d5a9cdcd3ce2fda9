//! A step's kernels, recorded once and run again with other numbers.
//!
//! Building and submitting a step costs the host some microseconds a node, and a step has hundreds:
//! more than a GPU needs for the step of a small model. A step of a shape that comes again differs
//! in nothing but numbers (positions, slots, block tables, how it samples), so what was launched for
//! it can be launched again, in one call: as a CUDA graph, or on the CPU as a list of calls.
//!
//! # Invariants
//! - A recording keeps all memory that its launches use, that of caches and tables too.
//! - Runs are in the order of the stream, among themselves and with all else.

use mlx_rs::Array;

use crate::{error::Result, evaluation::Evaluation, ffi, ffi::RawRecording};

/// Room for the launches of one step. It stays on the thread that made it.
#[derive(Debug)]
pub struct Recording {
    raw: RawRecording,
    num_numbers: usize,
    numbers: Array,
    is_complete: bool,
}

impl Recording {
    /// An empty one, whose runs are told `num_numbers` numbers; `None` where nothing
    /// [can be recorded](recording_kind).
    ///
    /// # Errors
    /// [`KernelError::Mlx`](crate::KernelError::Mlx) if no memory is left.
    pub fn new(num_numbers: usize) -> Result<Option<Self>> {
        let Some(raw) = RawRecording::new(num_numbers)? else {
            return Ok(None);
        };
        Ok(Some(Self {
            numbers: raw.numbers()?,
            raw,
            num_numbers,
            is_complete: false,
        }))
    }

    /// What the nodes to be recorded read the numbers from: `[num_numbers]` int32, whole or in
    /// [parts](crate::part).
    #[must_use]
    pub fn numbers(&self) -> &Array {
        &self.numbers
    }

    /// Evaluates `outputs` with `values` as the numbers, and records how, if it can: on a GPU there
    /// has to be memory at hand for it (see [`rehearse`]), and on the CPU all nodes have to be kernels
    /// of this crate, or views. Returns the first `num_results` of them, in memory of the host, and
    /// when they are computed.
    ///
    /// Everything that the step computes has to be among `outputs` or on the way to them.
    ///
    /// # Shapes
    /// - `values`: `[num_numbers]`
    /// - the results: any shape, int32, in row order
    ///
    /// # Errors
    /// [`KernelError::Mlx`](crate::KernelError::Mlx) if the evaluation fails.
    ///
    /// # Panics
    /// If `values` are too many or too few.
    pub fn record(
        &mut self,
        values: &[i32],
        outputs: &[&Array],
        num_results: usize,
    ) -> Result<(Vec<Array>, Evaluation)> {
        assert_eq!(values.len(), self.num_numbers);
        // SAFETY: just checked.
        let (begun, is_complete) = unsafe { self.raw.record(values, outputs, num_results)? };
        self.is_complete = is_complete;
        let (results, evaluation) = begun;
        Ok((results, Evaluation(evaluation)))
    }

    /// Whether it can be run.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.is_complete
    }

    /// Runs what was recorded with other numbers. Returns what [`record`](Self::record) did, of this
    /// run.
    ///
    /// # Errors
    /// [`KernelError::Mlx`](crate::KernelError::Mlx) if it cannot be started.
    ///
    /// # Panics
    /// If `values` are too many or too few, or nothing was recorded.
    pub fn replay(&self, values: &[i32]) -> Result<(Vec<Array>, Evaluation)> {
        assert!(self.is_complete);
        assert_eq!(values.len(), self.num_numbers);
        // SAFETY: just checked.
        let (results, evaluation) = unsafe { self.raw.replay(values)? };
        Ok((results, Evaluation(evaluation)))
    }
}

/// What a recording holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordingKind {
    /// Launches of a GPU, as a graph.
    Launches,
    /// Calls of kernels on the CPU.
    Calls,
}

/// How steps are recorded on the calling thread's default stream, if they can be: on the CPU, and
/// with CUDA.
///
/// # Errors
/// [`KernelError::Mlx`](crate::KernelError::Mlx) if MLX cannot say.
pub fn recording_kind() -> Result<Option<RecordingKind>> {
    Ok(match ffi::is_gpu()? {
        true if cfg!(target_os = "macos") => None,
        true => Some(RecordingKind::Launches),
        false => Some(RecordingKind::Calls),
    })
}

/// Has the next evaluation of this thread take as much memory as one that is recorded, where
/// something can be: all that it takes from the system is then at hand for a recording of the same.
///
/// # Errors
/// [`KernelError::Mlx`](crate::KernelError::Mlx) if MLX's stream is not what it should be.
pub fn rehearse() -> Result<()> {
    ffi::rehearse()
}
