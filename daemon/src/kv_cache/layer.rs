//! The arrays that hold keys and values.

use metal_rpc_kernels as kernels;
use metal_rpc_protocol::KvCacheSpec;
use mlx_rs::Array;

use super::{CacheGroups, LayerPlace};
use crate::models::Dtype;

/// Keys and values, `[num_blocks, block_size, num_kv_heads, head_dim]` each: those of one layer, and
/// in blocks that other groups own those of their layers.
///
/// Writes happen in place. This struct holds the only handles, so that whoever reads after a
/// write reads its result: MLX then runs them in that order.
#[derive(Clone, Debug)]
pub struct LayerCache {
    key: Array,
    value: Array,
}

impl LayerCache {
    /// Reserves address space; memory is taken as blocks are written.
    fn reserve(
        spec: &KvCacheSpec,
        [num_blocks, block_size]: [u32; 2],
    ) -> Result<Self, kernels::KernelError> {
        let shape = [num_blocks, block_size, spec.num_kv_heads, spec.head_dim];
        let shape = shape.map(u32::cast_signed);
        let dtype = dtype(spec).mlx();
        Ok(Self {
            key: kernels::reserve(&shape, dtype)?,
            value: kernels::reserve(&shape, dtype)?,
        })
    }

    /// Normalises and turns the heads of this forward, and writes its keys and values.
    ///
    /// # Shapes
    /// - `qkv`: `[num_tokens, (num_heads + 2 * num_kv_heads) * head_dim]`
    /// - `positions`: `[num_tokens]` i32
    /// - `slot_mapping`: `[num_tokens]` i32, pool slots; `PAD_SLOT` skips the token
    /// - returns the queries, `[num_tokens, num_heads, head_dim]`
    ///
    /// # Errors
    /// On shapes that do not fit the cache.
    pub fn write(
        &mut self,
        qkv: &Array,
        positions: &Array,
        slot_mapping: &Array,
        params: &kernels::QkvParams,
    ) -> Result<Array, kernels::KernelError> {
        let caches = [&mut self.key, &mut self.value];
        kernels::rope_and_cache(qkv, positions, slot_mapping, params, caches)
    }

    /// Keys, as of the last write.
    #[must_use]
    pub fn key(&self) -> &Array {
        &self.key
    }

    /// Values, as of the last write.
    #[must_use]
    pub fn value(&self) -> &Array {
        &self.value
    }
}

/// The cache of all layers of one model.
#[derive(Debug)]
pub struct KvCache {
    /// As many as the largest group has layers.
    arrays: Vec<LayerCache>,
    groups: CacheGroups,
}

impl KvCache {
    /// Reserves address space for `num_blocks` blocks of `block_size` tokens.
    ///
    /// # Errors
    /// If the operating system refuses it.
    pub fn reserve(
        specs: &[KvCacheSpec],
        groups: CacheGroups,
        [num_blocks, block_size]: [u32; 2],
    ) -> Result<Self, kernels::KernelError> {
        let arrays = groups
            .owners()
            .iter()
            .map(|layer| LayerCache::reserve(&specs[*layer], [num_blocks, block_size]))
            .collect::<Result<_, _>>()?;
        Ok(Self { arrays, groups })
    }

    /// Bytes that one token takes in the arrays of `groups`.
    #[must_use]
    pub fn token_bytes(specs: &[KvCacheSpec], groups: &CacheGroups) -> u64 {
        let layer_bytes = |layer: &usize| {
            let spec = &specs[*layer];
            2 * u64::from(spec.num_kv_heads) * u64::from(spec.head_dim) * dtype(spec).size_bytes()
        };
        groups.owners().iter().map(layer_bytes).sum()
    }

    /// Which layers share block tables and arrays.
    #[must_use]
    pub fn groups(&self) -> &CacheGroups {
        &self.groups
    }

    /// The arrays as of the last write, for [`restore`](Self::restore).
    #[must_use]
    pub fn handles(&self) -> Vec<LayerCache> {
        self.arrays.clone()
    }

    /// Forgets the writes since [`handles`](Self::handles): nobody waits for them any more. What
    /// they have written already lies in blocks of sessions that are over.
    pub fn restore(&mut self, handles: Vec<LayerCache>) {
        self.arrays = handles;
    }

    /// How many layers it has.
    #[must_use]
    pub fn num_layers(&self) -> usize {
        self.groups.places().len()
    }

    /// The array of a layer, and the index of its group.
    pub fn layer(&mut self, index: usize) -> (&mut LayerCache, usize) {
        let LayerPlace { array, group } = self.groups.places()[index];
        (&mut self.arrays[array], group)
    }
}

fn dtype(spec: &KvCacheSpec) -> Dtype {
    Dtype::from_name(&spec.dtype).expect("a model names known dtypes")
}
