//! Grouped-query attention over the paged cache.

use metal_rpc_kernels::{self as kernels, AttentionParams, RopePairing};
use mlx_rs::Array;

use super::{Linear, Rope, RopeArgs};
use crate::{
    kv_cache::LayerCache,
    models::{ForwardInput, ModelError, weights::Weights},
};

/// Dimensions of an [`Attention`].
#[derive(Clone, Copy, Debug)]
pub struct AttentionArgs<'a> {
    /// Width of input and output.
    pub hidden_size: i32,
    /// Heads of queries.
    pub num_heads: i32,
    /// Heads of keys and values.
    pub num_kv_heads: i32,
    /// Size of one head.
    pub head_dim: i32,
    /// All four projections have a bias.
    pub bias: bool,
    /// How queries and keys are turned, over the whole head.
    pub rope: &'a RopeArgs,
}

/// Projections, rope, cache and attention.
#[derive(Debug)]
pub struct Attention {
    /// Query, key and value read the same input, so they are one product.
    qkv: Linear,
    output: Linear,
    rope: Rope,
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
        let qkv = [
            (format!("{name}.q_proj"), query_width),
            (format!("{name}.k_proj"), kv_width),
            (format!("{name}.v_proj"), kv_width),
        ];
        let output = [(format!("{name}.o_proj"), args.hidden_size)];
        Ok(Self {
            qkv: Linear::load(&qkv, args.hidden_size, args.bias, weights)?,
            output: Linear::load(&output, query_width, args.bias, weights)?,
            rope: Rope::new(args.rope, args.head_dim, RopePairing::Halves),
            num_heads: args.num_heads,
            num_kv_heads: args.num_kv_heads,
            head_dim: args.head_dim,
            params: AttentionParams {
                scale: 1.0 / (args.head_dim as f32).sqrt(),
                sliding_window: None,
                soft_cap: None,
                sinks: None,
            },
        })
    }

    /// Writes this batch's keys and values, then attends to the whole context of each request.
    ///
    /// # Shapes
    /// - `x`: `[num_tokens, hidden_size]`; so is the result
    ///
    /// # Errors
    /// If the shapes of `input` and `cache` do not fit each other.
    pub fn forward(
        &self,
        x: &Array,
        input: &ForwardInput,
        cache: &mut LayerCache,
    ) -> Result<Array, ModelError> {
        let num_tokens = x.dim(0);
        let heads = self.num_heads + 2 * self.num_kv_heads;
        let qkv = self.qkv.forward(x)?;
        let qkv = qkv.reshape(&[num_tokens, heads, self.head_dim])?;
        let ends = [self.num_heads, self.num_heads + self.num_kv_heads];
        let parts = qkv.split_at_indices(&ends, 1)?;
        let [query, key, value] = parts.as_slice() else {
            unreachable!("two indices split into three")
        };
        let query = self.rope.forward(query, &input.positions)?;
        let key = self.rope.forward(key, &input.positions)?;
        cache.write(&key, value, &input.slot_mapping)?;
        let attended = kernels::paged_attention(
            &query,
            cache.key(),
            cache.value(),
            &input.attention,
            &self.params,
        )?;
        let width = self.num_heads * self.head_dim;
        self.output
            .forward(&attended.reshape(&[num_tokens, width])?)
    }
}
