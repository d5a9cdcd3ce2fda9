//! The weights of 32 outputs as both ways read them: codes as bytes, and what groups share with the
//! outputs side by side.

use std::arch::x86_64::{
    __m512i, _mm512_and_si512, _mm512_loadu_ps, _mm512_mask_storeu_epi8, _mm512_maskz_loadu_epi8,
    _mm512_permutexvar_epi64, _mm512_set1_epi8, _mm512_setr_epi64, _mm512_setzero_ps,
    _mm512_srlv_epi64, _mm512_storeu_ps,
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
        for tile in 0..outputs.len.div_ceil(OUTPUTS) {
            for group in (0..num_groups).step_by(GROUPS) {
                let count = GROUPS.min(num_groups - group);
                let mut scales = [_mm512_setzero_ps(); OUTPUTS];
                let mut biases = scales;
                for output in 0..OUTPUTS.min(outputs.len - tile * OUTPUTS) {
                    let mut shared = SixteenGroups::default();
                    // SAFETY: the caller's promise; registers have the lengths of the arrays.
                    unsafe {
                        let output_of_weight = outputs.first + tile * OUTPUTS + output;
                        let span = Span {
                            first: group,
                            len: count,
                        };
                        weight.shared(output_of_weight, span, &mut shared);
                        scales[output] = _mm512_loadu_ps(shared.scales.as_ptr());
                        biases[output] = _mm512_loadu_ps(shared.biases.as_ptr());
                    }
                }
                let turned = [transposed(scales), transposed(biases)];
                for (kind, turned) in turned.iter().enumerate() {
                    for (index, &values) in turned.iter().enumerate() {
                        let at = ((group + index) * 2 + kind) * PAIR_OUTPUTS + tile * OUTPUTS;
                        // SAFETY: there is room for whole sixteens of groups.
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
            for input in (0..inputs).step_by(BYTES) {
                let len = BYTES.min(inputs - input);
                // SAFETY: inputs of an output that exists, and room for a whole line.
                unsafe {
                    let line = line(row, input, len);
                    _mm512_mask_storeu_epi8(to.add(input).cast(), u64::MAX, line);
                }
            }
        }
        Tiles {
            weights: [tiles, tiles.wrapping_add(OUTPUTS * row_size_bytes)],
            row_size_bytes,
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
