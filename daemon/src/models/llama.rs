//! Llama 2, 3 and 3.1, and what shares their architecture: SmolLM2, Code Llama, Yi, TinyLlama,
//! DeepSeek-R1-Distill-Llama.
//!
//! Blocks that normalise on the way in, of grouped-query attention with rope and a gated MLP.
//!
//! # Source
//! transformers 5.20 `models/llama/modeling_llama.py`; mlx-lm `models/llama.py`.

use super::{
    Config, Family, Model, ModelArgs, ModelError,
    args::Defaults,
    decoder::{self, Decoder, DecoderArgs},
    weights::Weights,
};

/// How the registry knows this family.
pub const FAMILY: Family = Family {
    model_type: "llama",
    // The second is how the first conversions of Llama spelled it.
    architectures: &["LlamaForCausalLM", "LLaMAForCausalLM"],
    args: |config| ModelArgs::from_config(config, &Defaults::LLAMA),
    sanitize: decoder::sanitize,
    load,
};

fn load(
    config: &Config,
    args: ModelArgs,
    weights: Weights<'_>,
) -> Result<Box<dyn Model>, ModelError> {
    let attention_bias = config.flag("attention_bias", false)?;
    let mlp_bias = config.flag("mlp_bias", false)?;
    let rope = args.rope(config, "full_attention")?;
    Decoder::dense(&args, DecoderArgs::default(), weights, |_| {
        let mut block = args.dense(Some(&rope));
        block.attention.qkv_bias = attention_bias;
        block.attention.output_bias = attention_bias;
        block.mlp.bias = mlp_bias;
        block
    })
}
