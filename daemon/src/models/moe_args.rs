//! What the families with experts read from `config.json`.

use metal_rpc_kernels::{RouteParams, RouteScores};

use super::{Config, ModelArgs, ModelError, args::MAX_DIM, config::invalid};
use crate::layers::{MlpArgs, MoeArgs};

/// A mixture with Llama's MLP as experts, chosen by a softmax and weighed by it. `width_key` is what
/// the family calls the width of an expert.
///
/// # Errors
/// [`ModelError::Config`] if a number is absent or out of range.
pub(super) fn read(
    config: &Config,
    args: &ModelArgs,
    width_key: &'static str,
    normalize: bool,
) -> Result<MoeArgs, ModelError> {
    // transformers 5 writes the second for Qwen's first.
    let num_experts = match config.get("num_experts") {
        Some(_) => size(config, "num_experts")?,
        None => size(config, "num_local_experts")?,
    };
    let key = "num_experts_per_tok";
    let experts_per_token = size(config, key)?;
    if experts_per_token > num_experts {
        let rule = "at most the number of experts";
        return Err(invalid(key, rule, config.get(key)));
    }
    Ok(MoeArgs {
        num_experts,
        route: RouteParams {
            experts_per_token: experts_per_token.unsigned_abs() as usize,
            scores: RouteScores::Softmax,
            groups: None,
            normalize,
            scale: 1.0,
        },
        router_bias: false,
        expert: MlpArgs {
            intermediate_size: size(config, width_key)?,
            ..args.mlp()
        },
        shared: None,
    })
}

/// A number of things that must be there.
pub(super) fn size(config: &Config, key: &'static str) -> Result<i32, ModelError> {
    let size = config.count(key)?.and_then(|size| i32::try_from(size).ok());
    match size {
        Some(size) if (1..=MAX_DIM).contains(&size) => Ok(size),
        _ => Err(invalid(key, "between 1 and 16777216", config.get(key))),
    }
}

/// Which layers have experts in Qwen's families: every `decoder_sparse_step`-th that is not one of
/// `mlp_only_layers`.
///
/// # Errors
/// [`ModelError::Config`] if a key has another type.
pub(super) fn sparse_layers(config: &Config, args: &ModelArgs) -> Result<Vec<bool>, ModelError> {
    let key = "decoder_sparse_step";
    let step = match config.get(key) {
        Some(_) => size(config, key)?.unsigned_abs() as usize,
        None => 1,
    };
    let dense = config.list("mlp_only_layers")?.unwrap_or(&[]);
    let layers = 0..args.num_layers;
    Ok(layers
        .map(|layer| (layer + 1).is_multiple_of(step) && !dense.contains(&layer.into()))
        .collect())
}
