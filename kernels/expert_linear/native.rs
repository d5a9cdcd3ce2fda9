//! The linear layers of a mixture of experts on the CPU: `product.rs`, a group for each expert that
//! has rows.

use std::ffi::CStr;

use crate::{
    element::{Float, FloatType, with_float_type},
    node::{HostKernel, View},
    product::{Dense, Group, Product, Span},
};

/// `x` `[rows, inputs]`, `ends` `[experts]`, `weight` `[experts, outputs, inputs]`, optional `bias`
/// `[experts, outputs]` -> `[rows, outputs]`.
#[derive(Clone, Copy)]
pub(super) struct ExpertLinear {
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    pub(super) weight: FloatType,
    pub(super) bias: Option<FloatType>,
}

impl HostKernel for ExpertLinear {
    const NAME: &'static CStr = c"expert_linear";

    fn run(&self, inputs: &[View<'_>], outputs: &mut [View<'_>]) {
        let x = inputs[0].as_slice::<f32>();
        let ends = inputs[1].as_slice::<i32>();
        let y = outputs[0].as_mut_slice::<f32>();
        let size = self.outputs * self.inputs;
        with_float_type!(self.weight, W => {
            let weight = inputs[2].as_slice::<W>();
            assert!(weight.len() == ends.len() * size);
            let groups = groups(ends, |expert| {
                Dense::new(&weight[expert * size..][..size], self.outputs, self.inputs)
            });
            let (inputs, outputs, groups) = (self.inputs, self.outputs, groups.as_slice());
            Product { x, inputs, outputs, groups }.compute(y);
        });
        if let Some(bias) = self.bias {
            with_float_type!(bias, B => self.add_bias(ends, inputs[3].as_slice::<B>(), y));
        }
    }
}

impl ExpertLinear {
    fn add_bias<B: Float>(&self, ends: &[i32], bias: &[B], y: &mut [f32]) {
        let biases = |expert: usize| &bias[expert * self.outputs..][..self.outputs];
        for Group { weight, rows } in groups(ends, biases) {
            let rows = &mut y[rows.first * self.outputs..][..rows.len * self.outputs];
            for row in rows.chunks_exact_mut(self.outputs.max(1)) {
                for (value, bias) in row.iter_mut().zip(weight) {
                    *value += bias.to_f32();
                }
            }
        }
    }
}

/// The rows of each expert that has some, with what `weight` says is that expert's.
pub(crate) fn groups<W>(ends: &[i32], weight: impl Fn(usize) -> W) -> Vec<Group<W>> {
    let mut first = 0;
    let mut groups = Vec::new();
    for (expert, &end) in ends.iter().enumerate() {
        let end = usize::try_from(end).expect("an end is never negative");
        let len = end.checked_sub(first).expect("ends ascend");
        if len > 0 {
            let (weight, rows) = (weight(expert), Span { first, len });
            groups.push(Group { weight, rows });
        }
        first = end;
    }
    groups
}
