//! `config.json`: what a checkpoint says of itself.
//!
//! Raw, then resolved: [`Config`] is the file as it stands, [`ModelArgs`] is what most families
//! need of it, with every default filled in and every rule checked. A family with further keys
//! reads them from [`Config::get`].

use std::path::{Path, PathBuf};

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use super::{ModelError, file::read_limited, rope_args};
use crate::layers::RopeArgs;

/// Most bytes of a `config.json`. The largest in use (per-layer rope factors) have some 20 KB.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// Most of any count or size in a configuration. Products of three stay far below 2^63, and the
/// sum of a fused layer's rows below 2^31, MLX's limit of a dimension.
const MAX_DIM: i32 = 1 << 24;

/// `config.json` as it stands.
#[derive(Debug)]
pub struct Config {
    values: Map<String, Value>,
    file: PathBuf,
}

impl Config {
    /// Reads `config.json` of a model's folder.
    ///
    /// # Errors
    /// If it is missing, too large or not a JSON object, or if the checkpoint is quantized.
    pub fn read(folder: &Path) -> Result<Self, ModelError> {
        let file = folder.join("config.json");
        let bytes = read_limited(&file, MAX_CONFIG_BYTES)?;
        Self::from_json(&bytes, file)
    }

    fn from_json(bytes: &[u8], file: PathBuf) -> Result<Self, ModelError> {
        let values = match serde_json::from_slice(bytes) {
            Ok(values) => values,
            Err(source) => return Err(ModelError::Json { path: file, source }),
        };
        let config = Self { values, file };
        config.refuse_quantized()?;
        Ok(config)
    }

    /// The value of a key; `None` if it is absent or null.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key).filter(|value| !value.is_null())
    }

    /// Whether a key is there and null.
    #[must_use]
    pub fn is_null(&self, key: &str) -> bool {
        self.values.get(key) == Some(&Value::Null)
    }

    /// `model_type`, which names the family.
    ///
    /// # Errors
    /// If there is none.
    pub fn model_type(&self) -> Result<&str, ModelError> {
        match self.values.get("model_type") {
            Some(Value::String(model_type)) => Ok(model_type),
            other => Err(invalid("model_type", "a string", other)),
        }
    }

    /// Refuses a checkpoint whose `architectures` names none of `known`: a classifier or a reward
    /// model has the weights of a language model, but no language-model head.
    ///
    /// # Errors
    /// [`ModelError::Unsupported`].
    pub fn check_architecture(&self, known: &[&'static str]) -> Result<(), ModelError> {
        let Some(value) = self.get("architectures") else {
            return Ok(());
        };
        let names = value.as_array().into_iter().flatten();
        if names
            .filter_map(Value::as_str)
            .any(|name| known.contains(&name))
        {
            return Ok(());
        }
        Err(ModelError::Unsupported {
            key: "architectures",
            value: value.to_string(),
            known: known.to_vec(),
        })
    }

    /// The whole file as `T`.
    ///
    /// # Errors
    /// [`ModelError::Json`] if a key is missing or of another type.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, ModelError> {
        T::deserialize(Value::Object(self.values.clone())).map_err(|source| ModelError::Json {
            path: self.file.clone(),
            source,
        })
    }

    fn refuse_quantized(&self) -> Result<(), ModelError> {
        // `quantization` is what mlx-lm writes, `quantization_config` what the others do.
        let Some(value) = self.get("quantization_config").or(self.get("quantization")) else {
            return Ok(());
        };
        let method = value.get("quant_method").and_then(Value::as_str);
        Err(ModelError::Quantized {
            method: method.map_or_else(|| value.to_string(), str::to_owned),
        })
    }
}

/// The keys of `config.json` that most families share, as they stand in the file.
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
    hidden_act: Option<String>,
    rms_norm_eps: Option<f64>,
    tie_word_embeddings: Option<bool>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
}

/// The dimensions of a decoder-only transformer, defaults filled in and rules checked.
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
    pub num_layers: i32,
    /// Heads of queries.
    pub num_heads: i32,
    /// Heads of keys and values; divides `num_heads`.
    pub num_kv_heads: i32,
    /// Size of one head.
    pub head_dim: i32,
    /// Tokens of the longest request that the checkpoint was made for.
    pub max_position_embeddings: i32,
    /// Added to the mean square of a norm.
    pub rms_norm_eps: f32,
    /// The head is the embedding.
    pub tie_word_embeddings: bool,
    /// The four projections of attention have a bias.
    pub attention_bias: bool,
    /// The three projections of the MLP have a bias.
    pub mlp_bias: bool,
    /// Rotary position embedding.
    pub rope: RopeArgs,
}

impl ModelArgs {
    /// Resolves the shared keys. Defaults are those of transformers' `LlamaConfig`.
    ///
    /// # Errors
    /// [`ModelError::Config`] if a value breaks a rule, [`ModelError::Unsupported`] if it is one
    /// that we do not run.
    pub fn from_config(config: &Config) -> Result<Self, ModelError> {
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
        let head_dim = match raw.head_dim {
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
        check_activation(raw.hidden_act.as_deref().unwrap_or("silu"))?;
        check_head(num_heads, head_dim)?;
        let max_position_embeddings = dim("max_position_embeddings", raw.max_position_embeddings)?;
        Ok(Self {
            model_type: config.model_type()?.to_owned(),
            vocab_size: dim("vocab_size", raw.vocab_size)?,
            hidden_size,
            intermediate_size: dim("intermediate_size", raw.intermediate_size)?,
            num_layers: dim("num_hidden_layers", raw.num_hidden_layers)?,
            num_heads,
            num_kv_heads,
            head_dim,
            max_position_embeddings,
            rms_norm_eps: epsilon(raw.rms_norm_eps.unwrap_or(1e-6))?,
            tie_word_embeddings: raw.tie_word_embeddings.unwrap_or(false),
            attention_bias: raw.attention_bias.unwrap_or(false),
            mlp_bias: raw.mlp_bias.unwrap_or(false),
            rope: rope_args::read(config, "full_attention", max_position_embeddings)?,
        })
    }
}

/// The error for a key whose value has the wrong type.
pub(super) fn invalid(key: &'static str, rule: &'static str, value: Option<&Value>) -> ModelError {
    ModelError::Config {
        key,
        rule,
        value: value.map_or_else(|| "absent".to_owned(), Value::to_string),
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

fn check_activation(name: &str) -> Result<(), ModelError> {
    // transformers' ACT2FN knows it under both names.
    if ["silu", "swish"].contains(&name) {
        return Ok(());
    }
    Err(ModelError::Unsupported {
        key: "hidden_act",
        value: name.to_owned(),
        known: vec!["silu"],
    })
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "an epsilon needs no more than f32"
)]
fn epsilon(value: f64) -> Result<f32, ModelError> {
    if (0.0..1.0).contains(&value) {
        return Ok(value as f32);
    }
    Err(ModelError::Config {
        key: "rms_norm_eps",
        rule: "between 0 and 1",
        value: value.to_string(),
    })
}

#[cfg(test)]
mod tests;
