//! The most likely token of every row. Contract: `contract.md`.

mod gpu;
mod native;

use mlx_rs::{Array, Dtype};

use crate::{check::Arguments, error::Result, ffi::Output, gpu::is_chosen, node::HostKernel};

const CHECK: Arguments = Arguments { kernel: "argmax" };

/// Index of the greatest value of every row; of equal ones the first, and NaN is the greatest.
///
/// # Shapes
/// - `logits`: `[n, vocab_size]` float32, bfloat16 or float16
/// - result: `[n]` int32
///
/// # Errors
/// [`KernelError::Shape`](crate::KernelError::Shape) if there is no value to choose from,
/// [`KernelError::Dtype`](crate::KernelError::Dtype) if the dtype is none of the above.
///
/// # Source
/// As `torch.argmax` on the CPU.
pub fn argmax(logits: &Array) -> Result<Array> {
    let rule = "[n, vocab_size] with a `vocab_size` above 0";
    CHECK.ndim("logits", logits, 2, rule)?;
    let (rows, vocab_size) = (logits.shape()[0], logits.shape()[1]);
    if vocab_size == 0 {
        return Err(CHECK.shape("logits", logits, rule));
    }
    let node = native::Argmax {
        vocab_size: CHECK.size(vocab_size),
    };
    let logits = CHECK.as_f32("logits", logits)?;
    if is_chosen()? {
        return gpu::argmax(&logits);
    }
    let output = Output::Fresh {
        shape: &[rows],
        dtype: Dtype::Int32,
    };
    let [tokens] = node.add(&[&logits], [output])?;
    Ok(tokens)
}
