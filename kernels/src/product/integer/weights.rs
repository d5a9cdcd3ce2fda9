//! The weights of 32 outputs as both ways read them: codes as bytes, and what groups share with the
//! outputs side by side.

use std::arch::x86_64::{
    __m512i, _mm512_and_si512, _mm512_loadu_ps, _mm512_maskz_loadu_epi8, _mm512_permutex2var_epi64,
    _mm512_permutexvar_epi64, _mm512_set1_epi8, _mm512_setr_epi64, _mm512_setzero_ps,
    _mm512_srli_epi16, _mm512_srlv_epi64, _mm512_storeu_ps, _mm512_storeu_si512,
};

use super::{Codes, SixteenGroups, Span, Weight, rows::BYTES};
use crate::{
    product::{
        amx::{OUTPUTS, PAIR},
        panels::{Line, PAIR_OUTPUTS},
        transposed::transposed,
    },
    scratch::grow,
};

/// Groups that are turned together.
const GROUPS: usize = 16;

/// Codes as tiles are loaded from them.
#[derive(Clone, Copy)]
pub(super) struct Tiles {
    pub(super) weights: [*const u8; PAIR],
    pub(super) row_size_bytes: usize,
}

/// What a thread keeps of 32 outputs.
#[derive(Default)]
pub(super) struct Unpacked {
    /// `[32 outputs, row]` bytes: codes.
    bytes: Vec<Line>,
    /// `[groups, 2, 32 outputs]` f32: scales, biases.
    shared: Vec<Line>,
}

impl Unpacked {
    /// Scales of all outputs for a group; biases follow.
    pub(super) fn group(&self, group: usize) -> *const f32 {
        let lines = 2 * PAIR_OUTPUTS / OUTPUTS;
        self.shared[group * lines..].as_ptr().cast()
    }

    /// Brings what groups share side by side; outputs that do not exist have zeros.
    ///
    /// # Safety
    /// The outputs exist, and the CPU has AVX-512 (F, BW, DQ, VL).
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub(super) unsafe fn share<W: Weight>(&mut self, weight: W, outputs: Span, num_groups: usize) {
        let lines = 2 * PAIR_OUTPUTS / OUTPUTS;
        grow(
            &mut self.shared,
            num_groups.next_multiple_of(GROUPS) * lines,
        );
        let to = self.shared.as_mut_ptr().cast::<f32>();
        let mut shared = [SixteenGroups::default(); OUTPUTS];
        for tile in 0..outputs.len.div_ceil(OUTPUTS) {
            let count = OUTPUTS.min(outputs.len - tile * OUTPUTS);
            shared[count..].fill(SixteenGroups::default());
            for group in (0..num_groups).step_by(GROUPS) {
                let groups = Span {
                    first: group,
                    len: GROUPS.min(num_groups - group),
                };
                for (output, shared) in shared[..count].iter_mut().enumerate() {
                    // SAFETY: the caller's promise.
                    unsafe {
                        let output = outputs.first + tile * OUTPUTS + output;
                        weight.shared(output, groups, shared);
                    }
                }
                let mut turned = [[_mm512_setzero_ps(); OUTPUTS]; 2];
                for (output, shared) in shared.iter().enumerate() {
                    // SAFETY: registers have the lengths of the arrays.
                    unsafe {
                        turned[0][output] = _mm512_loadu_ps(shared.scales.as_ptr());
                        turned[1][output] = _mm512_loadu_ps(shared.biases.as_ptr());
                    }
                }
                for (kind, values) in turned.into_iter().enumerate() {
                    for (index, &values) in transposed(values).iter().enumerate().take(groups.len) {
                        let at = ((group + index) * 2 + kind) * PAIR_OUTPUTS + tile * OUTPUTS;
                        // SAFETY: there is room for all groups.
                        unsafe { _mm512_storeu_ps(to.add(at), values) };
                    }
                }
            }
        }
    }

    /// Two tiles of codes: as they stand, or unpacked and filled up with zeros.
    ///
    /// # Safety
    /// There are so many outputs and inputs, and the CPU has AVX-512 (F, BW).
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) unsafe fn tiles(&mut self, codes: Codes, outputs: usize, inputs: usize) -> Tiles {
        if codes.coding.bits == 8 && outputs == PAIR_OUTPUTS {
            let second = codes.ptr.wrapping_add(OUTPUTS * codes.row_size_bytes);
            return Tiles {
                weights: [codes.ptr, second],
                row_size_bytes: codes.row_size_bytes,
            };
        }
        // A line more, lest all rows meet in one set of the cache.
        let row_lines = inputs.div_ceil(BYTES) | 1;
        grow(&mut self.bytes, PAIR_OUTPUTS * row_lines);
        let tiles = self.bytes.as_mut_ptr().cast::<u8>();
        let row_size_bytes = row_lines * BYTES;
        for output in 0..PAIR_OUTPUTS {
            let to = tiles.wrapping_add(output * row_size_bytes);
            if output >= outputs {
                // SAFETY: there is room for so many rows.
                unsafe { to.write_bytes(0, row_size_bytes) };
                continue;
            }
            let row = Codes {
                ptr: codes.ptr.wrapping_add(output * codes.row_size_bytes),
                ..codes
            };
            // SAFETY: inputs of an output that exists, and room for whole lines.
            unsafe {
                match codes.coding.bits {
                    8 => to.copy_from_nonoverlapping(row.ptr, inputs),
                    _ => halves(row, inputs, to),
                }
            }
        }
        Tiles {
            weights: [tiles, tiles.wrapping_add(OUTPUTS * row_size_bytes)],
            row_size_bytes,
        }
    }
}

/// Writes the codes of one output, two of which share a byte, in whole lines. Each step has its even
/// inputs first.
///
/// # Safety
/// There are so many codes and there is room, and the CPU has AVX-512 (F, BW).
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn halves(codes: Codes, inputs: usize, to: *mut u8) {
    let [first, second] = match codes.coding.group_size {
        32 => [
            _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11),
            _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15),
        ],
        _ => [
            _mm512_setr_epi64(0, 1, 2, 3, 8, 9, 10, 11),
            _mm512_setr_epi64(4, 5, 6, 7, 12, 13, 14, 15),
        ],
    };
    let four_bits = _mm512_set1_epi8(15);
    let size_bytes = inputs / 2;
    for at in (0..size_bytes).step_by(BYTES) {
        let mask = u64::MAX >> BYTES.saturating_sub(size_bytes - at);
        // SAFETY: the caller's promise; what the mask leaves out is not read.
        unsafe {
            let bytes = _mm512_maskz_loadu_epi8(mask, codes.ptr.add(at).cast());
            let even = _mm512_and_si512(bytes, four_bits);
            let odd = _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), four_bits);
            let to = to.add(2 * at);
            _mm512_storeu_si512(to.cast(), _mm512_permutex2var_epi64(even, first, odd));
            if 2 * at + BYTES < inputs {
                let line = _mm512_permutex2var_epi64(even, second, odd);
                _mm512_storeu_si512(to.add(BYTES).cast(), line);
            }
        }
    }
}

/// 64 codes of one output from `input` on, or the 32 that are left and zeros; of those that share a
/// byte, each step has its even inputs first.
///
/// # Safety
/// The codes exist, and the CPU has AVX-512 (F, BW).
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn line(codes: Codes, input: usize, len: usize) -> __m512i {
    let size_bytes = len * codes.coding.bits / 8;
    let mask = u64::MAX >> (BYTES - size_bytes);
    let from = codes.ptr.wrapping_add(input * codes.coding.bits / 8);
    // SAFETY: the caller's promise; what the mask leaves out is not read.
    let bytes = unsafe { _mm512_maskz_loadu_epi8(mask, from.cast()) };
    if codes.coding.bits == 8 {
        return bytes;
    }
    let (order, shifts) = if codes.coding.group_size < BYTES {
        (
            _mm512_setr_epi64(0, 1, 0, 1, 2, 3, 2, 3),
            _mm512_setr_epi64(0, 0, 4, 4, 0, 0, 4, 4),
        )
    } else {
        (
            _mm512_setr_epi64(0, 1, 2, 3, 0, 1, 2, 3),
            _mm512_setr_epi64(0, 0, 0, 0, 4, 4, 4, 4),
        )
    };
    let twice = _mm512_permutexvar_epi64(order, bytes);
    _mm512_and_si512(_mm512_srlv_epi64(twice, shifts), _mm512_set1_epi8(15))
}
