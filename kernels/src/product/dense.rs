//! Weights in a floating-point format.

use super::{
    Span, Weight,
    tile::{Tile, Tiles, WeightRows},
};
use crate::{
    dot::{self, Rows},
    element::{Float, FloatType},
    simd::{LANES, Lanes, load_partial},
};

/// `[outputs, inputs]` in f32, bf16 or f16.
#[derive(Clone, Copy)]
pub(crate) struct Dense<'a, T> {
    weight: &'a [T],
    inputs: usize,
}

impl<'a, T: Float> Dense<'a, T> {
    /// # Panics
    /// If `weight` is not `outputs * inputs` long.
    pub(crate) fn new(weight: &'a [T], outputs: usize, inputs: usize) -> Self {
        assert!(weight.len() == outputs * inputs);
        Self { weight, inputs }
    }
}

impl<T: Float> Weight for Dense<'_, T> {
    const STANDS_IN_ROWS: bool = true;

    fn output_size_bytes(&self) -> usize {
        self.inputs * size_of::<T>()
    }

    #[inline(always)]
    unsafe fn stream<L: Lanes>(
        self,
        x: Rows<f32>,
        outputs: Span,
        out: *mut f32,
        out_stride: usize,
    ) {
        let w = Rows {
            ptr: self.weight[outputs.first * self.inputs..].as_ptr(),
            stride: self.inputs,
            count: outputs.len,
        };
        // SAFETY: the caller's promise.
        unsafe { dot::products::<L, T>(x, w, self.inputs, out, out_stride) };
    }

    #[inline(always)]
    unsafe fn convert<L: Lanes>(
        self,
        output: usize,
        inputs: Span,
        to: *mut f32,
        strides: [usize; 2],
    ) {
        let from = &self.weight[output * self.inputs + inputs.first..][..inputs.len];
        let groups = from.chunks_exact(LANES);
        let rest = groups.remainder();
        let mut to = to;
        for (nth, group) in groups.enumerate() {
            // SAFETY: eight elements, and the caller's room for eight.
            unsafe {
                T::load::<L>(group.as_ptr()).store(to);
                to = to.add(strides[nth % 2]);
            }
        }
        if !rest.is_empty() {
            // SAFETY: the rest of the piece, and the caller's room for eight.
            unsafe { load_partial::<L, T>(rest.as_ptr(), rest.len()).store(to) };
        }
    }

    unsafe fn multiply<K: Tiles>(self, (output, step): (usize, usize), tile: &Tile, ahead: bool) {
        let weight = WeightRows {
            ptr: self.weight[output * self.inputs + step * LANES..].as_ptr(),
            stride: self.inputs,
        };
        // SAFETY: the caller's promise.
        unsafe { K::rows(tile, weight, ahead) };
    }

    const IS_BRAIN: bool = matches!(T::TYPE, FloatType::Bf16);

    fn brain_rows(&self, output: usize) -> WeightRows<u16> {
        assert!(Self::IS_BRAIN);
        WeightRows {
            ptr: self.weight[output * self.inputs..].as_ptr().cast(),
            stride: self.inputs,
        }
    }
}
