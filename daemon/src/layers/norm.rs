//! Root-mean-square normalisation.

use metal_rpc_kernels as kernels;
use mlx_rs::Array;

use crate::models::{ModelError, weights::Weights};

/// `x / sqrt(mean(x^2) + eps) * weight` over the last axis.
#[derive(Debug)]
pub struct RmsNorm {
    /// `[dim]`.
    weight: Array,
    eps: f32,
}

impl RmsNorm {
    /// Loads the layer `name`.
    ///
    /// # Errors
    /// As [`Weights::vector`].
    pub fn load(
        name: &str,
        dim: i32,
        eps: f32,
        weights: &mut Weights<'_>,
    ) -> Result<Self, ModelError> {
        Ok(Self {
            weight: weights.vector(&[(format!("{name}.weight"), dim)])?,
            eps,
        })
    }

    /// Shape and dtype of `x`, `[rows, dim]`.
    ///
    /// # Errors
    /// If the shape does not fit.
    pub fn forward(&self, x: &Array) -> Result<Array, ModelError> {
        Ok(kernels::rms_norm(x, &self.weight, self.eps)?)
    }
}
