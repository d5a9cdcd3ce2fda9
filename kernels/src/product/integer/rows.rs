//! Rows of f32 as integers of 16 bits.
//!
//! An integer is `256 high + low`, two signed bytes, and a group of inputs has a *unit*: the number that
//! one stands for, so that the largest magnitude of the group is `127 * 256`. What is lost is half a
//! unit, 2^-16 of the group's largest input. A group with an infinity or a NaN has a NaN as its unit.
//!
//! # Layout
//! High bytes of all rows, then low bytes, then for each group the units of all rows and the sums of
//! their integers, in f32. Bytes: for few rows one row after the other; else `[steps, inputs / 4, rows,
//! 4]`, each step a tile. Where codes share a byte, a step has its even inputs first.

use std::arch::x86_64::{
    __m512, __m512i, _mm512_abs_ps, _mm512_add_epi32, _mm512_castps_si512, _mm512_castsi128_si512,
    _mm512_castsi512_ps, _mm512_cvtepi32_epi8, _mm512_cvtps_epi32, _mm512_inserti32x4,
    _mm512_loadu_ps, _mm512_mask_storeu_epi32, _mm512_max_epi32, _mm512_mul_ps,
    _mm512_permutex2var_epi32, _mm512_reduce_add_epi32, _mm512_reduce_max_epi32, _mm512_set1_epi32,
    _mm512_set1_ps, _mm512_setr_epi32, _mm512_setzero_ps, _mm512_setzero_si512, _mm512_srai_epi32,
};

use super::{Coding, FEW_ROWS};
use crate::product::{amx::COLUMNS, panels::Line, transposed::transposed};

/// The largest integer.
const LARGEST: f32 = 32512.0;

/// Inputs of a register of bytes, and of the longest step.
pub(super) const BYTES: usize = 64;

/// Steps of the longest group.
const MAX_STEPS: usize = 2;

/// Integers of a register.
const WIDTH: usize = 16;

/// Lines of one row: two bytes an input and eight a group, in whole lines for any number of rows.
pub(super) fn lines_per_row(inputs: usize, group_size: usize) -> usize {
    (2 * inputs).div_ceil(BYTES) + (inputs / group_size).div_ceil(8)
}

/// Where the parts of up to 16 packed rows are.
#[derive(Clone, Copy)]
pub(super) struct GroupedRows {
    pub(super) rows: usize,
    pub(super) inputs: usize,
    pub(super) group_size: usize,
    /// Inputs of a tile: 32 or 64.
    pub(super) step_inputs: usize,
}

impl GroupedRows {
    pub(super) fn new(rows: usize, inputs: usize, coding: Coding) -> Self {
        Self {
            rows,
            inputs,
            group_size: coding.group_size,
            step_inputs: coding.group_size.min(BYTES),
        }
    }

    /// Where low bytes begin.
    pub(super) fn low(&self) -> usize {
        self.rows * self.inputs
    }

    /// Where the floats of a group begin, in bytes: units of all rows, then sums.
    pub(super) fn floats(&self, group: usize) -> usize {
        2 * self.rows * (self.inputs + group * size_of::<f32>())
    }
}

/// Fills one panel.
pub(super) struct PackRows<'a> {
    /// From the panel's first row on.
    pub(super) x: &'a [f32],
    pub(super) shape: GroupedRows,
    /// Two codes share a byte.
    pub(super) halves: bool,
    pub(super) to: &'a mut [Line],
}

/// One row's group.
#[derive(Clone, Copy)]
struct Rounded {
    unit: f32,
    /// Of the integers.
    sum: f32,
    /// `[steps, high and low]`
    bytes: [[__m512i; 2]; MAX_STEPS],
}

impl PackRows<'_> {
    /// # Safety
    /// The CPU has AVX-512 F, BW and DQ.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq")]
    pub(super) fn run(self) {
        let shape = self.shape;
        assert!(shape.rows * shape.inputs <= self.x.len());
        assert!(shape.rows * lines_per_row(shape.inputs, shape.group_size) <= self.to.len());
        let to = self.to.as_mut_ptr().cast::<u8>();
        let zero = _mm512_setzero_si512();
        let mut rounded = [Rounded {
            unit: 0.0,
            sum: 0.0,
            bytes: [[zero; 2]; MAX_STEPS],
        }; COLUMNS];
        for group in 0..shape.inputs / shape.group_size {
            let floats = to.wrapping_add(shape.floats(group)).cast::<f32>();
            for (row, rounded) in rounded.iter_mut().enumerate().take(shape.rows) {
                let first = row * shape.inputs + group * shape.group_size;
                *rounded = self.round(&self.x[first..][..shape.group_size]);
                // SAFETY: there is room, as asserted.
                unsafe {
                    *floats.add(row) = rounded.unit;
                    *floats.add(shape.rows + row) = rounded.sum;
                }
            }
            for step in 0..shape.group_size / shape.step_inputs {
                for part in 0..2 {
                    let mut rows = [zero; COLUMNS];
                    for (row, rounded) in rows.iter_mut().zip(&rounded) {
                        *row = rounded.bytes[step][part];
                    }
                    let input = group * shape.group_size + step * shape.step_inputs;
                    let to = to.wrapping_add(part * shape.low());
                    // SAFETY: there is room, as asserted.
                    unsafe { store(&rows, &shape, input, to) };
                }
            }
        }
    }

    /// Rounds a group.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq")]
    fn round(&self, x: &[f32]) -> Rounded {
        let (unit, inverse) = unit(x);
        let mut sum = _mm512_setzero_si512();
        let mut bytes = [[sum; 2]; MAX_STEPS];
        let step_inputs = self.shape.step_inputs;
        for (bytes, x) in bytes.iter_mut().zip(x.chunks_exact(step_inputs)) {
            let integers = integers(x, inverse);
            for part in integers {
                sum = _mm512_add_epi32(sum, part);
            }
            let [a, b, c, d] = integers;
            let ordered = match (self.halves, step_inputs) {
                (false, _) => integers,
                (true, BYTES) => {
                    let ([even, odd], [more_even, more_odd]) = (evens(a, b), evens(c, d));
                    [even, more_even, odd, more_odd]
                }
                (true, _) => {
                    let [even, odd] = evens(a, b);
                    [even, odd, c, d]
                }
            };
            *bytes = split(ordered);
        }
        #[expect(clippy::cast_precision_loss, reason = "below 2^24")]
        let sum = _mm512_reduce_add_epi32(sum) as f32;
        Rounded { unit, sum, bytes }
    }
}

/// Stores the bytes of a step from `input` on.
///
/// # Safety
/// There is room for those of all rows.
#[target_feature(enable = "avx512f")]
unsafe fn store(rows: &[__m512i; COLUMNS], shape: &GroupedRows, input: usize, to: *mut u8) {
    let mask = u16::MAX >> (WIDTH - shape.step_inputs / 4);
    // SAFETY: the caller's promise.
    unsafe {
        if shape.rows <= FEW_ROWS {
            for (row, &bytes) in rows.iter().enumerate().take(shape.rows) {
                let to = to.add(row * shape.inputs + input);
                _mm512_mask_storeu_epi32(to.cast(), mask, bytes);
            }
            return;
        }
        let mut lines = [_mm512_setzero_ps(); COLUMNS];
        // Of a closure the compiler makes a function without the CPU's features.
        for (line, &row) in lines.iter_mut().zip(rows) {
            *line = _mm512_castsi512_ps(row);
        }
        let lines = transposed(lines);
        let mask = u16::MAX >> (WIDTH - shape.rows);
        let to = to.add(input * shape.rows).cast::<i32>();
        for (nth, &line) in lines.iter().enumerate().take(shape.step_inputs / 4) {
            let to = to.add(nth * shape.rows);
            _mm512_mask_storeu_epi32(to, mask, _mm512_castps_si512(line));
        }
    }
}

/// The unit of a group, and what brings its inputs to integers.
#[target_feature(enable = "avx512f,avx512dq")]
fn unit(x: &[f32]) -> (f32, f32) {
    // As integers, magnitudes are in the order of numbers, infinity, NaN.
    let mut largest = _mm512_setzero_si512();
    for x in x.chunks_exact(WIDTH) {
        // SAFETY: sixteen elements.
        let magnitudes = _mm512_abs_ps(unsafe { _mm512_loadu_ps(x.as_ptr()) });
        largest = _mm512_max_epi32(largest, _mm512_castps_si512(magnitudes));
    }
    let largest = f32::from_bits(_mm512_reduce_max_epi32(largest).cast_unsigned());
    if !largest.is_finite() {
        return (f32::NAN, 0.0);
    }
    // A smaller unit would have no inverse.
    let unit = (largest / LARGEST).max(f32::MIN_POSITIVE);
    (unit, unit.recip())
}

/// Up to 64 inputs as integers, the missing as zeros. `x` is as long as a step.
#[target_feature(enable = "avx512f")]
fn integers(x: &[f32], inverse: f32) -> [__m512i; 4] {
    let mut integers = [_mm512_setzero_si512(); 4];
    if inverse == 0.0 {
        return integers;
    }
    let inverse = _mm512_set1_ps(inverse);
    for (integers, x) in integers.iter_mut().zip(x.chunks_exact(WIDTH)) {
        // SAFETY: sixteen elements.
        let x: __m512 = unsafe { _mm512_loadu_ps(x.as_ptr()) };
        *integers = _mm512_cvtps_epi32(_mm512_mul_ps(x, inverse));
    }
    integers
}

/// Those at even places of 32 integers, and those at odd places.
#[target_feature(enable = "avx512f")]
fn evens(a: __m512i, b: __m512i) -> [__m512i; 2] {
    let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    let odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    [
        _mm512_permutex2var_epi32(a, even, b),
        _mm512_permutex2var_epi32(a, odd, b),
    ]
}

/// High and low bytes of 64 integers.
#[target_feature(enable = "avx512f,avx512dq")]
fn split(integers: [__m512i; 4]) -> [__m512i; 2] {
    let half = _mm512_set1_epi32(128);
    // The low byte is signed, so the high one is of the nearest multiple of 256.
    let high = integers.map(|x| _mm512_srai_epi32::<8>(_mm512_add_epi32(x, half)));
    [bytes(high), bytes(integers)]
}

/// The lowest bytes of 64 integers.
#[target_feature(enable = "avx512f")]
fn bytes([a, b, c, d]: [__m512i; 4]) -> __m512i {
    let bytes = _mm512_castsi128_si512(_mm512_cvtepi32_epi8(a));
    let bytes = _mm512_inserti32x4::<1>(bytes, _mm512_cvtepi32_epi8(b));
    let bytes = _mm512_inserti32x4::<2>(bytes, _mm512_cvtepi32_epi8(c));
    _mm512_inserti32x4::<3>(bytes, _mm512_cvtepi32_epi8(d))
}
