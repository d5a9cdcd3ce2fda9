//! What can be wrong with a call of a kernel.

use mlx_rs::{Dtype, error::Exception};

/// Why a kernel refused its arguments, or why MLX refused the kernel.
///
/// Shapes and dtypes are checked before anything is added to MLX's graph. What only the values
/// can tell (a slot out of range) shows when the [`Evaluation`](crate::Evaluation) is waited for.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// An argument's shape does not fit the kernel's contract.
    #[error("{kernel}: `{argument}` must be {rule}, and its shape is {actual:?}")]
    Shape {
        /// Name of the kernel.
        kernel: &'static str,
        /// Name of the argument.
        argument: &'static str,
        /// What the shape has to be.
        rule: &'static str,
        /// What it is.
        actual: Vec<i32>,
    },
    /// An argument's element type does not fit the kernel's contract.
    #[error("{kernel}: `{argument}` must be of dtype {rule}, and is {actual:?}")]
    Dtype {
        /// Name of the kernel.
        kernel: &'static str,
        /// Name of the argument.
        argument: &'static str,
        /// What the dtype has to be.
        rule: &'static str,
        /// What it is.
        actual: Dtype,
    },
    /// A scalar argument is out of its range.
    #[error("{kernel}: `{argument}` must be {rule}")]
    Value {
        /// Name of the kernel.
        kernel: &'static str,
        /// Name of the argument.
        argument: &'static str,
        /// What the value has to be.
        rule: &'static str,
    },
    /// The host has no memory for a copy of a result.
    #[error("no memory to copy a result of {size_bytes} bytes")]
    NoMemory {
        /// What the copy needs.
        size_bytes: usize,
    },
    /// MLX, or a kernel while it ran, reported an error.
    #[error("MLX: {0}")]
    Mlx(#[from] Exception),
}

impl KernelError {
    /// Whether memory ran out.
    #[must_use]
    pub fn is_out_of_memory(&self) -> bool {
        match self {
            Self::NoMemory { .. } => true,
            Self::Mlx(error) => is_out_of_memory(error),
            Self::Shape { .. } | Self::Dtype { .. } | Self::Value { .. } => false,
        }
    }
}

/// Whether MLX found no memory. It says so in words alone: `[malloc] Unable to allocate` (also in
/// `primitive/allocator.cpp`), `[metal::malloc] Attempting to allocate`, `std::bad_alloc`, `mmap:
/// Cannot allocate memory`.
#[must_use]
pub fn is_out_of_memory(error: &Exception) -> bool {
    let what = error.what().to_lowercase();
    ["bad_alloc", "allocate", "out of memory"]
        .iter()
        .any(|said| what.contains(said))
}

/// Result of everything in this crate.
pub type Result<T> = std::result::Result<T, KernelError>;
