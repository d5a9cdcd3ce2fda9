//! Few rows times some outputs: weights stream through registers of eight lanes.

use super::{Span, Weight};
use crate::{
    dot::Rows,
    simd::{Lanes, Operation},
};

/// What [`Weight::stream`] is told.
pub(super) struct Stream<W> {
    pub(super) weight: W,
    pub(super) x: Rows<f32>,
    pub(super) outputs: Span,
    pub(super) out: *mut f32,
    pub(super) out_stride: usize,
}

impl<W: Weight> Operation for Stream<W> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Self {
            weight,
            x,
            outputs,
            out,
            out_stride,
        } = self;
        // SAFETY: whoever makes one keeps the promises of `stream`.
        unsafe { weight.stream::<L>(x, outputs, out, out_stride) };
    }
}
