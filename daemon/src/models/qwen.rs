//! Qwen, the first: Llama's blocks with packed queries, keys and values that have a bias, and names
//! of its own.
//!
//! Above `seq_length` tokens the published code stretches rope and scores by the length of the
//! request; vLLM serves no longer ones, and neither is done here.
//!
//! # Source
//! `modeling_qwen.py` beside the published checkpoints (Qwen/Qwen-7B); vLLM
//! `model_executor/models/qwen.py`.

use super::{
    Config, Family, Model, ModelArgs, ModelError,
    args::Defaults,
    checkpoint::Checkpoint,
    config::invalid,
    decoder::{self, Decoder, DecoderArgs},
    rename::rename,
    weights::Weights,
};

/// How the registry knows this family.
pub const FAMILY: Family = Family {
    model_type: "qwen",
    architectures: &["QWenLMHeadModel"],
    args,
    sanitize,
    load,
};

const DEFAULTS: Defaults = Defaults {
    norm_eps_key: "layer_norm_epsilon",
    ..Defaults::LLAMA
};

fn args(config: &Config) -> Result<ModelArgs, ModelError> {
    let mut args = ModelArgs::from_config(config, &DEFAULTS)?;
    // The key counts gate and up together.
    args.intermediate_size /= 2;
    args.default_rope_theta = config.number("rotary_emb_base")?.unwrap_or(10_000.0);
    Ok(args)
}

fn sanitize(args: &ModelArgs, checkpoint: &mut Checkpoint) {
    let names = [
        ("transformer.wte.", "model.embed_tokens."),
        ("transformer.ln_f.", "model.norm."),
        ("transformer.h.", "model.layers."),
        (".attn.c_attn.", ".self_attn.qkv_proj."),
        (".attn.c_proj.", ".self_attn.o_proj."),
        (".mlp.w1.", ".mlp.up_proj."),
        (".mlp.w2.", ".mlp.gate_proj."),
        (".mlp.c_proj.", ".mlp.down_proj."),
        (".ln_1.", ".input_layernorm."),
        (".ln_2.", ".post_attention_layernorm."),
        ("transformer.rotary_emb.", "model.rotary_emb."),
    ];
    rename(checkpoint, &names);
    decoder::sanitize(args, checkpoint);
}

fn load(
    config: &Config,
    args: ModelArgs,
    weights: Weights<'_>,
) -> Result<Box<dyn Model>, ModelError> {
    if !config.flag("no_bias", true)? {
        return Err(invalid("no_bias", "true", config.get("no_bias")));
    }
    if config
        .count("kv_channels")?
        .is_some_and(|size| size != args.head_dim.unsigned_abs())
    {
        let rule = "hidden_size / num_attention_heads";
        return Err(invalid("kv_channels", rule, config.get("kv_channels")));
    }
    let rope = args.rope(config, "full_attention")?;
    Decoder::dense(&args, DecoderArgs::default(), weights, |_| {
        let mut block = args.dense(Some(&rope));
        block.attention.packed = true;
        block.attention.qkv_bias = true;
        block
    })
}
