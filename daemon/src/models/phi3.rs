//! Phi 3, 3.5 and 4-mini: Llama's blocks with packed projections, a rope that turns a part of each
//! head, scaled pair by pair for long contexts, and a sliding window in the smallest.
//!
//! # Source
//! transformers 5.20 `models/phi3/modeling_phi3.py`; mlx-lm `models/phi3.py`.

use super::{
    Config, Family, Model, ModelArgs, ModelError,
    args::Defaults,
    decoder::{self, Decoder, DecoderArgs},
    layer_types::{sliding_window, windows},
    weights::Weights,
};
use crate::layers::MlpInput;

/// How the registry knows this family.
pub const FAMILY: Family = Family {
    model_type: "phi3",
    architectures: &["Phi3ForCausalLM"],
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
    let windows = windows(config, &args, sliding_window(config)?, |_| true)?;
    let rope = args.rope(config, "full_attention")?;
    Decoder::dense(&args, DecoderArgs::default(), weights, |layer| {
        let mut block = args.dense(Some(&rope));
        block.attention.packed = true;
        block.attention.sliding_window = windows[layer];
        block.mlp.input = MlpInput::Packed;
        block
    })
}
