//! Argmax on a GPU.

use mlx_rs::{Array, Dtype};

use crate::{
    error::Result,
    ffi::Output,
    gpu::{Launch, dialect_source, threads_for_row},
};

/// `logits` `[n, vocab_size]` float32 -> `[n]` i32.
pub(super) fn argmax(logits: &Array) -> Result<Array> {
    let (rows, vocab_size) = (logits.dim(0), logits.dim(1));
    let launch = Launch {
        kernel: "argmax",
        sources: &[dialect_source!("kernel.kh")],
        words: &[],
        scalars: &[vocab_size.into()],
        groups: [rows, 1, 1],
        threads: threads_for_row(vocab_size),
    };
    let output = Output::Fresh {
        shape: &[rows],
        dtype: Dtype::Int32,
    };
    let [tokens] = launch.add(&[logits], [output])?;
    Ok(tokens)
}
