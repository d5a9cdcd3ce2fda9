//! Rotary position embedding: the frequencies, and the kinds of scaling of them.
//!
//! Frequencies are computed in f32, in transformers' order of operations, so that they agree with
//! what checkpoints were trained or tuned with to the last bit or nearly so.
//!
//! # Source
//! transformers 5.20 `modeling_rope_utils.py`: `_compute_linear_scaling_rope_parameters`,
//! `_compute_dynamic_ntk_parameters`, `_compute_llama3_parameters`, `_compute_yarn_parameters`,
//! `_compute_longrope_parameters`.

use std::f64::consts::PI;

use metal_rpc_kernels::{RopePairing, RopeParams};
use mlx_rs::Array;

/// Base and scaling of a rope.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeArgs {
    /// Elements of a head that are turned; the others are kept.
    pub rotary_dim: i32,
    /// Which two elements turn together.
    pub pairing: RopePairing,
    /// Base of the wavelengths: `rope_theta`.
    pub theta: f64,
    /// How a longer context than the trained one is reached.
    pub scaling: RopeScaling,
}

/// How frequencies are changed to reach a longer context. Factors are above zero.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// They are not.
    None,
    /// All are divided by the factor.
    Linear {
        /// How much longer the context is.
        factor: f64,
    },
    /// NTK: the base is raised, the more the longer the context is.
    ///
    /// Transformers computes it from the longest request of a batch, so that what a token's key is
    /// depends on others. Here it is that of the longest request that there may be.
    Dynamic {
        /// How fast the base is raised.
        factor: f64,
        /// How much longer the context is.
        stretch: f64,
    },
    /// LongRoPE: each pair's frequency is divided by a factor of its own.
    LongRope {
        /// By pair, above zero: those for long or those for short contexts.
        factors: Vec<f64>,
        /// Multiplies sine and cosine.
        attention_factor: f64,
    },
    /// Llama 3.1: long waves are divided by the factor, short ones kept, those between blended.
    Llama3 {
        /// How much longer the context is.
        factor: f64,
        /// Waves longer than the trained context over this are long.
        low_freq_factor: f64,
        /// Waves shorter than the trained context over this are short; above `low_freq_factor`.
        high_freq_factor: f64,
        /// Length of the trained context, in tokens.
        original_max_position_embeddings: f64,
    },
    /// YaRN: the blend is by the number of turns in the trained context, and attention gets a
    /// temperature.
    Yarn {
        /// How much longer the context is.
        factor: f64,
        /// Multiplies sine and cosine.
        attention_factor: f64,
        /// Pairs with more turns are kept.
        beta_fast: f64,
        /// Pairs with fewer turns are divided by the factor.
        beta_slow: f64,
        /// Bounds of the blend are rounded outwards to whole pairs.
        truncate: bool,
        /// Length of the trained context, in tokens.
        original_max_position_embeddings: f64,
    },
}

impl RopeArgs {
    /// What the kernel reads.
    #[must_use]
    pub fn params(&self) -> RopeParams {
        RopeParams {
            inv_freq: Array::from_slice(&self.inv_freq(), &[self.rotary_dim / 2]),
            scale: self.attention_factor(),
            pairing: self.pairing,
        }
    }

    /// What sine and cosine are multiplied by.
    #[must_use]
    pub fn attention_factor(&self) -> f32 {
        match self.scaling {
            RopeScaling::Yarn {
                attention_factor, ..
            }
            | RopeScaling::LongRope {
                attention_factor, ..
            } => single(attention_factor),
            RopeScaling::None
            | RopeScaling::Linear { .. }
            | RopeScaling::Dynamic { .. }
            | RopeScaling::Llama3 { .. } => 1.0,
        }
    }

    /// Radians per token of each pair, `[rotary_dim / 2]`.
    #[must_use]
    pub fn inv_freq(&self) -> Vec<f32> {
        let dim = f64::from(self.rotary_dim);
        let theta = match self.scaling {
            RopeScaling::Dynamic { factor, stretch } => {
                self.theta * (factor * stretch - (factor - 1.0)).powf(dim / (dim - 2.0))
            }
            _ => self.theta,
        };
        let theta = single(theta);
        let exponents = (0..self.rotary_dim).step_by(2);
        // Radians are the inverse of these.
        let waves = exponents.map(|index| theta.powf(single(f64::from(index)) / single(dim)));
        match self.scaling {
            RopeScaling::None | RopeScaling::Dynamic { .. } => waves.map(f32::recip).collect(),
            RopeScaling::LongRope { ref factors, .. } => waves
                .zip(factors)
                .map(|(wave, factor)| (single(*factor) * wave).recip())
                .collect(),
            RopeScaling::Linear { factor } => {
                waves.map(|wave| wave.recip() / single(factor)).collect()
            }
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings: original,
            } => {
                let blend = Llama3Blend {
                    factor: single(factor),
                    low_freq_factor: single(low_freq_factor),
                    high_freq_factor: single(high_freq_factor),
                    original: single(original),
                };
                waves.map(|wave| blend.scale(wave.recip())).collect()
            }
            RopeScaling::Yarn {
                factor,
                beta_fast,
                beta_slow,
                truncate,
                original_max_position_embeddings: original,
                ..
            } => {
                let pair_of = |turns: f64| {
                    dim * (original / (turns * 2.0 * PI)).ln() / (2.0 * self.theta.ln())
                };
                let (low, high) =
                    yarn_bounds(pair_of(beta_fast), pair_of(beta_slow), truncate, dim);
                (0_u16..)
                    .zip(waves)
                    .map(|(pair, wave)| {
                        let ramp = (f32::from(pair) - single(low)) / single(high - low);
                        let kept = 1.0 - ramp.clamp(0.0, 1.0);
                        (single(factor) * wave).recip() * (1.0 - kept) + wave.recip() * kept
                    })
                    .collect()
            }
        }
    }
}

struct Llama3Blend {
    factor: f32,
    low_freq_factor: f32,
    high_freq_factor: f32,
    original: f32,
}

impl Llama3Blend {
    fn scale(&self, inv_freq: f32) -> f32 {
        let wavelength = single(2.0 * PI) / inv_freq;
        if wavelength < self.original / self.high_freq_factor {
            return inv_freq;
        }
        if wavelength > self.original / self.low_freq_factor {
            return inv_freq / self.factor;
        }
        let kept = (self.original / wavelength - self.low_freq_factor)
            / (self.high_freq_factor - self.low_freq_factor);
        (1.0 - kept) * inv_freq / self.factor + kept * inv_freq
    }
}

/// Between which pairs YaRN blends, at least a thousandth of a pair apart.
fn yarn_bounds(fast: f64, slow: f64, truncate: bool, dim: f64) -> (f64, f64) {
    let (low, high) = match truncate {
        true => (fast.floor(), slow.ceil()),
        false => (fast, slow),
    };
    let (low, high) = (low.max(0.0), high.min(dim - 1.0));
    (low, if low == high { high + 0.001 } else { high })
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "transformers computes in f32"
)]
fn single(value: f64) -> f32 {
    value as f32
}
