//! Blocks of GGUF files: rows of blocks, each 32 or 256 weights with their scales.
//!
//! Blocks whose weights are `scale * integer + bias` by 32 are held as that. Others are held with
//! eight bits: exactly if their values are whole multiples of a scale, else rounded to some 255 steps
//! of the range of each 32.
//!
//! # Source
//! ggml `ggml-common.h` (layouts) and `ggml-quants.c` (`dequantize_row_*`).

mod blocks;
mod group;
mod k_quants;

use std::os::unix::fs::FileExt;

use metal_rpc_kernels::QuantizedFormat;
use rayon::prelude::*;

use self::group::{GROUP, Group};
use super::{FloatTarget, Held, Target};
use crate::models::{
    Dtype, ModelError,
    checkpoint::{TensorEntry, WeightsFile},
    convert::Element,
};

/// Bytes that one task reads at a time.
const CHUNK_SIZE_BYTES: usize = 256 << 10;

/// What a block consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "ggml's names")]
pub enum BlockType {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Iq4Nl,
    Iq4Xs,
    Mxfp4,
}

/// One line for each type: it, ggml's number and name of it, weights and bytes of a block, bits
/// that an integer of it is held with, and whether that is exact but for the rounding of scales.
type Row = (BlockType, u32, &'static str, usize, usize, u8, bool);

const TYPES: [Row; 13] = [
    (BlockType::Q4_0, 2, "Q4_0", 32, 18, 4, true),
    (BlockType::Q4_1, 3, "Q4_1", 32, 20, 4, true),
    (BlockType::Q5_0, 6, "Q5_0", 32, 22, 5, true),
    (BlockType::Q5_1, 7, "Q5_1", 32, 24, 5, true),
    (BlockType::Q8_0, 8, "Q8_0", 32, 34, 8, true),
    (BlockType::Q2K, 10, "Q2_K", 256, 84, 8, false),
    (BlockType::Q3K, 11, "Q3_K", 256, 110, 8, true),
    (BlockType::Q4K, 12, "Q4_K", 256, 144, 4, true),
    (BlockType::Q5K, 13, "Q5_K", 256, 176, 5, true),
    (BlockType::Q6K, 14, "Q6_K", 256, 210, 8, false),
    (BlockType::Iq4Nl, 20, "IQ4_NL", 32, 18, 8, true),
    (BlockType::Iq4Xs, 23, "IQ4_XS", 256, 136, 8, true),
    (BlockType::Mxfp4, 39, "MXFP4", 32, 17, 4, true),
];

impl BlockType {
    fn row(self) -> &'static Row {
        let row = TYPES.iter().find(|row| row.0 == self);
        row.expect("every type has a line")
    }

    /// The type with ggml's number.
    #[must_use]
    pub fn from_id(id: u32) -> Option<Self> {
        TYPES.iter().find(|row| row.1 == id).map(|row| row.0)
    }

    /// The names of all.
    #[must_use]
    pub fn names() -> Vec<&'static str> {
        TYPES.iter().map(|row| row.2).collect()
    }

    /// ggml's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.row().2
    }

    /// Weights of a block.
    #[must_use]
    pub fn weights(self) -> usize {
        self.row().3
    }

    /// Bytes of a block.
    #[must_use]
    pub fn size_bytes(self) -> usize {
        self.row().4
    }

    /// How its weights are held.
    pub(in crate::models) fn held(self) -> Held {
        if self == Self::Mxfp4 {
            return Held {
                format: QuantizedFormat::Mxfp4,
                shared: None,
            };
        }
        let format = QuantizedFormat::Affine {
            bits: self.row().5,
            group_size: 32,
        };
        Held {
            format,
            shared: Some(Dtype::Float16),
        }
    }

    /// Whether it is held as it is stored: integers and scales of 32 weights.
    #[must_use]
    pub fn is_kept(self) -> bool {
        matches!(
            self,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 | Self::Mxfp4
        )
    }

    /// How its weights are held, in words.
    #[must_use]
    pub fn held_as(self) -> &'static str {
        match self.row().5 {
            4 => "4 bits in groups of 32",
            5 => "5 bits in groups of 32",
            _ => "8 bits in groups of 32",
        }
    }

    /// What its conversion costs in precision, in words.
    #[must_use]
    pub fn precision(self) -> &'static str {
        match self.row().6 {
            true => "scales are rounded to float16",
            false => "weights are rounded to about 1/255 of the range of 32",
        }
    }

    /// Bits of a weight in memory, its share of scales included.
    #[must_use]
    pub fn held_bits(self) -> u64 {
        // A scale and a bias of 16 bits are one bit a weight; MXFP4's exponent rounds up to one.
        u64::from(self.row().5) + 1
    }
}

/// A matrix of blocks.
#[derive(Debug)]
pub(in crate::models) struct Ggml {
    pub(in crate::models) entry: TensorEntry,
    pub(in crate::models) block: BlockType,
}

impl Ggml {
    pub(super) fn fill<T: Element>(
        &self,
        files: &[WeightsFile],
        format: QuantizedFormat,
        target: FloatTarget<'_, T>,
    ) -> Result<(), ModelError> {
        let bits = format.bits().unsigned_abs() as usize;
        let num_rows = self.entry.shape[0];
        let per_row = self.entry.shape[1] / GROUP;
        let rows = (CHUNK_SIZE_BYTES / self.row_size_bytes()).max(1);
        let rows = rows.min(num_rows);
        let groups = rows * per_row;
        target
            .packed
            .par_chunks_mut(groups * bits)
            .zip(target.scales.par_chunks_mut(groups))
            .zip(target.biases.par_chunks_mut(groups))
            .enumerate()
            .try_for_each(|(task, ((packed, scales), biases))| {
                let bytes = self.read_rows(files, task * rows, scales.len() / per_row)?;
                let mut decoded = [Group::EMPTY; 8];
                let decoded = &mut decoded[..self.block.weights() / GROUP];
                for (index, block) in bytes.chunks_exact(self.block.size_bytes()).enumerate() {
                    self.block.decode(block, decoded);
                    for (offset, group) in decoded.iter().enumerate() {
                        let at = index * decoded.len() + offset;
                        pack(&group.integers, bits, &mut packed[at * bits..][..bits]);
                        T::narrow(&[group.scale], &mut scales[at..=at]);
                        T::narrow(&[group.bias], &mut biases[at..=at]);
                    }
                }
                Ok(())
            })
    }

    /// Exponents as they are, and codes in ascending order: a block has the first sixteen in the
    /// low halves of its bytes, the others in the high ones.
    pub(super) fn fill_mxfp4(
        &self,
        files: &[WeightsFile],
        target: Target<'_>,
    ) -> Result<(), ModelError> {
        let per_row = self.entry.shape[1] / GROUP;
        let rows = (CHUNK_SIZE_BYTES / self.row_size_bytes()).max(1);
        let groups = rows.min(self.entry.shape[0]) * per_row;
        target
            .packed
            .par_chunks_mut(groups * 4)
            .zip(target.scales.par_chunks_mut(groups))
            .enumerate()
            .try_for_each(|(task, (packed, scales))| {
                let first = task * groups / per_row;
                let bytes = self.read_rows(files, first, scales.len() / per_row)?;
                let blocks = bytes.chunks_exact(self.block.size_bytes());
                let targets = scales.iter_mut().zip(packed.chunks_exact_mut(4));
                for (block, (scale, words)) in blocks.zip(targets) {
                    *scale = block[0];
                    pack(&blocks::nibbles(&block[1..]), 4, words);
                }
                Ok(())
            })
    }

    fn row_size_bytes(&self) -> usize {
        self.entry.shape[1] / self.block.weights() * self.block.size_bytes()
    }

    fn read_rows(
        &self,
        files: &[WeightsFile],
        first: usize,
        count: usize,
    ) -> Result<Vec<u8>, ModelError> {
        let file = &files[self.entry.file_index];
        let mut bytes = vec![0; count * self.row_size_bytes()];
        let offset = self.entry.offset_bytes + (first * self.row_size_bytes()) as u64;
        match file.file.read_exact_at(&mut bytes, offset) {
            Ok(()) => Ok(bytes),
            Err(source) => Err(ModelError::Read {
                path: file.path.clone(),
                source,
            }),
        }
    }
}

/// Thirty-two integers of `bits` bits as `bits` words.
fn pack(integers: &[u8; GROUP], bits: usize, words: &mut [u32]) {
    let (mut word, mut filled) = (0_u64, 0);
    let mut words = words.iter_mut();
    for &integer in integers {
        word |= u64::from(integer) << filled;
        filled += bits;
        if filled >= 32 {
            let low = u32::try_from(word & u64::from(u32::MAX)).expect("32 bits");
            *words.next().expect("`bits` words") = low;
            word >>= 32;
            filled -= 32;
        }
    }
}
