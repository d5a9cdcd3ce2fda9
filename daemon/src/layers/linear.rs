//! A matrix product with an optional bias.

use mlx_rs::{Array, ops::concatenate};

use super::Matrix;
use crate::models::{
    ModelError,
    weights::{Part, Weights},
};

/// `x @ weight.T + bias`.
#[derive(Debug)]
pub struct Linear {
    /// Side by side; one, unless its parts are quantised in different ways.
    matrices: Vec<Matrix>,
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
    /// As [`Weights::matrices`].
    pub fn load(
        parts: &[Part],
        inputs: i32,
        bias: bool,
        weights: &mut Weights<'_>,
    ) -> Result<Self, ModelError> {
        let matrices = weights.matrices(parts, inputs)?;
        let bias = if bias {
            let part = |(name, outputs): &Part| (format!("{name}.bias"), *outputs);
            let parts: Vec<Part> = parts.iter().map(part).collect();
            Some(weights.vector(&parts)?)
        } else {
            None
        };
        Ok(Self { matrices, bias })
    }

    /// # Shapes
    /// - `x`: `[rows, inputs]`
    /// - returns `[rows, outputs]`, dtype of `x`
    ///
    /// # Errors
    /// If the shape does not fit.
    pub fn forward(&self, x: &Array) -> Result<Array, ModelError> {
        if let [matrix] = self.matrices.as_slice() {
            return matrix.product(x, self.bias.as_ref());
        }
        let products = self
            .matrices
            .iter()
            .map(|matrix| matrix.product(x, None))
            .collect::<Result<Vec<_>, _>>()?;
        let y = concatenate(&products, -1)?;
        Ok(match &self.bias {
            Some(bias) => y.add(bias.as_dtype(y.dtype())?)?,
            None => y,
        })
    }
}
