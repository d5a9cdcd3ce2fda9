//! A matrix product with an optional bias.

use metal_rpc_kernels as kernels;
use mlx_rs::Array;

use crate::models::{
    ModelError,
    weights::{Part, Weights},
};

/// `x @ weight.T + bias`.
#[derive(Debug)]
pub struct Linear {
    /// `[outputs, inputs]`.
    weight: Array,
    /// `[outputs]`.
    bias: Option<Array>,
}

impl Linear {
    /// Loads one layer, or several that read the same input as one: their outputs then stand side
    /// by side.
    ///
    /// `parts` are the names of the layers with their numbers of outputs.
    ///
    /// # Errors
    /// As [`Weights::matrix`].
    pub fn load(
        parts: &[Part],
        inputs: i32,
        bias: bool,
        weights: &mut Weights<'_>,
    ) -> Result<Self, ModelError> {
        let tensors = |kind: &str| -> Vec<Part> {
            parts
                .iter()
                .map(|(name, outputs)| (format!("{name}.{kind}"), *outputs))
                .collect()
        };
        let weight = weights.matrix(&tensors("weight"), inputs)?;
        let bias = match bias {
            true => Some(weights.vector(&tensors("bias"))?),
            false => None,
        };
        Ok(Self { weight, bias })
    }

    /// # Shapes
    /// - `x`: `[rows, inputs]`
    /// - returns `[rows, outputs]`, dtype of `x`
    ///
    /// # Errors
    /// If the shape does not fit.
    pub fn forward(&self, x: &Array) -> Result<Array, ModelError> {
        Ok(kernels::linear(x, &self.weight, self.bias.as_ref())?)
    }
}
