//! Addition and normalisation on the CPU: a row's sum is still in the first-level cache when it is
//! normalised.

use std::ffi::CStr;

use crate::{
    element::{Float, FloatType, with_float_type},
    node::{HostKernel, View},
    pool::{self, Shared},
    rms_norm::normalise,
    simd::{LANES, Lanes, Operation, vectorized},
};

/// Elements that one task normalises.
const ELEMENTS_PER_TASK: usize = 16 * 1024;

/// `x`, `residual` `[rows, dim]`, `weight` `[dim]` -> normalised sum, sum.
#[derive(Clone, Copy)]
pub(super) struct AddRmsNorm {
    pub(super) dim: usize,
    pub(super) eps: f32,
    pub(super) weight: FloatType,
}

impl HostKernel for AddRmsNorm {
    const NAME: &'static CStr = c"add_rms_norm";

    fn run(&self, inputs: &[View<'_>], outputs: &mut [View<'_>]) {
        let [y, sum] = outputs else {
            unreachable!("the node has two outputs")
        };
        with_float_type!(self.weight, W => self.rows::<W>(
            [inputs[0].as_slice(), inputs[1].as_slice()],
            inputs[2].as_slice(),
            [y.as_mut_slice(), sum.as_mut_slice()],
        ));
    }
}

impl AddRmsNorm {
    fn rows<W: Float>(&self, addends: [&[f32]; 2], weight: &[W], results: [&mut [f32]; 2]) {
        let len = results[0].len();
        assert!(addends.iter().all(|addend| addend.len() == len));
        assert!(results[1].len() == len);
        assert!(weight.len() == self.dim);
        let per_task = (ELEMENTS_PER_TASK / self.dim.max(1)).max(1) * self.dim;
        if per_task == 0 {
            return;
        }
        let [y, sum] = results.map(Shared::new);
        pool::for_each(len.div_ceil(per_task), len * 3, |task| {
            let start = task * per_task;
            let len = per_task.min(len - start);
            vectorized(Rows {
                eps: self.eps,
                addends: addends.map(|addend| &addend[start..start + len]),
                weight,
                // SAFETY: tasks write disjoint rows.
                y: unsafe { y.part(start, len) },
                // SAFETY: as above.
                sum: unsafe { sum.part(start, len) },
            });
        });
    }
}

struct Rows<'a, W> {
    eps: f32,
    addends: [&'a [f32]; 2],
    weight: &'a [W],
    y: &'a mut [f32],
    sum: &'a mut [f32],
}

impl<W: Float> Operation for Rows<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let dim = self.weight.len();
        let [x, residual] = self.addends.map(|addend| addend.chunks_exact(dim));
        let results = self.sum.chunks_exact_mut(dim);
        let results = results.zip(self.y.chunks_exact_mut(dim));
        for ((x, residual), (sum, y)) in x.zip(residual).zip(results) {
            add::<L>(x, residual, sum);
            normalise::<L, W>(sum, self.eps, self.weight, y);
        }
    }
}

#[inline(always)]
fn add<L: Lanes>(x: &[f32], residual: &[f32], sum: &mut [f32]) {
    let full = x.len() / LANES * LANES;
    let mut i = 0;
    while i < full {
        // SAFETY: `i + 8` is at most the length of all three.
        unsafe {
            let x = L::load(x.as_ptr().add(i));
            x.add(L::load(residual.as_ptr().add(i)))
                .store(sum.as_mut_ptr().add(i));
        }
        i += LANES;
    }
    for i in full..x.len() {
        sum[i] = x[i] + residual[i];
    }
}
