//! The functions between the two halves of an MLP.

use std::f32::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI, SQRT_2};

use metal_rpc_kernels as kernels;
use mlx_rs::{
    Array,
    ops::{clip, erf, minimum, tanh},
};

use crate::models::ModelError;

/// What stands between the projections of an MLP.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// `x / (1 + exp(-x))`.
    Silu,
    /// `x` times the normal distribution's share below it.
    Gelu,
    /// The same through an approximation by tanh, which checkpoints were trained with.
    GeluTanh,
    /// `x / (1 + exp(-slope * x))` of `min(x, limit)`; what it is the gate of is clamped to
    /// `-limit..=limit`, plus one: gpt-oss.
    ClampedSwish {
        /// How steep it is.
        slope: f32,
        /// What is above is as this.
        limit: f32,
    },
}

impl Activation {
    /// What [`Self::from_name`] knows.
    pub const KNOWN: [&'static str; 6] = [
        "silu",
        "swish",
        "gelu",
        "gelu_new",
        "gelu_fast",
        "gelu_pytorch_tanh",
    ];

    /// The function that transformers' `ACT2FN` has under a name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "silu" | "swish" => Some(Self::Silu),
            "gelu" => Some(Self::Gelu),
            // Three ways to write one formula.
            "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" => Some(Self::GeluTanh),
            _ => None,
        }
    }

    /// Shape and dtype of `x`.
    ///
    /// # Errors
    /// If MLX refuses.
    pub fn forward(self, x: &Array) -> Result<Array, ModelError> {
        let share = match self {
            Self::ClampedSwish { slope, limit } => {
                let x = minimum(x, Array::from_f32(limit))?;
                let share = mlx_rs::ops::sigmoid(x.multiply(Array::from_f32(slope))?)?;
                return Ok(x.multiply(share)?);
            }
            Self::Silu => mlx_rs::ops::sigmoid(x)?,
            Self::Gelu => half_of_one_plus(&erf(x.multiply(Array::from_f32(FRAC_1_SQRT_2))?)?)?,
            Self::GeluTanh => {
                let root = Array::from_f32(FRAC_2_SQRT_PI / SQRT_2);
                let cubic = x.square()?.multiply(Array::from_f32(0.044_715))?;
                let inner = x.multiply(cubic.add(Array::from_f32(1.0))?)?;
                half_of_one_plus(&tanh(inner.multiply(root)?)?)?
            }
        };
        Ok(x.multiply(share)?)
    }

    /// The function of the first half of the last axis, times the second half.
    ///
    /// # Shapes
    /// - `gate_up`: `[rows, 2 * intermediate_size]`
    /// - returns `[rows, intermediate_size]`
    ///
    /// # Errors
    /// If the last axis is odd.
    pub fn gate(self, gate_up: &Array) -> Result<Array, ModelError> {
        let halves = || gate_up.split_equal(2, -1);
        Ok(match self {
            Self::Silu => kernels::silu_mul(gate_up)?,
            Self::GeluTanh => kernels::gelu_tanh_mul(gate_up)?,
            Self::Gelu => {
                let halves = halves()?;
                self.forward(&halves[0])?.multiply(&halves[1])?
            }
            Self::ClampedSwish { limit, .. } => {
                let halves = halves()?;
                let bounds = (&Array::from_f32(-limit), &Array::from_f32(limit));
                let up = clip(&halves[1], bounds)?.add(Array::from_f32(1.0))?;
                self.forward(&halves[0])?.multiply(up)?
            }
        })
    }
}

fn half_of_one_plus(x: &Array) -> Result<Array, ModelError> {
    let half = Array::from_f32(0.5);
    Ok(x.multiply(&half)?.add(half)?)
}
