//! Granite 3: Llama's blocks with a factor on embeddings, scores, what blocks add, and logits.
//!
//! # Source
//! transformers 5.20 `models/granite/modeling_granite.py`; mlx-lm `models/granite.py`.

use super::{
    Config, Family, Model, ModelArgs, ModelError,
    args::Defaults,
    decoder::{self, Decoder, DecoderArgs},
    weights::Weights,
};

/// How the registry knows this family.
pub const FAMILY: Family = Family {
    model_type: "granite",
    architectures: &["GraniteForCausalLM"],
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
    // An absent factor is 1, also that of the scores.
    let scale = config.factor("attention_multiplier")?.unwrap_or(1.0);
    let residual_multiplier = config.factor("residual_multiplier")?;
    let decoder_args = DecoderArgs {
        embedding_scale: config.factor("embedding_multiplier")?,
        logit_scale: config.factor("logits_scaling")?.map(f32::recip),
        ..DecoderArgs::default()
    };
    let rope = args.rope(config, "full_attention")?;
    Decoder::dense(&args, decoder_args, weights, |_| {
        let mut block = args.dense(Some(&rope));
        block.attention.qkv_bias = attention_bias;
        block.attention.output_bias = attention_bias;
        block.attention.scale = scale;
        block.mlp.bias = mlp_bias;
        block.residual.multiplier = residual_multiplier;
        block
    })
}
