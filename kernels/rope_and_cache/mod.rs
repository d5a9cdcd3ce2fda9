//! From projections to queries and the paged cache. Contract: `contract.md`.

mod gpu;
mod native;

use mlx_rs::{Array, Dtype};

use crate::{
    check::Arguments, element::FloatType, error::Result, ffi::Output, gpu::is_chosen,
    node::HostKernel, rope::RopePairing,
};

pub(crate) use gpu::rope as gpu_rope;

const CHECK: Arguments = Arguments {
    kernel: "rope_and_cache",
};
const CACHE_RULE: &str = "[num_blocks, block_size, num_kv_heads, head_dim]";
const QKV_RULE: &str = "[num_tokens, (num_heads + 2 * num_kv_heads) * head_dim]";

/// What happens to the heads of a layer before attention.
#[derive(Clone, Debug)]
pub struct QkvParams {
    /// Heads of queries.
    pub num_heads: i32,
    /// How each head of queries and keys is normalised, if it is.
    pub norm: Option<QkNorm>,
    /// How queries and keys are turned, if they are.
    pub rope: Option<RopeParams>,
}

/// Root-mean-square normalisation of each head.
#[derive(Clone, Debug)]
pub struct QkNorm {
    /// `[head_dim]`, of queries.
    pub query: Array,
    /// `[head_dim]`, of keys.
    pub key: Array,
    /// Added to the mean square.
    pub eps: f32,
}

/// A rotary embedding, as [`rope`](crate::rope()) has it.
#[derive(Clone, Debug)]
pub struct RopeParams {
    /// `[rotary_dim / 2]` float32, radians a token.
    pub inv_freq: Array,
    /// Factor of sine and cosine.
    pub scale: f32,
    /// Which elements turn together.
    pub pairing: RopePairing,
}

/// Normalises and turns the heads of this forward, and writes keys and values into the paged cache.
///
/// The handles of the caches are replaced, as in
/// [`reshape_and_cache`](crate::reshape_and_cache()); so are the rules about their owner.
///
/// # Shapes
/// - `qkv`: `[num_tokens, (num_heads + 2 * num_kv_heads) * head_dim]` float32, bfloat16 or float16:
///   queries, then keys, then values
/// - `positions`: `[num_tokens]` int32
/// - `slot_mapping`: `[num_tokens]` int32 pool slots; [`PAD_SLOT`](crate::PAD_SLOT) writes nothing
/// - `caches`: keys and values, `[num_blocks, block_size, num_kv_heads, head_dim]`
/// - result: the queries, `[num_tokens, num_heads, head_dim]`, dtype of `qkv`
///
/// # Errors
/// [`KernelError::Shape`](crate::KernelError::Shape) and
/// [`KernelError::Dtype`](crate::KernelError::Dtype) if the arguments do not fit together. A slot
/// out of range is an error when the result is evaluated, and on a GPU skipped; nothing is written
/// then.
///
/// # Source
/// What vLLM does in `fused_qk_norm_rope` and `reshape_and_cache_flash`.
pub fn rope_and_cache(
    qkv: &Array,
    positions: &Array,
    slot_mapping: &Array,
    params: &QkvParams,
    [key_cache, value_cache]: [&mut Array; 2],
) -> Result<Array> {
    let node = check(
        qkv,
        positions,
        slot_mapping,
        params,
        [key_cache, value_cache],
    )?;
    if is_chosen()? {
        let inputs = gpu::Inputs {
            qkv,
            x_type: FloatType::of(CHECK.kernel, "qkv", qkv)?,
            positions,
            slot_mapping,
            caches: [key_cache, value_cache],
        };
        let [query, keys, values] = gpu::rope_and_cache(&inputs, params, node)?;
        *key_cache = keys;
        *value_cache = values;
        return Ok(query);
    }
    let qkv32 = CHECK.as_f32("qkv", qkv)?;
    let mut inputs = [&*qkv32; 8];
    inputs[1] = positions;
    inputs[2] = slot_mapping;
    inputs[3] = key_cache;
    inputs[4] = value_cache;
    let mut num_inputs = 5;
    let rope = params.rope.iter().map(|rope| &rope.inv_freq);
    let norm = params.norm.iter().flat_map(|norm| [&norm.query, &norm.key]);
    for input in rope.chain(norm) {
        inputs[num_inputs] = input;
        num_inputs += 1;
    }
    let shape = [qkv.shape()[0], params.num_heads, key_cache.shape()[3]];
    let [query, keys, values] = node.add(
        &inputs[..num_inputs],
        [
            Output::Fresh {
                shape: &shape,
                dtype: Dtype::Float32,
            },
            Output::InPlace { input: 3 },
            Output::InPlace { input: 4 },
        ],
    )?;
    *key_cache = keys;
    *value_cache = values;
    match qkv.dtype() {
        Dtype::Float32 => Ok(query),
        dtype => Ok(query.as_dtype(dtype)?),
    }
}

fn check(
    qkv: &Array,
    positions: &Array,
    slot_mapping: &Array,
    params: &QkvParams,
    [key_cache, value_cache]: [&Array; 2],
) -> Result<native::RopeAndCache> {
    CHECK.ndim("key_cache", key_cache, 4, CACHE_RULE)?;
    CHECK.dims(
        "value_cache",
        value_cache,
        key_cache.shape(),
        "like `key_cache`",
    )?;
    let rule = "that of `key_cache`";
    CHECK.dtype("value_cache", value_cache, key_cache.dtype(), rule)?;
    let (num_kv_heads, head_dim) = (key_cache.shape()[2], key_cache.shape()[3]);
    CHECK.ndim("qkv", qkv, 2, QKV_RULE)?;
    if params.num_heads < 0 || qkv.shape()[1] != (params.num_heads + 2 * num_kv_heads) * head_dim {
        return Err(CHECK.shape("qkv", qkv, QKV_RULE));
    }
    for (name, array) in [("positions", positions), ("slot_mapping", slot_mapping)] {
        CHECK.dims(name, array, &qkv.shape()[..1], "[num_tokens]")?;
        CHECK.dtype(name, array, Dtype::Int32, "int32")?;
    }
    let norm = match &params.norm {
        Some(QkNorm { query, key, eps }) => {
            CHECK.dims("norm.query", query, &[head_dim], "[head_dim]")?;
            CHECK.dims("norm.key", key, &[head_dim], "[head_dim]")?;
            CHECK.dtype("norm.key", key, query.dtype(), "that of `norm.query`")?;
            Some((FloatType::of(CHECK.kernel, "norm.query", query)?, *eps))
        }
        None => None,
    };
    if let Some(RopeParams { inv_freq, .. }) = &params.rope {
        CHECK.ndim("rope.inv_freq", inv_freq, 1, "[rotary_dim / 2]")?;
        CHECK.dtype("rope.inv_freq", inv_freq, Dtype::Float32, "float32")?;
        if 2 * inv_freq.shape()[0] > head_dim {
            let rule = "[rotary_dim / 2] with `rotary_dim` at most `head_dim`";
            return Err(CHECK.shape("rope.inv_freq", inv_freq, rule));
        }
    }
    Ok(native::RopeAndCache {
        num_heads: CHECK.size(params.num_heads),
        num_kv_heads: CHECK.size(num_kv_heads),
        head_dim: CHECK.size(head_dim),
        num_slots: CHECK.product(&key_cache.shape()[..2]),
        cache: FloatType::of(CHECK.kernel, "key_cache", key_cache)?,
        norm,
        rope: params.rope.as_ref().map(|rope| (rope.scale, rope.pairing)),
    })
}
