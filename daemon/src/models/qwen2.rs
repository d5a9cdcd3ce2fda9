//! Qwen 2 and 2.5, DeepSeek-R1-Distill-Qwen: Llama's blocks with a bias on queries, keys and values,
//! and a sliding window in the upper layers if the checkpoint asks for it.
//!
//! # Source
//! transformers 5.20 `models/qwen2/modeling_qwen2.py`; mlx-lm `models/qwen2.py`.

use super::{
    Config, Family, Model, ModelArgs, ModelError,
    args::Defaults,
    decoder::{self, Decoder, DecoderArgs},
    layer_types::upper_windows,
    weights::Weights,
};

/// How the registry knows this family.
pub const FAMILY: Family = Family {
    model_type: "qwen2",
    architectures: &["Qwen2ForCausalLM"],
    args: |config| ModelArgs::from_config(config, &Defaults::LLAMA),
    sanitize: decoder::sanitize,
    load,
};

fn load(
    config: &Config,
    args: ModelArgs,
    weights: Weights<'_>,
) -> Result<Box<dyn Model>, ModelError> {
    let windows = upper_windows(config, &args)?;
    let rope = args.rope(config, "full_attention")?;
    Decoder::dense(&args, DecoderArgs::default(), weights, |layer| {
        let mut block = args.dense(Some(&rope));
        block.attention.qkv_bias = true;
        block.attention.sliding_window = windows[layer];
        block
    })
}
