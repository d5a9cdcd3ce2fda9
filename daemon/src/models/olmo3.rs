//! OLMo 3: OLMo 2's blocks, three layers with a sliding window before each that sees everything,
//! whose rope alone is scaled.
//!
//! # Source
//! transformers 5.20 `models/olmo3/modeling_olmo3.py`; mlx-lm `models/olmo3.py`.

use super::{
    Config, Family, Model, ModelArgs, ModelError,
    args::Defaults,
    decoder::{self, Decoder, DecoderArgs},
    layer_types::{sliding_window, windows},
    weights::Weights,
};
use crate::layers::{NormPlacement, QkNorm, RopeArgs, RopeScaling};

/// How the registry knows this family.
pub const FAMILY: Family = Family {
    model_type: "olmo3",
    architectures: &["Olmo3ForCausalLM"],
    args: |config| ModelArgs::from_config(config, &DEFAULTS),
    sanitize: decoder::sanitize,
    load,
};

const DEFAULTS: Defaults = Defaults {
    norm_eps: 1e-5,
    rope_theta: 500_000.0,
    ..Defaults::LLAMA
};

fn load(
    config: &Config,
    args: ModelArgs,
    weights: Weights<'_>,
) -> Result<Box<dyn Model>, ModelError> {
    let window = match config.is_null("sliding_window") {
        true => None,
        false => Some(sliding_window(config)?.unwrap_or(4096)),
    };
    let windows = windows(config, &args, window, |layer| {
        !(layer + 1).is_multiple_of(4)
    })?;
    let attention_bias = config.flag("attention_bias", false)?;
    let rope = args.rope(config, "full_attention")?;
    let local_rope = match config.get("rope_scaling") {
        Some(_) => RopeArgs {
            scaling: RopeScaling::None,
            ..rope.clone()
        },
        None => args.rope(config, "sliding_attention")?,
    };
    Decoder::dense(&args, DecoderArgs::default(), weights, |layer| {
        let mut block = args.dense(Some(windows[layer].map_or(&rope, |_| &local_rope)));
        block.attention.qkv_bias = attention_bias;
        block.attention.output_bias = attention_bias;
        block.attention.qk_norm = Some(QkNorm::AllHeads(args.norm));
        block.attention.sliding_window = windows[layer];
        block.residual.placement = NormPlacement::After;
        block
    })
}
