//! Up to 16 rows, on the matrix unit.
//!
//! Sums of a group are two tiles, `[16 outputs, rows]`: high and low bytes of the rows. They are
//! stored, and brought to f32 while the unit multiplies the next group; the floats stay in registers.
//! Two groups' tiles are 4 KiB: were it more, reading one's would wait for the stores of others, whose
//! addresses the CPU first compares in their lowest twelve bits alone.

use std::{
    arch::x86_64::{
        __m512, _MM_HINT_T1, _mm_prefetch, _mm512_add_epi32, _mm512_cvtepi32_ps, _mm512_fmadd_ps,
        _mm512_load_si512, _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_mul_ps,
        _mm512_set1_ps, _mm512_setzero_ps, _mm512_slli_epi32,
    },
    mem::MaybeUninit,
};

use super::{
    rows::GroupedRows,
    weights::{Tiles, Unpacked},
};
use crate::product::{
    amx::{ByteOperands, ByteUnit, COLUMNS, OUTPUTS, TILE_SIZE_BYTES},
    panels::{Line, PAIR_OUTPUTS},
    transposed::transposed,
};

/// Bytes of the two tiles of a group.
const GROUP_SIZE_BYTES: usize = 2 * TILE_SIZE_BYTES;

/// Bytes of a row of a tile of sums.
const ROW_SIZE_BYTES: usize = 64;

/// `[2, high and low, 16 outputs, 16 rows]` i32, of two groups.
type Integers = MaybeUninit<[Line; 2 * GROUP_SIZE_BYTES / size_of::<Line>()]>;

/// What to multiply.
pub(super) struct Many<'a> {
    pub(super) tiles: Tiles,
    /// Weights that come after them, to be asked for; they need not exist.
    pub(super) next: *const u8,
    /// Bytes of them for each group of a tile.
    pub(super) next_size_bytes: usize,
    /// At most 32.
    pub(super) outputs: usize,
    pub(super) weights: &'a Unpacked,
    pub(super) shape: GroupedRows,
    pub(super) x: *const u8,
    pub(super) y: *mut f32,
    pub(super) y_stride: usize,
}

impl Many<'_> {
    /// # Safety
    /// Codes, packed rows and room for results are there; the unit is set up for the rows.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub(super) unsafe fn run(self, unit: &ByteUnit) {
        for tile in 0..self.outputs.div_ceil(OUTPUTS) {
            // SAFETY: the caller's promise.
            unsafe { self.tile(unit, tile) };
        }
    }

    /// Sixteen outputs.
    ///
    /// # Safety
    /// As [`Self::run`].
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn tile(&self, unit: &ByteUnit, tile: usize) {
        let mut integers = Integers::uninit();
        let integers = integers.as_mut_ptr().cast::<u8>();
        let num_groups = self.shape.inputs / self.shape.group_size;
        let mut floats = [_mm512_setzero_ps(); OUTPUTS];
        // SAFETY: the caller's promise; there is room for two groups.
        unsafe {
            self.multiply(unit, (tile, 0));
            unit.store(integers);
            for group in 0..num_groups {
                let [this, other] = match group % 2 {
                    0 => [0, GROUP_SIZE_BYTES],
                    _ => [GROUP_SIZE_BYTES, 0],
                };
                if group + 1 < num_groups {
                    self.multiply(unit, (tile, group + 1));
                }
                self.add((tile, group), integers.add(this), &mut floats);
                if group + 1 < num_groups {
                    unit.store(integers.add(other));
                }
            }
            self.write(tile, floats);
        }
    }

    /// Multiplies a group into two tiles of sums, which stay in the unit.
    ///
    /// # Safety
    /// As [`Self::run`], and the group exists.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn multiply(&self, unit: &ByteUnit, (tile, group): (usize, usize)) {
        let shape = &self.shape;
        let input = group * shape.group_size;
        let x = self.x.wrapping_add(input * shape.rows);
        let operands = ByteOperands {
            weights: self.tiles.weights[tile].wrapping_add(input),
            row_size_bytes: self.tiles.row_size_bytes,
            x: [x, x.wrapping_add(shape.low())],
            steps: shape.group_size / shape.step_inputs,
        };
        let num_groups = shape.inputs / shape.group_size;
        let next = (tile * num_groups + group) * self.next_size_bytes;
        let next = self.next.wrapping_add(next);
        for at in (0..self.next_size_bytes).step_by(ROW_SIZE_BYTES) {
            _mm_prefetch::<_MM_HINT_T1>(next.wrapping_add(at).cast());
        }
        // SAFETY: the caller's promise.
        unsafe { unit.multiply(&operands) };
    }

    /// Adds a group to the sums.
    ///
    /// # Safety
    /// As [`Self::multiply`]; its tiles are at `integers`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn add(
        &self,
        (tile, group): (usize, usize),
        integers: *const u8,
        floats: &mut [__m512; OUTPUTS],
    ) {
        let rows = self.shape.rows;
        let mask = u16::MAX >> (COLUMNS - rows);
        let of_rows = self.x.wrapping_add(self.shape.floats(group)).cast::<f32>();
        let shared = self.weights.group(group).wrapping_add(tile * OUTPUTS);
        // SAFETY: the caller's promise; what the mask leaves out is not read.
        unsafe {
            let units = _mm512_maskz_loadu_ps(mask, of_rows);
            let row_sums = _mm512_maskz_loadu_ps(mask, of_rows.add(rows));
            for (output, sum) in floats.iter_mut().enumerate() {
                let high = integers.add(output * ROW_SIZE_BYTES);
                let low = _mm512_load_si512(high.add(TILE_SIZE_BYTES).cast());
                let high = _mm512_slli_epi32::<8>(_mm512_load_si512(high.cast()));
                let scale = _mm512_set1_ps(*shared.add(output));
                let bias = _mm512_set1_ps(*shared.add(PAIR_OUTPUTS + output));
                let product = _mm512_cvtepi32_ps(_mm512_add_epi32(high, low));
                let product = _mm512_mul_ps(scale, product);
                let product = _mm512_fmadd_ps(bias, row_sums, product);
                *sum = _mm512_fmadd_ps(units, product, *sum);
            }
        }
    }

    /// Writes the results.
    ///
    /// # Safety
    /// As [`Self::run`].
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn write(&self, tile: usize, sums: [__m512; OUTPUTS]) {
        let first = tile * OUTPUTS;
        let mask = u16::MAX >> (OUTPUTS - OUTPUTS.min(self.outputs - first));
        let results = transposed(sums);
        for (row, &results) in results.iter().enumerate().take(self.shape.rows) {
            // SAFETY: the caller's promise.
            unsafe {
                let y = self.y.add(row * self.y_stride + first);
                _mm512_mask_storeu_ps(y, mask, results);
            }
        }
    }
}
