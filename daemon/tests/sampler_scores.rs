//! What is told about the tokens beside them: padding, ranks, and what the scores are of.

use metal_rpc_kernels::{self as kernels, eval};
use metal_rpc_protocol::SamplingParams;
use metald::sampler::{LogprobsMode, SampleRow, sample};
use mlx_rs::Array;

fn row(params: &SamplingParams) -> SampleRow<'_> {
    SampleRow {
        params,
        seed: 0,
        table_offset: 0,
        num_prompt_tokens: 0,
        num_tokens: 0,
        grammar: None,
    }
}

fn table() -> Array {
    Array::from_slice(&[0], &[1])
}

#[test]
fn rows_are_padded_to_the_widest() {
    let default = SamplingParams::default;
    let greedy = |params| SamplingParams {
        temperature: 0.0,
        ..params
    };
    let params = [
        greedy(default()),
        greedy(SamplingParams {
            logprobs: Some(0),
            ..default()
        }),
        greedy(SamplingParams {
            logprobs: Some(2),
            ..default()
        }),
        greedy(SamplingParams {
            logprobs: Some(3),
            logprob_token_ids: Some(vec![4, 1, 0]),
            ..default()
        }),
    ];
    let rows: Vec<_> = params.iter().map(|params| row(params)).collect();
    let values = [1.0, -1.0, 3.0, 2.0, 3.0];
    let logits = Array::from_slice(&values.repeat(4), &[4, 5]);
    let mode = LogprobsMode::RawLogits;
    let sampled = sample(&logits, &rows, &table(), mode).expect("sampled");
    let scores = sampled.logprobs.expect("asked for");
    eval([&scores.token_ids, &scores.logprobs, &scores.ranks]).expect("the pass runs");
    let ids = kernels::to_vec_i32(&scores.token_ids).expect("ids");
    let values = kernels::to_vec_f32(&scores.logprobs).expect("values");
    let pad = f32::NEG_INFINITY;
    assert_eq!(ids, [2, 0, 0, 0, 2, 0, 0, 0, 2, 2, 4, 0, 2, 4, 1, 0]);
    assert_eq!(values[4..12], [3.0, pad, pad, pad, 3.0, 3.0, 3.0, pad]);
    assert_eq!(values[12..], [3.0, 3.0, -1.0, 1.0]);
    // The rank counts every token that scores as high, as vLLM's does.
    assert_eq!(
        kernels::to_vec_i32(&scores.ranks).expect("ranks"),
        [0, 2, 2, 2]
    );
}

#[test]
fn raw_scores_are_those_that_the_grammar_leaves() {
    let params = SamplingParams {
        temperature: 0.5,
        logprobs: Some(1),
        ..SamplingParams::default()
    };
    let bound = SampleRow {
        grammar: Some(&[0b0101]),
        ..row(&params)
    };
    let logits = Array::from_slice(&[0.0, 9.0, 0.0, 9.0], &[1, 4]);
    let sampled = sample(&logits, &[bound], &table(), LogprobsMode::RawLogprobs).expect("sampled");
    let scores = sampled.logprobs.expect("asked for");
    eval([&scores.logprobs]).expect("the pass runs");
    for score in kernels::to_vec_f32(&scores.logprobs).expect("values") {
        assert!((score - 0.5f32.ln()).abs() < 1e-6, "{score}");
    }
}
