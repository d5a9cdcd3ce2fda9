//! The linear layer: GB/s of weights for few rows, GFLOP/s for many, beside a plain loop that reads
//! memory. Run: `cargo bench -p metal-rpc-kernels --bench linear` (`RAYON_NUM_THREADS` as wished).

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use metal_rpc_kernels::linear;
use mlx_rs::{Array, Dtype, ops::ones_dtype, transforms::eval};

/// `(rows, inputs, outputs)`: the layers of a model with 576 and of one with 4096 hidden elements.
const SHAPES: [(i32, i32, i32); 10] = [
    (1, 576, 576),
    (1, 576, 3072),
    (1, 1536, 576),
    (1, 576, 49_152),
    (1, 4096, 4096),
    (8, 576, 3072),
    (32, 576, 3072),
    (512, 576, 3072),
    (512, 1536, 576),
    (512, 4096, 4096),
];

/// More than the last-level cache of most CPUs: weights of a decode step come from memory.
const WORKING_SET_SIZE_BYTES: u64 = 128 << 20;

/// From this many rows on a layer is limited by arithmetic.
const MANY_ROWS: i32 = 8;

fn size(dim: i32) -> u64 {
    u64::try_from(dim).expect("a dimension is never negative")
}

fn read(criterion: &mut Criterion) {
    let memory = vec![1.0f32; 32 << 20];
    let mut group = criterion.benchmark_group("read");
    group.throughput(Throughput::Bytes(128 << 20));
    group.bench_function("one thread", |bencher| {
        bencher.iter(|| {
            let mut sums = [0.0f32; 64];
            for chunk in black_box(&memory).chunks_exact(64) {
                for (sum, value) in sums.iter_mut().zip(chunk) {
                    *sum += value;
                }
            }
            sums
        });
    });
    group.finish();
}

fn layers(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("linear bf16");
    group.sample_size(20);
    for (rows, inputs, outputs) in SHAPES {
        let x = ones_dtype(&[rows, inputs], Dtype::Float32).expect("allocates");
        let weight_size_bytes = 2 * size(inputs) * size(outputs);
        let (copies, throughput) = if rows < MANY_ROWS {
            let copies = WORKING_SET_SIZE_BYTES.div_ceil(weight_size_bytes);
            (copies, Throughput::Bytes(copies * weight_size_bytes))
        } else {
            (1, Throughput::Elements(size(rows) * weight_size_bytes))
        };
        let weights: Vec<Array> = (0..copies)
            .map(|_| ones_dtype(&[outputs, inputs], Dtype::Bfloat16).expect("allocates"))
            .collect();
        eval(&weights).expect("allocates");
        group.throughput(throughput);
        group.bench_function(format!("{rows} x {inputs} @ {outputs}"), |bencher| {
            bencher.iter(|| {
                let layer = |weight| linear(&x, weight, None).expect("fits");
                let results: Vec<Array> = weights.iter().map(layer).collect();
                eval(&results).expect("runs");
            });
        });
    }
    group.finish();
}

criterion_group!(benches, read, layers);
criterion_main!(benches);
