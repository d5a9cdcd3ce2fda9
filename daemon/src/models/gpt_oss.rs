//! gpt-oss: experts whose gate is clamped, a score that belongs to no key, and a sliding window in
//! every other layer. Its experts are published in MXFP4.
//!
//! # Source
//! transformers 5.20 `models/gpt_oss/modeling_gpt_oss.py`; mlx-lm `models/gpt_oss.py`.

use super::{
    Config, Family, Model, ModelArgs, ModelError,
    args::Defaults,
    checkpoint::{Checkpoint, TensorEntry},
    decoder::{self, Decoder, DecoderArgs},
    layer_types::{sliding_window, windows},
    moe_args,
    rename::{rename, unstack},
    weights::Weights,
};
use crate::layers::{Activation, MlpInput};

/// How the registry knows this family.
pub const FAMILY: Family = Family {
    model_type: "gpt_oss",
    architectures: &["GptOssForCausalLM"],
    args: |config| ModelArgs::from_config(config, &DEFAULTS),
    sanitize,
    load,
};

const DEFAULTS: Defaults = Defaults {
    norm_eps: 1e-5,
    head_dim: Some(64),
    rope_theta: 150_000.0,
    ..Defaults::LLAMA
};

/// The experts of a layer are stacked: `gate_up_proj` with the outputs of gate and up in turns, in
/// MXFP4 (`gate_up_proj_blocks`) or dense (`gate_up_proj`, inputs first). mlx-lm and llama.cpp have
/// both apart.
fn sanitize(args: &ModelArgs, checkpoint: &mut Checkpoint) {
    decoder::sanitize(args, checkpoint);
    let names = [
        (".mlp.router.", ".mlp.gate."),
        (".mlp.switch_mlp.", ".mlp.experts."),
        (".self_attn.sinks.weight", ".self_attn.sinks"),
        ("_proj_blocks", "_proj.blocks"),
        ("_proj_scales", "_proj.scales"),
        ("_proj_bias", "_proj.bias"),
    ];
    rename(checkpoint, &names);
    let tensors = std::mem::take(&mut checkpoint.tensors);
    checkpoint.tensors = tensors.into_iter().map(expert_tensor).collect();
    unstack(checkpoint, ".experts.");
}

/// Says how the rows of a stack of experts stand in the file.
fn expert_tensor((name, mut entry): (String, TensorEntry)) -> (String, TensorEntry) {
    let Some((_, kind)) = name.split_once(".mlp.experts.") else {
        return (name, entry);
    };
    if kind.starts_with("gate_up_proj") {
        entry.gguf.paired_heads = Some(1);
    }
    if !kind.ends_with("_proj") {
        return (name, entry);
    }
    if let [_, inputs, outputs] = entry.shape.as_mut_slice() {
        std::mem::swap(inputs, outputs);
        entry.gguf.is_transposed = true;
    }
    (format!("{name}.weight"), entry)
}

fn load(
    config: &Config,
    args: ModelArgs,
    weights: Weights<'_>,
) -> Result<Box<dyn Model>, ModelError> {
    let window = match config.is_null("sliding_window") {
        true => None,
        false => Some(sliding_window(config)?.unwrap_or(128)),
    };
    let windows = windows(config, &args, window, |layer| layer % 2 == 0)?;
    let bias = config.flag("attention_bias", true)?;
    let rope = args.rope(config, "full_attention")?;
    // A softmax over the chosen experts is one over all, normalised.
    let mut moe = moe_args::read(config, &args, "intermediate_size", true)?;
    moe.router_bias = true;
    moe.expert.bias = true;
    moe.expert.activation = Activation::ClampedSwish {
        slope: config.factor("swiglu_alpha")?.unwrap_or(1.702),
        limit: config.factor("swiglu_limit")?.unwrap_or(7.0),
    };
    if weights.has_layer("model.layers.0.mlp.experts.0.gate_up_proj") {
        moe.expert.input = MlpInput::Packed;
    }
    Decoder::sparse(&args, DecoderArgs::default(), weights, |layer| {
        let mut block = args.dense(Some(&rope));
        block.attention.qkv_bias = bias;
        block.attention.output_bias = bias;
        block.attention.sinks = true;
        block.attention.sliding_window = windows[layer];
        (block, Some(moe))
    })
}
