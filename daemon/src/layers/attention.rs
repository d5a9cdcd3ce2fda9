//! Grouped-query attention over the paged cache.

use metal_rpc_kernels::{self as kernels, AttentionParams, QkvParams};
use mlx_rs::{Array, ops::concatenate};

use super::{Linear, Norm, NormArgs, RopeArgs};
use crate::models::{LayerInput, ModelError, weights::Weights};

/// How queries and keys are normalised before they are turned.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum QkNorm {
    /// Each head by itself: Qwen 3, Gemma 3.
    PerHead(NormArgs),
    /// All heads as one row: OLMo 2.
    AllHeads(NormArgs),
}

/// Dimensions and kind of an [`Attention`].
#[derive(Clone, Debug)]
pub struct AttentionArgs<'a> {
    /// Width of input and output.
    pub hidden_size: i32,
    /// Heads of queries.
    pub num_heads: i32,
    /// Heads of keys and values.
    pub num_kv_heads: i32,
    /// Size of one head.
    pub head_dim: i32,
    /// The checkpoint has one `qkv_proj`, not `q_proj`, `k_proj` and `v_proj`.
    pub packed: bool,
    /// The projections of queries, keys and values have a bias.
    pub qkv_bias: bool,
    /// The projection of the output has a bias.
    pub output_bias: bool,
    /// `q_norm` and `k_norm`, if there are any.
    pub qk_norm: Option<QkNorm>,
    /// How queries and keys are turned; not at all in a layer without positions.
    pub rope: Option<&'a RopeArgs>,
    /// Factor of the scores.
    pub scale: f32,
    /// A query sees this many keys at most, its own included.
    pub sliding_window: Option<u32>,
    /// Scores become `soft_cap * tanh(score / soft_cap)`.
    pub soft_cap: Option<f32>,
    /// Each head has a score that belongs to no key: `sinks`.
    pub sinks: bool,
}

/// Projections, norms, rope, cache and attention.
#[derive(Debug)]
pub struct Attention {
    /// Query, key and value read the same input, so they are one product.
    qkv: Linear,
    output: Linear,
    /// Norms that are not part of `heads`.
    norms: Option<QkNorms>,
    heads: QkvParams,
    num_heads: i32,
    num_kv_heads: i32,
    head_dim: i32,
    params: AttentionParams,
}

impl Attention {
    /// Loads the layer `name`.
    ///
    /// # Errors
    /// As [`Linear::load`].
    pub fn load(
        name: &str,
        args: &AttentionArgs<'_>,
        weights: &mut Weights<'_>,
    ) -> Result<Self, ModelError> {
        let query_width = args.num_heads * args.head_dim;
        let kv_width = args.num_kv_heads * args.head_dim;
        let part = |kind: &str, outputs: i32| (format!("{name}.{kind}"), outputs);
        let qkv = match args.packed {
            true => vec![part("qkv_proj", query_width + 2 * kv_width)],
            false => vec![
                part("q_proj", query_width),
                part("k_proj", kv_width),
                part("v_proj", kv_width),
            ],
        };
        let output = [part("o_proj", args.hidden_size)];
        let sinks = match args.sinks {
            true => {
                let sinks = weights.floats(&[part("sinks", args.num_heads)])?;
                Some(Array::from_slice(&sinks, &[args.num_heads]))
            }
            false => None,
        };
        let norms = args
            .qk_norm
            .map(|norm| QkNorms::load(name, norm, args, weights))
            .transpose()?;
        let norm = norms.as_ref().and_then(QkNorms::of_heads);
        Ok(Self {
            qkv: Linear::load(&qkv, args.hidden_size, args.qkv_bias, weights)?,
            output: Linear::load(&output, query_width, args.output_bias, weights)?,
            norms: norms.filter(|_| norm.is_none()),
            heads: QkvParams {
                num_heads: args.num_heads,
                norm,
                rope: args.rope.map(RopeArgs::params),
            },
            num_heads: args.num_heads,
            num_kv_heads: args.num_kv_heads,
            head_dim: args.head_dim,
            params: AttentionParams {
                scale: args.scale,
                sliding_window: args.sliding_window,
                soft_cap: args.soft_cap,
                sinks,
            },
        })
    }

    /// Heads of keys and values.
    #[must_use]
    pub fn num_kv_heads(&self) -> i32 {
        self.num_kv_heads
    }

    /// Size of one head.
    #[must_use]
    pub fn head_dim(&self) -> i32 {
        self.head_dim
    }

    /// How many keys a query sees at most, if not all.
    #[must_use]
    pub fn sliding_window(&self) -> Option<u32> {
        self.params.sliding_window
    }

    /// Writes this batch's keys and values, then attends to the context of each request.
    ///
    /// # Shapes
    /// - `x`: `[num_tokens, hidden_size]`; so is the result
    ///
    /// # Errors
    /// If the shapes in `input` do not fit each other.
    pub fn forward(&self, x: &Array, input: LayerInput<'_>) -> Result<Array, ModelError> {
        let mut qkv = self.qkv.forward(x)?;
        if let Some(norms) = &self.norms {
            qkv = norms.forward(&qkv, [self.num_heads, self.num_kv_heads], self.head_dim)?;
        }
        let LayerInput {
            positions,
            group,
            cache,
        } = input;
        let query = cache.write(&qkv, positions, &group.slot_mapping, &self.heads)?;
        let attended = kernels::paged_attention(
            &query,
            cache.key(),
            cache.value(),
            &group.attention,
            &self.params,
        )?;
        let width = self.num_heads * self.head_dim;
        self.output.forward(&attended.reshape(&[x.dim(0), width])?)
    }
}

/// The norms of queries and keys.
#[derive(Debug)]
struct QkNorms {
    query: Norm,
    key: Norm,
    all_heads: bool,
}

impl QkNorms {
    fn load(
        name: &str,
        norm: QkNorm,
        args: &AttentionArgs<'_>,
        weights: &mut Weights<'_>,
    ) -> Result<Self, ModelError> {
        let (norm, all_heads) = match norm {
            QkNorm::PerHead(norm) => (norm, false),
            QkNorm::AllHeads(norm) => (norm, true),
        };
        let mut load = |kind: &str, heads: i32| {
            let dim = args.head_dim * if all_heads { heads } else { 1 };
            Norm::load(&format!("{name}.{kind}"), dim, norm, weights)
        };
        Ok(Self {
            query: load("q_norm", args.num_heads)?,
            key: load("k_norm", args.num_kv_heads)?,
            all_heads,
        })
    }

    /// As the kernel takes them, where it can.
    fn of_heads(&self) -> Option<kernels::QkNorm> {
        let ((query, eps), (key, _)) = (self.query.rms()?, self.key.rms()?);
        (!self.all_heads).then(|| kernels::QkNorm {
            query: query.clone(),
            key: key.clone(),
            eps,
        })
    }

    /// # Shapes
    /// - `qkv`: `[num_tokens, (num_heads + 2 * num_kv_heads) * head_dim]`; so is the result
    fn forward(
        &self,
        qkv: &Array,
        [num_heads, num_kv_heads]: [i32; 2],
        head_dim: i32,
    ) -> Result<Array, ModelError> {
        let ends = [num_heads, num_heads + num_kv_heads].map(|heads| heads * head_dim);
        let parts = qkv.split_at_indices(&ends, 1)?;
        let [query, key, value] = <[Array; 3]>::try_from(parts).expect("two indices make three");
        let norm = |norm: &Norm, x: &Array| {
            if self.all_heads {
                return norm.forward(x);
            }
            let heads = x.reshape(&[x.dim(0), -1, head_dim])?;
            Ok(norm.forward(&heads)?.reshape(x.shape())?)
        };
        let (query, key) = (norm(&self.query, &query)?, norm(&self.key, &key)?);
        Ok(concatenate(&[query, key, value], 1)?)
    }
}
