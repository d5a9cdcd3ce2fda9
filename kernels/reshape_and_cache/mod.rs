//! Keys and values of a forward go into the paged cache. Contract: `contract.md`.

mod gpu;
mod native;

use mlx_rs::{Array, Dtype};

use crate::{
    check::Arguments,
    element::FloatType,
    error::{KernelError, Result},
    ffi::Output,
    gpu::is_chosen,
    node::HostKernel,
};

const CHECK: Arguments = Arguments {
    kernel: "reshape_and_cache",
};
const CACHE_RULE: &str = "[num_blocks, block_size, num_kv_heads, head_dim]";

/// Writes the keys and values of this forward into the paged cache, in place.
///
/// The handles are replaced by the new version. The old versions show the new contents too, so the
/// caller must hold the only handles, and every reader must take the new ones.
///
/// # Shapes
/// - `key`, `value`: `[num_tokens, num_kv_heads, head_dim]` float32, bfloat16 or float16, both alike
/// - `key_cache`, `value_cache`: `[num_blocks, block_size, num_kv_heads, head_dim]` float32,
///   bfloat16 or float16, both alike; written with rounding to nearest, ties to even
/// - `slot_mapping`: `[num_tokens]` int32 pool slots; [`PAD_SLOT`](crate::PAD_SLOT) skips the token
///
/// # Units
/// A slot counts tokens: `block * block_size + offset in the block`.
///
/// # Errors
/// [`KernelError::Shape`] and [`KernelError::Dtype`] if the arguments do not fit together. A slot
/// out of range is an error when the result is evaluated, and on a GPU skipped; nothing is written
/// out of range.
///
/// # Source
/// Same contract as vLLM `reshape_and_cache_flash` (csrc/cache_kernels.cu).
pub fn reshape_and_cache(
    key: &Array,
    value: &Array,
    key_cache: &mut Array,
    value_cache: &mut Array,
    slot_mapping: &Array,
) -> Result<()> {
    CHECK.ndim("key_cache", key_cache, 4, CACHE_RULE)?;
    CHECK.dims(
        "value_cache",
        value_cache,
        key_cache.shape(),
        "like `key_cache`",
    )?;
    let cache = FloatType::of(CHECK.kernel, "key_cache", key_cache)?;
    if value_cache.dtype() != key_cache.dtype() {
        return Err(KernelError::Dtype {
            kernel: CHECK.kernel,
            argument: "value_cache",
            rule: "that of `key_cache`",
            actual: value_cache.dtype(),
        });
    }
    CHECK.ndim("slot_mapping", slot_mapping, 1, "[num_tokens]")?;
    CHECK.dtype("slot_mapping", slot_mapping, Dtype::Int32, "int32")?;
    let num_tokens = slot_mapping.shape()[0];
    let (num_kv_heads, head_dim) = (key_cache.shape()[2], key_cache.shape()[3]);
    for (name, array) in [("key", key), ("value", value)] {
        let dims = [num_tokens, num_kv_heads, head_dim];
        CHECK.dims(name, array, &dims, "[num_tokens, num_kv_heads, head_dim]")?;
    }
    let x_type = FloatType::of(CHECK.kernel, "key", key)?;
    CHECK.dtype("value", value, key.dtype(), "that of `key`")?;
    let node = native::ReshapeAndCache {
        num_slots: CHECK.product(&key_cache.shape()[..2]),
        row: CHECK.product(&key_cache.shape()[2..]),
        cache,
    };
    let [keys, values] = if is_chosen()? {
        let inputs = [key, value, slot_mapping, &*key_cache, &*value_cache];
        gpu::reshape_and_cache(&inputs, x_type, node)?
    } else {
        let (key, value) = (CHECK.as_f32("key", key)?, CHECK.as_f32("value", value)?);
        node.add(
            &[&key, &value, slot_mapping, &*key_cache, &*value_cache],
            [Output::InPlace { input: 3 }, Output::InPlace { input: 4 }],
        )?
    };
    *key_cache = keys;
    *value_cache = values;
    Ok(())
}
