//! Qwen 3 with experts: Qwen 3's attention, with experts in the place of the MLP.
//!
//! # Source
//! transformers 5.20 `models/qwen3_moe/modeling_qwen3_moe.py`; mlx-lm `models/qwen3_moe.py`.

use super::{
    Config, Family, Model, ModelArgs, ModelError,
    args::Defaults,
    decoder::{Decoder, DecoderArgs},
    layer_types::sliding_window,
    moe_args, qwen2_moe,
    weights::Weights,
};
use crate::layers::QkNorm;

/// How the registry knows this family.
pub const FAMILY: Family = Family {
    model_type: "qwen3_moe",
    architectures: &["Qwen3MoeForCausalLM"],
    args: |config| ModelArgs::from_config(config, &Defaults::LLAMA),
    sanitize: qwen2_moe::sanitize,
    load,
};

fn load(
    config: &Config,
    args: ModelArgs,
    weights: Weights<'_>,
) -> Result<Box<dyn Model>, ModelError> {
    // Unlike the dense Qwen 3's, the window is in all layers.
    let window = match config.flag("use_sliding_window", false)? {
        true => sliding_window(config)?,
        false => None,
    };
    let bias = config.flag("attention_bias", false)?;
    let rope = args.rope(config, "full_attention")?;
    let normalize = config.flag("norm_topk_prob", false)?;
    let moe = moe_args::read(config, &args, "moe_intermediate_size", normalize)?;
    let sparse = moe_args::sparse_layers(config, &args)?;
    Decoder::sparse(&args, DecoderArgs::default(), weights, |layer| {
        let mut block = args.dense(Some(&rope));
        block.attention.qkv_bias = bias;
        block.attention.output_bias = bias;
        block.attention.qk_norm = Some(QkNorm::PerHead(args.norm));
        block.attention.sliding_window = window;
        (block, sparse[layer].then_some(moe))
    })
}
