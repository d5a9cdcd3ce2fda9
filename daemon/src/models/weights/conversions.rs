//! What the weights of a file's own formats have become, for the log.

use std::collections::BTreeMap;

use tracing::info;

use crate::models::packed::BlockType;

/// Matrices of GGUF files that are not held as they are stored.
#[derive(Debug, Default)]
pub(super) struct Conversions(BTreeMap<BlockType, Conversion>);

#[derive(Debug, Default)]
struct Conversion {
    num_matrices: u32,
    stored_bytes: u64,
    held_bytes: u64,
}

impl Conversions {
    /// Counts a matrix of blocks.
    pub(super) fn add(&mut self, block: BlockType, [stored_bytes, held_bytes]: [u64; 2]) {
        let sum = self.0.entry(block).or_default();
        sum.num_matrices += 1;
        sum.stored_bytes += stored_bytes;
        sum.held_bytes += held_bytes;
    }

    /// Says for each type of blocks what its conversion costs.
    pub(super) fn report(&self) {
        let converted = self.0.iter().filter(|(block, _)| !block.is_kept());
        for (block, sum) in converted {
            info!(
                from = block.name(),
                to = block.held_as(),
                num_matrices = sum.num_matrices,
                stored_bytes = sum.stored_bytes,
                held_bytes = sum.held_bytes,
                precision = block.precision(),
                "weights were converted",
            );
        }
    }
}
