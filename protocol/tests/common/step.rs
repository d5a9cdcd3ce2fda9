//! Examples of steps and of their results.

use metal_rpc_protocol::{
    Exec, F32Array, GrammarBitmask, I32Array, Logprobs, NewBlocks, NewRequest,
    PromptLogprobTokenIds, PromptLogprobs, PromptTokenIdLogprobs, RowError, Sample, SamplingParams,
    StepResult, ThinkingBudget,
};

/// The first step of one short greedy request.
pub(super) fn exec() -> Exec {
    Exec {
        new_requests: vec![NewRequest {
            handle: 0,
            req_id: "cmpl-1".to_owned(),
            token_ids: I32Array(vec![504, 3575, 282, 4649, 314]),
            num_prompt_tokens: 5,
            block_ids: vec![vec![1]],
            sampling_params: SamplingParams {
                temperature: 0.0,
                stop_token_ids: vec![2],
                ..SamplingParams::default()
            },
        }],
        handles: vec![0],
        num_computed_tokens: vec![0],
        num_scheduled_tokens: vec![5],
        ..Exec::default()
    }
}

/// A step in which no field is empty or absent.
pub(super) fn exec_every_field() -> Exec {
    Exec {
        sample_follows: false,
        finished: vec![3, 130],
        new_requests: vec![NewRequest {
            handle: 3,
            req_id: "chatcmpl-9f3c2a".to_owned(),
            token_ids: I32Array(vec![0, 1, 127, 128, 49_151, 1_048_575, 70_000]),
            num_prompt_tokens: 5,
            block_ids: vec![vec![1, 200, 70_000], vec![7]],
            sampling_params: every_sampling_param(),
        }],
        handles: vec![3, 4, 300],
        num_computed_tokens: vec![0, 17, 8191],
        num_scheduled_tokens: vec![7, 1, 1],
        new_blocks: vec![
            NewBlocks {
                row: 1,
                block_ids: vec![vec![201], vec![]],
            },
            NewBlocks {
                row: 2,
                block_ids: vec![vec![202, 203], vec![8]],
            },
        ],
        block_copies: vec![(5, 204), (6, 205)],
        grammar: Some(GrammarBitmask {
            rows: vec![0, 2],
            bitmask: I32Array(vec![-1, 1, i32::MIN, i32::MAX, 0, 2]),
        }),
    }
}

fn every_sampling_param() -> SamplingParams {
    SamplingParams {
        temperature: 0.75,
        top_p: 0.95,
        top_k: 40,
        min_p: 0.05,
        seed: Some(-9_007_199_254_740_993),
        presence_penalty: 0.5,
        frequency_penalty: -0.25,
        repetition_penalty: 1.1,
        min_tokens: 4,
        stop_token_ids: vec![2, 49_151],
        logit_bias: vec![(11, -100.0), (70_000, 2.5)],
        allowed_token_ids: Some(vec![2, 11, 70_000]),
        bad_words_token_ids: vec![vec![5], vec![300, 301]],
        logprobs: Some(5),
        prompt_logprobs: Some(-1),
        logprob_token_ids: Some(vec![9, 10]),
        thinking_budget: Some(ThinkingBudget {
            max_tokens: 300,
            start_token_ids: vec![128],
            natural_end_token_ids: vec![129, 130],
            end_token_ids: vec![70_000, 129, 130],
        }),
        prompt_logprob_token_ids: Some(PromptLogprobTokenIds {
            start: 2,
            num_columns: 2,
            token_ids: I32Array(vec![7, 70_000, 8, -1]),
        }),
        trace_decode_token_ids: Some(vec![70_000, 2]),
    }
}

/// The step that a server of 64 chats sends most of the time: each request decodes one token,
/// and those that reach the end of a block get one more.
pub(super) fn exec_decode_64() -> Exec {
    let num_computed_tokens: Vec<u32> = (0..64).map(|row| 500 + 37 * row).collect();
    let new_blocks = (0..64)
        .filter(|row| (500 + 37 * row) % 16 == 0)
        .map(|row| NewBlocks {
            row,
            block_ids: vec![vec![1900 + row]],
        })
        .collect();
    Exec {
        handles: (0..64).collect(),
        num_computed_tokens,
        new_blocks,
        ..Exec::default()
    }
}

/// The grammar of two structured requests, over a vocabulary of 96 tokens.
pub(super) fn sample() -> Sample {
    Sample {
        exec_seq: 5,
        grammar: Some(GrammarBitmask {
            rows: vec![0, 1],
            bitmask: I32Array(vec![-1, 0, 1, i32::MIN, i32::MAX, 2]),
        }),
    }
}

/// The result of [`exec_every_field`].
pub(super) fn step_result() -> StepResult {
    StepResult {
        token_ids: I32Array(vec![70_000, -1, 42]),
        logprobs: Some(Logprobs {
            num_columns: 3,
            token_ids: I32Array(vec![70_000, 11, 13, -1, -1, -1, 42, 42, -1]),
            logprobs: F32Array(vec![
                -0.125, -0.125, -2.5, 0.0, 0.0, 0.0, -0.1, -0.1, -1.0e9,
            ]),
            ranks: I32Array(vec![1, 0, 1]),
        }),
        prompt_logprobs: vec![PromptLogprobs {
            row: 0,
            logprobs: Logprobs {
                num_columns: 2,
                token_ids: I32Array(vec![1, 5, 127, 127]),
                logprobs: F32Array(vec![-7.25, -0.5, -0.75, -0.75]),
                ranks: I32Array(vec![912, 1]),
            },
        }],
        prompt_token_id_logprobs: vec![PromptTokenIdLogprobs {
            row: 0,
            num_columns: 2,
            logprobs: F32Array(vec![-2.25, -0.125, -3.5, -1.0e9]),
        }],
        row_errors: vec![RowError {
            row: 1,
            message: "no token is allowed: allowed_token_ids and bad_words exclude all".to_owned(),
        }],
        queue_us: 85,
        run_us: 31_200,
    }
}
