//! A residual addition and the normalisation after it on a GPU.

use mlx_rs::Array;

use super::native::AddRmsNorm;
use crate::{
    element::FloatType,
    error::Result,
    ffi::Output,
    gpu::{Launch, dialect_source, int, threads_for_row, word},
};

/// `x`, `residual` `[.., dim]`, `weight` `[dim]` -> the normalised sum and the sum, like `x`.
pub(super) fn add_rms_norm(
    [x, residual]: [&Array; 2],
    x_type: FloatType,
    weight: &Array,
    node: AddRmsNorm,
) -> Result<(Array, Array)> {
    let dim = int(node.dim);
    let launch = Launch {
        kernel: "add_rms_norm",
        sources: &[dialect_source!("kernel.kh")],
        words: &[("X", word(x_type)), ("W", word(node.weight))],
        scalars: &[dim.into(), node.eps.into()],
        groups: [int(x.size()) / dim.max(1), 1, 1],
        threads: threads_for_row(dim),
    };
    let output = Output::Fresh {
        shape: x.shape(),
        dtype: x.dtype(),
    };
    let [y, sum] = launch.add(&[x, residual, weight], [output, output])?;
    Ok((y, sum))
}
