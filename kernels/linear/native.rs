//! The linear layer on the CPU: `product.rs` with one matrix, and the bias.

use std::ffi::CStr;

use crate::{
    NO_TOKEN,
    element::{Float, FloatType, with_float_type},
    node::{HostKernel, View},
    product::{Dense, Group, Product, Span, add_bias},
};

/// `x` `[rows, inputs]`, `weight` `[outputs, inputs]`, optional `bias` `[outputs]` -> `y`.
#[derive(Clone, Copy)]
pub(super) struct Linear {
    pub(super) rows: usize,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    pub(super) weight: FloatType,
    pub(super) bias: Option<FloatType>,
}

impl HostKernel for Linear {
    const NAME: &'static CStr = c"linear";

    fn run(&self, inputs: &[View<'_>], outputs: &mut [View<'_>]) {
        let x = inputs[0].as_slice::<f32>();
        let y = outputs[0].as_mut_slice::<f32>();
        assert!(x.len() == self.rows * self.inputs);
        assert!(y.len() == self.rows * self.outputs);
        with_float_type!(self.weight, W => {
            let weight = Dense::new(inputs[1].as_slice::<W>(), self.outputs, self.inputs);
            let rows = Span { first: 0, len: self.rows };
            Product {
                x,
                inputs: self.inputs,
                outputs: self.outputs,
                groups: &[Group { weight, rows }],
            }
            .compute(y);
        });
        if let Some(bias) = self.bias {
            with_float_type!(bias, B => add_bias(inputs[2].as_slice::<B>(), y));
        }
    }
}

/// `ids` `[n]`, `weight` `[vocab, dim]` -> `[n, dim]`.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    pub(super) dim: usize,
    pub(super) weight: FloatType,
}

impl HostKernel for Rows {
    const NAME: &'static CStr = c"rows";

    fn run(&self, inputs: &[View<'_>], outputs: &mut [View<'_>]) {
        let ids = inputs[0].as_slice::<i32>();
        let rows = outputs[0].as_mut_slice::<f32>();
        with_float_type!(self.weight, W => {
            let weight = inputs[1].as_slice::<W>();
            for (&id, row) in ids.iter().zip(rows.chunks_exact_mut(self.dim)) {
                if id == NO_TOKEN {
                    row.fill(0.0);
                    continue;
                }
                let from = usize::try_from(id).ok().and_then(|id| {
                    weight.chunks_exact(self.dim).nth(id)
                });
                let Some(from) = from else {
                    panic!("id {id} is not below {}", weight.len() / self.dim);
                };
                for (to, &from) in row.iter_mut().zip(from) {
                    *to = Float::to_f32(from);
                }
            }
        });
    }
}
