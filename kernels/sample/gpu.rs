//! The sampler on a GPU, for rows that draw from their logits as they are.
//!
//! What else there is (penalties, masks, biases, scores) runs on the host, which reads the logits
//! from the device's memory.

use mlx_rs::{Array, Dtype};

use crate::{
    element::FloatType,
    error::Result,
    ffi::Output,
    gpu::{Launch, dialect_source, threads_for_row, word},
};

/// `logits` `[rows, vocab_size]`, `params` as the host kernel has them -> `[rows]` i32.
pub(super) fn sample(logits: &Array, logits_type: FloatType, params: &Array) -> Result<Array> {
    let (rows, vocab_size) = (logits.dim(0), logits.dim(1));
    let launch = Launch {
        kernel: "sample",
        sources: &[dialect_source!("kernel.kh")],
        words: &[("X", word(logits_type))],
        scalars: &[vocab_size.into()],
        groups: [rows, 1, 1],
        threads: threads_for_row(vocab_size),
    };
    let output = Output::Fresh {
        shape: &[rows],
        dtype: Dtype::Int32,
    };
    let [tokens] = launch.add(&[logits, params], [output])?;
    Ok(tokens)
}
