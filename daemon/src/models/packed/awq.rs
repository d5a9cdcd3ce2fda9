//! AWQ: eight outputs of one input in a word, in AWQ's own order.
//!
//! # Source
//! AutoAWQ `utils/packing_utils.py`; vLLM `model_executor/layers/quantization/awq.py`.

use rayon::prelude::*;

use super::{FloatTarget, zero_points::ZeroPointed};
use crate::models::{ModelError, checkpoint::WeightsFile, convert::Element};

/// Where in a word the integer of output `o % 8` is, in units of four bits.
const PLACES: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

/// Outputs that one task turns around: a cache line of words.
const OUTPUTS_PER_TASK: usize = 128;

/// `qweight` `[inputs, outputs / 8]`, `qzeros` `[groups, outputs / 8]`, `scales`
/// `[groups, outputs]`.
#[derive(Debug)]
pub(in crate::models) struct Awq(pub(in crate::models) ZeroPointed);

impl Awq {
    pub(super) fn fill<T: Element>(
        &self,
        files: &[WeightsFile],
        target: FloatTarget<'_, T>,
    ) -> Result<(), ModelError> {
        let from = self.0.words(files)?;
        let columns = self.0.rows / 8;
        let words = target.packed.len() / self.0.rows;
        target
            .packed
            .par_chunks_mut(OUTPUTS_PER_TASK * words)
            .enumerate()
            .for_each(|(task, outputs)| {
                let first = task * OUTPUTS_PER_TASK / 8;
                for (input, row) in from.chunks_exact(columns).enumerate() {
                    let to = input / 8;
                    for (column, eight) in outputs.chunks_exact_mut(8 * words).enumerate() {
                        for (output, place) in PLACES.into_iter().enumerate() {
                            let integer = row[first + column] >> (4 * place) & 15;
                            eight[output * words + to] |= integer << (4 * (input % 8));
                        }
                    }
                }
            });
        let zero = |zeros: &[u32], row: usize| zeros[row / 8] >> (4 * PLACES[row % 8]) & 15;
        self.0.fill_shared(files, target, zero)
    }
}
