//! The two-layer perceptron of a block, with a gate or without.

use mlx_rs::Array;

use super::{Activation, FeedForward, Linear};
use crate::models::{ModelError, weights::Weights};

/// Where an MLP's first projection stands in a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MlpInput {
    /// `gate_proj` and `up_proj`: `act(gate(x)) * up(x)`.
    GateAndUp,
    /// Both as one `gate_up_proj`, the gate first.
    Packed,
    /// `up_proj` alone: `act(up(x))`.
    Up,
}

/// Dimensions of an [`Mlp`].
#[derive(Clone, Copy, Debug)]
pub struct MlpArgs {
    /// Width of input and output.
    pub hidden_size: i32,
    /// Width between.
    pub intermediate_size: i32,
    /// What stands between the projections.
    pub activation: Activation,
    /// With a gate, or without.
    pub input: MlpInput,
    /// All projections have a bias.
    pub bias: bool,
}

/// `down(act(gate(x)) * up(x))`, or `down(act(up(x)))`.
#[derive(Debug)]
pub struct Mlp {
    /// Gate and up read the same input, so they are one product.
    input: Linear,
    activation: Activation,
    is_gated: bool,
    down: Linear,
}

impl Mlp {
    /// Loads the layer `name`.
    ///
    /// # Errors
    /// As [`Linear::load`].
    pub fn load(name: &str, args: &MlpArgs, weights: &mut Weights<'_>) -> Result<Self, ModelError> {
        let width = args.intermediate_size;
        let part = |kind: &str, outputs: i32| (format!("{name}.{kind}"), outputs);
        let input = match args.input {
            MlpInput::GateAndUp => vec![part("gate_proj", width), part("up_proj", width)],
            MlpInput::Packed => vec![part("gate_up_proj", 2 * width)],
            MlpInput::Up => vec![part("up_proj", width)],
        };
        let down = [part("down_proj", args.hidden_size)];
        Ok(Self {
            input: Linear::load(&input, args.hidden_size, args.bias, weights)?,
            activation: args.activation,
            is_gated: args.input != MlpInput::Up,
            down: Linear::load(&down, width, args.bias, weights)?,
        })
    }
}

impl FeedForward for Mlp {
    fn forward(&self, x: &Array) -> Result<Array, ModelError> {
        let inner = self.input.forward(x)?;
        let inner = match self.is_gated {
            true => self.activation.gate(&inner)?,
            false => self.activation.forward(&inner)?,
        };
        self.down.forward(&inner)
    }
}
