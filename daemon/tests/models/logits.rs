//! The model families against their references, and against themselves in other batches.

use crate::families::{Golden, Row, rows};
use crate::support::{Chunk, Runner};
use metald::models::Dtype;

/// Tokens of a prompt; the golden's other tokens are its greedy continuation.
const NUM_PROMPT_TOKENS: usize = 64;

/// Blocks of one request: out of order and with gaps, so that a mistaken address shows.
fn blocks() -> Vec<i32> {
    (0..24).map(|index| 1 + (index * 15 + 5) % 49).collect()
}

/// Blocks of another, beside them.
fn other_blocks() -> Vec<i32> {
    (24..48).map(|index| 1 + (index * 15 + 5) % 49).collect()
}

fn runner(row: &Row, dtype: Dtype) -> Runner {
    Runner::new(row.load(dtype), 50)
}

/// The logits of tokens that are run in pieces.
fn run(runner: &mut Runner, token_ids: &[i32], pieces: &[usize]) -> Vec<Vec<f32>> {
    assert!(pieces.iter().sum::<usize>() == token_ids.len());
    let mut logits = Vec::new();
    for &len in pieces {
        let num_computed = logits.len();
        logits.extend(runner.run(&[Chunk {
            token_ids: &token_ids[num_computed..num_computed + len],
            num_computed,
            blocks: &blocks(),
        }]));
    }
    logits
}

/// The largest difference, in units of the largest expected value.
fn relative_error(actual: &[Vec<f32>], expected: &[Vec<f32>]) -> f32 {
    assert_eq!(actual.len(), expected.len());
    let largest = |values: &mut dyn Iterator<Item = f32>| {
        // A maximum that forgets no NaN.
        values.fold(0.0, |max, value| if value <= max { max } else { value })
    };
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

fn greedy(logits: &[f32]) -> i32 {
    let best = (0..).zip(logits).max_by(|a, b| a.1.total_cmp(b.1));
    best.expect("a vocabulary").0
}

/// Runs a golden's prompt in pieces, then continues it greedily.
fn run_golden(row: &Row, golden: &Golden, dtype: Dtype, pieces: &[usize]) -> Vec<Vec<f32>> {
    let name = &row.name;
    let mut runner = runner(row, dtype);
    let prompt = &golden.token_ids[..NUM_PROMPT_TOKENS];
    let mut logits = run(&mut runner, prompt, pieces);
    for position in NUM_PROMPT_TOKENS..golden.token_ids.len() {
        let token_id = match dtype {
            Dtype::Float32 => greedy(&logits[position - 1]),
            // Rounding may part the greedy ways.
            Dtype::Float16 | Dtype::Bfloat16 => golden.token_ids[position],
        };
        assert_eq!(token_id, golden.token_ids[position], "{name} at {position}");
        logits.extend(runner.run(&[Chunk {
            token_ids: &[token_id],
            num_computed: position,
            blocks: &blocks(),
        }]));
    }
    logits
}

/// Compares every logit of a golden.
fn check(row: &Row, dtype: Dtype, pieces: &[usize], tolerance: f32) {
    let name = &row.name;
    let golden = Golden::read(name);
    let logits = run_golden(row, &golden, dtype, pieces);
    let error = relative_error(&logits, &golden.logits);
    assert!(error < tolerance, "{name} as {dtype}: error {error}");
}

/// Compares the logits of most tokens: a rounded router sends some of them to another expert.
fn check_most(row: &Row, dtype: Dtype, tolerance: f32) {
    let name = &row.name;
    let golden = Golden::read(name);
    let logits = run_golden(row, &golden, dtype, &[64]);
    let largest = golden.logits.iter().flatten().map(|value| value.abs());
    let largest = largest.fold(0.0, f32::max);
    let is_far = |(actual, expected): (&Vec<f32>, &Vec<f32>)| {
        let close = |(a, b): (&f32, &f32)| (a - b).abs() < tolerance * largest;
        !std::iter::zip(actual, expected).all(close)
    };
    let pairs = std::iter::zip(&logits, &golden.logits);
    let num_far = pairs.filter(|pair| is_far(*pair)).count();
    assert!(
        num_far * 4 < logits.len(),
        "{name} as {dtype}: {num_far} tokens are far"
    );
}

#[test]
fn logits_and_greedy_tokens_are_those_of_the_reference() {
    for row in rows() {
        // Sums of at most 128 products on both sides, in another order; measured below 3e-6.
        for pieces in [&[64][..], &[1, 7, 16, 40], &[33, 31]] {
            check(&row, Dtype::Float32, pieces, 2e-5);
        }
    }
}

#[test]
fn logits_in_half_precision_are_close() {
    for row in rows() {
        // The weights are exact in bf16; keys and values are rounded to 8 bits, and to 11.
        for (dtype, tolerance) in [(Dtype::Bfloat16, 6e-2), (Dtype::Float16, 8e-3)] {
            match row.has_experts() {
                true => check_most(&row, dtype, tolerance),
                false => check(&row, dtype, &[64], tolerance),
            }
        }
    }
}

#[test]
#[should_panic(expected = "llama as float32: error")]
fn a_difference_is_noticed() {
    check(&rows()[0], Dtype::Float32, &[64], 1e-9);
}

#[test]
fn a_prompt_in_chunks_gives_the_same_bits() {
    for row in rows() {
        let token_ids = &Golden::read(&row.name).token_ids[..37];
        let all =
            |pieces: &[usize]| bits(&run(&mut runner(&row, Dtype::Bfloat16), token_ids, pieces));
        let expected = all(&[37]);
        // One by one; around the borders of blocks of 4; and a long one in the middle.
        for pieces in [vec![1; 37], vec![3, 1, 1, 4, 7, 1, 20], vec![2, 33, 2]] {
            assert!(all(&pieces) == expected, "{}", row.name);
        }
    }
}

#[test]
fn a_request_gets_the_same_bits_in_company() {
    for row in rows() {
        let golden = Golden::read(&row.name);
        let token_ids = &golden.token_ids[..37];
        let (prompt, last) = token_ids.split_at(30);
        let other: Vec<i32> = token_ids.iter().rev().copied().collect();
        let (blocks, other_blocks) = (blocks(), other_blocks());
        let chunk = |token_ids, num_computed| Chunk {
            token_ids,
            num_computed,
            blocks: &blocks,
        };
        let other_chunk = |token_ids, num_computed| Chunk {
            token_ids,
            num_computed,
            blocks: &other_blocks,
        };
        let alone = runner(&row, Dtype::Bfloat16).run(&[chunk(token_ids, 0)]);

        let mut runner = runner(&row, Dtype::Bfloat16);
        let first = runner.run(&[other_chunk(&other[..19], 0), chunk(prompt, 0)]);
        let second = runner.run(&[chunk(last, 30), other_chunk(&other[19..20], 19)]);
        let merged = [&first[19..], &second[..last.len()]].concat();
        assert!(bits(&merged) == bits(&alone), "{}", row.name);
    }
}
