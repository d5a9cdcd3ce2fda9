//! SmolLM3: Llama's blocks, of which every fourth has no positions.
//!
//! # Source
//! transformers 5.20 `models/smollm3/modeling_smollm3.py`; mlx-lm `models/smollm3.py`.

use super::{
    Config, Family, Model, ModelArgs, ModelError,
    args::Defaults,
    config::invalid,
    decoder::{self, Decoder, DecoderArgs},
    layer_types::{sliding_window, windows},
    weights::Weights,
};

/// How the registry knows this family.
pub const FAMILY: Family = Family {
    model_type: "smollm3",
    architectures: &["SmolLM3ForCausalLM"],
    args: |config| ModelArgs::from_config(config, &DEFAULTS),
    sanitize: decoder::sanitize,
    load,
};

const DEFAULTS: Defaults = Defaults {
    tie_word_embeddings: true,
    rope_theta: 2_000_000.0,
    ..Defaults::LLAMA
};

fn load(
    config: &Config,
    args: ModelArgs,
    weights: Weights<'_>,
) -> Result<Box<dyn Model>, ModelError> {
    let has_rope = layers_with_rope(config, &args)?;
    let window = match config.flag("use_sliding_window", false)? {
        true => sliding_window(config)?,
        false => None,
    };
    let windows = windows(config, &args, window, |layer| !has_rope[layer])?;
    let attention_bias = config.flag("attention_bias", false)?;
    let mlp_bias = config.flag("mlp_bias", false)?;
    let rope = args.rope(config, "full_attention")?;
    Decoder::dense(&args, DecoderArgs::default(), weights, |layer| {
        let mut block = args.dense(has_rope[layer].then_some(&rope));
        block.attention.qkv_bias = attention_bias;
        block.attention.output_bias = attention_bias;
        block.attention.sliding_window = windows[layer];
        block.mlp.bias = mlp_bias;
        block
    })
}

/// `no_rope_layers`, whose ones are the layers that do have a rope, or every layer but each
/// `no_rope_layer_interval`th.
fn layers_with_rope(config: &Config, args: &ModelArgs) -> Result<Vec<bool>, ModelError> {
    const KEY: &str = "no_rope_layers";
    let Some(values) = config.list(KEY)? else {
        let interval = config.count("no_rope_layer_interval")?.unwrap_or(4).max(1) as usize;
        return Ok((1..=args.num_layers).map(|n| n % interval != 0).collect());
    };
    let flags: Option<Vec<bool>> = values
        .iter()
        .map(|value| value.as_u64().map(|flag| flag != 0))
        .collect();
    flags
        .filter(|flags| flags.len() == args.num_layers)
        .ok_or_else(|| invalid(KEY, "0 or 1 for each layer", config.get(KEY)))
}
