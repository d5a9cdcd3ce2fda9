//! Root-mean-square normalisation on a GPU.

use mlx_rs::Array;

use super::native::RmsNorm;
use crate::{
    element::FloatType,
    error::Result,
    ffi::Output,
    gpu::{Launch, dialect_source, int, threads_for_row, word},
};

/// `x` `[.., dim]`, `weight` `[dim]` -> `[.., dim]`, dtype of `x`.
pub(super) fn rms_norm(
    x: &Array,
    x_type: FloatType,
    weight: &Array,
    node: RmsNorm,
) -> Result<Array> {
    let dim = int(node.dim);
    let launch = Launch {
        kernel: "rms_norm",
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
    let [y] = launch.add(&[x, weight], [output])?;
    Ok(y)
}
