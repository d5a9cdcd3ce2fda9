//! Mistral 7B, Nemo, Small and the first Ministral: Llama's blocks, with a sliding window or not.
//!
//! # Source
//! transformers 5.20 `models/mistral/modeling_mistral.py`, which is generated from Llama's.

use super::{
    Config, Family, Model, ModelArgs, ModelError,
    args::Defaults,
    decoder::{self, Decoder, DecoderArgs},
    layer_types::{sliding_window, windows},
    weights::Weights,
};

/// How the registry knows this family.
pub const FAMILY: Family = Family {
    model_type: "mistral",
    architectures: &["MistralForCausalLM"],
    args: |config| ModelArgs::from_config(config, &Defaults::LLAMA),
    sanitize: decoder::sanitize,
    load,
};

/// What an absent window means; null means none.
const DEFAULT_WINDOW: u32 = 4096;

fn load(
    config: &Config,
    args: ModelArgs,
    weights: Weights<'_>,
) -> Result<Box<dyn Model>, ModelError> {
    let window = match config.is_null("sliding_window") {
        true => None,
        false => Some(sliding_window(config)?.unwrap_or(DEFAULT_WINDOW)),
    };
    let windows = windows(config, &args, window, |_| true)?;
    let rope = args.rope(config, "full_attention")?;
    Decoder::dense(&args, DecoderArgs::default(), weights, |layer| {
        let mut block = args.dense(Some(&rope));
        block.attention.sliding_window = windows[layer];
        block
    })
}
