//! What AWQ and GPTQ share: `weight = scale * (integer - zero)`, with `scales` and `qzeros` a row
//! for each group of inputs.

use rayon::prelude::*;

use super::{FloatTarget, mlx::read_floats, read_bytes};
use crate::models::{
    ModelError,
    checkpoint::{TensorEntry, WeightsFile},
    convert::Element,
};

/// The tensors of one matrix.
#[derive(Debug)]
pub(in crate::models) struct ZeroPointed {
    pub(in crate::models) qweight: TensorEntry,
    pub(in crate::models) qzeros: TensorEntry,
    pub(in crate::models) scales: TensorEntry,
    pub(in crate::models) rows: usize,
    /// Groups of inputs as they are stored.
    pub(in crate::models) groups: usize,
    /// Groups as they are held for each that is stored: a larger group becomes several.
    pub(in crate::models) repeat: usize,
    pub(in crate::models) bits: usize,
}

impl ZeroPointed {
    pub(super) fn size_bytes(&self) -> u64 {
        self.qweight.size_bytes + self.qzeros.size_bytes + self.scales.size_bytes
    }

    /// The words of `qweight`.
    pub(super) fn words(&self, files: &[WeightsFile]) -> Result<Vec<u32>, ModelError> {
        read_words(files, &self.qweight)
    }

    /// Fills scales and biases; `zero` finds the zero point of an output in its group's words.
    pub(super) fn fill_shared<T: Element>(
        &self,
        files: &[WeightsFile],
        target: FloatTarget<'_, T>,
        zero: impl Fn(&[u32], usize) -> u32 + Sync,
    ) -> Result<(), ModelError> {
        let zeros = read_words(files, &self.qzeros)?;
        let mut scales = vec![0.0; self.groups * self.rows];
        read_floats::<f32>(files, &self.scales, &mut scales)?;
        let held = self.groups * self.repeat;
        let words_per_group = zeros.len() / self.groups;
        let rows = target.scales.par_chunks_exact_mut(held);
        let rows = rows.zip(target.biases.par_chunks_exact_mut(held));
        rows.enumerate().for_each(|(row, (to_scales, to_biases))| {
            for group in 0..self.groups {
                let scale = scales[group * self.rows + row];
                let zero = zero(&zeros[group * words_per_group..][..words_per_group], row);
                #[expect(clippy::cast_precision_loss, reason = "at most 256")]
                let bias = -(scale * zero as f32);
                let span = group * self.repeat..(group + 1) * self.repeat;
                to_scales[span.clone()].fill(narrow(scale));
                to_biases[span].fill(narrow(bias));
            }
        });
        Ok(())
    }
}

fn narrow<T: Element>(value: f32) -> T {
    let mut narrowed = [T::zeroed()];
    T::narrow(&[value], &mut narrowed);
    narrowed[0]
}

fn read_words(files: &[WeightsFile], entry: &TensorEntry) -> Result<Vec<u32>, ModelError> {
    let mut words = vec![0; entry.shape.iter().product()];
    read_bytes(files, entry, bytemuck::cast_slice_mut(&mut words))?;
    Ok(words)
}
