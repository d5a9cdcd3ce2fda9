//! Ministral 8B in transformers' own spelling: Mistral's blocks, of which some have a sliding
//! window. (The published checkpoint says `mistral`, and all have one.)
//!
//! # Source
//! transformers 5.20 `models/ministral/modeling_ministral.py`.

use super::{
    Config, Family, Model, ModelArgs, ModelError,
    args::Defaults,
    decoder::{self, Decoder, DecoderArgs},
    layer_types::{sliding_window, windows},
    weights::Weights,
};

/// How the registry knows this family.
pub const FAMILY: Family = Family {
    model_type: "ministral",
    architectures: &["MinistralForCausalLM"],
    args: |config| ModelArgs::from_config(config, &Defaults::LLAMA),
    sanitize: decoder::sanitize,
    load,
};

fn load(
    config: &Config,
    args: ModelArgs,
    weights: Weights<'_>,
) -> Result<Box<dyn Model>, ModelError> {
    let window = sliding_window(config)?;
    let windows = windows(config, &args, window, |_| true)?;
    let rope = args.rope(config, "full_attention")?;
    Decoder::dense(&args, DecoderArgs::default(), weights, |layer| {
        let mut block = args.dense(Some(&rope));
        block.attention.sliding_window = windows[layer];
        block
    })
}
