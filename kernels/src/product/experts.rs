//! One matrix that holds the weights of many experts, one after the other.

#[cfg(target_arch = "x86_64")]
use super::{Codes, SixteenGroups};
use super::{
    Group, Product, Span, Weight, add_bias,
    tile::{Tile, Tiles, WeightRows},
};
use crate::{dot::Rows, element::Float, simd::Lanes};

/// Rows in the order of their experts.
#[derive(Clone, Copy)]
pub(crate) struct ExpertRows<'a> {
    /// `[rows, inputs]`
    pub(crate) x: &'a [f32],
    /// `[experts]`: where each expert's rows end.
    pub(crate) ends: &'a [i32],
    pub(crate) inputs: usize,
    /// Of one expert.
    pub(crate) outputs: usize,
}

impl ExpertRows<'_> {
    /// Multiplies each row with the weights of its expert. `stack` is `[experts * outputs, inputs]`.
    pub(crate) fn multiply<W: Weight>(self, stack: W, y: &mut [f32]) {
        let groups: Vec<_> = self
            .spans()
            .map(|(expert, rows)| {
                let first_output = expert * self.outputs;
                let weight = OfExpert {
                    stack,
                    first_output,
                };
                Group { weight, rows }
            })
            .collect();
        Product {
            x: self.x,
            inputs: self.inputs,
            outputs: self.outputs,
            groups: &groups,
        }
        .compute(y);
    }

    /// Adds to each row the bias of its expert, of `[experts, outputs]`.
    pub(crate) fn add_bias<B: Float>(self, bias: &[B], y: &mut [f32]) {
        let width = self.outputs;
        for (expert, rows) in self.spans() {
            let bias = &bias[expert * width..][..width];
            add_bias(bias, &mut y[rows.first * width..][..rows.len * width]);
        }
    }

    /// Each expert that has rows, with them.
    fn spans(self) -> impl Iterator<Item = (usize, Span)> {
        let mut first = 0;
        self.ends
            .iter()
            .enumerate()
            .filter_map(move |(expert, &end)| {
                let end = usize::try_from(end).expect("an end is never negative");
                let len = end.checked_sub(first).expect("ends ascend");
                let rows = Span { first, len };
                first = end;
                (len > 0).then_some((expert, rows))
            })
    }
}

/// The weights of one expert.
#[derive(Clone, Copy)]
struct OfExpert<W> {
    stack: W,
    first_output: usize,
}

impl<W: Weight> Weight for OfExpert<W> {
    const IN_SIXTEEN_LANES: bool = W::IN_SIXTEEN_LANES;

    fn output_size_bytes(&self) -> usize {
        self.stack.output_size_bytes()
    }

    #[inline(always)]
    unsafe fn stream<L: Lanes>(
        self,
        x: Rows<f32>,
        outputs: Span,
        out: *mut f32,
        out_stride: usize,
    ) {
        let outputs = self.of_stack(outputs);
        // SAFETY: the caller's promise, of outputs that are this expert's.
        unsafe { self.stack.stream::<L>(x, outputs, out, out_stride) };
    }

    #[inline(always)]
    unsafe fn convert<L: Lanes>(
        self,
        output: usize,
        inputs: Span,
        to: *mut f32,
        strides: [usize; 2],
    ) {
        let output = self.first_output + output;
        // SAFETY: as in `stream`.
        unsafe { self.stack.convert::<L>(output, inputs, to, strides) };
    }

    #[cfg(target_arch = "x86_64")]
    unsafe fn stream_sixteen(self, x: Rows<f32>, outputs: Span, out: *mut f32, out_stride: usize) {
        let outputs = self.of_stack(outputs);
        // SAFETY: as in `stream`.
        unsafe { self.stack.stream_sixteen(x, outputs, out, out_stride) };
    }

    const STANDS_IN_ROWS: bool = W::STANDS_IN_ROWS;

    unsafe fn multiply<K: Tiles>(self, (output, step): (usize, usize), tile: &Tile, ahead: bool) {
        let at = (self.first_output + output, step);
        // SAFETY: as in `stream`.
        unsafe { self.stack.multiply::<K>(at, tile, ahead) };
    }

    const IS_BRAIN: bool = W::IS_BRAIN;

    fn brain_rows(&self, output: usize) -> WeightRows<u16> {
        self.stack.brain_rows(self.first_output + output)
    }

    const IS_INTEGER: bool = W::IS_INTEGER;

    #[cfg(target_arch = "x86_64")]
    fn codes(&self, output: usize) -> Codes {
        self.stack.codes(self.first_output + output)
    }

    #[cfg(target_arch = "x86_64")]
    unsafe fn shared(&self, output: usize, groups: Span, to: &mut SixteenGroups) {
        // SAFETY: as in `stream`.
        unsafe { self.stack.shared(self.first_output + output, groups, to) };
    }
}

impl<W> OfExpert<W> {
    fn of_stack(&self, outputs: Span) -> Span {
        Span {
            first: self.first_output + outputs.first,
            ..outputs
        }
    }
}
