//! From `Hello` to `CacheCreated`.

use metal_rpc_protocol::{
    CacheCreated, CreateCache, Hello, KvCacheSpec, LoadModel, LoadProgress, MemoryReserved,
    ModelLoaded, ReserveMemory, Welcome,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::{number, text};

pub(super) fn hello() -> impl Strategy<Value = Hello> {
    (any::<[u16; 2]>(), text(), text(), any::<[u32; 2]>()).prop_map(
        |([min_protocol_version, max_protocol_version], vllm_version, frontend, numbers)| Hello {
            min_protocol_version,
            max_protocol_version,
            vllm_version,
            frontend,
            pid: numbers[0],
            weight: numbers[1],
        },
    )
}

pub(super) fn welcome() -> impl Strategy<Value = Welcome> {
    let numbers = any::<(u16, u32, u64, u32, u32)>();
    (numbers, text(), vec(any::<u8>(), 0..300), text()).prop_map(
        |(numbers, daemon_version, session, device)| {
            let (protocol_version, pid, epoch, heartbeat_ms, lease_ms) = numbers;
            Welcome {
                protocol_version,
                daemon_version,
                pid,
                epoch,
                session,
                heartbeat_ms,
                lease_ms,
                device,
            }
        },
    )
}

pub(super) fn load_model() -> impl Strategy<Value = LoadModel> {
    (text(), text(), any::<[u32; 3]>(), text()).prop_map(|(path, dtype, limits, logprobs_mode)| {
        let [max_model_len, max_num_seqs, max_num_batched_tokens] = limits;
        LoadModel {
            path,
            dtype,
            max_model_len,
            max_num_seqs,
            max_num_batched_tokens,
            logprobs_mode,
        }
    })
}

pub(super) fn load_progress() -> impl Strategy<Value = LoadProgress> {
    any::<[u64; 2]>().prop_map(|[loaded_bytes, total_bytes]| LoadProgress {
        loaded_bytes,
        total_bytes,
    })
}

pub(super) fn model_loaded() -> impl Strategy<Value = ModelLoaded> {
    let specs = vec(kv_cache_spec(), 0..20);
    (text(), any::<(u32, u64, u64)>(), specs).prop_map(|(model_type, numbers, kv_cache_specs)| {
        let (vocab_size, weights_bytes, load_ms) = numbers;
        ModelLoaded {
            model_type,
            vocab_size,
            weights_bytes,
            load_ms,
            kv_cache_specs,
        }
    })
}

fn kv_cache_spec() -> impl Strategy<Value = KvCacheSpec> {
    let sliding_window = option::of(any::<u32>());
    (text(), any::<[u32; 2]>(), text(), sliding_window).prop_map(
        |(layer_name, [num_kv_heads, head_dim], dtype, sliding_window)| KvCacheSpec {
            layer_name,
            num_kv_heads,
            head_dim,
            dtype,
            sliding_window,
        },
    )
}

pub(super) fn reserve_memory() -> impl Strategy<Value = ReserveMemory> {
    number().prop_map(|memory_fraction| ReserveMemory { memory_fraction })
}

pub(super) fn memory_reserved() -> impl Strategy<Value = MemoryReserved> {
    any::<u64>().prop_map(|available_bytes| MemoryReserved { available_bytes })
}

pub(super) fn create_cache() -> impl Strategy<Value = CreateCache> {
    let groups = vec(vec(any::<u32>(), 0..40), 0..4);
    (any::<[u32; 2]>(), groups).prop_map(|([num_blocks, block_size], groups)| CreateCache {
        num_blocks,
        block_size,
        groups,
    })
}

pub(super) fn cache_created() -> impl Strategy<Value = CacheCreated> {
    any::<(u32, u64)>().prop_map(|(num_blocks, block_bytes)| CacheCreated {
        num_blocks,
        block_bytes,
    })
}
