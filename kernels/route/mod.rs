//! The router of a mixture of experts. Contract: `contract.md`.

mod native;

use mlx_rs::{Array, Dtype};

use crate::{
    check::Arguments,
    error::{KernelError, Result},
    ffi::Output,
    node::HostKernel,
};

const CHECK: Arguments = Arguments { kernel: "route" };

/// How logits of the router become scores of experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteScores {
    /// Softmax over all experts.
    Softmax,
    /// Sigmoid of each.
    Sigmoid,
}

/// What a group of experts is judged by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupRank {
    /// Its best expert.
    Best,
    /// The sum of its best two.
    BestTwo,
}

/// Experts in groups of equal size, of which a token uses only the best.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteGroups {
    /// Groups that there are; divides the number of experts.
    pub num_groups: usize,
    /// Groups that a token uses.
    pub kept: usize,
    /// What decides.
    pub rank: GroupRank,
}

/// How experts are chosen and weighed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RouteParams {
    /// Experts of a token, `k`.
    pub experts_per_token: usize,
    /// What the logits mean.
    pub scores: RouteScores,
    /// Groups, if only some of them may be used.
    pub groups: Option<RouteGroups>,
    /// Weights of a token add up to one, before `scale`.
    pub normalize: bool,
    /// Factor of all weights.
    pub scale: f32,
}

/// The experts of each token, and their weights.
#[derive(Clone, Debug)]
pub struct Routes {
    /// `[tokens, k]` int32, greatest rank first.
    pub experts: Array,
    /// `[tokens, k]` float32.
    pub weights: Array,
}

/// Chooses `k` experts for each row of `logits`. Of equal ranks the lower expert wins.
///
/// # Shapes
/// - `logits`: `[tokens, experts]` float32, bfloat16 or float16
/// - `correction`: `[experts]`, added to the scores to choose, not to weigh
///
/// # Errors
/// [`KernelError::Shape`], [`KernelError::Dtype`] and [`KernelError::Value`] if the arguments do
/// not fit together.
pub fn route(logits: &Array, correction: Option<&Array>, params: &RouteParams) -> Result<Routes> {
    CHECK.ndim("logits", logits, 2, "[tokens, experts]")?;
    let (tokens, experts) = (logits.shape()[0], logits.shape()[1]);
    check_params(params, CHECK.size(experts))?;
    let node = native::Route {
        num_experts: CHECK.size(experts),
        params: *params,
    };
    let k = i32::try_from(params.experts_per_token).expect("at most the number of experts");
    let shape = [tokens, k];
    let output = |dtype| Output::Fresh {
        shape: &shape,
        dtype,
    };
    let outputs = [output(Dtype::Int32), output(Dtype::Float32)];
    let logits = CHECK.as_f32("logits", logits)?;
    let [experts, weights] = match correction {
        Some(correction) => {
            CHECK.dims("correction", correction, &[experts], "[experts]")?;
            let correction = CHECK.as_f32("correction", correction)?;
            node.add(&[&logits, &correction], outputs)?
        }
        None => node.add(&[&logits], outputs)?,
    };
    Ok(Routes { experts, weights })
}

fn check_params(params: &RouteParams, num_experts: usize) -> Result<()> {
    let value = |argument, rule| {
        Err(KernelError::Value {
            kernel: CHECK.kernel,
            argument,
            rule,
        })
    };
    let mut usable = num_experts;
    if let Some(groups) = params.groups {
        if groups.num_groups == 0 || !num_experts.is_multiple_of(groups.num_groups) {
            return value("num_groups", "a divisor of the number of experts");
        }
        if !(1..=groups.num_groups).contains(&groups.kept) {
            return value("kept", "between 1 and num_groups");
        }
        usable = num_experts / groups.num_groups * groups.kept;
    }
    if !(1..=usable).contains(&params.experts_per_token) {
        return value(
            "experts_per_token",
            "between 1 and the number of experts that may be used",
        );
    }
    Ok(())
}
