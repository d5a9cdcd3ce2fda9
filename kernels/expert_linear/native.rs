//! The linear layers of a mixture of experts on the CPU.

use std::ffi::CStr;

use crate::{
    element::{FloatType, with_float_type},
    node::{HostKernel, View},
    product::{Dense, ExpertRows},
    quantized_linear::Matrix,
};

/// `x` `[rows, inputs]`, `ends` `[experts]`, weights, optional `bias` `[experts, outputs]` ->
/// `[rows, outputs]`.
#[derive(Clone, Copy)]
pub(super) struct ExpertLinear {
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    pub(super) weight: Stack,
    pub(super) bias: Option<FloatType>,
}

/// The weights of all experts.
#[derive(Clone, Copy)]
pub(super) enum Stack {
    /// `[experts, outputs, inputs]`
    Dense(FloatType),
    /// `[experts * outputs, inputs]`, in several arrays
    Quantized(Matrix),
}

impl HostKernel for ExpertLinear {
    const NAME: &'static CStr = c"expert_linear";

    fn run(&self, inputs: &[View<'_>], outputs: &mut [View<'_>]) {
        let rows = ExpertRows {
            x: inputs[0].as_slice::<f32>(),
            ends: inputs[1].as_slice::<i32>(),
            inputs: self.inputs,
            outputs: self.outputs,
        };
        let y = outputs[0].as_mut_slice::<f32>();
        let all_outputs = rows.ends.len() * self.outputs;
        let bias = match self.weight {
            Stack::Dense(weight) => {
                with_float_type!(weight, W => {
                    let weight = inputs[2].as_slice::<W>();
                    rows.multiply(Dense::new(weight, all_outputs, self.inputs), y);
                });
                &inputs[3..]
            }
            Stack::Quantized(matrix) => {
                let (parts, bias) = inputs[2..].split_at(matrix.num_parts());
                matrix.multiply_experts(parts, rows, y);
                bias
            }
        };
        if let Some(bias_type) = self.bias {
            with_float_type!(bias_type, B => rows.add_bias(bias[0].as_slice::<B>(), y));
        }
    }
}
