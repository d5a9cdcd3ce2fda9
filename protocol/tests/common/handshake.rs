//! Examples from `Hello` to `CacheCreated`.

use metal_rpc_protocol::{
    CacheCreated, CreateCache, Hello, KvCacheSpec, LoadModel, LoadProgress, MemoryReserved,
    ModelLoaded, ReserveMemory, Welcome,
};

pub(super) fn hello() -> Hello {
    Hello {
        min_protocol_version: 1,
        max_protocol_version: 1,
        vllm_version: "0.33.0".to_owned(),
        frontend: "api-1".to_owned(),
        pid: 4300,
        weight: 1,
    }
}

pub(super) fn welcome() -> Welcome {
    Welcome {
        protocol_version: 1,
        daemon_version: "0.1.0".to_owned(),
        pid: 4211,
        epoch: 0xfedc_ba98_7654_3210,
        session: b"0123456789abcdef".to_vec(),
        heartbeat_ms: 1000,
        lease_ms: 10_000,
        device: "cpu".to_owned(),
    }
}

pub(super) fn load_model() -> LoadModel {
    LoadModel {
        path: "/models/smollm2-135m".to_owned(),
        dtype: "bfloat16".to_owned(),
        max_model_len: 8192,
        max_num_seqs: 128,
        max_num_batched_tokens: 2048,
        logprobs_mode: "raw_logprobs".to_owned(),
    }
}

pub(super) fn load_progress() -> LoadProgress {
    LoadProgress {
        loaded_bytes: 134_530_000,
        total_bytes: 269_060_000,
    }
}

pub(super) fn model_loaded() -> ModelLoaded {
    let layer = |index, sliding_window| KvCacheSpec {
        layer_name: format!("model.layers.{index}.self_attn.attn"),
        num_kv_heads: 3,
        head_dim: 64,
        dtype: "bfloat16".to_owned(),
        sliding_window,
    };
    ModelLoaded {
        model_type: "llama".to_owned(),
        vocab_size: 49_152,
        weights_bytes: 269_060_000,
        load_ms: 412,
        kv_cache_specs: vec![layer(0, None), layer(1, Some(4096))],
    }
}

pub(super) fn reserve_memory() -> ReserveMemory {
    ReserveMemory {
        memory_fraction: 0.9,
    }
}

pub(super) fn memory_reserved() -> MemoryReserved {
    MemoryReserved {
        available_bytes: 7_461_881_132,
    }
}

pub(super) fn create_cache() -> CreateCache {
    CreateCache {
        num_blocks: 2048,
        block_size: 16,
        groups: vec![vec![0], vec![1]],
    }
}

pub(super) fn cache_created() -> CacheCreated {
    CacheCreated {
        num_blocks: 2048,
        block_bytes: 24_576,
    }
}
