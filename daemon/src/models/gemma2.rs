//! Gemma 2: norms around both halves of a block, a GELU gate, soft caps on scores and logits, and a
//! sliding window in every other layer.
//!
//! # Source
//! transformers 5.20 `models/gemma2/modeling_gemma2.py`; mlx-lm `models/gemma2.py`.

use super::{
    Config, Family, Model, ModelArgs, ModelError,
    args::Defaults,
    decoder::{self, Decoder, DecoderArgs},
    layer_types::{sliding_window, windows},
    weights::Weights,
};
use crate::layers::{DenseArgs, NormKind, NormPlacement, RopeArgs};

/// How the registry knows this family.
pub const FAMILY: Family = Family {
    model_type: "gemma2",
    architectures: &["Gemma2ForCausalLM"],
    args: |config| ModelArgs::from_config(config, &DEFAULTS),
    sanitize: decoder::sanitize,
    load,
};

/// What checkpoints of Gemma 2 and 3 leave out.
pub(super) const DEFAULTS: Defaults = Defaults {
    activation_key: "hidden_activation",
    activation: "gelu_pytorch_tanh",
    norm_kind: NormKind::RmsPlusOne,
    head_dim: Some(256),
    tie_word_embeddings: true,
    ..Defaults::LLAMA
};

fn load(
    config: &Config,
    args: ModelArgs,
    weights: Weights<'_>,
) -> Result<Box<dyn Model>, ModelError> {
    let gemma = GemmaArgs::from_config(config, [Some(30.0), Some(50.0)])?;
    let windows = windows(config, &args, gemma.window, |layer| layer % 2 == 0)?;
    let rope = args.rope(config, "full_attention")?;
    Decoder::dense(&args, gemma.decoder_args(&args), weights, |layer| {
        let mut block = gemma.block(&args, &rope);
        block.attention.sliding_window = windows[layer];
        block
    })
}

/// What Gemma 2 and 3 have beside the shared keys.
pub(super) struct GemmaArgs {
    pub(super) window: Option<u32>,
    attention_bias: bool,
    scale: f32,
    attention_soft_cap: Option<f32>,
    logit_soft_cap: Option<f32>,
}

impl GemmaArgs {
    /// Reads them; `soft_caps` are those of logits and scores where the keys are absent.
    ///
    /// # Errors
    /// [`ModelError::Unsupported`] for an encoder.
    pub(super) fn from_config(
        config: &Config,
        soft_caps: [Option<f32>; 2],
    ) -> Result<Self, ModelError> {
        const BIDIRECTIONAL: &str = "use_bidirectional_attention";
        if config.flag(BIDIRECTIONAL, false)? {
            return Err(ModelError::Unsupported {
                key: BIDIRECTIONAL,
                value: "true".to_owned(),
                known: vec!["false"],
            });
        }
        // Null says that there is none, absence says nothing.
        let cap = |key: &'static str, default: Option<f32>| match config.is_null(key) {
            true => Ok::<_, ModelError>(None),
            false => Ok(config.factor(key)?.or(default)),
        };
        let window = match config.is_null("sliding_window") {
            true => None,
            false => Some(sliding_window(config)?.unwrap_or(4096)),
        };
        let scalar = config.factor("query_pre_attn_scalar")?.unwrap_or(256.0);
        Ok(Self {
            window,
            attention_bias: config.flag("attention_bias", false)?,
            scale: 1.0 / scalar.sqrt(),
            logit_soft_cap: cap("final_logit_softcapping", soft_caps[0])?,
            attention_soft_cap: cap("attn_logit_softcapping", soft_caps[1])?,
        })
    }

    pub(super) fn decoder_args(&self, args: &ModelArgs) -> DecoderArgs {
        DecoderArgs {
            embedding_scale: Some((args.hidden_size as f32).sqrt()),
            logit_soft_cap: self.logit_soft_cap,
            ..DecoderArgs::default()
        }
    }

    pub(super) fn block<'a>(&self, args: &ModelArgs, rope: &'a RopeArgs) -> DenseArgs<'a> {
        let mut block = args.dense(Some(rope));
        block.attention.qkv_bias = self.attention_bias;
        block.attention.output_bias = self.attention_bias;
        block.attention.scale = self.scale;
        block.attention.soft_cap = self.attention_soft_cap;
        block.residual.placement = NormPlacement::Around;
        block
    }
}
