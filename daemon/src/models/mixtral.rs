//! Mixtral: Mistral's blocks with experts instead of the MLP.
//!
//! # Source
//! transformers 5.20 `models/mixtral/modeling_mixtral.py`; mlx-lm `models/mixtral.py`.

use super::{
    Config, Family, Model, ModelArgs, ModelError,
    args::Defaults,
    checkpoint::Checkpoint,
    decoder::{self, Decoder, DecoderArgs},
    layer_types::sliding_window,
    moe_args,
    rename::{rename, unstack},
    weights::Weights,
};

/// How the registry knows this family.
pub const FAMILY: Family = Family {
    model_type: "mixtral",
    architectures: &["MixtralForCausalLM"],
    args: |config| ModelArgs::from_config(config, &DEFAULTS),
    sanitize,
    load,
};

const DEFAULTS: Defaults = Defaults {
    norm_eps: 1e-5,
    rope_theta: 1e6,
    ..Defaults::LLAMA
};

/// mlx-lm stacks the experts and gives their projections Llama's names.
fn sanitize(args: &ModelArgs, checkpoint: &mut Checkpoint) {
    decoder::sanitize(args, checkpoint);
    unstack(checkpoint, ".switch_mlp.");
    let names = [
        (".block_sparse_moe.", ".mlp."),
        (".w1.", ".gate_proj."),
        (".w2.", ".down_proj."),
        (".w3.", ".up_proj."),
    ];
    rename(checkpoint, &names);
}

fn load(
    config: &Config,
    args: ModelArgs,
    weights: Weights<'_>,
) -> Result<Box<dyn Model>, ModelError> {
    let moe = moe_args::read(config, &args, "intermediate_size", true)?;
    let window = sliding_window(config)?;
    let rope = args.rope(config, "full_attention")?;
    Decoder::sparse(&args, DecoderArgs::default(), weights, |_| {
        let mut block = args.dense(Some(&rope));
        block.attention.sliding_window = window;
        (block, Some(moe))
    })
}
