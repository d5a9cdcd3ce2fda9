//! A mixture of experts: each token goes through a few of many MLPs.

use metal_rpc_kernels::{self as kernels, Dispatched, RouteParams};
use mlx_rs::{Array, ops::sigmoid};

use super::{
    Activation, Attention, Block, DenseArgs, ExpertLinear, FeedForward, Linear, Mlp, MlpArgs,
    MlpInput, expert_linear::ExpertLinearArgs,
};
use crate::models::{ModelError, weights::Weights};

/// Dimensions and kind of a [`Moe`].
#[derive(Clone, Copy, Debug)]
pub struct MoeArgs {
    /// How many experts there are.
    pub num_experts: i32,
    /// How a token's experts are chosen and weighed.
    pub route: RouteParams,
    /// The router has a bias.
    pub router_bias: bool,
    /// One expert.
    pub expert: MlpArgs,
    /// What every token goes through besides.
    pub shared: Option<SharedExpertArgs>,
}

/// An MLP that every token goes through.
#[derive(Clone, Copy, Debug)]
pub struct SharedExpertArgs {
    /// Its dimensions.
    pub mlp: MlpArgs,
    /// Its result is multiplied by the sigmoid of one more projection, `shared_expert_gate`.
    pub is_gated: bool,
}

/// `sum of weight * expert(x) + shared(x)`.
#[derive(Debug)]
pub struct Moe {
    router: Linear,
    route: RouteParams,
    num_experts: i32,
    /// Gate and up read the same rows, so they are one product.
    input: ExpertLinear,
    activation: Activation,
    down: ExpertLinear,
    shared: Option<SharedExpert>,
}

impl Moe {
    /// Loads the layer `name`: its router `gate`, `experts.0` and so on, and `shared_expert`.
    ///
    /// # Errors
    /// As [`Linear::load`].
    pub fn load(name: &str, args: &MoeArgs, weights: &mut Weights<'_>) -> Result<Self, ModelError> {
        let MlpArgs {
            hidden_size,
            intermediate_size: width,
            ..
        } = args.expert;
        let load = |parts: &[(&str, i32)], inputs: i32, weights: &mut Weights<'_>| {
            let layer = ExpertLinearArgs {
                num_experts: args.num_experts,
                parts,
                inputs,
                bias: args.expert.bias,
            };
            ExpertLinear::load(&format!("{name}.experts"), &layer, weights)
        };
        let input: &[_] = match args.expert.input {
            MlpInput::GateAndUp => &[("gate_proj", width), ("up_proj", width)],
            MlpInput::Packed => &[("gate_up_proj", 2 * width)],
            MlpInput::Up => &[("up_proj", width)],
        };
        let router = [(format!("{name}.gate"), args.num_experts)];
        Ok(Self {
            router: Linear::load(&router, hidden_size, args.router_bias, weights)?,
            route: args.route,
            num_experts: args.num_experts,
            input: load(input, hidden_size, weights)?,
            activation: args.expert.activation,
            down: load(&[("down_proj", hidden_size)], width, weights)?,
            shared: args
                .shared
                .map(|shared| SharedExpert::load(name, &shared, weights))
                .transpose()?,
        })
    }
}

impl FeedForward for Moe {
    fn forward(&self, x: &Array) -> Result<Array, ModelError> {
        let logits = self.router.forward(x)?;
        let routes = kernels::route(&logits, None, &self.route)?;
        let Dispatched { rows, groups } = kernels::dispatch(x, &routes.experts, self.num_experts)?;
        let inner = self.input.forward(&rows, &groups)?;
        let inner = self.activation.gate(&inner)?;
        let rows = self.down.forward(&inner, &groups)?;
        let routed = kernels::combine(&rows, &groups, &routes)?;
        match &self.shared {
            Some(shared) => Ok(routed.add(shared.forward(x)?)?),
            None => Ok(routed),
        }
    }
}

/// The feed-forward of a model in which some layers have experts.
#[derive(Debug)]
pub enum SparseMlp {
    /// Of a layer with experts.
    Moe(Box<Moe>),
    /// Of a layer without.
    Mlp(Mlp),
}

impl FeedForward for SparseMlp {
    fn forward(&self, x: &Array) -> Result<Array, ModelError> {
        match self {
            Self::Moe(moe) => moe.forward(x),
            Self::Mlp(mlp) => mlp.forward(x),
        }
    }
}

impl Block<SparseMlp> {
    /// Loads the block `name` with its attention, and `moe` in the place of the MLP if there is
    /// one.
    ///
    /// # Errors
    /// As [`Linear::load`].
    pub fn sparse(
        name: &str,
        args: &DenseArgs<'_>,
        moe: Option<&MoeArgs>,
        weights: &mut Weights<'_>,
    ) -> Result<Self, ModelError> {
        let attention = Attention::load(&format!("{name}.self_attn"), &args.attention, weights)?;
        let name_of_mlp = format!("{name}.mlp");
        let mlp = match moe {
            Some(moe) => SparseMlp::Moe(Box::new(Moe::load(&name_of_mlp, moe, weights)?)),
            None => SparseMlp::Mlp(Mlp::load(&name_of_mlp, &args.mlp, weights)?),
        };
        Self::load(name, &args.residual, (attention, mlp), weights)
    }
}

#[derive(Debug)]
struct SharedExpert {
    mlp: Mlp,
    gate: Option<Linear>,
}

impl SharedExpert {
    fn load(
        name: &str,
        args: &SharedExpertArgs,
        weights: &mut Weights<'_>,
    ) -> Result<Self, ModelError> {
        let gate = match args.is_gated {
            true => {
                let parts = [(format!("{name}.shared_expert_gate"), 1)];
                let hidden_size = args.mlp.hidden_size;
                Some(Linear::load(&parts, hidden_size, false, weights)?)
            }
            false => None,
        };
        Ok(Self {
            mlp: Mlp::load(&format!("{name}.shared_expert"), &args.mlp, weights)?,
            gate,
        })
    }

    fn forward(&self, x: &Array) -> Result<Array, ModelError> {
        let y = self.mlp.forward(x)?;
        match &self.gate {
            Some(gate) => Ok(y.multiply(sigmoid(gate.forward(x)?)?)?),
            None => Ok(y),
        }
    }
}
