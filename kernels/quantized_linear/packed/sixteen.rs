//! Few rows times codes of four bits, in AVX-512's registers.
//!
//! The sixteen weights of a group are one register, and each code chooses one of them. A word of 64
//! bits has sixteen codes: shifted by `4 q` in the lanes `2 q` and `2 q + 1`, these begin with the codes
//! `q` and `q + 8`, and rows of `x` are brought into the same order. That is three instructions for
//! sixteen weights (shift, look up, multiply-add), and one for each group.
//!
//! # Invariants
//! Input `i` goes to lane `i % 16`, in ascending order; the lanes are added as
//! [`sixteen_sums`] does once they are back in their own order.

use std::{
    arch::x86_64::{
        __m128i, __m256i, __m512, __m512i, _MM_HINT_T1, _mm_maskz_loadu_epi8, _mm_prefetch,
        _mm256_mask_storeu_ps, _mm256_maskz_loadu_epi16, _mm512_castsi512_ps,
        _mm512_cmpeq_epi32_mask, _mm512_cvtepu8_epi32, _mm512_cvtepu16_epi32, _mm512_cvtph_ps,
        _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_mask_mov_epi32, _mm512_maskz_loadu_ps,
        _mm512_permutexvar_ps, _mm512_set1_epi32, _mm512_set1_epi64, _mm512_set1_ps,
        _mm512_setr_epi32, _mm512_setr_epi64, _mm512_setzero_ps, _mm512_slli_epi32,
        _mm512_srlv_epi64, _mm512_storeu_ps,
    },
    cell::RefCell,
};

use super::{Packed, Shared};
use crate::{
    dot::Rows,
    product::{SixteenGroups, Span, Weight, sixteen_sums},
    quantized_linear::code::Code,
    scratch::grow,
};

/// Floats of a register.
const WIDTH: usize = 16;

/// Inputs whose codes are one cache line.
const LINE_INPUTS: usize = 128;

thread_local! {
    /// Rows as codes meet them, `[rows, inputs]`.
    static ROWS: RefCell<Vec<f32>> = RefCell::default();
}

/// As [`Weight::stream_sixteen`].
///
/// # Safety
/// As there.
pub(super) unsafe fn stream<C: Code>(
    packed: Packed<'_, C>,
    x: Rows<f32>,
    outputs: Span,
    out: *mut f32,
    out_stride: usize,
) {
    ROWS.with_borrow_mut(|rows| {
        let inputs = packed.inputs;
        grow(rows, x.count * inputs);
        // SAFETY: the caller's promises; there is room for the rows.
        unsafe {
            for row in 0..x.count {
                let from = x.ptr.add(row * x.stride);
                reorder(from, rows[row * inputs..][..inputs].as_mut_ptr(), inputs);
            }
            let x = Rows {
                ptr: rows.as_ptr(),
                stride: inputs,
                count: x.count,
            };
            bands(packed, x, outputs, out, out_stride);
        }
    });
}

/// Brings a row into the order of codes.
///
/// # Safety
/// Both have `inputs` elements, a multiple of sixteen, and the CPU has AVX-512.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
unsafe fn reorder(from: *const f32, to: *mut f32, inputs: usize) {
    let order = _mm512_setr_epi32(0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15);
    for input in (0..inputs).step_by(WIDTH) {
        // SAFETY: the caller's promise.
        unsafe {
            let values = _mm512_loadu_ps(from.add(input));
            _mm512_storeu_ps(to.add(input), _mm512_permutexvar_ps(order, values));
        }
    }
}

/// All rows of `x`, reordered, with all `outputs`.
///
/// # Safety
/// As [`stream`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
unsafe fn bands<C: Code>(
    packed: Packed<'_, C>,
    x: Rows<f32>,
    outputs: Span,
    out: *mut f32,
    out_stride: usize,
) {
    let mut row = 0;
    while row < x.count {
        // SAFETY: `row` is a row, and each band gets as many as it takes.
        unsafe {
            let rows = x.from(row);
            let out = out.add(row * out_stride);
            row += match rows.count {
                1 => band::<C, 1, 4>(packed, rows, outputs, out, out_stride),
                2 => band::<C, 2, 4>(packed, rows, outputs, out, out_stride),
                3 => band::<C, 3, 4>(packed, rows, outputs, out, out_stride),
                4..8 => band::<C, 4, 4>(packed, rows, outputs, out, out_stride),
                _ => band::<C, 8, 2>(packed, rows, outputs, out, out_stride),
            };
        }
    }
}

/// The first `R` rows of `x` with all `outputs`. Returns `R`.
///
/// # Safety
/// As [`bands`], and `x` has `R` rows.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
unsafe fn band<C: Code, const R: usize, const O: usize>(
    packed: Packed<'_, C>,
    x: Rows<f32>,
    outputs: Span,
    out: *mut f32,
    out_stride: usize,
) -> usize {
    let mut done = 0;
    // SAFETY: outputs of the span; each result has its place.
    unsafe {
        while done + O <= outputs.len {
            let sums = tile::<C, R, O>(packed, x, outputs.first + done);
            write(&sums, out.add(done), out_stride);
            done += O;
        }
        while done < outputs.len {
            let sums = tile::<C, R, 1>(packed, x, outputs.first + done);
            write(&sums, out.add(done), out_stride);
            done += 1;
        }
    }
    R
}

/// Adds the lanes.
///
/// # Safety
/// There is room for `O` results of each row.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
unsafe fn write<const R: usize, const O: usize>(
    sums: &[[__m512; O]; R],
    out: *mut f32,
    out_stride: usize,
) {
    let order = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
    for (r, sums) in sums.iter().enumerate() {
        let mut ordered = [_mm512_setzero_ps(); O];
        for (to, &sum) in ordered.iter_mut().zip(sums) {
            *to = _mm512_permutexvar_ps(order, sum);
        }
        let results = sixteen_sums(&ordered);
        // SAFETY: the caller's promise.
        unsafe { _mm256_mask_storeu_ps(out.add(r * out_stride), u8::MAX >> (8 - O), results) };
    }
}

/// Products of `R` rows with `O` outputs from `first` on. The next `O` are asked for meanwhile:
/// their rows are too short for the CPU to foresee.
///
/// # Safety
/// The rows and outputs exist, and the CPU has AVX-512.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
unsafe fn tile<C: Code, const R: usize, const O: usize>(
    packed: Packed<'_, C>,
    x: Rows<f32>,
    first: usize,
) -> [[__m512; O]; R] {
    let values = C::VALUES.expect("codes of four bits");
    let num_groups = packed.inputs / packed.group_size;
    let row_size_bytes = packed.output_size_bytes();
    let shifts = _mm512_setr_epi64(0, 4, 8, 12, 16, 20, 24, 28);
    let mut sums = [[_mm512_setzero_ps(); O]; R];
    let mut shared = [SixteenGroups::default(); O];
    let mut tables = [_mm512_setzero_ps(); O];
    let mut weights = [_mm512_setzero_ps(); O];
    // SAFETY: the caller's promises. What is asked for ahead need not exist.
    unsafe {
        let values = _mm512_loadu_ps(values.as_ptr());
        for group in 0..num_groups {
            let index = group % WIDTH;
            if index == 0 {
                let count = WIDTH.min(num_groups - group);
                for (o, shared) in shared.iter_mut().enumerate() {
                    let place = (first + o) * num_groups + group;
                    packed.shared.load_sixteen(place, count, shared);
                    packed.shared.prefetch(place + O * num_groups);
                }
            }
            for o in 0..O {
                let scale = _mm512_set1_ps(shared[o].scales[index]);
                let bias = _mm512_set1_ps(shared[o].biases[index]);
                tables[o] = _mm512_fmadd_ps(values, scale, bias);
            }
            let mut input = group * packed.group_size;
            for _ in 0..packed.group_size / WIDTH {
                let codes = packed.code(first, input);
                if input.is_multiple_of(LINE_INPUTS) {
                    for o in O..2 * O {
                        let line = codes.wrapping_add(o * row_size_bytes);
                        _mm_prefetch::<_MM_HINT_T1>(line.cast());
                    }
                }
                for o in 0..O {
                    let word = codes.wrapping_add(o * row_size_bytes);
                    let word = _mm512_set1_epi64(word.cast::<i64>().read_unaligned());
                    let numbers = _mm512_srlv_epi64(word, shifts);
                    // Looked at are the lowest four bits of a lane.
                    weights[o] = _mm512_permutexvar_ps(numbers, tables[o]);
                }
                for r in 0..R {
                    let x = _mm512_loadu_ps(x.ptr.add(r * x.stride + input));
                    for o in 0..O {
                        sums[r][o] = _mm512_fmadd_ps(weights[o], x, sums[r][o]);
                    }
                }
                input += WIDTH;
            }
        }
    }
    sums
}

impl Shared<'_> {
    /// Writes those of up to sixteen groups from `first` on; more are zero.
    ///
    /// # Safety
    /// The groups exist, and the CPU has AVX-512.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    pub(super) unsafe fn load_sixteen(self, first: usize, count: usize, to: &mut SixteenGroups) {
        let mask = u16::MAX >> (WIDTH - count);
        // SAFETY: the caller's promises; what the mask leaves out is not read.
        let (scales, biases) = unsafe {
            match self {
                Self::F32(scales, biases) => (
                    _mm512_maskz_loadu_ps(mask, scales.as_ptr().add(first)),
                    _mm512_maskz_loadu_ps(mask, biases.as_ptr().add(first)),
                ),
                Self::Bf16(scales, biases) => (
                    brain(halves(scales.as_ptr().add(first).cast(), mask)),
                    brain(halves(biases.as_ptr().add(first).cast(), mask)),
                ),
                Self::F16(scales, biases) => (
                    _mm512_cvtph_ps(halves(scales.as_ptr().add(first).cast(), mask)),
                    _mm512_cvtph_ps(halves(biases.as_ptr().add(first).cast(), mask)),
                ),
                Self::E8m0(exponents) => (
                    powers(_mm_maskz_loadu_epi8(
                        mask,
                        exponents.as_ptr().add(first).cast(),
                    )),
                    _mm512_setzero_ps(),
                ),
            }
        };
        // SAFETY: there is room for sixteen.
        unsafe {
            _mm512_storeu_ps(to.scales.as_mut_ptr(), scales);
            _mm512_storeu_ps(to.biases.as_mut_ptr(), biases);
        }
    }

    /// Asks for what group `place` shares, which need not exist.
    #[inline(always)]
    pub(super) fn prefetch(self, place: usize) {
        let (scale, bias): (*const u8, *const u8) = match self {
            Self::F32(scales, biases) => (at(scales, place), at(biases, place)),
            Self::Bf16(scales, biases) => (at(scales, place), at(biases, place)),
            Self::F16(scales, biases) => (at(scales, place), at(biases, place)),
            Self::E8m0(exponents) => (at(exponents, place), at(exponents, place)),
        };
        // SAFETY: a prefetch of any address is harmless.
        unsafe {
            _mm_prefetch::<_MM_HINT_T1>(scale.cast());
            _mm_prefetch::<_MM_HINT_T1>(bias.cast());
        }
    }
}

/// Address of an element, which need not exist.
#[inline(always)]
fn at<T>(values: &[T], place: usize) -> *const u8 {
    values.as_ptr().wrapping_add(place).cast()
}

/// # Safety
/// What the mask names is readable at `ptr`, and the CPU has AVX-512.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn halves(ptr: *const i16, mask: u16) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe { _mm256_maskz_loadu_epi16(mask, ptr) }
}

/// Sixteen bf16 as f32.
#[inline]
#[target_feature(enable = "avx512f")]
fn brain(bits: __m256i) -> __m512 {
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits)))
}

/// 2^(e - 127), as `powers` of eight.
#[inline]
#[target_feature(enable = "avx512f")]
fn powers(exponents: __m128i) -> __m512 {
    let exponents: __m512i = _mm512_cvtepu8_epi32(exponents);
    let is_zero = _mm512_cmpeq_epi32_mask(exponents, _mm512_set1_epi32(0));
    let is_nan = _mm512_cmpeq_epi32_mask(exponents, _mm512_set1_epi32(255));
    let bits = _mm512_slli_epi32::<23>(exponents);
    let bits = _mm512_mask_mov_epi32(bits, is_zero, _mm512_set1_epi32(1 << 22));
    let nan = _mm512_set1_epi32(f32::NAN.to_bits().cast_signed());
    _mm512_castsi512_ps(_mm512_mask_mov_epi32(bits, is_nan, nan))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers_of_sixteen_groups_are_those_of_eight() {
        if !crate::product::Avx512::is_available() {
            return;
        }
        let exponents: Vec<u8> = (0..=255).collect();
        for first in (0..256).step_by(WIDTH) {
            let mut sixteen = SixteenGroups::default();
            // SAFETY: the CPU was asked, and the groups exist.
            unsafe { Shared::E8m0(&exponents).load_sixteen(first, WIDTH, &mut sixteen) };
            for half in 0..2 {
                let (mut eight, at) = ([0.0; 8], half * 8);
                super::super::powers(&exponents, first + at, 8, &mut eight);
                let expected = eight.map(f32::to_bits);
                let actual = sixteen.scales[at..][..8]
                    .iter()
                    .map(|power| power.to_bits());
                assert!(actual.eq(expected), "exponents from {} on", first + at);
            }
            assert_eq!(sixteen.biases, [0.0; WIDTH]);
        }
    }
}
