//! The linear layer, with bf16 and with quantised weights: GB/s of weights for few rows, GFLOP/s for
//! many, beside a plain loop that reads memory with as many threads.
//!
//! Run: `cargo bench -p metal-rpc-kernels --bench linear` (`RAYON_NUM_THREADS` as wished).

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use metal_rpc_kernels::{QuantizedFormat, QuantizedMatrix, eval, linear, quantized_linear};
use mlx_rs::{
    Array, Dtype,
    ops::{ones_dtype, zeros_dtype},
};
use rayon::prelude::*;

/// `(inputs, outputs)`: the layers of a model with 576 and of one with 4096 hidden elements.
const SHAPES: [(i32, i32); 5] = [
    (576, 960),
    (576, 3072),
    (1536, 576),
    (576, 49_152),
    (4096, 4096),
];

const ROWS: [i32; 5] = [1, 8, 32, 64, 512];

/// More than the second-level cache, so that the weights of a decode step come from memory.
const WORKING_SET_SIZE_BYTES: u64 = 256 << 20;

/// From this many rows on a layer is limited by arithmetic.
const MANY_ROWS: i32 = 8;

/// Results of one layer, at most: the head of a model only sees few rows.
const MAX_RESULTS: i32 = 4 << 20;

/// What weights are held in.
#[derive(Clone, Copy, Debug)]
enum Format {
    Bf16,
    Bits(u8),
}

enum Weight {
    Dense(Array),
    Quantized(QuantizedMatrix),
}

impl Weight {
    fn new(format: Format, inputs: i32, outputs: i32) -> Self {
        match format {
            Format::Bf16 => {
                let weight = ones_dtype(&[outputs, inputs], Dtype::Bfloat16).expect("allocates");
                eval([&weight]).expect("allocates");
                Self::Dense(weight)
            }
            Format::Bits(bits) => {
                let words = inputs * i32::from(bits) / 32;
                let packed = zeros_dtype(&[outputs, words], Dtype::Uint32).expect("allocates");
                let shared = || ones_dtype(&[outputs, inputs / 64], Dtype::Bfloat16);
                let parts = [shared().expect("allocates"), shared().expect("allocates")];
                eval(parts.iter().chain([&packed])).expect("allocates");
                let [scales, biases] = parts;
                let format = QuantizedFormat::Affine {
                    bits,
                    group_size: 64,
                };
                let matrix = QuantizedMatrix::new(format, packed, scales, Some(biases));
                Self::Quantized(matrix.expect("fits"))
            }
        }
    }

    fn nbytes(&self) -> u64 {
        match self {
            Self::Dense(weight) => weight.nbytes() as u64,
            Self::Quantized(matrix) => matrix.nbytes() as u64,
        }
    }

    fn product(&self, x: &Array) -> Array {
        match self {
            Self::Dense(weight) => linear(x, weight, None).expect("fits"),
            Self::Quantized(matrix) => quantized_linear(x, matrix, None).expect("fits"),
        }
    }
}

fn size(dim: i32) -> u64 {
    u64::try_from(dim).expect("a dimension is never negative")
}

fn read(criterion: &mut Criterion) {
    let memory = vec![1_u64; 32 << 20];
    let mut group = criterion.benchmark_group("read");
    group.throughput(Throughput::Bytes(256 << 20));
    group.sample_size(20);
    group.bench_function("all threads", |bencher| {
        bencher.iter(|| {
            let sum = |chunk: &[u64]| {
                let mut sums = [0_u64; 16];
                for chunk in chunk.chunks_exact(16) {
                    for (sum, value) in sums.iter_mut().zip(chunk) {
                        *sum = sum.wrapping_add(*value);
                    }
                }
                sums.into_iter().sum::<u64>()
            };
            black_box(&memory).par_chunks(1 << 16).map(sum).sum::<u64>()
        });
    });
    group.finish();
}

fn layers(criterion: &mut Criterion) {
    for format in [Format::Bf16, Format::Bits(8), Format::Bits(4)] {
        let mut group = criterion.benchmark_group(format!("{format:?}"));
        group.sample_size(20);
        for ((inputs, outputs), rows) in SHAPES.into_iter().flat_map(|s| ROWS.map(|r| (s, r))) {
            if rows * outputs > MAX_RESULTS {
                continue;
            }
            let x = ones_dtype(&[rows, inputs], Dtype::Float32).expect("allocates");
            let first = Weight::new(format, inputs, outputs);
            let nbytes = first.nbytes();
            let (copies, throughput) = if rows < MANY_ROWS {
                let copies = WORKING_SET_SIZE_BYTES.div_ceil(nbytes);
                (copies, Throughput::Bytes(copies * nbytes))
            } else {
                let flops = 2 * size(rows) * size(inputs) * size(outputs);
                (1, Throughput::Elements(flops))
            };
            let mut weights = vec![first];
            weights.extend((1..copies).map(|_| Weight::new(format, inputs, outputs)));
            group.throughput(throughput);
            group.bench_function(format!("{rows} x {inputs} @ {outputs}"), |bencher| {
                bencher.iter(|| {
                    let layer = |weight: &Weight| weight.product(&x);
                    let results: Vec<Array> = weights.iter().map(layer).collect();
                    eval(&results).expect("runs");
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, read, layers);
criterion_main!(benches);
