//! One or two rows, in vector registers.
//!
//! A register has 64 codes of one output. Its products with the bytes of a row are added up in lanes
//! (VNNI), and the lanes of sixteen outputs are turned and added, so that the sums of a group are
//! a register with the outputs side by side.

use std::arch::x86_64::{
    __m512, __m512i, _MM_HINT_T1, _mm_prefetch, _mm512_add_epi32, _mm512_cvtepi32_ps,
    _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512,
    _mm512_mask_storeu_ps, _mm512_maskz_loadu_epi8, _mm512_mul_ps, _mm512_set1_ps,
    _mm512_setzero_ps, _mm512_setzero_si512, _mm512_shuffle_i32x4, _mm512_slli_epi32,
    _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
};

use super::{
    Codes, Coding,
    rows::{BYTES, GroupedRows},
    weights::{Unpacked, line},
};
use crate::product::{amx::OUTPUTS, panels::PAIR_OUTPUTS};

/// Outputs whose lanes are brought together first.
const FOUR: usize = 4;

/// What to multiply.
pub(super) struct Few<'a> {
    pub(super) codes: Codes,
    /// At most 32.
    pub(super) outputs: usize,
    pub(super) weights: &'a Unpacked,
    pub(super) shape: GroupedRows,
    pub(super) x: *const u8,
    pub(super) y: *mut f32,
    pub(super) y_stride: usize,
}

impl Few<'_> {
    /// # Safety
    /// Codes, packed rows and room for results are there, and the CPU has AVX-512 (F, BW, DQ, VL,
    /// VNNI).
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    pub(super) unsafe fn run(self) {
        // SAFETY: the caller's promise; a group has as many inputs as is said.
        unsafe {
            match (self.codes.coding.bits, self.codes.coding.group_size) {
                (8, 32) => self.rows::<8, 32>(),
                (8, 64) => self.rows::<8, 64>(),
                (8, _) => self.rows::<8, 128>(),
                (_, 32) => self.rows::<4, 32>(),
                (_, 64) => self.rows::<4, 64>(),
                (_, _) => self.rows::<4, 128>(),
            }
        }
    }

    /// # Safety
    /// As [`Self::run`], with the bits and group size of the codes.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn rows<const BITS: usize, const GROUP: usize>(&self) {
        for first in (0..self.outputs).step_by(OUTPUTS) {
            // SAFETY: the caller's promise.
            unsafe {
                match self.shape.rows {
                    1 => self.tile::<BITS, GROUP, 1>(first),
                    _ => self.tile::<BITS, GROUP, 2>(first),
                }
            }
        }
    }

    /// Sixteen outputs from `first` on.
    ///
    /// # Safety
    /// As [`Self::rows`], and there are `R` rows.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn tile<const BITS: usize, const GROUP: usize, const R: usize>(&self, first: usize) {
        let codes = Codes {
            ptr: (self.codes.ptr).wrapping_add(first * self.codes.row_size_bytes),
            coding: Coding {
                bits: BITS,
                group_size: GROUP,
            },
            ..self.codes
        };
        let count = OUTPUTS.min(self.outputs - first);
        let inputs = self.shape.inputs;
        let piece_inputs = GROUP.max(BYTES);
        let mut sums = [_mm512_setzero_ps(); R];
        let mut next = codes.ptr.wrapping_add(OUTPUTS * codes.row_size_bytes);
        // SAFETY: the caller's promise. What is asked for ahead need not exist.
        unsafe {
            for input in (0..inputs).step_by(piece_inputs) {
                for _ in 0..OUTPUTS * piece_inputs * BITS / 8 / BYTES {
                    _mm_prefetch::<_MM_HINT_T1>(next.cast());
                    next = next.wrapping_add(BYTES);
                }
                let groups = self.lanes::<BITS, GROUP, R>(codes, count, input);
                let group = input / GROUP;
                self.add::<R>(first, group, &groups[0], &mut sums);
                if GROUP < BYTES && input + GROUP < inputs {
                    self.add::<R>(first, group + 1, &groups[1], &mut sums);
                }
            }
            let mask = u16::MAX >> (OUTPUTS - count);
            for (row, &sum) in sums.iter().enumerate() {
                let y = self.y.add(row * self.y_stride + first);
                _mm512_mask_storeu_ps(y, mask, sum);
            }
        }
    }

    /// Products with the inputs from `input` on: a group, or two of 32. Outputs that do not exist have
    /// those of the last.
    ///
    /// # Safety
    /// As [`Self::tile`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn lanes<const BITS: usize, const GROUP: usize, const R: usize>(
        &self,
        codes: Codes,
        count: usize,
        input: usize,
    ) -> [[__m512i; R]; 2] {
        let zero = _mm512_setzero_si512();
        let num_lines = GROUP.div_ceil(BYTES);
        let len = BYTES.min(self.shape.inputs - input);
        let mut rows = [[[zero; 2]; 2]; R];
        for (row, lines) in rows.iter_mut().enumerate() {
            for (nth, parts) in lines.iter_mut().enumerate().take(num_lines) {
                let at = row * self.shape.inputs + input + nth * BYTES;
                for (part, bytes) in parts.iter_mut().enumerate() {
                    let from = self.x.wrapping_add(part * self.shape.low() + at);
                    // SAFETY: inputs of a packed row; the mask leaves out what is not there.
                    *bytes = unsafe {
                        match len {
                            BYTES => _mm512_loadu_si512(from.cast()),
                            _ => _mm512_maskz_loadu_epi8(u64::MAX >> (BYTES - len), from.cast()),
                        }
                    };
                }
            }
        }
        let mut fours = [[zero; OUTPUTS / FOUR]; R];
        for four in 0..OUTPUTS / FOUR {
            let mut sums = [[zero; FOUR]; R];
            for nth in 0..FOUR {
                let output = (four * FOUR + nth).min(count - 1);
                let row = Codes {
                    ptr: codes.ptr.wrapping_add(output * codes.row_size_bytes),
                    ..codes
                };
                let mut parts = [[zero; 2]; R];
                for index in 0..num_lines {
                    // SAFETY: codes of an output that exists.
                    let bytes = unsafe { line(row, input + index * BYTES, len) };
                    for (parts, rows) in parts.iter_mut().zip(&rows) {
                        for (part, &row) in parts.iter_mut().zip(&rows[index]) {
                            *part = _mm512_dpbusd_epi32(*part, bytes, row);
                        }
                    }
                }
                for (sums, &[high, low]) in sums.iter_mut().zip(&parts) {
                    sums[nth] = _mm512_add_epi32(_mm512_slli_epi32::<8>(high), low);
                }
            }
            for (fours, sums) in fours.iter_mut().zip(sums) {
                fours[four] = added_four(sums);
            }
        }
        let mut groups = [[zero; R]; 2];
        for (row, fours) in fours.into_iter().enumerate() {
            let [first, second] = quarters(fours);
            if GROUP < BYTES {
                groups[0][row] = first;
                groups[1][row] = second;
            } else {
                groups[0][row] = _mm512_add_epi32(first, second);
            }
        }
        groups
    }

    /// Adds a group to the sums.
    ///
    /// # Safety
    /// As [`Self::tile`], and the group exists.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn add<const R: usize>(
        &self,
        first: usize,
        group: usize,
        products: &[__m512i; R],
        sums: &mut [__m512; R],
    ) {
        let shared = self.weights.group(group).wrapping_add(first);
        let floats = self.x.wrapping_add(self.shape.floats(group)).cast::<f32>();
        // SAFETY: the caller's promise.
        unsafe {
            let scale = _mm512_loadu_ps(shared);
            let bias = _mm512_loadu_ps(shared.add(PAIR_OUTPUTS));
            for row in 0..R {
                let unit = _mm512_set1_ps(*floats.add(row));
                let sum = _mm512_set1_ps(*floats.add(R + row));
                let product = _mm512_mul_ps(scale, _mm512_cvtepi32_ps(products[row]));
                let product = _mm512_fmadd_ps(bias, sum, product);
                sums[row] = _mm512_fmadd_ps(unit, product, sums[row]);
            }
        }
    }
}

/// Lane `i` of each quarter is the sum of that quarter of vector `i`.
#[inline]
#[target_feature(enable = "avx512f")]
fn added_four([a, b, c, d]: [__m512i; FOUR]) -> __m512i {
    let ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    let cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd))
}

/// Quarter `i` is the sum of the first two quarters of vector `i`, then that of the last two.
#[inline]
#[target_feature(enable = "avx512f")]
fn quarters([a, b, c, d]: [__m512i; 4]) -> [__m512i; 2] {
    let ab = _mm512_add_epi32(
        _mm512_shuffle_i32x4::<0b10_00_10_00>(a, b),
        _mm512_shuffle_i32x4::<0b11_01_11_01>(a, b),
    );
    let cd = _mm512_add_epi32(
        _mm512_shuffle_i32x4::<0b10_00_10_00>(c, d),
        _mm512_shuffle_i32x4::<0b11_01_11_01>(c, d),
    );
    [
        _mm512_shuffle_i32x4::<0b10_00_10_00>(ab, cd),
        _mm512_shuffle_i32x4::<0b11_01_11_01>(ab, cd),
    ]
}
