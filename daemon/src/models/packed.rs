//! Quantised matrices of checkpoints: what formats there are, and how each becomes one that kernels
//! know.
//!
//! Whatever a file's layout, a matrix is held as a [`QuantizedMatrix`]: the integers of an output
//! one after the other, with a scale and a bias a group of inputs. That is MLX's own layout, so
//! every backend takes it. What cannot be held exactly is converted, and the log says so.
//!
//! # Layout
//! - [`mlx`]: read into place
//! - [`awq`], [`gptq`]: packed across outputs or along inputs, with zero points; turned around
//! - [`ggml`]: blocks of GGUF files
//!
//! # Cost
//! What is turned around passes through a buffer of one tensor's packed integers (AWQ, GPTQ) or of
//! a few rows (GGUF); weights are never in memory twice.

mod awq;
mod ggml;
mod gptq;
mod mlx;
mod zero_points;

use bytemuck::cast_slice_mut;
use half::{bf16, f16};
use metal_rpc_kernels::{self as kernels, QuantizedFormat, QuantizedMatrix};

use super::{
    Dtype, ModelError,
    checkpoint::{TensorEntry, WeightsFile},
    convert::Element,
};

pub use self::ggml::BlockType;
pub(super) use self::{awq::Awq, ggml::Ggml, gptq::Gptq, mlx::Mlx, zero_points::ZeroPointed};

/// How a quantised matrix will be held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) format: QuantizedFormat,
    /// Of scales and biases; `None` where scales are exponents.
    pub(super) shared: Option<Dtype>,
}

/// A quantised matrix in a checkpoint, its shapes checked.
#[derive(Debug)]
pub(super) struct PackedSource {
    pub(super) rows: usize,
    pub(super) inputs: usize,
    pub(super) held: Held,
    pub(super) stored: Stored,
    /// Rows stand in pairs, by this number of heads, and must be moved to halves.
    pub(super) paired_heads: Option<usize>,
}

/// Where its numbers are.
#[derive(Debug)]
pub(super) enum Stored {
    Mlx(Mlx),
    Awq(Awq),
    Gptq(Gptq),
    Ggml(Ggml),
}

/// Memory of some rows of a matrix.
pub(super) struct Target<'a> {
    pub(super) packed: &'a mut [u32],
    pub(super) scales: &'a mut [u8],
    /// Empty for a format without.
    pub(super) biases: &'a mut [u8],
}

impl<'a> Target<'a> {
    /// The first `part` of `whole` rows, and the rest.
    fn split(self, part: usize, whole: usize) -> (Self, Self) {
        let at = |len: usize| len / whole.max(1) * part;
        let (packed, packed_rest) = self.packed.split_at_mut(at(self.packed.len()));
        let (scales, scales_rest) = self.scales.split_at_mut(at(self.scales.len()));
        let (biases, biases_rest) = self.biases.split_at_mut(at(self.biases.len()));
        let first = Self {
            packed,
            scales,
            biases,
        };
        let rest = Self {
            packed: packed_rest,
            scales: scales_rest,
            biases: biases_rest,
        };
        (first, rest)
    }

    /// Scales and biases as floats of a type.
    fn floats<T: Element>(self) -> FloatTarget<'a, T> {
        FloatTarget {
            packed: self.packed,
            scales: cast_slice_mut(self.scales),
            biases: cast_slice_mut(self.biases),
        }
    }
}

/// A [`Target`] whose scales and biases are floats.
struct FloatTarget<'a, T> {
    packed: &'a mut [u32],
    scales: &'a mut [T],
    biases: &'a mut [T],
}

impl PackedSource {
    /// Bytes that are read.
    pub(super) fn size_bytes(&self) -> u64 {
        match &self.stored {
            Stored::Mlx(stored) => stored.size_bytes(),
            Stored::Awq(stored) => stored.0.size_bytes(),
            Stored::Gptq(stored) => stored.0.size_bytes(),
            Stored::Ggml(stored) => stored.entry.size_bytes,
        }
    }

    fn fill(&self, files: &[WeightsFile], target: Target<'_>) -> Result<(), ModelError> {
        let mut target = target;
        self.read(files, &mut target)?;
        if let Some(heads) = self.paired_heads {
            pairs_to_halves(bytemuck::cast_slice_mut(target.packed), self.rows, heads);
            pairs_to_halves(target.scales, self.rows, heads);
            pairs_to_halves(target.biases, self.rows, heads);
        }
        Ok(())
    }

    fn read(&self, files: &[WeightsFile], target: &mut Target<'_>) -> Result<(), ModelError> {
        let target = Target {
            packed: &mut *target.packed,
            scales: &mut *target.scales,
            biases: &mut *target.biases,
        };
        match self.held.shared {
            None => match &self.stored {
                Stored::Mlx(stored) => stored.fill_exponents(files, target),
                Stored::Ggml(stored) => stored.fill_mxfp4(files, target),
                Stored::Awq(_) | Stored::Gptq(_) => unreachable!("they have zero points"),
            },
            Some(Dtype::Float32) => self.read_floats::<f32>(files, target),
            Some(Dtype::Float16) => self.read_floats::<f16>(files, target),
            Some(Dtype::Bfloat16) => self.read_floats::<bf16>(files, target),
        }
    }

    fn read_floats<T: Element>(
        &self,
        files: &[WeightsFile],
        target: Target<'_>,
    ) -> Result<(), ModelError> {
        let target = target.floats::<T>();
        match &self.stored {
            Stored::Mlx(stored) => stored.fill(files, target),
            Stored::Awq(stored) => stored.fill(files, target),
            Stored::Gptq(stored) => stored.fill(files, target),
            Stored::Ggml(stored) => stored.fill(files, self.held.format, target),
        }
    }
}

/// Reads sources that are held alike as one matrix, rows of the first first.
pub(super) fn build(
    sources: &[PackedSource],
    files: &[WeightsFile],
) -> Result<QuantizedMatrix, ModelError> {
    let (held, inputs) = (sources[0].held, sources[0].inputs);
    let rows: usize = sources.iter().map(|source| source.rows).sum();
    let group_size = held.format.group_size().unsigned_abs() as usize;
    let bits = held.format.bits().unsigned_abs() as usize;
    let dims = |columns: usize| [rows, columns].map(|dim| i32::try_from(dim).expect("checked"));
    let (words, groups) = (dims(inputs / 32 * bits), dims(inputs / group_size));
    let fill = |mut target: Target<'_>| {
        let mut left = rows;
        for source in sources {
            let (part, rest) = target.split(source.rows, left);
            source.fill(files, part)?;
            (target, left) = (rest, left - source.rows);
        }
        Ok::<(), ModelError>(())
    };
    let mut shared = None;
    let packed = kernels::filled(&words, mlx_rs::Dtype::Uint32, |packed| {
        let packed = cast_slice_mut(packed);
        let mut biases = None;
        let dtype = held.shared.map_or(mlx_rs::Dtype::Uint8, Dtype::mlx);
        let scales = kernels::filled(&groups, dtype, |scales| {
            if held.shared.is_none() {
                let biases = &mut [];
                return fill(Target {
                    packed,
                    scales,
                    biases,
                });
            }
            biases = Some(kernels::filled(&groups, dtype, |biases| {
                fill(Target {
                    packed,
                    scales,
                    biases,
                })
            })?);
            Ok(())
        })?;
        shared = Some((scales, biases));
        Ok::<(), ModelError>(())
    })?;
    let (scales, biases) = shared.expect("filled");
    Ok(QuantizedMatrix::new(held.format, packed, scales, biases)?)
}

/// Moves the rows of each head from interleaved pairs, as GGUF files have them, to two halves.
pub(super) fn pairs_to_halves(rows: &mut [u8], num_rows: usize, num_heads: usize) {
    if rows.is_empty() {
        return;
    }
    let head_rows = num_rows / num_heads;
    let row_size_bytes = rows.len() / num_rows;
    for head in rows.chunks_exact_mut(head_rows * row_size_bytes) {
        let pairs = head.to_vec();
        for (index, pair) in pairs.chunks_exact(2 * row_size_bytes).enumerate() {
            let (first, second) = pair.split_at(row_size_bytes);
            let half = head_rows / 2 * row_size_bytes;
            let at = index * row_size_bytes;
            head[at..at + row_size_bytes].copy_from_slice(first);
            head[half + at..half + at + row_size_bytes].copy_from_slice(second);
        }
    }
}

/// Reads a tensor's bytes into place.
fn read_bytes(
    files: &[WeightsFile],
    entry: &TensorEntry,
    target: &mut [u8],
) -> Result<(), ModelError> {
    let file = &files[entry.file_index];
    super::convert::read_bytes(&file.file, entry.offset_bytes, target).map_err(|source| {
        ModelError::Read {
            path: file.path.clone(),
            source,
        }
    })
}
