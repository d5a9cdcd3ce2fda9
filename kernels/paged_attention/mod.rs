//! Attention over the paged cache, prefill and decode alike. Contract: `contract.md`.

mod attend;
mod chunk;
mod gpu;
mod native;
mod plan;

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
    kernel: "paged_attention",
};
const CACHE_RULE: &str = "[num_blocks, block_size, num_kv_heads, head_dim]";

/// Where each request's queries and keys are. The same for all layers of a forward.
#[derive(Debug, Clone)]
pub struct AttentionMetadata {
    /// `[num_reqs, max_blocks]` int32: the pool blocks of each request, in order of position.
    /// Entries beyond a request's `seq_len` are not read.
    pub block_table: Array,
    /// `[num_reqs + 1]` int32: prefix sum of the requests' query lengths.
    pub query_start_loc: Array,
    /// `[num_reqs]` int32: tokens of each request in the cache, its queries included.
    pub seq_lens: Array,
}

/// How a layer attends.
#[derive(Debug, Clone)]
pub struct AttentionParams {
    /// Factor of the scores, mostly `head_dim^-0.5`.
    pub scale: f32,
    /// A query sees this many keys at most, its own included.
    pub sliding_window: Option<u32>,
    /// Scores become `soft_cap * tanh(score / soft_cap)`.
    pub soft_cap: Option<f32>,
    /// `[num_heads]` float32: the score of a key without value that every query sees.
    pub sinks: Option<Array>,
}

/// Causal attention of this forward's queries to all keys of their requests.
///
/// Query `i` of a request has the position `seq_len - query_len + i` and sees the keys of positions
/// `0 ..= position`, or the last `sliding_window` of them. Its result is the same bits whatever
/// other requests and tokens are in the batch. Tokens beyond the last `query_start_loc` are
/// padding, and their result is zero.
///
/// # Shapes
/// - `query`: `[num_tokens, num_heads, head_dim]` float32, bfloat16 or float16
/// - `key_cache`, `value_cache`: `[num_blocks, block_size, num_kv_heads, head_dim]` float32,
///   bfloat16 or float16, both alike; `num_kv_heads` divides `num_heads`
/// - result: shape and dtype of `query`
///
/// # Errors
/// [`KernelError::Shape`], [`KernelError::Dtype`] and [`KernelError::Value`] if the arguments do
/// not fit together. Metadata that contradicts itself or names a block out of range is an error
/// when the result is evaluated, and on a GPU keys in such blocks are passed over; nothing is read
/// out of range. A GPU takes a `head_dim` of at most 256.
///
/// # Source
/// Same contract as vLLM's FlashAttention backend, `flash_attn_varlen_func` with a block table.
pub fn paged_attention(
    query: &Array,
    key_cache: &Array,
    value_cache: &Array,
    metadata: &AttentionMetadata,
    params: &AttentionParams,
) -> Result<Array> {
    let node = check(query, key_cache, value_cache, metadata, params)?;
    let x_type = FloatType::of(CHECK.kernel, "query", query)?;
    if is_chosen()? {
        let inputs = gpu::Inputs {
            query,
            x_type,
            caches: [key_cache, value_cache],
            metadata,
        };
        return gpu::paged_attention(&inputs, params, node);
    }
    let query32 = CHECK.as_f32("query", query)?;
    let output = Output::Fresh {
        shape: query.shape(),
        dtype: Dtype::Float32,
    };
    let mut inputs = [&*query32; 7];
    inputs[1] = key_cache;
    inputs[2] = value_cache;
    inputs[3] = &metadata.block_table;
    inputs[4] = &metadata.query_start_loc;
    inputs[5] = &metadata.seq_lens;
    let [attended] = match &params.sinks {
        Some(sinks) => {
            inputs[6] = sinks;
            node.add(&inputs, [output])?
        }
        None => node.add(&inputs[..6], [output])?,
    };
    match x_type {
        FloatType::F32 => Ok(attended),
        FloatType::Bf16 | FloatType::F16 => Ok(attended.as_dtype(query.dtype())?),
    }
}

fn check(
    query: &Array,
    key_cache: &Array,
    value_cache: &Array,
    metadata: &AttentionMetadata,
    params: &AttentionParams,
) -> Result<native::PagedAttention> {
    CHECK.ndim("query", query, 3, "[num_tokens, num_heads, head_dim]")?;
    CHECK.ndim("key_cache", key_cache, 4, CACHE_RULE)?;
    CHECK.dims(
        "value_cache",
        value_cache,
        key_cache.shape(),
        "like `key_cache`",
    )?;
    let cache = FloatType::of(CHECK.kernel, "key_cache", key_cache)?;
    CHECK.dtype(
        "value_cache",
        value_cache,
        key_cache.dtype(),
        "that of `key_cache`",
    )?;
    let (num_heads, head_dim) = (query.shape()[1], query.shape()[2]);
    let num_kv_heads = key_cache.shape()[2];
    if num_kv_heads == 0 || num_heads % num_kv_heads != 0 || key_cache.shape()[3] != head_dim {
        let rule = "of a `num_kv_heads` that divides `num_heads`, and of the query's `head_dim`";
        return Err(CHECK.shape("key_cache", key_cache, rule));
    }
    check_metadata(metadata)?;
    if let Some(sinks) = &params.sinks {
        CHECK.dims("sinks", sinks, &[num_heads], "[num_heads]")?;
        CHECK.dtype("sinks", sinks, Dtype::Float32, "float32")?;
    }
    if params.sliding_window == Some(0) {
        return Err(value_error("sliding_window", "above 0"));
    }
    if params
        .soft_cap
        .is_some_and(|cap| cap.is_nan() || cap <= 0.0)
    {
        return Err(value_error("soft_cap", "above 0"));
    }
    Ok(native::PagedAttention {
        num_heads: CHECK.size(num_heads),
        num_kv_heads: CHECK.size(num_kv_heads),
        head_dim: CHECK.size(head_dim),
        block_size: CHECK.size(key_cache.shape()[1]),
        num_blocks: CHECK.size(key_cache.shape()[0]),
        max_blocks: CHECK.size(metadata.block_table.shape()[1]),
        cache,
        scale: params.scale,
        sliding_window: params.sliding_window,
        soft_cap: params.soft_cap,
        has_sinks: params.sinks.is_some(),
    })
}

fn check_metadata(metadata: &AttentionMetadata) -> Result<()> {
    let AttentionMetadata {
        block_table,
        query_start_loc,
        seq_lens,
    } = metadata;
    CHECK.ndim("block_table", block_table, 2, "[num_reqs, max_blocks]")?;
    let num_reqs = block_table.shape()[0];
    CHECK.dims(
        "query_start_loc",
        query_start_loc,
        &[num_reqs + 1],
        "[num_reqs + 1]",
    )?;
    CHECK.dims("seq_lens", seq_lens, &[num_reqs], "[num_reqs]")?;
    for (name, array) in [
        ("block_table", block_table),
        ("query_start_loc", query_start_loc),
        ("seq_lens", seq_lens),
    ] {
        CHECK.dtype(name, array, Dtype::Int32, "int32")?;
    }
    Ok(())
}

fn value_error(argument: &'static str, rule: &'static str) -> KernelError {
    KernelError::Value {
        kernel: CHECK.kernel,
        argument,
        rule,
    }
}
