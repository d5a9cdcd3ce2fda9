//! OLMo 2: Llama's blocks, normalised on the way out, with queries and keys normalised as whole
//! rows.
//!
//! # Source
//! transformers 5.20 `models/olmo2/modeling_olmo2.py`; mlx-lm `models/olmo2.py`.

use super::{
    Config, Family, Model, ModelArgs, ModelError,
    args::Defaults,
    decoder::{self, Decoder, DecoderArgs},
    weights::Weights,
};
use crate::layers::{NormPlacement, QkNorm};

/// How the registry knows this family.
pub const FAMILY: Family = Family {
    model_type: "olmo2",
    architectures: &["Olmo2ForCausalLM"],
    args: |config| ModelArgs::from_config(config, &DEFAULTS),
    sanitize: decoder::sanitize,
    load,
};

const DEFAULTS: Defaults = Defaults {
    norm_eps: 1e-5,
    ..Defaults::LLAMA
};

fn load(
    config: &Config,
    args: ModelArgs,
    weights: Weights<'_>,
) -> Result<Box<dyn Model>, ModelError> {
    let attention_bias = config.flag("attention_bias", false)?;
    let rope = args.rope(config, "full_attention")?;
    Decoder::dense(&args, DecoderArgs::default(), weights, |_| {
        let mut block = args.dense(Some(&rope));
        block.attention.qkv_bias = attention_bias;
        block.attention.output_bias = attention_bias;
        block.attention.qk_norm = Some(QkNorm::AllHeads(args.norm));
        block.residual.placement = NormPlacement::After;
        block
    })
}
