//! GPTQ: the integers of one output one after the other, as they are held, but outputs side by side.
//!
//! # Source
//! AutoGPTQ `nn_modules/qlinear/qlinear_cuda.py`; vLLM
//! `model_executor/layers/quantization/gptq.py`.

use rayon::prelude::*;

use super::{FloatTarget, zero_points::ZeroPointed};
use crate::models::{ModelError, checkpoint::WeightsFile, convert::Element};

/// Outputs that one task turns around: a cache line of words.
const OUTPUTS_PER_TASK: usize = 16;

/// `qweight` `[inputs * bits / 32, outputs]`, `qzeros` `[groups, outputs * bits / 32]`, `scales`
/// `[groups, outputs]`; and what is added to a stored zero point.
#[derive(Debug)]
pub(in crate::models) struct Gptq(pub(in crate::models) ZeroPointed, pub(in crate::models) u32);

impl Gptq {
    pub(super) fn fill<T: Element>(
        &self,
        files: &[WeightsFile],
        target: FloatTarget<'_, T>,
    ) -> Result<(), ModelError> {
        let Self(stored, zero_offset) = self;
        let from = stored.words(files)?;
        let words = target.packed.len() / stored.rows;
        target
            .packed
            .par_chunks_mut(OUTPUTS_PER_TASK * words)
            .enumerate()
            .for_each(|(task, outputs)| {
                let first = task * OUTPUTS_PER_TASK;
                for (word, row) in from.chunks_exact(stored.rows).enumerate() {
                    for (output, to) in outputs.chunks_exact_mut(words).enumerate() {
                        to[word] = row[first + output];
                    }
                }
            });
        let (per_word, mask) = (32 / stored.bits, u32::MAX >> (32 - stored.bits));
        let zero = |zeros: &[u32], row: usize| {
            let stored_zero = zeros[row / per_word] >> (stored.bits * (row % per_word)) & mask;
            stored_zero + zero_offset
        };
        stored.fill_shared(files, target, zero)
    }
}
