//! The same linear layer of many experts, each row through one of them.

use metal_rpc_kernels::{self as kernels, ExpertGroups};
use mlx_rs::Array;

use super::Matrix;
use crate::models::{
    ModelError,
    weights::{Part, Weights},
};

/// Dimensions of an [`ExpertLinear`], of one expert.
#[derive(Clone, Debug)]
pub struct ExpertLinearArgs<'a> {
    /// How many experts there are.
    pub num_experts: i32,
    /// Names below an expert of what is one product, with their numbers of outputs.
    pub parts: &'a [(&'a str, i32)],
    /// Elements of a row.
    pub inputs: i32,
    /// Each part has a bias.
    pub bias: bool,
}

/// `x[row] @ weight[expert of row].T + bias[expert of row]`.
#[derive(Debug)]
pub struct ExpertLinear {
    /// `[num_experts * outputs, inputs]`.
    weight: Matrix,
    /// `[num_experts * outputs]`.
    bias: Option<Array>,
    num_experts: i32,
}

impl ExpertLinear {
    /// Loads the experts `name.0`, `name.1` and so on, into one array.
    ///
    /// # Errors
    /// As [`Weights::matrices`]; [`ModelError::MixedExperts`] if they are not all in one format.
    pub fn load(
        name: &str,
        args: &ExpertLinearArgs<'_>,
        weights: &mut Weights<'_>,
    ) -> Result<Self, ModelError> {
        let parts = |suffix: &str| -> Vec<Part> {
            (0..args.num_experts)
                .flat_map(|expert| args.parts.iter().map(move |part| (expert, part)))
                .map(|(expert, (part, outputs))| {
                    (format!("{name}.{expert}.{part}{suffix}"), *outputs)
                })
                .collect()
        };
        let mut matrices = weights.matrices(&parts(""), args.inputs)?;
        let weight = match (matrices.pop(), matrices.is_empty()) {
            (Some(weight), true) => weight,
            _ => {
                return Err(ModelError::MixedExperts {
                    name: name.to_owned(),
                });
            }
        };
        let bias = match args.bias {
            true => Some(weights.vector(&parts(".bias"))?),
            false => None,
        };
        Ok(Self {
            weight,
            bias,
            num_experts: args.num_experts,
        })
    }

    /// # Shapes
    /// - `x`: `[rows, inputs]`, in the order of `groups`
    /// - returns `[rows, outputs]`, dtype of `x`
    ///
    /// # Errors
    /// If the shape does not fit.
    pub fn forward(&self, x: &Array, groups: &ExpertGroups) -> Result<Array, ModelError> {
        // Not when it is loaded: that thread's nodes cannot be evaluated by another.
        let experts = self.num_experts;
        let bias = self.bias.as_ref();
        let bias = bias.map(|bias| bias.reshape(&[experts, -1])).transpose()?;
        let bias = bias.as_ref();
        Ok(match &self.weight {
            Matrix::Dense(weight) => {
                let weight = weight.reshape(&[experts, -1, weight.dim(1)])?;
                kernels::expert_linear(x, groups, &weight, bias)?
            }
            Matrix::Quantized(weight) => kernels::quantized_expert_linear(x, groups, weight, bias)?,
        })
    }
}
