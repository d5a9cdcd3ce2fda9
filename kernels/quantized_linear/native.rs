//! Quantised products and lookups on the CPU.

use std::ffi::CStr;

use super::{
    QuantizedFormat, QuantizedMatrix,
    code::Code,
    packed::{Packed, Shared, with_code},
};
use crate::{
    NO_TOKEN,
    element::{FloatType, with_float_type},
    node::{HostKernel, View},
    pool,
    product::{ExpertRows, Group, Product, Span, Weight, add_bias},
    simd::{LANES, Lanes, Operation, vectorized},
};

/// The constants of a [`QuantizedMatrix`].
#[derive(Clone, Copy)]
pub(crate) struct Matrix {
    format: QuantizedFormat,
    outputs: usize,
    inputs: usize,
    /// Of scales and biases; absent where scales are exponents.
    scale_type: Option<FloatType>,
}

impl Matrix {
    pub(crate) fn of(weight: &QuantizedMatrix) -> Self {
        let size = |dim: i32| usize::try_from(dim).expect("a dimension is never negative");
        let float_type = |scales| FloatType::of("quantized_linear", "scales", scales);
        Self {
            format: weight.format(),
            outputs: size(weight.outputs()),
            inputs: size(weight.inputs()),
            scale_type: weight
                .biases()
                .map(|biases| float_type(biases).expect("checked when the matrix was made")),
        }
    }

    /// How many arrays it consists of.
    pub(crate) fn num_parts(self) -> usize {
        match self.scale_type {
            Some(_) => 3,
            None => 2,
        }
    }

    /// Multiplies rows with the weights of their experts; the matrix has those of all.
    pub(crate) fn multiply_experts(self, parts: &[View<'_>], rows: ExpertRows<'_>, y: &mut [f32]) {
        assert!(rows.ends.len() * rows.outputs == self.outputs);
        assert!(rows.inputs == self.inputs);
        with_code!(self.format, C => rows.multiply(self.packed::<C>(parts), y));
    }

    fn packed<'a, C: Code>(self, parts: &'a [View<'a>]) -> Packed<'a, C> {
        let group_size = usize::try_from(self.format.group_size()).expect("positive");
        Packed::new(
            (
                parts[0].as_slice::<u8>(),
                Shared::new(self.scale_type, &parts[1..]),
            ),
            (self.outputs, self.inputs),
            group_size,
        )
    }
}

/// `x` `[rows, inputs]`, the parts of a matrix, optional `bias` `[outputs]` -> `y`.
#[derive(Clone, Copy)]
pub(super) struct QuantizedLinear {
    pub(super) rows: usize,
    pub(super) matrix: Matrix,
    pub(super) bias: Option<FloatType>,
}

impl HostKernel for QuantizedLinear {
    const NAME: &'static CStr = c"quantized_linear";

    fn run(&self, inputs: &[View<'_>], outputs: &mut [View<'_>]) {
        let matrix = self.matrix;
        let x = inputs[0].as_slice::<f32>();
        let y = outputs[0].as_mut_slice::<f32>();
        assert!(x.len() == self.rows * matrix.inputs);
        assert!(y.len() == self.rows * matrix.outputs);
        let (parts, bias) = inputs[1..].split_at(matrix.num_parts());
        with_code!(matrix.format, C => {
            let group = Group {
                weight: matrix.packed::<C>(parts),
                rows: Span { first: 0, len: self.rows },
            };
            Product {
                x,
                inputs: matrix.inputs,
                outputs: matrix.outputs,
                groups: &[group],
            }
            .compute(y);
        });
        if let Some(bias_type) = self.bias {
            with_float_type!(bias_type, B => add_bias(bias[0].as_slice::<B>(), y));
        }
    }
}

/// `ids` `[n]`, the parts of a matrix `[vocab, dim]` -> `[n, dim]`.
#[derive(Clone, Copy)]
pub(super) struct QuantizedRows {
    pub(super) matrix: Matrix,
}

impl HostKernel for QuantizedRows {
    const NAME: &'static CStr = c"quantized_rows";

    fn run(&self, inputs: &[View<'_>], outputs: &mut [View<'_>]) {
        let ids = inputs[0].as_slice::<i32>();
        let dim = self.matrix.inputs;
        let rows = outputs[0].as_mut_slice::<f32>();
        assert!(rows.len() == ids.len() * dim);
        for &id in ids {
            assert!(
                id == NO_TOKEN || usize::try_from(id).is_ok_and(|id| id < self.matrix.outputs),
                "id {id} is not below {}",
                self.matrix.outputs
            );
        }
        with_code!(self.matrix.format, C => {
            let weight = self.matrix.packed::<C>(&inputs[1..]);
            let rows = pool::Shared::new(rows);
            pool::for_each(ids.len(), ids.len() * dim, |index| {
                // SAFETY: each task has its own row.
                let to = unsafe { rows.part(index * dim, dim) };
                match usize::try_from(ids[index]) {
                    Ok(output) => vectorized(Row { weight, output, to }),
                    Err(_) => to.fill(0.0),
                }
            });
        });
    }
}

/// Writes one output's weights to `to`, which has room for all.
struct Row<'a, W> {
    weight: W,
    output: usize,
    to: &'a mut [f32],
}

impl<W: Weight> Operation for Row<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let inputs = Span {
            first: 0,
            len: self.to.len(),
        };
        // SAFETY: the output was checked; a row has all inputs, a multiple of eight.
        unsafe {
            self.weight
                .convert::<L>(self.output, inputs, self.to.as_mut_ptr(), [LANES; 2]);
        }
    }
}
