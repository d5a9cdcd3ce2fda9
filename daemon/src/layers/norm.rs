//! Normalisation over the last axis.

use metal_rpc_kernels as kernels;
use mlx_rs::{Array, fast};

use crate::models::{ModelError, weights::Weights};

/// Which normalisation a family uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// `x / sqrt(mean(x^2) + eps) * weight`.
    Rms,
    /// The same with `1 + weight`, as Gemma stores it.
    RmsPlusOne,
    /// `(x - mean(x)) / sqrt(var(x) + eps) * weight + bias`.
    Layer,
}

/// How to normalise.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormArgs {
    /// By what formula.
    pub kind: NormKind,
    /// Added to the mean square.
    pub eps: f32,
}

/// A normalisation over the last axis.
#[derive(Debug)]
pub struct Norm {
    /// `[dim]`.
    weight: Array,
    /// `[dim]`: of a layer norm.
    bias: Option<Array>,
    eps: f32,
}

impl Norm {
    /// Loads the layer `name`.
    ///
    /// # Errors
    /// As [`Weights::vector`].
    pub fn load(
        name: &str,
        dim: i32,
        args: NormArgs,
        weights: &mut Weights<'_>,
    ) -> Result<Self, ModelError> {
        let part = |kind: &str| [(format!("{name}.{kind}"), dim)];
        let weight = match args.kind {
            NormKind::Rms | NormKind::Layer => weights.vector(&part("weight"))?,
            // The sum has more digits than the weights' dtype may hold.
            NormKind::RmsPlusOne => {
                let mut weight = weights.floats(&part("weight"))?;
                weight.iter_mut().for_each(|weight| *weight += 1.0);
                Array::from_slice(&weight, &[dim])
            }
        };
        let bias = match args.kind {
            NormKind::Layer => Some(weights.vector(&part("bias"))?),
            NormKind::Rms | NormKind::RmsPlusOne => None,
        };
        Ok(Self {
            weight,
            bias,
            eps: args.eps,
        })
    }

    /// Shape and dtype of `x`, `[.., dim]`.
    ///
    /// # Errors
    /// If the shape does not fit.
    pub fn forward(&self, x: &Array) -> Result<Array, ModelError> {
        Ok(match &self.bias {
            None => kernels::rms_norm(x, &self.weight, self.eps)?,
            Some(bias) => {
                let y = fast::layer_norm(x, &self.weight, bias, self.eps)?;
                y.as_dtype(x.dtype())?
            }
        })
    }

    /// `x + residual`, normalised, and as it is.
    ///
    /// # Shapes
    /// - `x`, `residual`: `[.., dim]`; so are the results
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward_sum(&self, x: &Array, residual: &Array) -> Result<(Array, Array), ModelError> {
        if self.bias.is_none() {
            return Ok(kernels::add_rms_norm(x, residual, &self.weight, self.eps)?);
        }
        let sum = residual.add(x)?;
        Ok((self.forward(&sum)?, sum))
    }

    /// Weight and epsilon, if it is a root-mean-square norm.
    #[must_use]
    pub fn rms(&self) -> Option<(&Array, f32)> {
        self.bias.is_none().then_some((&self.weight, self.eps))
    }
}
