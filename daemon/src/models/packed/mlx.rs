//! MLX's own checkpoints: `weight` uint32, `scales`, and `biases` if the format is affine. Also
//! the experts of checkpoints in OCP's MXFP4, whose bytes are the same.

use super::{FloatTarget, Target, read_bytes};
use crate::models::{
    Dtype, ModelError,
    checkpoint::{TensorEntry, WeightsFile},
    convert::{self, Element},
};

/// The tensors of one matrix.
#[derive(Debug)]
pub(in crate::models) struct Mlx {
    pub(in crate::models) packed: TensorEntry,
    pub(in crate::models) scales: TensorEntry,
    pub(in crate::models) biases: Option<TensorEntry>,
}

impl Mlx {
    pub(super) fn size_bytes(&self) -> u64 {
        let biases = self.biases.as_ref().map_or(0, |biases| biases.size_bytes);
        self.packed.size_bytes + self.scales.size_bytes + biases
    }

    pub(super) fn fill_exponents(
        &self,
        files: &[WeightsFile],
        target: Target<'_>,
    ) -> Result<(), ModelError> {
        read_bytes(files, &self.packed, bytemuck::cast_slice_mut(target.packed))?;
        read_bytes(files, &self.scales, target.scales)
    }

    pub(super) fn fill<T: Element>(
        &self,
        files: &[WeightsFile],
        target: FloatTarget<'_, T>,
    ) -> Result<(), ModelError> {
        read_bytes(files, &self.packed, bytemuck::cast_slice_mut(target.packed))?;
        read_floats(files, &self.scales, target.scales)?;
        let biases = self.biases.as_ref().expect("an affine matrix has biases");
        read_floats(files, biases, target.biases)
    }
}

/// Reads a tensor's floats into place.
pub(super) fn read_floats<T: Element>(
    files: &[WeightsFile],
    entry: &TensorEntry,
    target: &mut [T],
) -> Result<(), ModelError> {
    let file = &files[entry.file_index];
    let dtype = Dtype::from_safetensors(entry.dtype).expect("checked when the source was made");
    convert::read(&file.file, entry.offset_bytes, dtype, target).map_err(|source| {
        ModelError::Read {
            path: file.path.clone(),
            source,
        }
    })
}
