//! Reads rotary position embedding from `config.json`.
//!
//! transformers 5 writes `rope_parameters` (sometimes one per layer type), older versions
//! `rope_theta` and `rope_scaling`, whose type was once called `type`. All three stand in
//! checkpoints today.
//!
//! Source: transformers 5.20 `modeling_rope_utils.py`, `standardize_rope_params` and the defaults of
//! `_compute_*_parameters`.

use metal_rpc_kernels::RopePairing;
use serde_json::Value;

use super::{
    ModelError,
    config::{Config, invalid},
};
use crate::layers::{RopeArgs, RopeScaling};

/// What is asked for, beside what stands in the file.
#[derive(Debug)]
pub(super) struct Request<'a> {
    /// The kind of layers, as `layer_types` calls them.
    pub(super) layer_type: &'a str,
    /// Size of one head.
    pub(super) head_dim: i32,
    /// Tokens of the longest request that the checkpoint was made for.
    pub(super) max_position_embeddings: i32,
    /// Tokens of the longest request that there may be.
    pub(super) rope_len: u32,
    /// `rope_theta` where it is absent.
    pub(super) default_theta: f64,
    /// `partial_rotary_factor` where it is absent.
    pub(super) default_partial_rotary_factor: f64,
}

/// What layers of a kind turn queries and keys by.
///
/// # Errors
/// [`ModelError::Unsupported`] for a kind of scaling that we do not know, [`ModelError::Config`]
/// for values that make no sense.
pub(super) fn read(config: &Config, request: &Request<'_>) -> Result<RopeArgs, ModelError> {
    let parameters = Parameters {
        config,
        values: parameters(config, request.layer_type)?,
        request,
    };
    let theta = match parameters.optional("rope_theta")? {
        Some(theta) => Some(theta),
        None => config.number("rope_theta")?,
    };
    Ok(RopeArgs {
        rotary_dim: parameters.rotary_dim()?,
        pairing: RopePairing::Halves,
        theta: above("rope_theta", 1.0, theta.unwrap_or(request.default_theta))?,
        scaling: parameters.scaling()?,
    })
}

/// The object that holds the parameters of `layer_type`, if there is one.
fn parameters<'a>(config: &'a Config, layer_type: &str) -> Result<Option<&'a Value>, ModelError> {
    // As in transformers: a `rope_scaling` that is there wins.
    let (key, value) = match (config.get("rope_scaling"), config.get("rope_parameters")) {
        (Some(value), _) => ("rope_scaling", value),
        (None, Some(value)) => ("rope_parameters", value),
        (None, None) => return Ok(None),
    };
    let Some(values) = value.as_object() else {
        return Err(invalid(key, "an object", Some(value)));
    };
    let nested = !values.is_empty() && values.values().all(|value| value.is_object());
    if !nested {
        return Ok(Some(value));
    }
    match values.get(layer_type) {
        Some(value) => Ok(Some(value)),
        None => Err(invalid(key, "given for every layer type", Some(value))),
    }
}

/// The length that the frequencies of a checkpoint are made for, if they depend on it: two
/// frontends share a model only if theirs agree.
///
/// # Errors
/// As [`read`].
pub(super) fn length(config: &Config, max_model_len: u32) -> Result<Option<u32>, ModelError> {
    let values = parameters(config, "full_attention")?;
    let get = |key| values.and_then(|values| values.get(key));
    let count = |key: &'static str| match config.count(key) {
        Ok(None) => Ok(get(key)
            .and_then(Value::as_u64)
            .and_then(|n| n.try_into().ok())),
        found => found,
    };
    let trained = count("max_position_embeddings")?.unwrap_or(max_model_len);
    let rope_type = get("rope_type").or_else(|| get("type"));
    Ok(match rope_type.and_then(Value::as_str) {
        Some("dynamic") => Some(max_model_len.max(trained)),
        Some("su" | "longrope") => {
            let original = count("original_max_position_embeddings")?.unwrap_or(trained);
            Some(max_model_len.max(original).min(original.saturating_add(1)))
        }
        _ => None,
    })
}

struct Parameters<'a> {
    config: &'a Config,
    values: Option<&'a Value>,
    request: &'a Request<'a>,
}

impl Parameters<'_> {
    /// The share of the head that is turned, as transformers rounds it.
    fn rotary_dim(&self) -> Result<i32, ModelError> {
        const KEY: &str = "partial_rotary_factor";
        let head_dim = self.request.head_dim;
        let factor = match self.optional(KEY)? {
            Some(factor) => factor,
            None => self
                .config
                .number(KEY)?
                .unwrap_or(self.request.default_partial_rotary_factor),
        };
        #[expect(clippy::cast_possible_truncation, reason = "at most `head_dim`")]
        let rotary_dim = (f64::from(head_dim) * factor.clamp(0.0, 2.0)) as i32;
        if rotary_dim > 0 && rotary_dim <= head_dim && rotary_dim % 2 == 0 {
            return Ok(rotary_dim);
        }
        Err(ModelError::Config {
            key: KEY,
            rule: "an even share of head_dim",
            value: factor.to_string(),
        })
    }

    fn scaling(&self) -> Result<RopeScaling, ModelError> {
        let rope_type = self.get("rope_type").or_else(|| self.get("type"));
        match rope_type.map_or(Some("default"), Value::as_str) {
            Some("default") => Ok(RopeScaling::None),
            Some("linear") => Ok(RopeScaling::Linear {
                factor: self.factor()?,
            }),
            Some("dynamic") => self.dynamic(),
            Some("llama3") => self.llama3(),
            Some("yarn") => self.yarn(),
            // The first is how Phi-3 spelled it once.
            Some("su" | "longrope") => self.longrope(),
            _ => Err(ModelError::Unsupported {
                key: "rope_type",
                value: rope_type.map(Value::to_string).unwrap_or_default(),
                known: vec!["default", "linear", "dynamic", "llama3", "yarn", "longrope"],
            }),
        }
    }

    fn llama3(&self) -> Result<RopeScaling, ModelError> {
        let low_freq_factor = above("low_freq_factor", 0.0, self.required("low_freq_factor")?)?;
        let high_freq_factor = self.required("high_freq_factor")?;
        if high_freq_factor <= low_freq_factor {
            return Err(ModelError::Config {
                key: "high_freq_factor",
                rule: "above low_freq_factor",
                value: format!("{high_freq_factor}, with {low_freq_factor}"),
            });
        }
        Ok(RopeScaling::Llama3 {
            factor: self.factor()?,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings: self.original_max_position_embeddings()?,
        })
    }

    fn yarn(&self) -> Result<RopeScaling, ModelError> {
        let original_max_position_embeddings = self.original_max_position_embeddings()?;
        let factor = match self.optional("factor")? {
            Some(factor) => above("factor", 0.0, factor)?,
            None => {
                f64::from(self.request.max_position_embeddings) / original_max_position_embeddings
            }
        };
        let attention_factor = match self.optional("attention_factor")? {
            Some(given) => given,
            None => match (self.optional("mscale")?, self.optional("mscale_all_dim")?) {
                (Some(mscale), Some(all)) if mscale != 0.0 && all != 0.0 => {
                    yarn_mscale(factor, mscale) / yarn_mscale(factor, all)
                }
                _ => yarn_mscale(factor, 1.0),
            },
        };
        Ok(RopeScaling::Yarn {
            factor,
            attention_factor: above("attention_factor", 0.0, attention_factor)?,
            beta_fast: above(
                "beta_fast",
                0.0,
                self.optional("beta_fast")?.unwrap_or(32.0),
            )?,
            beta_slow: above("beta_slow", 0.0, self.optional("beta_slow")?.unwrap_or(1.0))?,
            truncate: self.get("truncate").and_then(Value::as_bool) != Some(false),
            original_max_position_embeddings,
        })
    }

    fn dynamic(&self) -> Result<RopeScaling, ModelError> {
        let trained = f64::from(self.request.max_position_embeddings);
        Ok(RopeScaling::Dynamic {
            factor: self.factor()?,
            stretch: f64::from(self.request.rope_len).max(trained) / trained,
        })
    }

    fn longrope(&self) -> Result<RopeScaling, ModelError> {
        let original = self.original_max_position_embeddings()?;
        let factor = match self.optional("factor")? {
            Some(factor) => factor,
            None => f64::from(self.request.max_position_embeddings) / original,
        };
        let attention_factor = match self.optional("attention_factor")? {
            Some(given) => given,
            None if factor <= 1.0 => 1.0,
            None => (1.0 + factor.ln() / original.ln()).sqrt(),
        };
        let key = match f64::from(self.request.rope_len) > original {
            true => "long_factor",
            false => "short_factor",
        };
        Ok(RopeScaling::LongRope {
            factors: self.factors(key)?,
            attention_factor: above("attention_factor", 0.0, attention_factor)?,
        })
    }

    /// One factor per pair.
    fn factors(&self, key: &'static str) -> Result<Vec<f64>, ModelError> {
        let values = self.get(key).and_then(Value::as_array);
        let factors = values.map(Vec::as_slice).unwrap_or_default();
        let num_pairs = self.rotary_dim()?.unsigned_abs() as usize / 2;
        if factors.len() != num_pairs {
            return Err(ModelError::Config {
                key,
                rule: "one number per pair of rotated elements",
                value: format!("{} for {num_pairs} pairs", factors.len()),
            });
        }
        factors
            .iter()
            .map(|factor| above(key, 0.0, number(key, factor)?))
            .collect()
    }

    fn factor(&self) -> Result<f64, ModelError> {
        above("factor", 0.0, self.required("factor")?)
    }

    /// A value beside the parameters wins over one inside, as in transformers (Phi-3 has both).
    fn original_max_position_embeddings(&self) -> Result<f64, ModelError> {
        const KEY: &str = "original_max_position_embeddings";
        let given = match self.config.get(KEY) {
            Some(value) => Some(number(KEY, value)?),
            None => self.optional(KEY)?,
        };
        above(
            KEY,
            0.0,
            given.unwrap_or(f64::from(self.request.max_position_embeddings)),
        )
    }

    fn get(&self, key: &str) -> Option<&Value> {
        self.values?.get(key).filter(|value| !value.is_null())
    }

    fn optional(&self, key: &'static str) -> Result<Option<f64>, ModelError> {
        self.get(key).map(|value| number(key, value)).transpose()
    }

    fn required(&self, key: &'static str) -> Result<f64, ModelError> {
        self.optional(key)?
            .ok_or_else(|| invalid(key, "a number", None))
    }
}

/// The paper's temperature for a context longer by `factor`.
fn yarn_mscale(factor: f64, mscale: f64) -> f64 {
    if factor <= 1.0 {
        1.0
    } else {
        0.1 * mscale * factor.ln() + 1.0
    }
}

fn number(key: &'static str, value: &Value) -> Result<f64, ModelError> {
    value
        .as_f64()
        .ok_or_else(|| invalid(key, "a number", Some(value)))
}

fn above(key: &'static str, bound: f64, value: f64) -> Result<f64, ModelError> {
    if value.is_finite() && value > bound {
        return Ok(value);
    }
    Err(ModelError::Config {
        key,
        rule: if bound == 0.0 { "above 0" } else { "above 1" },
        value: value.to_string(),
    })
}
