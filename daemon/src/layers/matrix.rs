//! A matrix of weights, dense or quantised: the only place of the layers that knows which.

use metal_rpc_kernels::{self as kernels, QuantizedMatrix};
use mlx_rs::Array;

use crate::models::ModelError;

/// `[outputs, inputs]`.
#[derive(Debug)]
pub enum Matrix {
    /// In a floating-point format.
    Dense(Array),
    /// As small integers or floats that share scales.
    Quantized(QuantizedMatrix),
}

impl Matrix {
    /// `x @ self.T + bias`.
    ///
    /// # Shapes
    /// - `x`: `[.., inputs]`; `bias`: `[outputs]`
    /// - returns `[.., outputs]`, dtype of `x`
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn product(&self, x: &Array, bias: Option<&Array>) -> Result<Array, ModelError> {
        Ok(match self {
            Self::Dense(weight) => kernels::linear(x, weight, bias)?,
            Self::Quantized(weight) => kernels::quantized_linear(x, weight, bias)?,
        })
    }

    /// Some rows, in a dtype of the matrix's choice.
    ///
    /// # Shapes
    /// - `ids`: `[n]` i32
    /// - returns `[n, inputs]`
    ///
    /// # Errors
    /// If `ids` is not i32.
    pub fn rows(&self, ids: &Array) -> Result<Array, ModelError> {
        Ok(match self {
            Self::Dense(weight) => kernels::rows(weight, ids)?,
            Self::Quantized(weight) => kernels::quantized_rows(weight, ids)?,
        })
    }
}
