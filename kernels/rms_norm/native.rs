//! Root-mean-square normalisation on the CPU, one pass for the sum and one for the result.

use std::ffi::CStr;

use crate::{
    element::{Float, FloatType, with_float_type},
    node::{HostKernel, View},
    pool::{self, Shared},
    simd::{LANES, Lanes, Operation, load_partial, vectorized},
};

/// Elements that one task normalises.
const ELEMENTS_PER_TASK: usize = 16 * 1024;

/// Vectors in the sum of squares, so that additions overlap.
const NUM_SUMS: usize = 4;

/// `x` `[rows, dim]`, `weight` `[dim]` -> `[rows, dim]`.
#[derive(Clone, Copy)]
pub(super) struct RmsNorm {
    pub(super) dim: usize,
    pub(super) eps: f32,
    pub(super) weight: FloatType,
}

impl HostKernel for RmsNorm {
    const NAME: &'static CStr = c"rms_norm";

    fn run(&self, inputs: &[View<'_>], outputs: &mut [View<'_>]) {
        with_float_type!(self.weight, W => self.rows::<W>(
            inputs[0].as_slice(),
            inputs[1].as_slice(),
            outputs[0].as_mut_slice(),
        ));
    }
}

impl RmsNorm {
    fn rows<W: Float>(&self, x: &[f32], weight: &[W], y: &mut [f32]) {
        assert!(x.len() == y.len());
        assert!(weight.len() == self.dim);
        let per_task = (ELEMENTS_PER_TASK / self.dim.max(1)).max(1) * self.dim;
        if per_task == 0 {
            return;
        }
        let y = Shared::new(y);
        pool::for_each(x.len().div_ceil(per_task), x.len() * 2, |task| {
            let start = task * per_task;
            let x = &x[start..x.len().min(start + per_task)];
            vectorized(Rows {
                eps: self.eps,
                x,
                weight,
                // SAFETY: tasks write disjoint rows.
                y: unsafe { y.part(start, x.len()) },
            });
        });
    }
}

struct Rows<'a, W> {
    eps: f32,
    x: &'a [f32],
    weight: &'a [W],
    y: &'a mut [f32],
}

impl<W: Float> Operation for Rows<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let dim = self.weight.len();
        for (x, y) in self.x.chunks_exact(dim).zip(self.y.chunks_exact_mut(dim)) {
            normalise::<L, W>(x, self.eps, self.weight, y);
        }
    }
}

/// Normalises one row.
#[inline(always)]
pub(crate) fn normalise<L: Lanes, W: Float>(x: &[f32], eps: f32, weight: &[W], y: &mut [f32]) {
    #[expect(clippy::cast_precision_loss, reason = "a dimension is far below 2^24")]
    let mean = square_sum::<L>(x) / x.len() as f32;
    scale::<L, W>(x, 1.0 / (mean + eps).sqrt(), weight, y);
}

#[inline(always)]
fn square_sum<L: Lanes>(x: &[f32]) -> f32 {
    let mut sums = [L::splat(0.0); NUM_SUMS];
    let mut chunks = x.chunks_exact(LANES);
    for (i, chunk) in chunks.by_ref().enumerate() {
        // SAFETY: a chunk has eight elements.
        let value = unsafe { L::load(chunk.as_ptr()) };
        sums[i % NUM_SUMS] = value.mul_add(value, sums[i % NUM_SUMS]);
    }
    let rest = chunks.remainder();
    // SAFETY: fewer than eight elements.
    let value: L = unsafe { load_partial(rest.as_ptr(), rest.len()) };
    let [a, b, c, d] = sums;
    a.add(b).add(c.add(value.mul_add(value, d))).sum()
}

#[inline(always)]
fn scale<L: Lanes, W: Float>(x: &[f32], factor: f32, weight: &[W], y: &mut [f32]) {
    let full = x.len() / LANES * LANES;
    let factors = L::splat(factor);
    let mut i = 0;
    while i < full {
        // SAFETY: `i + 8` is at most the length of all three.
        unsafe {
            let value = L::load(x.as_ptr().add(i)).mul(factors);
            value
                .mul(W::load(weight.as_ptr().add(i)))
                .store(y.as_mut_ptr().add(i));
        }
        i += LANES;
    }
    for i in full..x.len() {
        y[i] = x[i] * factor * weight[i].to_f32();
    }
}
