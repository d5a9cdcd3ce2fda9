//! Rows into the paged cache on a GPU.

use mlx_rs::Array;

use super::native::ReshapeAndCache;
use crate::{
    element::FloatType,
    error::Result,
    ffi::Output,
    gpu::{Launch, dialect_source, int, word},
};

/// `inputs` as the host kernel has them -> the caches.
pub(super) fn reshape_and_cache(
    inputs: &[&Array; 5],
    x_type: FloatType,
    node: ReshapeAndCache,
) -> Result<[Array; 2]> {
    let launch = Launch {
        kernel: "reshape_and_cache",
        sources: &[dialect_source!("kernel.kh")],
        words: &[("X", word(x_type)), ("C", word(node.cache))],
        scalars: &[int(node.row).into(), int(node.num_slots).into()],
        groups: [inputs[2].dim(0), 1, 1],
        threads: 128,
    };
    launch.add(
        inputs,
        [Output::InPlace { input: 3 }, Output::InPlace { input: 4 }],
    )
}
