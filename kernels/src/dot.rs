//! Dot products of rows with rows: the inner loop of the linear layer and of attention scores.
//!
//! # Invariants
//! Every product of two rows is summed in one accumulator of eight lanes in ascending order, so a
//! result does not depend on the tile that computed it.

#![expect(
    clippy::needless_range_loop,
    reason = "tiles are indexed alike on both sides"
)]

use crate::{
    element::Float,
    simd::{LANES, Lanes, load_partial},
};

/// Elements between two requests for the next rows: one cache line of bf16, two of f32.
const REQUEST_STEP: usize = 32;

/// A matrix in memory: `count` rows, `stride` elements apart.
#[derive(Clone, Copy)]
pub(crate) struct Rows<T> {
    pub(crate) ptr: *const T,
    pub(crate) stride: usize,
    pub(crate) count: usize,
}

impl<T> Rows<T> {
    /// The rows from `start` on.
    ///
    /// # Safety
    /// `start` is at most `count`.
    #[inline(always)]
    pub(crate) unsafe fn from(self, start: usize) -> Self {
        debug_assert!(start <= self.count);
        Self {
            // SAFETY: within the matrix, or one past its end.
            ptr: unsafe { self.ptr.add(start * self.stride) },
            stride: self.stride,
            count: self.count - start,
        }
    }
}

/// Adds the products of `R` rows of `x` with `O` rows of `w` over `len` elements to `sums`.
///
/// With `STREAM`, `w` comes from memory, and the `O` rows that follow are announced.
///
/// # Safety
/// `x` has `R` and `w` has `O` readable rows of `len` elements.
#[inline(always)]
pub(crate) unsafe fn tile<
    L: Lanes,
    W: Float,
    const R: usize,
    const O: usize,
    const STREAM: bool,
>(
    x: Rows<f32>,
    w: Rows<W>,
    len: usize,
    sums: &mut [[L; O]; R],
) {
    let mut acc = *sums;
    let full = len / LANES * LANES;
    let mut i = 0;
    while i < full {
        if STREAM {
            for o in 0..O {
                L::prefetch_later(w.ptr.wrapping_add((O + o) * w.stride + i));
            }
        }
        let end = full.min(i + REQUEST_STEP);
        while i < end {
            let mut weights = [L::splat(0.0); O];
            for o in 0..O {
                // SAFETY: `i + 8 <= len`.
                weights[o] = unsafe { W::load(w.ptr.add(o * w.stride + i)) };
            }
            for r in 0..R {
                // SAFETY: `i + 8 <= len`.
                let value = unsafe { L::load(x.ptr.add(r * x.stride + i)) };
                for o in 0..O {
                    acc[r][o] = value.mul_add(weights[o], acc[r][o]);
                }
            }
            i += LANES;
        }
    }
    if full < len {
        for r in 0..R {
            // SAFETY: the rest of the row.
            let value: L = unsafe { load_partial(x.ptr.add(r * x.stride + full), len - full) };
            for o in 0..O {
                // SAFETY: the rest of the row.
                let weight = unsafe { load_partial(w.ptr.add(o * w.stride + full), len - full) };
                acc[r][o] = value.mul_add(weight, acc[r][o]);
            }
        }
    }
    *sums = acc;
}

/// `out[r * out_stride + o]` = row `r` of `x` times row `o` of `w`.
///
/// # Safety
/// All rows have `len` readable elements; `out` has room for every result.
#[inline(always)]
pub(crate) unsafe fn products<L: Lanes, W: Float>(
    x: Rows<f32>,
    w: Rows<W>,
    len: usize,
    out: *mut f32,
    out_stride: usize,
) {
    let mut row = 0;
    while row < x.count {
        // SAFETY: `row` is a row, and each band gets as many as it takes.
        unsafe {
            let x = x.from(row);
            let out = out.add(row * out_stride);
            // Twelve accumulators at most: more would not stay in AVX2's sixteen registers.
            row += match x.count {
                1 => band::<L, W, 1, 6>(x, w, len, out, out_stride),
                2 => band::<L, W, 2, 6>(x, w, len, out, out_stride),
                3 => band::<L, W, 3, 4>(x, w, len, out, out_stride),
                _ => band::<L, W, 4, 3>(x, w, len, out, out_stride),
            };
        }
    }
}

/// The first `R` rows of `x` with all rows of `w`. Returns `R`.
///
/// # Safety
/// As [`products`], and `x` has `R` rows.
#[inline(always)]
unsafe fn band<L: Lanes, W: Float, const R: usize, const O: usize>(
    x: Rows<f32>,
    w: Rows<W>,
    len: usize,
    out: *mut f32,
    out_stride: usize,
) -> usize {
    let mut first = 0;
    while first + O <= w.count {
        let mut sums = [[L::splat(0.0); O]; R];
        // SAFETY: `O` rows from `first` on.
        unsafe { tile::<L, W, R, O, true>(x, w.from(first), len, &mut sums) };
        for r in 0..R {
            for o in 0..O {
                // SAFETY: a result of this band.
                unsafe { *out.add(r * out_stride + first + o) = sums[r][o].sum() };
            }
        }
        first += O;
    }
    while first < w.count {
        let mut sums = [[L::splat(0.0); 1]; R];
        // SAFETY: one row from `first` on.
        unsafe { tile::<L, W, R, 1, true>(x, w.from(first), len, &mut sums) };
        for r in 0..R {
            // SAFETY: a result of this band.
            unsafe { *out.add(r * out_stride + first) = sums[r][0].sum() };
        }
        first += 1;
    }
    R
}
