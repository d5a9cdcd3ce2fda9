//! The first projection of a layer's experts: bytes of weights that a step needs, each needed expert once, over the
//! time it takes, beside a plain loop that reads memory with as many threads.
//!
//! Run: `cargo bench -p metal-rpc-kernels --bench expert_linear` (`RAYON_NUM_THREADS` as wished).

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use metal_rpc_kernels::{dispatch, eval, expert_linear, linear};
use mlx_rs::{Array, Dtype, ops::ones_dtype};
use rayon::prelude::*;

/// `(experts, experts per token, hidden, intermediate)`, after Qwen3-30B-A3B and Mixtral, the
/// latter a quarter as wide.
const LAYERS: [(i32, i32, i32, i32); 2] = [(128, 8, 2048, 768), (8, 2, 2048, 3584)];

/// Tokens of a decode step, and of a small prefill.
const TOKENS: [i32; 5] = [1, 4, 16, 64, 256];

fn size(dim: i32) -> usize {
    usize::try_from(dim).expect("a dimension is never negative")
}

fn read(criterion: &mut Criterion) {
    let memory = vec![1.0f32; 64 << 20];
    let mut group = criterion.benchmark_group("read");
    group.throughput(Throughput::Bytes(4 * memory.len() as u64));
    group.bench_function("all threads", |bencher| {
        bencher.iter(|| {
            let sum = |chunk: &[f32]| {
                let mut sums = [0.0f32; 64];
                for chunk in chunk.chunks_exact(64) {
                    for (sum, value) in sums.iter_mut().zip(chunk) {
                        *sum += value;
                    }
                }
                sums[0]
            };
            black_box(&memory).par_chunks(1 << 16).map(sum).sum::<f32>()
        });
    });
    group.finish();
}

/// Experts of each token, all different, drawn from a fixed seed.
fn experts(tokens: i32, num_experts: i32, k: i32) -> Vec<i32> {
    let mut state = 1_u64;
    let mut all: Vec<i32> = (0..num_experts).collect();
    let mut chosen = Vec::new();
    for _ in 0..tokens {
        for place in 0..size(k) {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            let rest = all.len() - place;
            all.swap(place, place + (state >> 33) as usize % rest);
        }
        chosen.extend_from_slice(&all[..size(k)]);
    }
    chosen
}

fn layers(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("bf16");
    group.sample_size(10);
    for (num_experts, k, hidden, intermediate) in LAYERS {
        let outputs = 2 * intermediate;
        let filled = |shape: &[i32]| ones_dtype(shape, Dtype::Bfloat16).expect("allocates");
        // Two layers, so that the weights of a small step come from memory.
        let weights = [0, 1].map(|_| filled(&[num_experts, outputs, hidden]));
        eval(&weights).expect("allocates");
        for tokens in TOKENS {
            let x = ones_dtype(&[tokens, hidden], Dtype::Float32).expect("allocates");
            let mut chosen = experts(tokens, num_experts, k);
            let routes = Array::from_slice(&chosen, &[tokens, k]);
            chosen.sort_unstable();
            chosen.dedup();
            let needed = i32::try_from(chosen.len()).expect("at most the experts");
            let needed_bytes = 2 * weights.len() * chosen.len() * size(outputs) * size(hidden);
            group.throughput(Throughput::Bytes(needed_bytes as u64));
            let name = format!("{tokens} tokens, {needed} of {num_experts} experts");
            group.bench_function(&name, |bencher| {
                bencher.iter(|| {
                    let layer = |weight| {
                        let sorted = dispatch(&x, &routes, num_experts).expect("fits");
                        expert_linear(&sorted.rows, &sorted.groups, weight, None).expect("fits")
                    };
                    let results: Vec<Array> = weights.iter().map(layer).collect();
                    eval(&results).expect("runs");
                });
            });
            if tokens == 1 {
                // One row through one matrix of as many bytes: what the experts can be at best.
                let matrices = [0, 1].map(|_| filled(&[needed * outputs, hidden]));
                eval(&matrices).expect("allocates");
                group.bench_function(format!("{name}, as one matrix"), |bencher| {
                    bencher.iter(|| {
                        let layer = |weight| linear(&x, weight, None).expect("fits");
                        let results: Vec<Array> = matrices.iter().map(layer).collect();
                        eval(&results).expect("runs");
                    });
                });
            }
        }
    }
    group.finish();
}

criterion_group!(benches, read, layers);
criterion_main!(benches);
