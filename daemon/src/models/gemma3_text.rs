//! Gemma 3, text only (270M, 1B): Gemma 2's blocks with normalised queries and keys instead of soft
//! caps, five layers with a sliding window and a rope of their own between two that see everything.
//!
//! # Source
//! transformers 5.20 `models/gemma3/modeling_gemma3.py`; mlx-lm `models/gemma3_text.py`.

use super::{
    Config, Family, Model, ModelArgs, ModelError,
    args::Defaults,
    decoder::{self, Decoder},
    gemma2::{self, GemmaArgs},
    layer_types::windows,
    weights::Weights,
};
use crate::layers::{QkNorm, RopeArgs, RopeScaling};

/// How the registry knows this family.
pub const FAMILY: Family = Family {
    model_type: "gemma3_text",
    architectures: &["Gemma3ForCausalLM"],
    args: |config| ModelArgs::from_config(config, &DEFAULTS),
    sanitize: decoder::sanitize,
    load,
};

const DEFAULTS: Defaults = Defaults {
    rope_theta: 1_000_000.0,
    ..gemma2::DEFAULTS
};

fn load(
    config: &Config,
    args: ModelArgs,
    weights: Weights<'_>,
) -> Result<Box<dyn Model>, ModelError> {
    let gemma = GemmaArgs::from_config(config, [None, None])?;
    let pattern = config.count("sliding_window_pattern")?.unwrap_or(6).max(1) as usize;
    let windows = windows(config, &args, gemma.window, |layer| {
        !(layer + 1).is_multiple_of(pattern)
    })?;
    let rope = args.rope(config, "full_attention")?;
    let local_rope = local_rope(config, &args, &rope)?;
    Decoder::dense(&args, gemma.decoder_args(&args), weights, |layer| {
        let rope = windows[layer].map_or(&rope, |_| &local_rope);
        let mut block = gemma.block(&args, rope);
        block.attention.qk_norm = Some(QkNorm::PerHead(args.norm));
        block.attention.sliding_window = windows[layer];
        block
    })
}

/// The rope of layers with a window: never scaled where transformers 5 has not written it.
fn local_rope(config: &Config, args: &ModelArgs, rope: &RopeArgs) -> Result<RopeArgs, ModelError> {
    if config.get("rope_parameters").is_some() {
        return args.rope(config, "sliding_attention");
    }
    Ok(RopeArgs {
        theta: config.number("rope_local_base_freq")?.unwrap_or(10_000.0),
        scaling: RopeScaling::None,
        ..rope.clone()
    })
}
