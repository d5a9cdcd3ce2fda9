//! Qwen 1.5 and 2 with experts: Qwen 2's attention, experts, and one expert that all tokens share.
//!
//! # Source
//! transformers 5.20 `models/qwen2_moe/modeling_qwen2_moe.py`; mlx-lm `models/qwen2_moe.py`.

use super::{
    Config, Family, Model, ModelArgs, ModelError,
    args::Defaults,
    checkpoint::Checkpoint,
    decoder::{self, Decoder, DecoderArgs},
    layer_types::upper_windows,
    moe_args::{self, size},
    rename::unstack,
    weights::Weights,
};
use crate::layers::{MlpArgs, SharedExpertArgs};

/// How the registry knows this family.
pub const FAMILY: Family = Family {
    model_type: "qwen2_moe",
    architectures: &["Qwen2MoeForCausalLM"],
    args: |config| ModelArgs::from_config(config, &Defaults::LLAMA),
    sanitize,
    load,
};

/// mlx-lm stacks the experts.
pub(super) fn sanitize(args: &ModelArgs, checkpoint: &mut Checkpoint) {
    decoder::sanitize(args, checkpoint);
    unstack(checkpoint, ".switch_mlp.");
}

fn load(
    config: &Config,
    args: ModelArgs,
    weights: Weights<'_>,
) -> Result<Box<dyn Model>, ModelError> {
    let windows = upper_windows(config, &args)?;
    let rope = args.rope(config, "full_attention")?;
    let normalize = config.flag("norm_topk_prob", false)?;
    let mut moe = moe_args::read(config, &args, "moe_intermediate_size", normalize)?;
    moe.shared = Some(SharedExpertArgs {
        mlp: MlpArgs {
            intermediate_size: size(config, "shared_expert_intermediate_size")?,
            ..args.mlp()
        },
        is_gated: true,
    });
    let sparse = moe_args::sparse_layers(config, &args)?;
    let qkv_bias = config.flag("qkv_bias", true)?;
    Decoder::sparse(&args, DecoderArgs::default(), weights, |layer| {
        let mut block = args.dense(Some(&rope));
        block.attention.qkv_bias = qkv_bias;
        block.attention.sliding_window = windows[layer];
        (block, sparse[layer].then_some(moe))
    })
}
