//! What most families need of `config.json`, with every default filled in and every rule checked.

use serde::Deserialize;

use super::{ModelError, config::Config, rope_args};
use crate::layers::{
    Activation, AttentionArgs, DenseArgs, MlpArgs, MlpInput, NormArgs, NormKind, NormPlacement,
    ResidualArgs, RopeArgs,
};

/// Most of any count or size in a configuration. Products of three stay far below 2^63, and the
/// sum of a fused layer's rows below 2^31, MLX's limit of a dimension.
pub(super) const MAX_DIM: i32 = 1 << 24;

/// What a family's checkpoints leave out, and how they spell the rest.
#[derive(Clone, Copy, Debug)]
pub struct Defaults {
    /// `hidden_act`, or what the family calls it.
    pub activation_key: &'static str,
    /// The activation where the key is absent.
    pub activation: &'static str,
    /// `rms_norm_eps`, or what the family calls it.
    pub norm_eps_key: &'static str,
    /// The epsilon where the key is absent.
    pub norm_eps: f64,
    /// By what formula the family normalises.
    pub norm_kind: NormKind,
    /// `head_dim` where it is absent, if it is not `hidden_size / num_attention_heads`.
    pub head_dim: Option<i64>,
    /// `tie_word_embeddings` where it is absent.
    pub tie_word_embeddings: bool,
    /// `rope_theta` where it is absent.
    pub rope_theta: f64,
    /// `partial_rotary_factor` where it is absent.
    pub partial_rotary_factor: f64,
}

impl Defaults {
    /// Those of transformers' `LlamaConfig`, and of most others.
    pub const LLAMA: Self = Self {
        activation_key: "hidden_act",
        activation: "silu",
        norm_eps_key: "rms_norm_eps",
        norm_eps: 1e-6,
        norm_kind: NormKind::Rms,
        head_dim: None,
        tie_word_embeddings: false,
        rope_theta: 10_000.0,
        partial_rotary_factor: 1.0,
    };
}

/// The dimensions of a decoder-only transformer.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelArgs {
    /// The family.
    pub model_type: String,
    /// Rows of the embedding, entries of the logits.
    pub vocab_size: i32,
    /// Width of the residual stream.
    pub hidden_size: i32,
    /// Width of the MLP.
    pub intermediate_size: i32,
    /// Number of blocks.
    pub num_layers: usize,
    /// Heads of queries.
    pub num_heads: i32,
    /// Heads of keys and values; divides `num_heads`.
    pub num_kv_heads: i32,
    /// Size of one head.
    pub head_dim: i32,
    /// Tokens of the longest request that the checkpoint was made for.
    pub max_position_embeddings: i32,
    /// How it normalises.
    pub norm: NormArgs,
    /// What stands between the projections of the MLP.
    pub activation: Activation,
    /// The head is the embedding.
    pub tie_word_embeddings: bool,
    /// Tokens of the longest request that there may be, for ropes whose frequencies depend on it.
    pub rope_len: u32,
    /// `rope_theta` where it is absent.
    pub(super) default_rope_theta: f64,
    /// `partial_rotary_factor` where it is absent.
    default_partial_rotary_factor: f64,
}

/// The keys as they stand in the file.
#[derive(Debug, Deserialize)]
struct RawArgs {
    vocab_size: i64,
    hidden_size: i64,
    intermediate_size: i64,
    num_hidden_layers: i64,
    num_attention_heads: i64,
    num_key_value_heads: Option<i64>,
    head_dim: Option<i64>,
    max_position_embeddings: i64,
    tie_word_embeddings: Option<bool>,
}

impl ModelArgs {
    /// Resolves the keys that families share.
    ///
    /// # Errors
    /// [`ModelError::Config`] if a value breaks a rule, [`ModelError::Unsupported`] if it is one
    /// that we do not run.
    pub fn from_config(config: &Config, defaults: &Defaults) -> Result<Self, ModelError> {
        let raw: RawArgs = config.parse()?;
        let num_heads = dim("num_attention_heads", raw.num_attention_heads)?;
        let num_kv_heads = match raw.num_key_value_heads {
            Some(heads) => dim("num_key_value_heads", heads)?,
            None => num_heads,
        };
        if num_heads % num_kv_heads != 0 {
            return Err(ModelError::Config {
                key: "num_key_value_heads",
                rule: "a divisor of num_attention_heads",
                value: format!("{num_kv_heads} of {num_heads}"),
            });
        }
        let hidden_size = dim("hidden_size", raw.hidden_size)?;
        let head_dim = match raw.head_dim.or(defaults.head_dim) {
            Some(head_dim) => dim("head_dim", head_dim)?,
            None if hidden_size % num_heads == 0 => hidden_size / num_heads,
            None => {
                return Err(ModelError::Config {
                    key: "hidden_size",
                    rule: "a multiple of num_attention_heads if there is no head_dim",
                    value: format!("{hidden_size} with {num_heads} heads"),
                });
            }
        };
        check_head(num_heads, head_dim)?;
        let max_position_embeddings = dim("max_position_embeddings", raw.max_position_embeddings)?;
        Ok(Self {
            model_type: config.model_type()?.to_owned(),
            vocab_size: dim("vocab_size", raw.vocab_size)?,
            hidden_size,
            intermediate_size: dim("intermediate_size", raw.intermediate_size)?,
            num_layers: dim("num_hidden_layers", raw.num_hidden_layers)?.unsigned_abs() as usize,
            num_heads,
            num_kv_heads,
            head_dim,
            max_position_embeddings,
            norm: NormArgs {
                kind: defaults.norm_kind,
                eps: epsilon(config, defaults)?,
            },
            activation: activation(config, defaults)?,
            tie_word_embeddings: raw
                .tie_word_embeddings
                .unwrap_or(defaults.tie_word_embeddings),
            rope_len: max_position_embeddings.unsigned_abs(),
            default_rope_theta: defaults.rope_theta,
            default_partial_rotary_factor: defaults.partial_rotary_factor,
        })
    }

    /// How layers of `layer_type` (as `layer_types` calls them) turn queries and keys.
    ///
    /// # Errors
    /// As [`Self::from_config`].
    pub fn rope(&self, config: &Config, layer_type: &str) -> Result<RopeArgs, ModelError> {
        let request = rope_args::Request {
            layer_type,
            head_dim: self.head_dim,
            max_position_embeddings: self.max_position_embeddings,
            rope_len: self.rope_len,
            default_theta: self.default_rope_theta,
            default_partial_rotary_factor: self.default_partial_rotary_factor,
        };
        rope_args::read(config, &request)
    }

    /// Attention without bias, norm, window or any other extra, for a family to add its own.
    #[must_use]
    pub fn attention<'a>(&self, rope: Option<&'a RopeArgs>) -> AttentionArgs<'a> {
        AttentionArgs {
            hidden_size: self.hidden_size,
            num_heads: self.num_heads,
            num_kv_heads: self.num_kv_heads,
            head_dim: self.head_dim,
            packed: false,
            qkv_bias: false,
            output_bias: false,
            qk_norm: None,
            rope,
            scale: 1.0 / (self.head_dim as f32).sqrt(),
            sliding_window: None,
            soft_cap: None,
            sinks: false,
        }
    }

    /// A block with a gated MLP, without bias or any other extra.
    #[must_use]
    pub fn dense<'a>(&self, rope: Option<&'a RopeArgs>) -> DenseArgs<'a> {
        DenseArgs {
            attention: self.attention(rope),
            mlp: self.mlp(),
            residual: self.residual(),
        }
    }

    /// A gated MLP without bias.
    #[must_use]
    pub fn mlp(&self) -> MlpArgs {
        MlpArgs {
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            activation: self.activation,
            input: MlpInput::GateAndUp,
            bias: false,
        }
    }

    /// A residual stream that is normalised on the way into each half of a block.
    #[must_use]
    pub fn residual(&self) -> ResidualArgs {
        ResidualArgs {
            hidden_size: self.hidden_size,
            norm: self.norm,
            placement: NormPlacement::Before,
            multiplier: None,
        }
    }
}

fn dim(key: &'static str, value: i64) -> Result<i32, ModelError> {
    match i32::try_from(value) {
        Ok(dim) if (1..=MAX_DIM).contains(&dim) => Ok(dim),
        _ => Err(ModelError::Config {
            key,
            rule: "between 1 and 16777216",
            value: value.to_string(),
        }),
    }
}

fn check_head(num_heads: i32, head_dim: i32) -> Result<(), ModelError> {
    if head_dim % 2 != 0 {
        return Err(ModelError::Config {
            key: "head_dim",
            rule: "even, because rope turns pairs",
            value: head_dim.to_string(),
        });
    }
    if i64::from(num_heads) * i64::from(head_dim) > i64::from(MAX_DIM) {
        return Err(ModelError::Config {
            key: "num_attention_heads",
            rule: "at most 16777216 / head_dim",
            value: format!("{num_heads} of {head_dim}"),
        });
    }
    Ok(())
}

fn activation(config: &Config, defaults: &Defaults) -> Result<Activation, ModelError> {
    let key = defaults.activation_key;
    let name = config.text(key)?.unwrap_or(defaults.activation);
    Activation::from_name(name).ok_or_else(|| ModelError::Unsupported {
        key,
        value: name.to_owned(),
        known: Activation::KNOWN.to_vec(),
    })
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "an epsilon needs no more than f32"
)]
fn epsilon(config: &Config, defaults: &Defaults) -> Result<f32, ModelError> {
    let key = defaults.norm_eps_key;
    let value = config.number(key)?.unwrap_or(defaults.norm_eps);
    if (0.0..1.0).contains(&value) {
        return Ok(value as f32);
    }
    Err(ModelError::Config {
        key,
        rule: "between 0 and 1",
        value: value.to_string(),
    })
}

#[cfg(test)]
mod tests;
