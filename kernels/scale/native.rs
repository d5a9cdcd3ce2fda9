//! An array times a number on the CPU.

use std::ffi::CStr;

use crate::{
    node::{HostKernel, View},
    pool::{self, Shared},
};

/// Results that one task computes.
const ELEMENTS_PER_TASK: usize = 32 * 1024;

/// `x` of any length times a number.
#[derive(Clone, Copy)]
pub(super) struct Scale {
    pub(super) factor: f32,
}

impl HostKernel for Scale {
    const NAME: &'static CStr = c"scale";

    fn run(&self, inputs: &[View<'_>], outputs: &mut [View<'_>]) {
        let x = inputs[0].as_slice::<f32>();
        let y = outputs[0].as_mut_slice::<f32>();
        assert!(x.len() == y.len());
        let len = y.len();
        let y = Shared::new(y);
        pool::for_each(len.div_ceil(ELEMENTS_PER_TASK), len, |task| {
            let start = task * ELEMENTS_PER_TASK;
            let end = len.min(start + ELEMENTS_PER_TASK);
            // SAFETY: tasks write disjoint parts.
            let part = unsafe { y.part(start, end - start) };
            for (y, x) in part.iter_mut().zip(&x[start..end]) {
                *y = x * self.factor;
            }
        });
    }
}
