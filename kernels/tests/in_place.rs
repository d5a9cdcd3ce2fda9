//! Caches and tables keep their memory, under pipelining too, and a pool costs what is written.

mod support;

use std::fs;

use metal_rpc_kernels::{
    AttentionMetadata, AttentionParams, data_ptr, eval, gather_slots, paged_attention, reserve,
    reshape_and_cache, start, write_slots,
};
use mlx_rs::{Array, Dtype};
use support::{Random, array, array_i32, f32s, i32s};

/// Resident memory of this process, in bytes.
#[cfg(target_os = "linux")]
fn resident_size_bytes() -> usize {
    let status = fs::read_to_string("/proc/self/status").expect("procfs");
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .expect("VmRSS");
    let kib: usize = line
        .split_whitespace()
        .nth(1)
        .and_then(|n| n.parse().ok())
        .expect("a number");
    kib * 1024
}

/// One gibibyte of keys: a single copy of it would show.
const LARGE: [i32; 4] = [32_768, 16, 8, 128];
const MIB: usize = 1 << 20;

/// Steps are submitted while earlier ones run and the handles of all versions are kept, which is
/// when MLX's own in-place operations copy.
#[test]
#[cfg(target_os = "linux")]
fn a_pipelined_cache_keeps_its_memory() {
    let mut random = Random::new(30);
    let mut key_cache = reserve(&LARGE, Dtype::Bfloat16).expect("reserves");
    let mut value_cache = reserve(&LARGE, Dtype::Bfloat16).expect("reserves");
    let pointers = [data_ptr(&key_cache), data_ptr(&value_cache)].map(|p| p.expect("has memory"));
    let before = resident_size_bytes();
    let mut versions = Vec::new();
    for step in 0..20 {
        versions.push((key_cache.clone(), value_cache.clone()));
        let row = array(&random.units(8 * 128), &[1, 8, 128]);
        let slot = array_i32(&[step * 1000]);
        reshape_and_cache(&row, &row, &mut key_cache, &mut value_cache, &slot).expect("fits");
        start([&key_cache, &value_cache]).expect("starts");
    }
    eval([&key_cache, &value_cache]).expect("runs");
    assert_eq!(data_ptr(&key_cache).expect("has memory"), pointers[0]);
    assert_eq!(data_ptr(&value_cache).expect("has memory"), pointers[1]);
    for (keys, values) in &versions {
        assert_eq!(data_ptr(keys).expect("has memory"), pointers[0]);
        assert_eq!(data_ptr(values).expect("has memory"), pointers[1]);
    }
    let grown = resident_size_bytes().saturating_sub(before);
    assert!(
        grown < 256 * MIB,
        "resident memory grew by {} MiB",
        grown / MIB
    );
}

#[test]
fn a_step_is_built_on_tokens_that_are_not_computed_yet() {
    let mut table = reserve(&[64], Dtype::Int32).expect("reserves");
    let pointer = data_ptr(&table).expect("has memory");
    write_slots(&mut table, &array_i32(&[1]), &array_i32(&[0])).expect("fits");
    let mut last = table.clone();
    for step in 1..40 {
        // The next token is the sum of the last one with itself, modulo a prime.
        let token = gather_slots(&table, &array_i32(&[step - 1])).expect("fits");
        let next = (&token + &token)
            .remainder(Array::from_int(1009))
            .expect("int32");
        write_slots(&mut table, &next, &array_i32(&[step])).expect("fits");
        start([&table]).expect("starts");
        last = table.clone();
    }
    let tokens = i32s(&last);
    let mut expected = 1;
    for (step, &token) in tokens[..40].iter().enumerate() {
        assert_eq!(token, expected, "step {step}");
        expected = expected * 2 % 1009;
    }
    assert_eq!(data_ptr(&last).expect("has memory"), pointer);
}

/// 64 GiB and 2^35 elements, of which the last block is written and read.
#[test]
#[cfg(target_os = "linux")]
fn a_huge_pool_costs_what_is_written() {
    let before = resident_size_bytes();
    let num_blocks = 1 << 21;
    let mut key_cache = reserve(&[num_blocks, 16, 8, 128], Dtype::Bfloat16).expect("reserves");
    let mut value_cache = reserve(&[num_blocks, 16, 8, 128], Dtype::Bfloat16).expect("reserves");
    let mut random = Random::new(31);
    let rows = random.units(8 * 128);
    let row = array(&rows, &[1, 8, 128])
        .as_dtype(Dtype::Bfloat16)
        .expect("cast");
    let row = row.as_dtype(Dtype::Float32).expect("cast");
    let slot = array_i32(&[num_blocks * 16 - 16]);
    reshape_and_cache(&row, &row, &mut key_cache, &mut value_cache, &slot).expect("fits");
    let metadata = AttentionMetadata {
        block_table: Array::from_slice(&[num_blocks - 1], &[1, 1]),
        query_start_loc: array_i32(&[0, 1]),
        seq_lens: array_i32(&[1]),
    };
    let params = AttentionParams {
        scale: 1.0,
        sliding_window: None,
        soft_cap: None,
        sinks: None,
    };
    let out = paged_attention(&row, &key_cache, &value_cache, &metadata, &params).expect("fits");
    // One key alone has all the weight.
    assert_eq!(f32s(&out), f32s(&row));
    let grown = resident_size_bytes().saturating_sub(before);
    assert!(
        grown < 256 * MIB,
        "resident memory grew by {} MiB",
        grown / MIB
    );
}

#[test]
#[cfg(target_os = "linux")]
fn a_reserved_array_is_zero_and_is_given_back() {
    let size_bytes = 64 * MIB;
    let shape = [i32::try_from(size_bytes / 4).expect("small")];
    let array = reserve(&shape, Dtype::Float32).expect("reserves");
    assert!(f32s(&array).iter().all(|&value| value == 0.0));
    let address = data_ptr(&array).expect("has memory");
    let is_mapped = || {
        let maps = fs::read_to_string("/proc/self/maps").expect("procfs");
        maps.lines().any(|line| {
            let range = line
                .split(' ')
                .next()
                .and_then(|range| range.split_once('-'));
            let (start, end) = range.expect("a range");
            let hex = |text| usize::from_str_radix(text, 16).expect("an address");
            hex(start) <= address && address + size_bytes <= hex(end)
        })
    };
    assert!(is_mapped());
    drop(array);
    assert!(!is_mapped());
}
