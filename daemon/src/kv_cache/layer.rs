//! The arrays that hold keys and values.

use metal_rpc_kernels as kernels;
use mlx_rs::{Array, Dtype};

/// The keys and values of one layer, or of several in different groups, `[num_blocks, block_size, num_kv_heads, head_dim]` each.
///
/// Writes happen in place. This struct holds the only handles, so that whoever reads after a
/// write reads its result: MLX then runs them in that order.
#[derive(Debug)]
pub struct LayerCache {
    key: Array,
    value: Array,
}

impl LayerCache {
    /// Reserves address space for one layer; memory is taken as blocks are written.
    ///
    /// # Errors
    /// If the operating system refuses the address space.
    pub fn reserve(shape: [i32; 4], dtype: Dtype) -> Result<Self, kernels::KernelError> {
        Ok(Self {
            key: kernels::reserve(&shape, dtype)?,
            value: kernels::reserve(&shape, dtype)?,
        })
    }

    /// Writes the keys and values of this forward.
    ///
    /// # Shapes
    /// - `key`, `value`: `[num_tokens, num_kv_heads, head_dim]`
    /// - `slot_mapping`: `[num_tokens]` i32, pool slots; `PAD_SLOT` skips the token
    ///
    /// # Errors
    /// On shapes that do not fit the cache.
    pub fn write(
        &mut self,
        key: &Array,
        value: &Array,
        slot_mapping: &Array,
    ) -> Result<(), kernels::KernelError> {
        kernels::reshape_and_cache(key, value, &mut self.key, &mut self.value, slot_mapping)
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
///
/// Layers that vLLM puts into different groups share arrays: their blocks are numbered from one
/// pool, so no two groups ever hold the same block.
#[derive(Debug)]
pub struct KvCache {
    /// The arrays; as many as the largest group has layers.
    pub arrays: Vec<LayerCache>,
    /// By layer: its array, and its group.
    pub places: Vec<LayerPlace>,
}

/// Where a layer's keys and values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerPlace {
    /// Index into [`KvCache::arrays`].
    pub array: usize,
    /// Index of its KV-cache group.
    pub group: usize,
}

impl KvCache {
    /// One group of all layers, each with an array of its own.
    #[must_use]
    pub fn of_one_group(arrays: Vec<LayerCache>) -> Self {
        let places = (0..arrays.len()).map(|array| LayerPlace { array, group: 0 });
        Self {
            places: places.collect(),
            arrays,
        }
    }

    /// How many layers it has.
    #[must_use]
    pub fn num_layers(&self) -> usize {
        self.places.len()
    }

    /// The array of a layer, and the index of its group.
    pub fn layer(&mut self, index: usize) -> (&mut LayerCache, usize) {
        let LayerPlace { array, group } = self.places[index];
        (&mut self.arrays[array], group)
    }
}
