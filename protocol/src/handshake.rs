//! From the first `Hello` to a cache that steps can use.

use serde::{Deserialize, Serialize};

use crate::bounded;
use crate::limits::{MAX_KV_CACHE_GROUPS, MAX_STRING_BYTES};

/// Opens a session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// Oldest protocol version that the frontend speaks.
    pub min_protocol_version: u16,
    /// Newest protocol version that the frontend speaks.
    pub max_protocol_version: u16,
    /// Version of vLLM, for logs and `metald status`.
    #[serde(deserialize_with = "bounded::string::<MAX_STRING_BYTES, _>")]
    pub vllm_version: String,
    /// What people call this frontend, for logs and `metald status`.
    #[serde(deserialize_with = "bounded::string::<MAX_STRING_BYTES, _>")]
    pub frontend: String,
    /// Process id of the frontend.
    pub pid: u32,
    /// Its share of the device, relative to other frontends': 1 to
    /// [`MAX_WEIGHT`](crate::limits::MAX_WEIGHT).
    pub weight: u32,
}

/// A session was opened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Welcome {
    /// The version that both sides speak from now on.
    pub protocol_version: u16,
    /// Version of `metald`.
    pub daemon_version: String,
    /// Process id of the daemon.
    pub pid: u32,
    /// Differs between any two daemon processes. A changed epoch means that all state is gone.
    pub epoch: u64,
    /// The new session's token, 16 bytes.
    #[serde(with = "serde_bytes")]
    pub session: Vec<u8>,
    /// How often the frontend should send something, in milliseconds.
    pub heartbeat_ms: u32,
    /// After so much silence the daemon closes the session, in milliseconds.
    pub lease_ms: u32,
    /// The device that models run on: `cpu` or `gpu`.
    pub device: String,
}

/// Makes a model ready for a session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoadModel {
    /// Absolute path of a folder in Hugging Face's layout.
    #[serde(deserialize_with = "bounded::string::<MAX_STRING_BYTES, _>")]
    pub path: String,
    /// `float32`, `float16` or `bfloat16`: what weights and KV cache are held in.
    #[serde(deserialize_with = "bounded::string::<MAX_STRING_BYTES, _>")]
    pub dtype: String,
    /// Longest request, in tokens.
    pub max_model_len: u32,
    /// Most requests in one step.
    pub max_num_seqs: u32,
    /// Most tokens in one step.
    pub max_num_batched_tokens: u32,
    /// vLLM's `logprobs_mode`: `raw_logprobs`, `processed_logprobs`, `raw_logits` or
    /// `processed_logits`.
    #[serde(deserialize_with = "bounded::string::<MAX_STRING_BYTES, _>")]
    pub logprobs_mode: String,
}

/// How far a load has come.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoadProgress {
    /// Bytes of weights read so far.
    pub loaded_bytes: u64,
    /// Bytes of weights in all.
    pub total_bytes: u64,
}

/// A model is ready.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelLoaded {
    /// `model_type` of the checkpoint's configuration.
    pub model_type: String,
    /// Entries of the logits.
    pub vocab_size: u32,
    /// Bytes of the weights in memory.
    pub weights_bytes: u64,
    /// How long this session waited for it, in milliseconds.
    pub load_ms: u64,
    /// One entry per layer that caches keys and values, in order.
    pub kv_cache_specs: Vec<KvCacheSpec>,
}

/// The format of one layer's cache. Its block size is the frontend's choice.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KvCacheSpec {
    /// Name of the layer, as vLLM groups them: `model.layers.0.self_attn.attn`.
    pub layer_name: String,
    /// Heads of keys and values.
    pub num_kv_heads: u32,
    /// Size of one head.
    pub head_dim: u32,
    /// `float32`, `float16` or `bfloat16`.
    pub dtype: String,
    /// Tokens that a query sees, itself included; absent for full attention.
    pub sliding_window: Option<u32>,
}

/// Asks for a share of the KV-cache memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReserveMemory {
    /// Share of the device's memory that weights and cache of this frontend may take, 0 to 1:
    /// vLLM's `gpu_memory_utilization`.
    pub memory_fraction: f64,
}

/// What a session may use for its cache.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemoryReserved {
    /// Bytes for keys and values of all layers.
    pub available_bytes: u64,
}

/// Creates the session's cache.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CreateCache {
    /// Blocks that the frontend numbers, the null block 0 included.
    pub num_blocks: u32,
    /// Tokens in a block.
    pub block_size: u32,
    /// The layers (indices into `kv_cache_specs`) of each KV-cache group.
    #[serde(deserialize_with = "bounded::list::<MAX_KV_CACHE_GROUPS, _, _>")]
    pub groups: Vec<Vec<u32>>,
}

/// The cache is ready.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CacheCreated {
    /// Blocks granted to this session.
    pub num_blocks: u32,
    /// Bytes of one block: a page for each layer of the largest group.
    pub block_bytes: u64,
}
