//! The sampler of GPUs against that of the host, which a bias of zero asks for.

mod support;

use metal_rpc_kernels::{LogprobsMode, SampleBatch, SampleParams, sample};
use mlx_rs::Array;
use support::{Random, array, array_i32, i32s};

/// A row's logits: ties, runs of equal ones, and some that are impossible.
fn logits(random: &mut Random, vocab_size: usize) -> Vec<f32> {
    (0..vocab_size)
        .map(|_| match random.below(8) {
            0 => 1.5,
            1 => f32::NEG_INFINITY,
            _ => random.unit() * 6.0,
        })
        .collect()
}

fn tokens(logits: &Array, batch: &SampleBatch) -> Vec<i32> {
    let sampled = sample(logits, batch, &array_i32(&[0]), LogprobsMode::RawLogits);
    i32s(&sampled.expect("fits").0)
}

/// The same rows with a bias that changes nothing.
fn on_the_host(batch: &SampleBatch) -> SampleBatch {
    let mut batch = batch.clone();
    let bias = batch.push_list([0, 0.0_f32.to_bits().cast_signed()]);
    batch.rows.iter_mut().for_each(|row| row.bias = bias);
    batch
}

fn batch(rows: Vec<SampleParams>) -> SampleBatch {
    SampleBatch {
        rows,
        lists: Vec::new(),
    }
}

#[test]
fn tokens_are_those_of_the_host() {
    let mut rows = Vec::new();
    for temperature in [0.0, 0.3, 1.0, 2.0] {
        for top_k in [0, 1, 7, 5000] {
            for top_p in [1.0, 0.95, 0.5, 0.01, 0.0] {
                for min_p in [0.0, 0.1] {
                    rows.push(SampleParams {
                        temperature,
                        top_k,
                        top_p,
                        min_p,
                        seed: rows.len() as u64 * 77,
                        ..SampleParams::default()
                    });
                }
            }
        }
    }
    let batch = batch(rows);
    // Sums are in another order, so another seed may hit the edge between two tokens.
    let mut random = Random::of_seed(0x5eed);
    for vocab_size in [1, 31, 33, 1000, 3001] {
        let flat: Vec<f32> = (0..batch.rows.len())
            .flat_map(|_| logits(&mut random, vocab_size))
            .collect();
        let logits = array(&flat, &[batch.rows.len(), vocab_size]);
        let expected = tokens(&logits, &on_the_host(&batch));
        assert_eq!(tokens(&logits, &batch), expected, "{vocab_size} tokens");
    }
}

#[test]
fn rows_without_a_token_say_so() {
    let rows = [
        [f32::NAN, 1.0],
        [f32::NEG_INFINITY, f32::NEG_INFINITY],
        [f32::INFINITY, 1.0],
    ];
    let logits = array(rows.as_flattened(), &[3, 2]);
    let greedy = SampleParams {
        temperature: 0.0,
        ..SampleParams::default()
    };
    for (params, expected) in [
        (SampleParams::default(), [-1, -1, -1]),
        (greedy, [-1, -1, 0]),
    ] {
        assert_eq!(tokens(&logits, &batch(vec![params; 3])), expected);
    }
}
