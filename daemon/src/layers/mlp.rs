//! The gated MLP of Llama and its kin.

use metal_rpc_kernels as kernels;
use mlx_rs::Array;

use super::Linear;
use crate::models::{ModelError, weights::Weights};

/// Dimensions of an [`Mlp`].
#[derive(Clone, Copy, Debug)]
pub struct MlpArgs {
    /// Width of input and output.
    pub hidden_size: i32,
    /// Width between.
    pub intermediate_size: i32,
    /// All three projections have a bias.
    pub bias: bool,
}

/// `down(silu(gate(x)) * up(x))`.
#[derive(Debug)]
pub struct Mlp {
    /// Gate and up read the same input, so they are one product.
    gate_up: Linear,
    down: Linear,
}

impl Mlp {
    /// Loads the layer `name`.
    ///
    /// # Errors
    /// As [`Linear::load`].
    pub fn load(name: &str, args: &MlpArgs, weights: &mut Weights<'_>) -> Result<Self, ModelError> {
        let gate_up = [
            (format!("{name}.gate_proj"), args.intermediate_size),
            (format!("{name}.up_proj"), args.intermediate_size),
        ];
        let down = [(format!("{name}.down_proj"), args.hidden_size)];
        Ok(Self {
            gate_up: Linear::load(&gate_up, args.hidden_size, args.bias, weights)?,
            down: Linear::load(&down, args.intermediate_size, args.bias, weights)?,
        })
    }

    /// Shape and dtype of `x`, `[rows, hidden_size]`.
    ///
    /// # Errors
    /// If the shape does not fit.
    pub fn forward(&self, x: &Array) -> Result<Array, ModelError> {
        let gate_up = self.gate_up.forward(x)?;
        self.down.forward(&kernels::silu_mul(&gate_up)?)
    }
}
