//! Qwen 3: Llama's blocks with normalised queries and keys, and a sliding window in the upper
//! layers if the checkpoint asks for it.
//!
//! # Source
//! transformers 5.20 `models/qwen3/modeling_qwen3.py`; mlx-lm `models/qwen3.py`.

use super::{
    Config, Family, Model, ModelArgs, ModelError,
    args::Defaults,
    decoder::{self, Decoder, DecoderArgs},
    layer_types::upper_windows,
    weights::Weights,
};
use crate::layers::QkNorm;

/// How the registry knows this family.
pub const FAMILY: Family = Family {
    model_type: "qwen3",
    architectures: &["Qwen3ForCausalLM"],
    args: |config| ModelArgs::from_config(config, &DEFAULTS),
    sanitize: decoder::sanitize,
    load,
};

const DEFAULTS: Defaults = Defaults {
    head_dim: Some(128),
    ..Defaults::LLAMA
};

fn load(
    config: &Config,
    args: ModelArgs,
    weights: Weights<'_>,
) -> Result<Box<dyn Model>, ModelError> {
    let windows = upper_windows(config, &args)?;
    let bias = config.flag("attention_bias", false)?;
    let rope = args.rope(config, "full_attention")?;
    Decoder::dense(&args, DecoderArgs::default(), weights, |layer| {
        let mut block = args.dense(Some(&rope));
        block.attention.qkv_bias = bias;
        block.attention.output_bias = bias;
        block.attention.qk_norm = Some(QkNorm::PerHead(args.norm));
        block.attention.sliding_window = windows[layer];
        block
    })
}
