//! Phi 1, 1.5 and 2: attention and MLP read the same layer norm side by side; biases everywhere; a
//! rope that turns a part of each head.
//!
//! # Source
//! transformers 5.20 `models/phi/modeling_phi.py`; mlx-lm `models/phi.py`.

use super::{
    Config, Family, LayerInput, Model, ModelArgs, ModelError,
    args::Defaults,
    checkpoint::Checkpoint,
    decoder::{self, Decoder, DecoderArgs},
    rename::rename,
    weights::Weights,
};
use crate::layers::{
    Attention, DecoderBlock, DenseArgs, FeedForward, Mlp, MlpInput, Norm, NormKind, Stream,
};

/// How the registry knows this family.
pub const FAMILY: Family = Family {
    model_type: "phi",
    architectures: &["PhiForCausalLM"],
    args: |config| ModelArgs::from_config(config, &DEFAULTS),
    sanitize,
    load,
};

const DEFAULTS: Defaults = Defaults {
    activation: "gelu_new",
    norm_eps_key: "layer_norm_eps",
    norm_eps: 1e-5,
    norm_kind: NormKind::Layer,
    partial_rotary_factor: 0.5,
    ..Defaults::LLAMA
};

fn sanitize(args: &ModelArgs, checkpoint: &mut Checkpoint) {
    decoder::sanitize(args, checkpoint);
    let names = [
        (".self_attn.dense.", ".self_attn.o_proj."),
        (".mlp.fc1.", ".mlp.up_proj."),
        (".mlp.fc2.", ".mlp.down_proj."),
        ("model.final_layernorm.", "model.norm."),
    ];
    rename(checkpoint, &names);
}

fn load(
    config: &Config,
    args: ModelArgs,
    weights: Weights<'_>,
) -> Result<Box<dyn Model>, ModelError> {
    const QK_NORM: &str = "qk_layernorm";
    if config.flag(QK_NORM, false)? {
        return Err(ModelError::Unsupported {
            key: QK_NORM,
            value: "true".to_owned(),
            known: vec!["false"],
        });
    }
    let rope = args.rope(config, "full_attention")?;
    let mut block = args.dense(Some(&rope));
    block.attention.qkv_bias = true;
    block.attention.output_bias = true;
    block.mlp.bias = true;
    block.mlp.input = MlpInput::Up;
    let decoder_args = DecoderArgs {
        head_bias: true,
        ..DecoderArgs::default()
    };
    Decoder::load(&args, decoder_args, weights, |_, name, weights| {
        Block::load(name, &block, weights)
    })
}

#[derive(Debug)]
struct Block {
    norm: Norm,
    attention: Attention,
    mlp: Mlp,
}

impl Block {
    fn load(
        name: &str,
        args: &DenseArgs<'_>,
        weights: &mut Weights<'_>,
    ) -> Result<Self, ModelError> {
        let norm = (args.residual.hidden_size, args.residual.norm);
        Ok(Self {
            norm: Norm::load(&format!("{name}.input_layernorm"), norm.0, norm.1, weights)?,
            attention: Attention::load(&format!("{name}.self_attn"), &args.attention, weights)?,
            mlp: Mlp::load(&format!("{name}.mlp"), &args.mlp, weights)?,
        })
    }
}

impl DecoderBlock for Block {
    fn attention(&self) -> &Attention {
        &self.attention
    }

    fn forward(&self, stream: &mut Stream, input: LayerInput<'_>) -> Result<(), ModelError> {
        let normed = stream.normed(&self.norm)?;
        let attended = self.attention.forward(&normed, input)?;
        let fed = self.mlp.forward(&normed)?;
        stream.add(attended.add(fed)?)
    }
}
