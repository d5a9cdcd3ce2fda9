//! The model families against transformers, and against themselves in other batches.

use crate::support::{Chunk, Golden, Runner, folder, load};
use metald::models::Dtype;

const CHECKPOINTS: [&str; 5] = [
    "llama-tied",
    "llama-llama3",
    "llama-biased",
    "llama-yarn",
    "mistral",
];

/// Blocks of one request: out of order and with gaps, so that a mistaken address shows.
const BLOCKS: [i32; 10] = [7, 3, 19, 4, 11, 16, 1, 14, 9, 5];
const OTHER_BLOCKS: [i32; 10] = [2, 18, 6, 20, 8, 10, 12, 13, 15, 17];
const NUM_BLOCKS: i32 = 21;

fn runner(name: &str, dtype: Dtype) -> Runner {
    Runner::new(load(&folder(name), dtype).expect("load"), NUM_BLOCKS)
}

/// A prompt that starts at position 0, in one forward.
fn whole(token_ids: &[i32]) -> Chunk<'_> {
    Chunk {
        token_ids,
        num_computed: 0,
        blocks: &BLOCKS,
    }
}

/// The largest difference, in units of the largest expected value.
fn relative_error(actual: &[Vec<f32>], expected: &[Vec<f32>]) -> f32 {
    assert_eq!(actual.len(), expected.len());
    let largest = |values: &mut dyn Iterator<Item = f32>| values.fold(0.0, f32::max);
    let error = largest(
        &mut std::iter::zip(actual.iter().flatten(), expected.iter().flatten())
            .map(|(actual, expected)| (actual - expected).abs()),
    );
    error / largest(&mut expected.iter().flatten().map(|value| value.abs()))
}

/// Logits as bits: equality of floats would take any NaN for a difference and -0 for 0.
fn bits(logits: &[Vec<f32>]) -> Vec<u32> {
    logits
        .iter()
        .flatten()
        .map(|value| value.to_bits())
        .collect()
}

fn check(name: &str, dtype: Dtype, tolerance: f32) {
    let golden = Golden::read(name);
    let logits = runner(name, dtype).run(&[whole(&golden.token_ids)]);
    let error = relative_error(&logits, &golden.logits);
    assert!(error < tolerance, "{name} as {dtype}: error {error}");
}

#[test]
fn logits_are_those_of_transformers() {
    for name in CHECKPOINTS {
        // f32 on both sides: two layers of sums of at most 64 products, in another order.
        check(name, Dtype::Float32, 1e-5);
        // The stored weights are exact in bf16; keys and values are rounded to 8 bits.
        check(name, Dtype::Bfloat16, 2e-2);
        // And to 11 bits.
        check(name, Dtype::Float16, 2.5e-3);
    }
}

#[test]
#[should_panic(expected = "llama-tied as float32: error")]
fn a_difference_is_noticed() {
    check("llama-tied", Dtype::Float32, 1e-9);
}

#[test]
fn a_prompt_in_chunks_gives_the_same_bits() {
    for name in CHECKPOINTS {
        let golden = Golden::read(name);
        let expected = bits(&runner(name, Dtype::Bfloat16).run(&[whole(&golden.token_ids)]));
        // One by one; around block borders; and a long one in the middle.
        for lens in [vec![1; 37], vec![3, 1, 1, 4, 7, 1, 20], vec![2, 33, 2]] {
            let mut runner = runner(name, Dtype::Bfloat16);
            let mut logits = Vec::new();
            for len in lens {
                let num_computed = logits.len();
                let token_ids = &golden.token_ids[num_computed..num_computed + len];
                let chunk = Chunk {
                    num_computed,
                    ..whole(token_ids)
                };
                logits.extend(runner.run(&[chunk]));
            }
            assert!(bits(&logits) == expected, "{name}");
        }
    }
}

#[test]
fn a_request_gets_the_same_bits_in_company() {
    for name in CHECKPOINTS {
        let golden = Golden::read(name);
        let (prompt, last) = golden.token_ids.split_at(30);
        let other: Vec<i32> = golden.token_ids.iter().rev().copied().collect();
        let alone = runner(name, Dtype::Bfloat16).run(&[whole(&golden.token_ids)]);

        let mut runner = runner(name, Dtype::Bfloat16);
        let first = runner.run(&[
            Chunk {
                blocks: &OTHER_BLOCKS,
                ..whole(&other[..19])
            },
            whole(prompt),
        ]);
        let second = runner.run(&[
            Chunk {
                num_computed: prompt.len(),
                ..whole(last)
            },
            Chunk {
                num_computed: 19,
                blocks: &OTHER_BLOCKS,
                ..whole(&other[19..20])
            },
        ]);
        let merged = [&first[19..], &second[..last.len()]].concat();
        assert!(bits(&merged) == bits(&alone), "{name}");
    }
}
