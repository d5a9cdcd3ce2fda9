//! The sampler: a batch of 64 rows, by what the rows ask for.
//! Run: `cargo bench -p metal-rpc-kernels --bench sample` (`RAYON_NUM_THREADS` as wished).

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use metal_rpc_kernels::{History, LogprobsMode, SampleBatch, SampleParams, eval, sample};
use mlx_rs::Array;

const ROWS: i32 = 64;

/// Tokens of each request's history.
const HISTORY: i32 = 1024;

/// Logits as a language model's: most far down, a few dozen likely tokens.
fn logits(vocab_size: i32) -> Array {
    let mut state = 0x5eed_u64;
    let mut uniform = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        f32::from(u16::try_from(state >> 48).expect("16 bits")) / 65536.0
    };
    let values: Vec<f32> = (0..ROWS * vocab_size)
        .map(|_| {
            let normal: f32 = (0..4).map(|_| uniform() - 0.5).sum::<f32>() * 4.0;
            if uniform() < 5e-4 {
                normal + 12.0
            } else {
                normal
            }
        })
        .collect();
    Array::from_slice(&values, &[ROWS, vocab_size])
}

fn rows(criterion: &mut Criterion) {
    let greedy = SampleParams {
        temperature: 0.0,
        ..SampleParams::default()
    };
    let drawn = SampleParams {
        temperature: 0.8,
        ..SampleParams::default()
    };
    let nucleus = SampleParams {
        top_p: 0.9,
        ..drawn
    };
    let everything = SampleParams {
        top_k: 50,
        presence_penalty: 0.5,
        frequency_penalty: 0.2,
        repetition_penalty: 1.1,
        ..nucleus
    };
    let scored = SampleParams {
        num_logprobs: Some(20),
        ..everything
    };
    let cases = [
        ("greedy", greedy),
        ("temperature", drawn),
        ("temperature + top-p", nucleus),
        ("temperature + top-p + top-k + penalties", everything),
        ("the same + 20 logprobs", scored),
    ];
    for vocab_size in [49_152, 152_064] {
        let logits = logits(vocab_size);
        let history: Vec<i32> = (0..ROWS * HISTORY).map(|i| i * 31 % vocab_size).collect();
        let table = Array::from_slice(&history, &[ROWS * HISTORY]);
        let mut group = criterion.benchmark_group(format!("{ROWS} rows of {vocab_size}"));
        group.sample_size(20);
        for (name, params) in &cases {
            let row = |start: u32| SampleParams {
                seed: u64::from(start),
                history: History {
                    start,
                    num_prompt_tokens: HISTORY.unsigned_abs() / 2,
                    num_tokens: HISTORY.unsigned_abs(),
                },
                ..*params
            };
            let batch = SampleBatch {
                rows: (0..ROWS)
                    .map(|i| row((i * HISTORY).unsigned_abs()))
                    .collect(),
                lists: Vec::new(),
            };
            group.bench_function(*name, |bencher| {
                bencher.iter(|| {
                    let mode = LogprobsMode::RawLogprobs;
                    let (tokens, _) = sample(&logits, &batch, &table, mode).expect("sampled");
                    eval([&tokens]).expect("the pass runs");
                    black_box(tokens)
                });
            });
        }
    }
}

criterion_group!(benches, rows);
criterion_main!(benches);
